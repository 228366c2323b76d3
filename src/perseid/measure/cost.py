"""What a run costs, as billed, one line per service, and the variant of the course reports.

As billed: *configured* memory x *billed* duration, plus requests, transitions, storage, Fargate,
IPv4 and logs. For a local run, the same lines say what the same invocations would have cost on AWS
if they had taken as long as on this machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

from perseid.measure.prices import COURSE_GB_SECOND, Prices
from perseid.measure.report_line import Report

MB_PER_GB = 1024.0
"""MB in a GB as Lambda bills it: 10,240 MB are 10 GB."""
BYTES_PER_GB = 2.0**30
SECONDS_PER_MONTH = 30 * 86400.0
FREE_TMP_MB = 512.0
"""MB of /tmp that Lambda does not bill."""
FARGATE_MINIMUM_SECONDS = 60.0
"""Shortest time that Fargate bills for a task."""
TRANSITIONS_OUTSIDE_MAP = 3
"""State transitions besides those of the ranks: initialize, the map state itself, summarize."""


@dataclass(frozen=True)
class Rendezvous:
    """The Fargate task of the rendezvous server for the duration of a run."""

    seconds: float
    vcpu: float = 0.25
    memory_gb: float = 0.5
    public_ipv4: int = 1
    architecture: str = "x86"


@dataclass(frozen=True)
class Usage:
    """What a run used, in the units that are billed."""

    reports: Sequence[Report] = ()
    """REPORT of each worker invocation, including failed attempts, which are billed, too."""
    other_reports: Sequence[Report] = ()
    """REPORTs of the functions around the workers: initialize and summarize."""
    architecture: str = "x86"
    tmp_mb: float = FREE_TMP_MB
    """Configured size of /tmp of a worker, in MB."""
    other_tmp_gb_seconds: float = 0.0
    """GB-seconds of /tmp above 512 MB of the functions around the workers."""
    failed_init_ms: float = 0.0
    """Init time of workers' environments that failed to start, in ms: billed, but in no REPORT."""
    transitions: int = 0
    """State transitions of standard workflows (`map_transitions`), including `refused`."""
    refused: int = 0
    """State transitions that repeated calls which Lambda had refused."""
    express_requests: int = 0
    express_gb_seconds: float = 0.0
    s3_gets: int = 0
    s3_puts: int = 0
    """Number of PUT and LIST requests."""
    stored_bytes: float = 0.0
    """Bytes of the partitions and results in the store."""
    stored_seconds: float = 0.0
    """Seconds of storage that are charged to this run: its own duration."""
    log_bytes: float = 0.0
    rendezvous: Rendezvous | None = None
    core_seconds: float = 0.0
    """Cores x seconds of all attempts, starts included, on machines that AWS does not bill."""
    public_bytes: float = 0.0
    """Bytes sent from one public address to another: between ranks, and through the relay."""


@dataclass(frozen=True)
class CostLine:
    """One line of the bill."""

    name: str
    quantity: float
    unit: str
    usd: float
    note: str = ""


@dataclass(frozen=True)
class Cost:
    """The bill of a run, and the course's variant beside it."""

    lines: tuple[CostLine, ...]
    memory_used_variant: float
    """USD according to the course tables: requests x duration x memory USED x 0.00001667. AWS does
    not bill this."""
    prices: Prices = field(default_factory=Prices, repr=False)

    @property
    def total(self) -> float:
        """Sum of all lines, in USD."""
        return sum(line.usd for line in self.lines)

    def to_json(self) -> dict[str, object]:
        """Plain JSON values, as ``summary.json`` holds them under ``cost``."""
        return {
            "total_usd": self.total,
            "lines": [asdict(line) for line in self.lines],
            "memory_used_variant_usd": self.memory_used_variant,
            "prices": self.prices.stamp(),
        }


def cost(usage: Usage, prices: Prices | None = None) -> Cost:
    """Compute the bill for some usage.

    Most lines are kept if they are zero, so that bills can be compared line by line. Raises
    `BadInputError` for an unknown architecture.
    """
    prices = prices or Prices()
    lines = (
        *_lambda_lines(usage, prices),
        *_workflow_lines(usage, prices),
        *_storage_lines(usage, prices),
        *_server_lines(usage.rendezvous, prices),
        _line("CloudWatch Logs", usage.log_bytes / BYTES_PER_GB, "GB", prices.logs_gb.usd),
        *_traffic_lines(usage.public_bytes, prices),
    )
    return Cost(lines, memory_used_cost(usage.reports), prices)


def memory_used_cost(reports: Iterable[Report]) -> float:
    """USD as in the course tables: the sum of duration (s) x max memory used (GB) x 0.00001667."""
    gb_seconds = sum(r.duration_ms / 1e3 * r.max_memory_mb / MB_PER_GB for r in reports)
    return gb_seconds * COURSE_GB_SECOND


def map_transitions(invocations: int, ranks: int) -> int:
    """State transitions of initialize, a Distributed Map with one state per child, and summarize.

    Each retry enters its state again and counts as another transition.
    """
    return TRANSITIONS_OUTSIDE_MAP + max(invocations, ranks)


