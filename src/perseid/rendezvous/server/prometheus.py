"""What the server counts, in Prometheus' text exposition format."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Counters:
    """Totals since the start; each field's docstring is its help line."""

    connections: int = 0
    registrations: int = 0
    replaced: int = 0
    lost_closed: int = 0
    lost_silent: int = 0
    left: int = 0
    tcpunch_pairs: int = 0
    tcpunch_dead_waiters: int = 0
    relay_pairs: int = 0
    relay_bytes: int = 0
    refused_key: int = 0
    refused_limit: int = 0
    refused_rate: int = 0
    refused_other: int = 0
    malformed: int = 0
    slow_hello: int = 0
    accept_errors: int = 0


HELP: dict[str, str] = {
    "connections": "Connections accepted.",
    "registrations": "Registrations granted.",
    "replaced": "Registrations replaced by newer ones.",
    "lost_closed": "Registered ranks whose connection ended without a goodbye.",
    "lost_silent": "Registered ranks that gave no sign of life for their silence timeout.",
    "left": "Registered ranks that finished and left.",
    "tcpunch_pairs": "Pairs of TCPunch clients.",
    "tcpunch_dead_waiters": "TCPunch clients found dead when their partner came.",
    "relay_pairs": "Pairs joined by the relay.",
    "relay_bytes": "Bytes that passed the relay.",
    "refused_key": "Requests refused for a missing or wrong job key.",
    "refused_limit": "Connections refused at a limit.",
    "refused_rate": "Connections refused by the limit per address.",
    "refused_other": "Requests refused for another reason.",
    "malformed": "Connections closed for invalid bytes.",
    "slow_hello": "Connections closed because their request did not arrive in time.",
    "accept_errors": "Failed attempts to accept a connection (no descriptors left).",
}


def render(counters: Counters, gauges: dict[str, tuple[float, str]]) -> str:
    """Prometheus' text exposition format, version 0.0.4."""
    lines: list[str] = []
    for name in (one.name for one in fields(counters)):
        full = f"perseid_rendezvous_{name}_total"
        lines += [f"# HELP {full} {HELP[name]}", f"# TYPE {full} counter"]
        lines.append(f"{full} {getattr(counters, name)}")
    for name, (value, text) in gauges.items():
        full = f"perseid_rendezvous_{name}"
        lines += [f"# HELP {full} {text}", f"# TYPE {full} gauge", f"{full} {value:g}"]
    return "\n".join(lines) + "\n"
