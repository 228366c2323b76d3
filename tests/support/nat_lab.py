"""A laboratory of NATs: anonymous network namespaces, nftables, and an "internet" in Python.

Each site's gateway has a TUN device `wan`; one thread reads all of them and passes each packet to
the site that owns its destination address, after a delay or not at all. Namespaces are held by
descriptors only, so nothing is left behind even by SIGKILL. Needs root, nft, ip, /dev/net/tun.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_libc = ctypes.CDLL(None, use_errno=True)


def why_not() -> str:
    """Why the laboratory cannot be built here; empty if it can."""
    if os.geteuid() != 0:
        return "not root"
    for tool in ("ip", "nft"):
        if shutil.which(tool) is None:
            return f"`{tool}` is not installed (apt-get install nftables iproute2)"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    try:
        with Lab() as lab:
            lab.site("preserving")
    except (OSError, RuntimeError) as error:
        return f"namespaces or nftables do not work: {error}"
    return ""


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


class Namespace:
    """An anonymous network namespace."""

    def __init__(self) -> None:
        made: list[int | OSError] = []

        def make() -> None:  # unshare moves the calling thread only
            try:
                _check(_libc.unshare(CLONE_NEWNET), "unshare")
                made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
            except OSError as error:
                made.append(error)

        self.inside(make, enter=False)
        if isinstance(made[0], OSError):
            raise made[0]
        self.fd: int = made[0]
        self.path = f"/proc/{os.getpid()}/fd/{self.fd}"

    def enter(self) -> None:
        """Move the calling thread (or a child before exec) into it."""
        _check(_libc.setns(self.fd, CLONE_NEWNET), "setns")

    def inside(self, call: Callable[[], object], enter: bool = True) -> object:
        """The result of a call made by a thread that lives in the namespace."""
        results: list[object] = []

        def run() -> None:
            try:
                if enter:
                    self.enter()
                results.append(call())
            except BaseException as error:
                results.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if isinstance(results[0], BaseException):
            raise results[0]
        return results[0]

    def run(self, command: list[str], text: str) -> None:
        """Run a tool in it, fed with text."""
        done = subprocess.run(
            command, input=text, text=True, capture_output=True, preexec_fn=self.enter
        )
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stderr}\n{text}")

    def ip(self, *lines: str, family: str = "-4") -> None:
        self.run(["ip", family, "-batch", "-"], "\n".join(lines) + "\n")

    def nft(self, text: str) -> None:
        self.run(["nft", "-f", "-"], text)

    def sysctl(self, name: str, value: str) -> None:
        def write() -> None:
            with open(f"/proc/sys/{name}", "w") as file:
                file.write(value)

        self.inside(write)

    def close(self) -> None:
        os.close(self.fd)


@dataclass
class Site:
    """A public address with one or several hosts behind it, or a public host."""

    gateway: Namespace
    address: str
    tun: int
    hosts: list[Namespace] = field(default_factory=list)
    address6: str = ""


INBOUND = {
    "drop": "iifname wan drop;",
    "reset": "iifname wan meta l4proto tcp reject with tcp reset;",
    "kernel": "",
}
"""What a gateway does with unsolicited packets; `kernel`: its own stack answers RST."""


def nat_rule(kind: str, address: str) -> str:
    """How a gateway maps local ports."""
    return {
        "preserving": "oifname wan masquerade",
        "independent": f"oifname wan ip protocol tcp snat to {address} : "
        "jhash ip saddr . tcp sport mod 60000 offset 5000",
        "by-address": f"oifname wan ip protocol tcp snat to {address} : "
        "jhash ip saddr . tcp sport . ip daddr mod 60000 offset 5000",
        "symmetric": "oifname wan masquerade fully-random",
    }[kind]


class Lab:
    """Sites joined by an internet.

    Parameters
    ----------
    delay
        Seconds one way.
    loss
        Probability of each packet to be lost.
    """

    def __init__(self, delay: float = 0.005, loss: float = 0.0, seed: int = 1) -> None:
        self.delay, self.loss = delay, loss
        self.cut: set[frozenset[str]] = set()
        """Pairs of sites' addresses between which nothing passes."""
        self.deaf: set[str] = set()
        """Addresses of sites to which nothing passes."""
        self._chance = random.Random(seed)
        self._sites: dict[bytes, Site] = {}
        self._spaces: list[Namespace] = []
        self._epoll = select.epoll()
        self._stop = False
        self._number = 0
        self._thread = threading.Thread(target=self._internet, daemon=True)
        self._thread.start()

    # --- building ----------------------------------------------------------------------------

    def space(self) -> Namespace:
        made = Namespace()
        self._spaces.append(made)
        return made

    def site(self, kind: str, inbound: str = "drop", hosts: int = 1, dual: bool = False) -> Site:
        """A site.

        Parameters
        ----------
        kind
            ``public``, ``preserving``, ``independent``, ``by-address`` (its ports change with the
            destination's address), ``symmetric`` (with its port, too) or ``v6``.
        inbound
            ``drop``, ``reset`` or ``kernel``; ``open`` for a public host without a filter.
        hosts
            How many workers live behind it.
        dual
            Whether the hosts have public IPv6 addresses, too, behind a stateful firewall (or, of a
            public site, without one).
        """
        self._number += 1
        six = kind == "v6"
        address = f"2001:db8::{self._number:x}" if six else f"203.0.113.{self._number}"
        gateway = self.space()
        site = Site(gateway, address, self._tun(gateway))
        self._connect(gateway, address, six)
        if kind in ("public", "v6"):
            site.hosts = [gateway] * hosts
        else:
            self._behind(site, kind, hosts)
        if inbound != "open":
            self._filter(gateway, inbound)
        if dual:
            self._dual(site, kind == "public")
        family = socket.AF_INET6 if six else socket.AF_INET
        self._sites[socket.inet_pton(family, address)] = site
        self._epoll.register(site.tun, select.EPOLLIN)
        return site

    @staticmethod
    def _tun(space: Namespace) -> int:
        def open_it() -> int:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            request = struct.pack("16sH22x", b"wan", IFF_TUN | IFF_NO_PI)
            fcntl.ioctl(fd, TUNSETIFF, request)
            return fd

        return int(space.inside(open_it))  # type: ignore[call-overload]

    @staticmethod
    def _connect(space: Namespace, address: str, six: bool) -> None:
        bits, extra = (128, " nodad") if six else (32, "")
        space.ip(
            "link set lo up",
            f"addr add {address}/{bits} dev wan{extra}",
            "link set wan up",
            "route add default dev wan",
            family="-6" if six else "-4",
        )

    def _behind(self, site: Site, kind: str, hosts: int) -> None:
        """All private networks overlap, as they do at home."""
        gateway = site.gateway
        gateway.sysctl("net/ipv4/ip_forward", "1")
        gateway.ip("link add lan type bridge", "addr add 10.0.0.1/24 dev lan", "link set lan up")
        for number in range(hosts):
            host = self.space()
            gateway.ip(
                f"link add h{number} type veth peer name eth0 netns {host.path}",
                f"link set h{number} master lan up",
            )
            host.ip(
                "link set lo up",
                f"addr add 10.0.0.{number + 2}/24 dev eth0",
                "link set eth0 up",
                "route add default via 10.0.0.1",
            )
            site.hosts.append(host)
        gateway.nft(
            "table ip nat { chain post { type nat hook postrouting priority 100; "
            f"{nat_rule(kind, site.address)};\n}}\n}}"
        )

    def _dual(self, site: Site, public: bool) -> None:
        """IPv6 besides IPv4: of the gateway itself, or routed to the hosts behind it."""
        net = f"2001:db8:{self._number:x}"
        site.address6 = f"{net}::2"
        self._sites[socket.inet_pton(socket.AF_INET6, site.address6)] = site
        if public:
            site.gateway.ip(
                f"addr add {site.address6}/128 dev wan nodad",
                "route add default dev wan",
                family="-6",
            )
            return
        for number, host in enumerate(site.hosts):
            address = f"{net}::{number + 2:x}"
            self._sites[socket.inet_pton(socket.AF_INET6, address)] = site
            host.ip(
                f"addr add {address}/64 dev eth0 nodad",
                f"route add default via {net}::1",
                family="-6",
            )
        site.gateway.sysctl("net/ipv6/conf/all/forwarding", "1")
        site.gateway.ip(
            f"addr add {net}::1/64 dev lan nodad", "route add default dev wan", family="-6"
        )
        site.gateway.nft(
            "table ip6 wall { chain forward { type filter hook forward priority 0; "
            "ct state established,related accept; iifname wan drop;\n}\n}"
        )

    @staticmethod
    def _filter(space: Namespace, inbound: str) -> None:
        space.nft(
            "table inet filter { chain input { type filter hook input priority 0; "
            f"ct state established,related accept; {INBOUND[inbound]}\n}}\n}}"
        )

    # --- the internet ------------------------------------------------------------------------

    def _internet(self) -> None:
        heap: list[tuple[float, int, int, bytes]] = []
        count = 0
        while not self._stop:
            wait = heap[0][0] - time.monotonic() if heap else 0.05
            with contextlib.suppress(OSError, ValueError):
                for fd, _ in self._epoll.poll(max(0.0, min(wait, 0.05))):
                    for packet, target in self._read(fd):
                        count += 1
                        due = time.monotonic() + self.delay
                        heapq.heappush(heap, (due, count, target, packet))
            while heap and heap[0][0] <= time.monotonic():
                _, _, target, packet = heapq.heappop(heap)
                with contextlib.suppress(OSError):
                    os.write(target, packet)

    def _read(self, fd: int) -> list[tuple[bytes, int]]:
        found = []
        for _ in range(64):
            try:
                packet = os.read(fd, 65536)
            except OSError:
                break
            six = packet[0] >> 4 == 6
            source = packet[8:24] if six else packet[12:16]
            destination = packet[24:40] if six else packet[16:20]
            site = self._sites.get(destination)
            if self.cut and self._is_cut(source, destination):
                continue
            if site is not None and site.address in self.deaf:
                continue
            if site is not None and not (self.loss and self._chance.random() < self.loss):
                found.append((packet, site.tun))
        return found

    def _is_cut(self, source: bytes, destination: bytes) -> bool:
        known = [self._sites.get(address) for address in (source, destination)]
        return frozenset(site.address for site in known if site is not None) in self.cut

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop = True
        self._thread.join(5)
        for tun in {site.tun for site in self._sites.values()}:
            os.close(tun)
        for space in self._spaces:
            space.close()
        self._epoll.close()
