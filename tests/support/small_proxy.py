"""A proxy as a process of its own: forwards plain HTTP, tunnels CONNECT, and may want a password.

Names that nobody else can look up are led to addresses: only through the proxy can they be reached.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from perseid.lifetime import bound_to_parent


@dataclass(frozen=True)
class Proxy:
    """A running proxy."""

    url: str
    """Without a password."""
    log: Path
    """One line per request."""

    @property
    def asked(self) -> list[str]:
        """Method and host of each request so far."""
        return self.log.read_text().splitlines()


@contextlib.contextmanager
def proxy(folder: Path, password: str = "", **hosts: str) -> Iterator[Proxy]:
    """Start one that leads each host (``_`` for ``.``) to an address; kill it afterwards."""
    log = folder / "proxy.log"
    log.touch()
    names = [f"{name.replace('_', '.')}={address}" for name, address in hosts.items()]
    command = [sys.executable, __file__, str(log), password, *names]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, preexec_fn=bound_to_parent()
    ) as process:
        try:
            assert process.stdout is not None
            yield Proxy(f"http://127.0.0.1:{int(process.stdout.readline())}", log)
        finally:
            process.kill()


async def serve(log: Path, password: str, hosts: dict[str, str]) -> None:
    """The program of the process."""

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            method, target, _ = head.split(" ", 2)
            host = urlsplit(target if "://" in target else f"//{target}").hostname or ""
            with log.open("a") as lines:
                lines.write(f"{method} {host}\n")
            refused = _refusal(head, password, host in hosts)
            if refused:
                writer.write(refused)
            else:
                await _forward(method, head, hosts[host], reader, writer)
        writer.close()

    server = await asyncio.start_server(client, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def _refusal(head: str, password: str, known: bool) -> bytes:
    wanted = base64.b64encode(password.encode()).decode()
    if password and f"proxy-authorization: basic {wanted}".lower() not in head.lower():
        return (
            b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n"
            b'Proxy-Authenticate: Basic realm="x"\r\nConnection: close\r\n\r\n'
        )
    if not known:
        return b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    return b""


async def _forward(
    method: str,
    head: str,
    address: str,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    name, _, port = address.rpartition(":")
    there, here = await asyncio.open_connection(name, int(port))
    if method == "CONNECT":
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    else:
        first, _, rest = head.partition("\r\n")
        target = urlsplit(first.split(" ")[1])
        path = target.path + (f"?{target.query}" if target.query else "")
        here.write(f"{method} {path} HTTP/1.1\r\nConnection: close\r\n{rest}".encode("latin-1"))
    await asyncio.gather(_pump(reader, here), _pump(there, writer))


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
    with contextlib.suppress(OSError):
        sink.close()


if __name__ == "__main__":
    given = dict(word.split("=", 1) for word in sys.argv[3:])
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2], given))
