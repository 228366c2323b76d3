"""``serve`` and ``key``: what the command line and ``python -m perseid.rendezvous`` share.

Only argument parsing, logging set-up, signals and the loop; nothing here prints but the log
handler and the key asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from perseid.durations import time_argument
from perseid.errors import BadInputError
from perseid.linux import need_linux
from perseid.rendezvous.net.endpoint import DEFAULT_PORT
from perseid.rendezvous.protocol.auth import job_key
from perseid.rendezvous.server.log_output import logging_to_stdout
from perseid.rendezvous.server.server import Server
from perseid.rendezvous.server.server_config import Config, read_certificate, read_secret

DRAIN_SECONDS = 20.0
"""Time to shut down; container platforms send SIGKILL after 30 s."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands ``serve`` and ``key``."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    serve = commands.add_parser("serve", help="run the server until SIGTERM or Ctrl-C")
    _add_addresses_and_keys(serve)
    _add_limits(serve)
    serve.add_argument(
        "--drain",
        type=_time,
        default=DRAIN_SECONDS,
        metavar="TIME",
        help="longest time to shut down (default: %(default)g s)",
    )
    serve.add_argument("--log", choices=("text", "json"), default="text")
    serve.add_argument("--log-level", choices=("debug", "info", "warning"), default="info")
    serve.set_defaults(act=_serve)
    key = commands.add_parser("key", help="print the key of one job, for its workers")
    key.add_argument("--key-file", required=True)
    key.add_argument("job", metavar="JOB")
    key.set_defaults(act=_key)


def _add_addresses_and_keys(serve: argparse.ArgumentParser) -> None:
    serve.add_argument("--host", default="", help="address to listen on (default: all, v4 and v6)")
    serve.add_argument("--port", type=_port, default=DEFAULT_PORT, help="default: %(default)s")
    serve.add_argument(
        "--http-port",
        type=_port,
        default=DEFAULT_PORT + 1,
        help="/healthz, /readyz, /metrics and NAT probes (default: %(default)s)",
    )
    keys = serve.add_mutually_exclusive_group(required=True)
    keys.add_argument("--key-file", help="file with the secret that job keys are derived from")
    keys.add_argument(
        "--open", action="store_true", help="no keys: anybody who can connect may join"
    )
    serve.add_argument(
        "--certificate", metavar="FILE", help="certificate and private key (PEM): workers that "
        "know its fingerprint register in TLS; `perseid comm certificate` makes one",
    )  # fmt: skip
    serve.add_argument("--tcpunch", action=argparse.BooleanOptionalAction, default=True)
    serve.add_argument("--relay", action=argparse.BooleanOptionalAction, default=True)


def _add_limits(serve: argparse.ArgumentParser) -> None:
    serve.add_argument(
        "--relay-rate", type=float, default=0.0, metavar="MB/S", help="0: not limited (default)"
    )
    serve.add_argument(
        "--relay-pairs",
        type=int,
        default=Config.relay_pairs,
        metavar="N",
        help="most relayed pairs at once (default: %(default)s)",
    )
    serve.add_argument(
        "--rate",
        type=float,
        default=Config.rate,
        metavar="N/S",
        help="new connections per second from one address; 0: not limited (default: %(default)g)",
    )
    serve.add_argument(
        "--wait",
        type=_time,
        default=Config.waiting_seconds,
        metavar="TIME",
        help="longest wait of a TCPunch client for its partner (default: %(default)g s)",
    )
    serve.add_argument(
        "--link-timeout",
        type=_time,
        default=Config.link_timeout,
        metavar="TIME",
        help="a worker whose host answers nothing for so long is lost (default: %(default)g s)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the chosen subcommand."""
    return int(args.act(args))


def _time(text: str) -> float:
    try:
        return float(text)  # the settings' own checks judge -1 and nan
    except ValueError:
        return time_argument(text)


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


def _key(args: argparse.Namespace) -> int:
    sys.stdout.write(job_key(read_secret(args.key_file), args.job).hex() + "\n")
    return 0


def _serve(args: argparse.Namespace) -> int:
    need_linux("A rendezvous server")
    if not all(one >= 0 for one in (args.relay_rate, args.rate, args.drain)):
        raise BadInputError("--relay-rate, --rate and --drain cannot be negative.")
    if not (args.wait > 0 and args.link_timeout > 0):
        raise BadInputError("--wait and --link-timeout must be above 0 seconds.")
    config = Config(
        host=args.host,
        port=args.port,
        http_port=args.http_port,
        secret=None if args.open else read_secret(args.key_file),
        certificate=None if args.certificate is None else read_certificate(args.certificate),
        tcpunch=args.tcpunch,
        relay=args.relay,
        relay_rate=args.relay_rate * 1e6,
        relay_pairs=args.relay_pairs,
        rate=args.rate,
        waiting_seconds=args.wait,
        link_timeout=args.link_timeout,
    )
    with logging_to_stdout(args.log, args.log_level):
        asyncio.run(_until_signal(config, args.drain))
    return 0


async def _until_signal(config: Config, drain: float) -> None:
    loop = asyncio.get_running_loop()
    asked, at_once = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (at_once if asked.is_set() else asked).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with Server(config) as server:
        await asked.wait()
        draining = asyncio.ensure_future(server.drain(drain))
        hurrying = asyncio.ensure_future(at_once.wait())
        await asyncio.wait({draining, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
        hurrying.cancel()
