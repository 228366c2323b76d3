"""Registrations a second, a large run registered and informed, memory per waiting client.

    python benchmarks/rendezvous.py [--quick]

A server process of its own; load from several processes that speak the protocol over plain
sockets (no client threads, so that the load is lighter than what it measures). TCPunch pairs are
measured beside it, for the published servers' figures are pairs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import select
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from multiprocessing.synchronize import Event

import avx2

from perseid.rendezvous.protocol import MAGIC, Complete, Peers, Register, Welcome
from perseid.rendezvous.protocol.auth import fresh_instance, fresh_nonce
from perseid.rendezvous.protocol.wire import MAX_SERVER_FRAME, FrameReader


class ServerProcess:
    """`python -m perseid.rendezvous serve` and what /proc says of it."""

    def __init__(self, port: int) -> None:
        self.port = port
        command = [sys.executable, "-m", "perseid.rendezvous", "serve", "--open"]
        command += ["--port", str(port), "--http-port", str(port + 1), "--log-level", "warning"]
        self._process = subprocess.Popen([*command, "--host", "127.0.0.1", "--drain", "0"])
        end = time.monotonic() + 10
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port + 1}/readyz", timeout=1).read()
                return
            except OSError:
                time.sleep(0.05)
        raise SystemExit("the server did not start")

    def resident(self) -> int:
        """Bytes of resident memory."""
        with open(f"/proc/{self._process.pid}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    def cpu(self) -> float:
        """Seconds of processor time used so far."""
        with open(f"/proc/{self._process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)


def register_bytes(job: str, rank: int, world: int, everyone: bool) -> bytes:
    interest = (range(world),) if everyone else ()
    hello = Register(job, rank, world, 0, fresh_instance(), fresh_nonce(), 0, interest=interest)
    return MAGIC + hello.pack()


def churn(port: int, who: int, count: int, go: Event, out: multiprocessing.Queue) -> None:
    """Register, read the welcome, close; one after the other."""
    hello = [register_bytes(f"churn-{who}-{i % 50}", i % 16, 16, False) for i in range(64)]
    linger = b"\1\0\0\0\0\0\0\0"  # close with RST: no TIME_WAIT heaps up
    # Without the conversions between numbers and enums of socket.socket: the load shares the cores
    # with the server.
    make, family, kind = socket.SocketType, int(socket.AF_INET), int(socket.SOCK_STREAM)
    level, option, target = int(socket.SOL_SOCKET), int(socket.SO_LINGER), ("127.0.0.1", port)
    go.wait()
    for i in range(count):
        sock = make(family, kind)
        sock.setsockopt(level, option, linger)
        sock.connect(target)
        sock.send(hello[i % 64])
        if sock.recv(4096)[0] != Welcome.KIND:
            raise SystemExit("no welcome")
        sock.close()
    out.put(count)


def pairs(port: int, who: int, count: int, go: Event, out: multiprocessing.Queue) -> None:
    """TCPunch version 2 pairs (no name grace: each request is complete), both ends here."""
    go.wait()
    for i in range(count):
        request = f"pair-{who}-{i}".encode().ljust(141, b"\0")
        ends = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
        for sock in ends:
            sock.sendall(request)
        for sock in ends:
            data = b""
            while len(data) % 50 or not data or data[-50] != 1:
                data += sock.recv(100)
            sock.close()
    out.put(count)


def run_load(target: object, port: int, processes: int, count: int) -> float:
    context = multiprocessing.get_context("fork")
    go, out = context.Event(), context.Queue()
    load = [
        context.Process(target=target, args=(port, who, count, go, out)) for who in range(processes)
    ]
    for process in load:
        process.start()
    time.sleep(0.3)
    began = time.perf_counter()
    go.set()
    for _ in load:
        out.get(timeout=300)
    took = time.perf_counter() - began
    for process in load:
        process.join()
    return processes * count / took


class Waiting:
    """Many registered sockets in this process, read through one epoll."""

    def __init__(self) -> None:
        self.socks: dict[int, tuple[socket.socket, FrameReader]] = {}
        self._epoll = select.epoll()

    def add(self, port: int, hello: bytes) -> None:
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(hello)
        sock.setblocking(False)
        self.socks[sock.fileno()] = (sock, FrameReader(MAX_SERVER_FRAME))
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def until(self, world: int, everyone: bool, seconds: float) -> None:
        """Until each has heard that the job is complete (and of all ranks)."""
        heard = dict.fromkeys(self.socks, 0)
        complete: set[int] = set()
        end = time.monotonic() + seconds
        done = 0
        while done < len(self.socks):
            if time.monotonic() > end:
                raise SystemExit(f"only {done} of {len(self.socks)} were informed")
            for fd, _ in self._epoll.poll(1.0):
                sock, reader = self.socks[fd]
                for kind, body in reader.feed(sock.recv(1 << 20)):
                    if kind == Peers.KIND:
                        heard[fd] += int.from_bytes(body[:4], "big")
                    elif kind == Complete.KIND:
                        complete.add(fd)
                if fd in complete and (not everyone or heard[fd] >= world):
                    done += fd in heard
                    heard.pop(fd, None)

    def close(self) -> None:
        for sock, _ in self.socks.values():
            sock.close()
        self._epoll.close()


def large_run(server: ServerProcess, world: int, everyone: bool) -> float:
    """Seconds from the first connection until all ranks know that, or where, all the others are."""
    waiting = Waiting()
    hellos = [register_bytes(f"large-{everyone}", rank, world, everyone) for rank in range(world)]
    began = time.perf_counter()
    for hello in hellos:
        waiting.add(server.port, hello)
    waiting.until(world, everyone, 60)
    took = time.perf_counter() - began
    waiting.close()
    return took


def memory_per_client(server: ServerProcess, clients: int) -> float:
    """Bytes of the server for one client that waits for the rest of its job."""
    before = server.resident()
    waiting = Waiting()
    for rank in range(clients):
        waiting.add(server.port, register_bytes("memory", rank, clients + 1, False))
    time.sleep(1.0)
    grown = server.resident() - before
    waiting.close()
    return grown / clients


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it function?")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--json", help="write the figures there")
    avx2.add_argument(parser)
    args = parser.parse_args()
    avx2.rerun(args)
    count, world, repeats = (100, 200, 1) if args.quick else (3000, 2000, 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    assert soft <= hard
    server = ServerProcess(int(os.environ.get("PORT", "23500")))
    found: dict[str, float] = {}
    try:
        memory = memory_per_client(server, world)
        found["bytes_per_waiting_client"] = memory
        print(f"memory per waiting client     {memory:10.0f} bytes")
        for name, load, unit in (("registrations", churn, 1), ("tcpunch v2 pairs", pairs, 2)):
            before = server.cpu()
            rates = [
                run_load(load, server.port, args.processes, count // unit) for _ in range(repeats)
            ]
            rate = statistics.median(rates)
            each = (server.cpu() - before) / (repeats * args.processes * (count // unit))
            found[name.replace(" ", "_") + "_per_second"] = rate
            found[name.replace(" ", "_") + "_server_cpu_us"] = each * 1e6
            print(f"{name:29} {rate:10.0f} a second ({each * 1e6:.0f} us of the server's CPU each)")
        for everyone, text in ((False, "all know that all came"), (True, "each knows all")):
            took = statistics.median([large_run(server, world, everyone) for _ in range(repeats)])
            found[f"ranks_{world}_{'all' if everyone else 'complete'}_seconds"] = took
            print(f"{world} ranks, {text:22}{took:10.2f} s")
    finally:
        server.stop()
    if args.json:
        with open(args.json, "w") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
