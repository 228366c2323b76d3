"""A worker process that does what it is told, one JSON line a command, one JSON line an answer.

Started by tests, also inside network namespaces; standard library and perseid.rendezvous only.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from typing import Any

from perseid.errors import PerseidError
from perseid.rendezvous import Client, parse_key
from perseid.rendezvous.net import dialing


class Worker:
    def __init__(self) -> None:
        self.client: Client | None = None
        self.links: dict[int, Any] = {}
        self.notices: list[tuple[float, str, int]] = []

    def register(self, server, job, rank, world, key=None, deadline=10.0, gives=None, **more):
        """Register; ``gives``: what the server's name gives, instead of asking a name server."""
        if gives is not None:
            families = {4: socket.AF_INET, 6: socket.AF_INET6}
            found = [(families[6 if ":" in host else 4], host) for host in gives]
            plain = dialing.resolve
            dialing.resolve = lambda to: found if server.startswith(to.host) else plain(to)
        self.client = Client.register(
            server, job, rank, world, key=parse_key(key) if key else None, deadline=deadline, **more
        )
        self.client.subscribe(self.noted)
        return {"port": self.client.port}

    def noted(self, notice):
        self.notices.append((time.time(), notice.kind, notice.rank))

    def port(self):
        return {"port": self.client.port}

    def wait_complete(self, deadline):
        self.client.wait_complete(deadline)
        return {}

    def connect(self, ranks, deadline):
        began = time.monotonic()
        links = self.client.connect(ranks, deadline)
        self.links.update(links)
        transports = {rank: link.transport for rank, link in links.items()}
        return {"ways": transports, "seconds": time.monotonic() - began}

    def talk(self):
        """Say my rank to each link and hear its rank: the right peer is at the other end."""
        for link in self.links.values():
            link.sock.settimeout(20)
            link.sock.sendall(self.client.rank.to_bytes(4, "big"))
        heard = {}
        for rank, link in self.links.items():
            data = b""
            while len(data) < 4:
                part = link.sock.recv(4 - len(data))
                if not part:
                    break
                data += part
            heard[rank] = int.from_bytes(data, "big") if len(data) == 4 else None
        return {"heard": heard}

    def send(self, rank, count):
        self.links[rank].sock.settimeout(60)
        self.links[rank].sock.sendall(bytes(i % 251 for i in range(count)))
        return {}

    def receive(self, rank, count):
        sock = self.links[rank].sock
        sock.settimeout(60)
        began, data = time.monotonic(), bytearray()
        while len(data) < count:
            part = sock.recv(1 << 20)
            if not part:
                break
            data += part
        right = data == bytes(i % 251 for i in range(count))
        return {"right": right, "seconds": time.monotonic() - began}

    def nat(self, within=0.0):
        """The NAT kind, as soon as both parts are known or the time is over."""
        end = time.monotonic() + within
        while time.monotonic() < end and 0 in self.client.nat:
            time.sleep(0.005)
        kind = self.client.nat
        return {"mapping": kind.mapping.name, "filter": kind.filter.name}

    def events(self):
        return {"notices": self.notices, "lost": self.client.lost()}

    def missing(self):
        return {"missing": self.client.missing(5.0)}

    def close(self):
        self.client.close()
        return {}


def main() -> None:
    worker = Worker()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(worker, command.pop("do"))(**command)
        except PerseidError as error:
            answer = {"error": type(error).__name__, "text": str(error)}
            for name in ("missing", "ranks", "rank"):
                if hasattr(error, name):
                    answer[name] = getattr(error, name)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