def billed_gb_seconds(reports: Iterable[Report]) -> float:
    """Configured memory in GB x billed seconds, over all invocations."""
    return sum(r.memory_mb / MB_PER_GB * r.billed_ms / 1e3 for r in reports)


def tmp_gb_seconds(tmp_mb: float, seconds: float) -> float:
    """GB-seconds of /tmp that are billed: configured size above 512 MB x seconds."""
    return max(0.0, tmp_mb - FREE_TMP_MB) / MB_PER_GB * seconds


def _line(name: str, quantity: float, unit: str, usd_a_unit: float, note: str = "") -> CostLine:
    return CostLine(name, quantity, unit, quantity * usd_a_unit, note)


def _lambda_lines(usage: Usage, prices: Prices) -> list[CostLine]:
    compute = billed_gb_seconds(usage.reports)
    seconds = sum(r.billed_ms for r in usage.reports) / 1e3
    tmp = tmp_gb_seconds(usage.tmp_mb, seconds) + usage.other_tmp_gb_seconds
    price = prices.lambda_gb_second(usage.architecture).usd
    arch = f"{usage.architecture}, configured memory x billed duration"
    around = []
    if usage.other_reports:
        spent = billed_gb_seconds(usage.other_reports)
        around = [_line("Lambda initialize and summarize", spent, "GB-s", price, arch)]
    if usage.failed_init_ms:
        # INIT_REPORT does not say the memory: all workers have the same.
        memory = max((report.memory_mb for report in usage.reports), default=0.0) / MB_PER_GB
        lost, why = memory * usage.failed_init_ms / 1e3, "environments that did not start"
        around.append(_line("Lambda failed inits", lost, "GB-s", price, why))
    requests = len(usage.reports) + len(usage.other_reports)
    return [
        _line("Lambda compute", compute, "GB-s", price, arch),
        *around,
        _line("Lambda requests", requests, "requests", prices.lambda_request.usd),
        _line("Lambda /tmp above 512 MB", tmp, "GB-s", prices.lambda_tmp_gb_second.usd),
    ]


def _workflow_lines(usage: Usage, prices: Prices) -> list[CostLine]:
    price, unit = prices.state_transition.usd, "state transitions"
    lines = [_line("Step Functions", usage.transitions - usage.refused, unit, price)]
    # On a line of their own, since they are the price of too low a concurrency.
    if usage.refused:
        why = "calls that Lambda refused, and that were repeated"
        lines.append(_line("Step Functions, refused calls", usage.refused, unit, price, why))
    if usage.express_requests:
        lines += [
            _line("Express", usage.express_requests, "executions", prices.express_request.usd),
            _line(
                "Express duration", usage.express_gb_seconds, "GB-s", prices.express_gb_second.usd
            ),
        ]
    return lines


def _storage_lines(usage: Usage, prices: Prices) -> list[CostLine]:
    gb_month = usage.stored_bytes / BYTES_PER_GB * usage.stored_seconds / SECONDS_PER_MONTH
    monthly = usage.stored_bytes / BYTES_PER_GB * prices.s3_gb_month.usd
    note = f"while the run lasted; {monthly:.3g} USD a month as long as it stays"
    return [
        _line("S3 GET", usage.s3_gets, "requests", prices.s3_get.usd),
        _line("S3 PUT and LIST", usage.s3_puts, "requests", prices.s3_put.usd),
        _line("S3 storage", gb_month, "GB-months", prices.s3_gb_month.usd, note),
    ]


def _traffic_lines(sent: float, prices: Prices) -> list[CostLine]:
    """The line for traffic between public addresses; none if nothing was sent."""
    if not sent:
        return []
    why = "estimated; out and in"
    # Billed where it leaves and where it arrives, even within one region.
    gigabytes = 2 * sent / BYTES_PER_GB
    return [_line("Public addresses", gigabytes, "GB", prices.public_transfer_gb.usd, why)]


def _server_lines(task: Rendezvous | None, prices: Prices) -> list[CostLine]:
    # Without a rendezvous the lines stay, with zeros: bills are compared line by line.
    task = task or Rendezvous(0.0)
    # Fargate bills at least a minute per task.
    billed = max(task.seconds, FARGATE_MINIMUM_SECONDS) if task.seconds > 0 else 0.0
    hours = billed / 3600
    size = f"rendezvous, {task.vcpu:g} vCPU, {task.memory_gb:g} GB" if hours else "no rendezvous"
    vcpu, memory = (
        prices.fargate_vcpu_hour(task.architecture).usd,
        prices.fargate_gb_hour(task.architecture).usd,
    )
    return [
        _line("Fargate vCPU", hours * task.vcpu, "vCPU-hours", vcpu, size),
        _line("Fargate memory", hours * task.memory_gb, "GB-hours", memory),
        _line("Public IPv4", hours * task.public_ipv4, "hours", prices.ipv4_hour.usd),
    ]
