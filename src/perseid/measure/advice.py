"""Chooses partition size, world size, memory and processor for a deadline and a budget.

A stated model, not a fit: time of a run = initialize + start of the map + cold start + slowest
worker + summarize; time of a worker = its rows through the model, or its bytes through the network
if that takes longer, plus beginning and end of a rank. Cost as billed: `perseid.measure.cost`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

from perseid.errors import BadInputError
from perseid.measure.calibration import Calibration, vcpus
from perseid.measure.cost import Usage, cost, map_transitions
from perseid.measure.measured_run import MIB
from perseid.measure.prices import Prices
from perseid.measure.report_line import Report
from perseid.plaintext import html_table

PARTITIONS_MB = (5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 200.0)
MEMORIES_MB = (512, 1024, 1769, 2048, 3008, 3538, 5307, 7076, 8845, 10_240)
"""Usual memory sizes in MB, and those with which Lambda gives 1 to 5 whole vCPUs."""
INITIALIZE_SECONDS = 2.5
"""Seconds of initialize: cold start of a small function and a listing. Assumed, not measured."""
MAP_SECONDS = 1.0
"""Seconds until a Distributed Map has read its items and begins. Assumed, not measured."""
SUMMARIZE_SECONDS = 2.5
"""Seconds of summarize without reading: cold start of a small function. Assumed, not measured."""
COLLECT_SECONDS = 0.05 / 32
"""Seconds to read the objects of one rank: 0.049 s in the published runs, 32 ranks at once here."""
CHILD_SECONDS = 0.018
"""Seconds that each further worker adds to the map, from all causes: the slope of the published map
states with 25 MB partitions, from 20.15 s with 82 workers to 28.08 s with 517."""
STRAGGLER = 4.0
"""Time of the slowest workers relative to the median, for the upper end of a plan's time: in the
published runs with 517 workers, the slowest 5 % took up to this many times the median."""
SCALING_SECONDS = 10.0
"""Seconds in which Lambda adds `Limits.scaling` environments to a function."""
FULL = 0.85
"""Largest share of its memory that a worker may be expected to use."""
LATE = 0.8
"""Largest share of its time-out that a worker may need, at the upper end of the estimate."""
GAIN = 0.98
"""A limit is called binding if doubling it reduces the time to less than this share."""
REQUESTS_A_PARTITION, OBJECTS_A_RANK = 5, 4


@dataclass(frozen=True)
class Limits:
    """What an account, a function and the network allow."""

    concurrency: int = 1000
    """Workers that may run at the same time; new accounts may have 10."""
    scaling: int = 1000
    """Environments that Lambda adds to one function every 10 seconds."""
    memory_mb: int = 10_240
    """Largest memory of a function, in MB; new accounts may have 3,008."""
    network: float = 1.0
    """Factor by which the calibration's network speed is multiplied."""
    timeout: float = 900.0
    """Time-out of a worker, in seconds."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise BadInputError(f"{name} must be above 0, not {value}")


@dataclass(frozen=True)
class Ask:
    """The input of a plan: the data, a deadline, a budget."""

    data_bytes: float
    deadline: float | None = None
    """Seconds that the whole run may take; None: any time."""
    budget: float | None = None
    """USD that the run may cost; None: any price."""
    partitions_mb: Sequence[float] = PARTITIONS_MB
    """Partition sizes to choose from, in MB of 2^20 bytes."""
    memories_mb: Sequence[int] = MEMORIES_MB
    architectures: Sequence[str] = ("x86",)
    """Architectures to choose from, all at the calibration's speed: calibrate on the one to use."""
    limits: Limits = field(default_factory=Limits)
    sure: bool = False
    """Whether the limits apply to the upper ends of time and cost, not to the expected values."""

    def within(self, option: PlanOption, *, deadline: bool = True) -> bool:
        """Whether an option keeps the budget and, unless ``deadline`` is False, the deadline."""
        seconds, usd = option.seconds.expected, option.usd.expected
        if self.sure:
            seconds, usd = option.seconds.high, option.usd.high
        late = deadline and self.deadline is not None and seconds > self.deadline
        return not late and (self.budget is None or usd <= self.budget)

    def __post_init__(self) -> None:
        for name in ("data_bytes", "deadline", "budget"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise BadInputError(f"{name.replace('_', ' ')} must be above 0, not {value:g}")


@dataclass(frozen=True)
class Range:
    """An estimate: the expected value and both ends of its range."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True)
class PlanOption:
    """One choice of partition size, world size and memory, with its expected time and cost."""

    partition_mb: float
    partitions: int
    world_size: int
    memory_mb: int
    architecture: str
    seconds: Range
    """Time of the whole run, in seconds."""
    usd: Range
    """Cost as billed, in USD, if every start is cold."""
    worker_mb: float
    """Expected peak memory of a worker, in MB."""
    parts: dict[str, float]
    """Expected seconds of each part of the run."""

    @property
    def vcpus(self) -> float:
        """The vCPUs that Lambda gives a worker of this memory."""
        return vcpus(self.memory_mb)


@dataclass(frozen=True)
class Advice:
    """The option to choose, and what keeps the run from being faster."""

    option: PlanOption | None
    """The best option; None if none keeps both the deadline and the budget."""
    fastest: PlanOption
    """The fastest option, whatever it costs."""
    cheapest: PlanOption
    """The cheapest option, however long it takes."""
    front: tuple[PlanOption, ...]
    """The Pareto front, by time: no other option is both faster and cheaper than one of these."""
    binds: tuple[str, ...]
    """Limits that keep the run from being faster, one sentence each, the strongest first."""
    ask: Ask
    calibration: Calibration
    """The assumed speed of a worker."""
    prices: Prices
    """The prices that were applied."""

    def _repr_html_(self) -> str:
        options = ("advice", self.option), ("fastest", self.fastest), ("cheapest", self.cheapest)
        rows = [(name, f"{one.partition_mb:g}", one.world_size, one.memory_mb, one.architecture,
                 f"{one.seconds.expected:.1f}", f"{one.usd.expected:.4f}")
                for name, one in options if one is not None]  # fmt: skip
        return html_table(("", "MB a file", "ranks", "memory (MB)", "", "seconds", "USD"), rows)

    def to_json(self) -> dict[str, object]:
        """The plan as JSON values, for ``--json``."""
        plain = asdict(self)
        return {name: value for name, value in plain.items() if name not in ("ask", "prices")}


def advise(ask: Ask, calibration: Calibration, prices: Prices | None = None) -> Advice:
    """Choose the cheapest option that keeps both limits; without a deadline, the fastest.

    With neither limit, the one with the lowest time x cost. `Ask.sure` says what must keep them.

    Raises
    ------
    BadInputError
        No memory size is enough for a worker, or no partition size is small enough for the
        time-out.
    """
    prices = prices or Prices()
    options = list(_options(ask, calibration, prices))
    if not options:
        raise BadInputError(_impossible(ask, calibration))
    fastest = min(options, key=lambda o: (o.seconds.expected, o.usd.expected))
    cheapest = min(options, key=lambda o: (o.usd.expected, o.seconds.expected))
    chosen = _choose(ask, options)
    binds = tuple(_binds(ask, calibration, prices, chosen, fastest, cheapest))
    return Advice(chosen, fastest, cheapest, _front(options), binds, ask, calibration, prices)


def _choose(ask: Ask, options: Sequence[PlanOption]) -> PlanOption | None:
    fit = [option for option in options if ask.within(option)]
    if not fit:
        return None
    if ask.deadline is not None:
        return min(fit, key=lambda o: (o.usd.expected, o.seconds.expected))
    if ask.budget is not None:
        return min(fit, key=lambda o: (o.seconds.expected, o.usd.expected))
    return min(fit, key=lambda o: o.seconds.expected * o.usd.expected)


def _options(ask: Ask, calibration: Calibration, prices: Prices) -> Iterator[PlanOption]:
    for size in ask.partitions_mb:
        # Rounded first: without it, a quotient like 517.0000000001 would become one file more.
        files = max(1, math.ceil(round(ask.data_bytes / (size * MIB), 6)))
        for world in _world_sizes(files):
            for memory in ask.memories_mb:
                if memory > ask.limits.memory_mb:
                    continue
                for arch in ask.architectures:
                    option = estimate(ask, calibration, prices, size, files, world, memory, arch)
                    if option is not None:
                        yield option


def _world_sizes(files: int) -> list[int]:
    """World sizes with 1, 2, 4, … 128 files per worker."""
    return sorted({math.ceil(files / 2**power) for power in range(8)}, reverse=True)


def estimate(
    ask: Ask,
    calibration: Calibration,
    prices: Prices,
    partition_mb: float,
    partitions: int,
    world_size: int,
    memory_mb: int,
    architecture: str,
) -> PlanOption | None:
    """Estimate one option; None if a worker would exceed its memory or its time-out."""
    most = math.ceil(partitions / world_size)
    share = min(1.0, most / partitions)
    rows = ask.data_bytes * share / calibration.row_bytes
    worker_mb = calibration.worker_mb(rows)
    if worker_mb > FULL * memory_mb:
        return None
    fetch = ask.data_bytes * share / 1e6 / (calibration.network_mb_s * ask.limits.network)
    work = _spread(calibration, rows / calibration.rate(memory_mb), fetch)
    own = calibration.rank_seconds
    # With less than one vCPU, a start takes longer in proportion; more than one do not help.
    ready = calibration.ready_seconds / min(1.0, vcpus(memory_mb))
    if ready + own + work.high > LATE * ask.limits.timeout:
        return None
    times, parts = _times(ask.limits, calibration, world_size, work, ready + own)
    used = [_usd(ask, prices, partitions, world_size, memory_mb, architecture, s)
            for s in _billed(calibration, work, share * world_size, ready + own)]  # fmt: skip
    return PlanOption(
        partition_mb, partitions, world_size, memory_mb, architecture,
        times, Range(*used), worker_mb, parts,
    )  # fmt: skip


def _spread(calibration: Calibration, compute: float, fetch: float) -> Range:
    """Seconds of reading and computing, which overlap: at best, expected, as a straggler."""
    return Range(
        max(compute / calibration.doubt, fetch / calibration.doubt),
        max(compute, fetch),
        max(compute * max(calibration.doubt, STRAGGLER), fetch * calibration.doubt),
    )


def _times(
    limits: Limits, calibration: Calibration, world_size: int, work: Range, own: float
) -> tuple[Range, dict[str, float]]:
    """Time of the whole run in seconds, and the expected seconds of its parts."""
    at_once = min(world_size, limits.concurrency)
    waves = math.ceil(world_size / limits.concurrency)
    # The first `scaling` environments start at once; the others wait until Lambda adds more.
    late = max(0.0, at_once - limits.scaling) / limits.scaling * SCALING_SECONDS
    # The largest of n normally distributed logarithms is about sqrt(2 ln n) deviations too large.
    slowest = work.expected * math.exp(
        calibration.variation * math.sqrt(2 * math.log(max(2, at_once)))
    )
    parts = {
        "initialize": INITIALIZE_SECONDS,
        "start of the map": MAP_SECONDS + CHILD_SECONDS * world_size + late,
        "workers": own + slowest + (waves - 1) * (calibration.rank_seconds + work.expected),
        "summarize": SUMMARIZE_SECONDS + COLLECT_SECONDS * world_size,
    }
    whole = sum(parts.values())
    low = whole - CHILD_SECONDS * world_size - (slowest - work.low)
    low -= (waves - 1) * (work.expected - work.low)
    # Only a straggler in the last wave counts: other workers fill the gaps of earlier ones.
    return Range(low, whole, whole + max(0.0, work.high - slowest)), parts


def _billed(calibration: Calibration, work: Range, fullness: float, own: float) -> Iterator[float]:
    """Average billed seconds of a worker: at best, expected, and with 5 % stragglers."""
    high = 0.95 * work.expected * calibration.doubt + 0.05 * work.high
    for part in (work.low, work.expected, max(high, work.expected)):
        yield own + part / max(1.0, fullness)


def _usd(ask: Ask, prices: Prices, partitions: int, world_size: int, memory_mb: int,
         architecture: str, seconds: float) -> float:  # fmt: skip
    report = Report("", seconds * 1e3, math.ceil(seconds * 1e3), memory_mb, 0.0)
    worker = cost(Usage(reports=[report], architecture=architecture), prices).total
    usage = Usage(
        transitions=map_transitions(world_size, world_size),
        s3_gets=partitions * REQUESTS_A_PARTITION + world_size * OBJECTS_A_RANK,
        s3_puts=world_size * OBJECTS_A_RANK + 6 + partitions // 1000 + 1,
        stored_bytes=ask.data_bytes,
        stored_seconds=seconds + INITIALIZE_SECONDS + SUMMARIZE_SECONDS,
        log_bytes=1000.0 * world_size,
    )
    return world_size * worker + cost(usage, prices).total


def _front(options: Iterable[PlanOption]) -> tuple[PlanOption, ...]:
    """Options by time, each of them cheaper than all faster ones."""
    front: list[PlanOption] = []
    for option in sorted(options, key=lambda o: (o.seconds.expected, o.usd.expected)):
        if not front or option.usd.expected < front[-1].usd.expected:
            front.append(option)
    return tuple(front)


def _binds(ask: Ask, calibration: Calibration, prices: Prices, chosen: PlanOption | None,
           fastest: PlanOption, cheapest: PlanOption) -> Iterator[str]:  # fmt: skip
    """Find what keeps the run from being faster: double each limit in turn, strongest first."""
    if chosen is None:
        yield from _unfit(ask, fastest, cheapest)
    before = (chosen or fastest).seconds.expected
    now = _fastest(ask, calibration, prices)
    gains = []
    for name, words, changed, pace in _relaxed(ask, calibration):
        ratio = _fastest(changed, pace, prices) / now
        if ratio < GAIN:
            gains.append((ratio, f"{name}: {words}"))
    for ratio, text in sorted(gains):
        yield f"{text} the fastest run would take {1 - ratio:.0%} less"
    fixed = INITIALIZE_SECONDS + MAP_SECONDS + SUMMARIZE_SECONDS + calibration.ready_seconds
    if fixed > 0.5 * before:
        yield f"starting: {fixed:.1f} s of {before:.1f} s are starts that no size changes"


def _fastest(ask: Ask, calibration: Calibration, prices: Prices) -> float:
    """Seconds of the fastest option within the budget, or of all options if none is."""
    found = list(_options(ask, calibration, prices))
    within = [option for option in found if ask.within(option, deadline=False)] or found
    return min(o.seconds.expected for o in within)


def _relaxed(ask: Ask, calibration: Calibration) -> Iterator[tuple[str, str, Ask, Calibration]]:
    limits = ask.limits
    for name, words, change in (
        ("concurrency", f"with {2 * limits.concurrency:,} workers at once",
         {"concurrency": 2 * limits.concurrency}),
        ("rate of scaling", f"with {2 * limits.scaling:,} new environments each 10 s",
         {"scaling": 2 * limits.scaling}),
        ("network", "with twice the bytes per second", {"network": 2 * limits.network}),
        ("memory", f"with functions up to {2 * limits.memory_mb:,} MB",
         {"memory_mb": 2 * limits.memory_mb}),
    ):  # fmt: skip
        # A higher limit helps only if a memory of that size is among the choices.
        more = [*ask.memories_mb, 2 * limits.memory_mb] if name == "memory" else ask.memories_mb
        relaxed = replace(ask, limits=replace(limits, **change), memories_mb=more)
        yield name, words, relaxed, calibration
    faster = replace(calibration, rows_per_second=2 * calibration.rows_per_second)
    yield "pace of the model", "with twice the rows per second", ask, faster
    if ask.budget is not None:
        twice = replace(ask, budget=2 * ask.budget)
        yield "price", f"with {2 * ask.budget:g} USD", twice, calibration


def _unfit(ask: Ask, fastest: PlanOption, cheapest: PlanOption) -> Iterator[str]:
    """Say which of the two limits cannot be kept, and what would be needed to keep it."""
    alone = replace(ask, budget=None)
    late, dear = not alone.within(fastest), not ask.within(cheapest, deadline=False)
    if late:
        seconds = fastest.seconds.high if ask.sure else fastest.seconds.expected
        yield f"deadline: the fastest option takes {seconds:.1f} s, not {ask.deadline:g} s"
    if dear:
        usd = cheapest.usd.high if ask.sure else cheapest.usd.expected
        yield f"budget: the cheapest option costs {usd:.3g} USD, not {ask.budget:g} USD"
    if not late and not dear:
        yield "price: what keeps the deadline costs more than the budget"


def _impossible(ask: Ask, calibration: Calibration) -> str:
    smallest = min(ask.partitions_mb)
    rows = smallest * MIB / calibration.row_bytes
    need = calibration.worker_mb(rows) / FULL
    largest = min(max(ask.memories_mb), ask.limits.memory_mb)
    if need > largest:
        return (
            f"memory binds: a worker with one partition of {smallest:g} MB needs {need:,.0f} MB, "
            f"but functions may have {largest:,} MB; allow more memory or smaller partitions"
        )
    return (
        f"the time-out binds: a worker with one partition of {smallest:g} MB may take more than "
        f"{ask.limits.timeout:g} s on {largest:,} MB; allow smaller partitions or more memory"
    )
