"""Server and worker processes for the rendezvous' tests, and a client of TCPunch version 1."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from perseid.rendezvous.protocol import FROM_SERVER, MAGIC, Register, decode
from perseid.rendezvous.protocol.auth import fresh_instance, fresh_nonce
from perseid.rendezvous.protocol.wire import MAX_SERVER_FRAME, FrameReader

WORKER = Path(__file__).with_name("rendezvous_worker.py")


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago on both families' loopback."""
    socks = [socket.socket() for _ in range(count)]
    for sock in socks:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


class ServerProcess:
    """``python -m perseid.rendezvous serve`` on loopback."""

    def __init__(self, *options: str, host: str = "127.0.0.1", ports=None, prefix=(), preexec=None):
        self.port, self.http_port = ports or free_ports(2)
        self.host = host
        command = [*prefix, sys.executable, "-m", "perseid.rendezvous", "serve", "--log", "json"]
        command += ["--port", str(self.port), "--http-port", str(self.http_port)]
        if host:
            command += ["--host", host]
        self.command = [*command, *(options or ("--open",))]
        self.preexec = preexec
        self.log: list[dict] = []
        self.start()

    def start(self) -> None:
        """Start (again) and wait for the line that says it listens."""
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, text=True, preexec_fn=self.preexec
        )
        line = self.process.stdout.readline()
        while '"listening"' not in line:
            self.log.append(json.loads(line))
            line = self.process.stdout.readline()
        self.log.append(json.loads(line))
        self.reader = threading.Thread(target=self._read, args=(self.process.stdout,))
        self.reader.start()

    def _read(self, out) -> None:
        for line in out:
            self.log.append(json.loads(line))

    @property
    def address(self) -> str:
        return f"{self.host or '127.0.0.1'}:{self.port}"

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a page of the HTTP port."""
        url = f"http://{self.host or '127.0.0.1'}:{self.http_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        """One value of /metrics."""
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(f"perseid_rendezvous_{name} "):
                return float(line.split()[1])
        raise KeyError(name)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def finish(self, seconds: float = 15) -> int:
        """Exit status, with the rest of the log read."""
        status = self.process.wait(seconds)
        self.reader.join(seconds)
        self.process.stdout.close()
        return status

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.finish()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.kill()


class WorkerProcess:
    """A worker in a process of its own; commands and answers are JSON lines."""

    def __init__(self, preexec=None):
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=preexec,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self._buffer = b""

    def ready(self):
        assert self.answer(30) == {"ready": True}
        return self

    def ask(self, do: str, **more) -> None:
        """Give a command without waiting."""
        self.process.stdin.write(json.dumps({"do": do, **more}).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self, seconds: float = 30) -> dict:
        """The next answer."""
        end = time.monotonic() + seconds
        fd = self.process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                raise TimeoutError(f"no answer within {seconds} s")
            part = os.read(fd, 1 << 20)
            if not part:
                raise EOFError("the worker died")
            self._buffer += part
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)

    def do(self, do: str, seconds: float = 30, **more) -> dict:
        """Give a command and wait for its answer."""
        self.ask(do, **more)
        return self.answer(seconds)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self.process.stdin.close()
        self.process.stdout.close()


@contextlib.contextmanager
def workers(count: int, preexec=None):
    """Several worker processes, started at once."""
    found = [WorkerProcess(preexec(rank) if preexec else None) for rank in range(count)]
    try:
        yield [one.ready() for one in found]
    finally:
        for one in found:
            one.stop()


def all_do(many, do: str, seconds: float = 30, **more) -> list[dict]:
    """The same command to all at once; values that are callables get the index."""
    for index, one in enumerate(many):
        given = {name: value(index) if callable(value) else value for name, value in more.items()}
        one.ask(do, **given)
    return [one.answer(seconds) for one in many]


# --- TCPunch version 1, as its description says, from the client's side ---------------------------


def tcpunch_connect(port: int, host: str = "127.0.0.1") -> socket.socket:
    """Connect from a port that will be used again for punching."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("0.0.0.0", 0))
    sock.settimeout(10)
    sock.connect((host, port))
    return sock


def read_address(sock: socket.socket) -> tuple[str, int]:
    """One reply of 8 bytes."""
    data = b""
    while len(data) < 8:
        part = sock.recv(8 - len(data))
        if not part:
            raise EOFError("the server closed")
        data += part
    assert data[6:] == b"\0\0"
    return socket.inet_ntoa(data[:4]), int.from_bytes(data[4:6], "big")


def tcpunch_pair(name: str, port: int, seconds: float = 10.0) -> socket.socket:
    """Pair under a name: announce, learn the own address, listen, learn the peer's, punch."""
    control = tcpunch_connect(port)
    control.sendall(name.encode())
    own = read_address(control)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("0.0.0.0", own[1]))
    listener.listen(1)
    listener.setblocking(False)
    control.settimeout(seconds)
    peer = read_address(control)
    try:
        return _punch(listener, own, peer, time.monotonic() + seconds)
    finally:
        listener.close()
        control.close()


def _punch(listener, own, peer, end):
    while time.monotonic() < end:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("0.0.0.0", own[1]))
        sock.settimeout(0.5)
        try:
            sock.connect(peer)
            return sock
        except OSError:
            sock.close()
        with contextlib.suppress(BlockingIOError):
            accepted, address = listener.accept()
            if address[0] == peer[0]:
                accepted.setblocking(True)
                return accepted
            accepted.close()
        time.sleep(0.01)
    raise TimeoutError("not punched in time")


def hello(job="job", rank=0, world=2, generation=0, **more) -> Register:
    """A registration of a process of its own."""
    return Register(job, rank, world, generation, fresh_instance(), fresh_nonce(), **more)


class RawWorker:
    """A worker that speaks the protocol by hand; without a frame it says nothing at first."""

    def __init__(self, server, frame=None, first=MAGIC):
        self.hello = frame
        self.sock = socket.create_connection(("127.0.0.1", server.port), 10)
        self.reader = FrameReader(MAX_SERVER_FRAME)
        self.frames = []
        if frame is not None:
            self.sock.sendall(first + frame.pack())

    def next(self, seconds=5.0):
        """The next frame; None: the server closed."""
        self.sock.settimeout(seconds)
        while not self.frames:
            try:
                data = self.sock.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self.frames += [decode(FROM_SERVER, *one) for one in self.reader.feed(data)]
        return self.frames.pop(0)

    def until(self, kind, seconds=5.0):
        """The next frame of a type; others are dropped."""
        while not isinstance(frame := self.next(seconds), kind):
            assert frame is not None, f"the server closed before {kind.__name__}"
        return frame

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.sock.close()
