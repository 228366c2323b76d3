"""Plans: the model worked out by hand, the choice against brute force, what binds."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perseid.cli import main, units
from perseid.errors import BadInputError
from perseid.measure import advice as planning
from perseid.measure.advice import Ask, Limits, advise, estimate
from perseid.measure.calibration import Calibration, Pace, from_paces, from_runs, vcpus
from perseid.measure.measured_run import MIB
from perseid.measure.prices import Prices
from perseid.measure.report_line import Report
from perseid.measure.sources.load import load_runs

GB = 1024 * MIB
PACE = Calibration(
    rows_per_second=100.0, scaling=2.0, ready_seconds=1.0, rank_seconds=0.5, base_mb=200.0,
    row_bytes=20_000.0, variation=0.0, doubt=2.0, network_mb_s=50.0,
)  # fmt: skip


def one(ask: Ask, pace: Calibration = PACE, **changes: object):
    given = {"partition_mb": 25.0, "partitions": 40, "world_size": 40, "memory_mb": 1769}
    words = given | {"architecture": "x86"} | changes
    return estimate(ask, pace, Prices(), **words)  # type: ignore[arg-type]


def test_an_estimate_by_hand() -> None:
    """40 workers of 1,000 rows: 10 s of model on one vCPU, 0.4 s of network beside it."""
    option = one(Ask(data_bytes=40 * 20e6))
    assert option.parts == pytest.approx(
        {"initialize": 2.5, "start of the map": 1 + 40 * 0.018, "workers": 1.5 + 10.0,
         "summarize": 2.5 + 40 * 0.05 / 32}
    )  # fmt: skip
    whole = 2.5 + 1.72 + 11.5 + 2.5625
    assert option.seconds.expected == pytest.approx(whole)
    assert option.seconds.low == pytest.approx(whole - 0.72 - 5.0)  # twice as fast, no wait
    assert option.seconds.high == pytest.approx(whole + 30.0)  # a straggler takes four times
    assert option.worker_mb == pytest.approx(200 + 1000 * 400 / 2**20)
    compute = 40 * 11.5 * 1769 / 1024 * 0.0000166667
    others = 40 * 0.20e-6 + 43 * 0.025e-3 + (40 * 5 + 160) * 0.0004e-3 + 167 * 0.005e-3
    others += 40 * 1000 / 2**30 * 0.5 + 800e6 / 2**30 * 16.5 / 2_592_000 * 0.023
    assert option.usd.expected == pytest.approx(compute + others, rel=1e-6)
    assert option.usd.low < option.usd.expected < option.usd.high


def test_memory_gives_processors_up_to_six_and_less_than_one() -> None:
    assert vcpus(1769) == 1
    assert vcpus(10_240) == pytest.approx(5.7886, abs=1e-3)
    assert PACE.rate(884.5) == pytest.approx(50)
    assert PACE.rate(3538) == pytest.approx(200)
    assert replace(PACE, scaling=1.0).rate(10_240) == 100


def test_the_network_is_what_counts_where_the_model_is_fast() -> None:
    fast = replace(PACE, rows_per_second=1e6)
    assert one(Ask(40 * 20e6), fast).parts["workers"] == pytest.approx(1.5 + 20e6 / 50e6)


def test_more_workers_than_may_run_at_once_come_in_waves() -> None:
    ask = Ask(40 * 20e6, limits=Limits(concurrency=10))
    assert one(ask).parts["workers"] == pytest.approx(1.5 + 10 + 3 * 10.5)


def test_a_new_account_takes_52_rounds_for_517_workers() -> None:
    """10 workers at once and 3,008 MB: each round as long as a worker, none with more memory."""
    limits = Limits(concurrency=10, memory_mb=3008)
    ask = Ask(517 * 20e6, limits=limits, partitions_mb=(20e6 / 2**20,))
    option = one(ask, partitions=517, world_size=517)
    assert option.parts["workers"] == pytest.approx(1.5 + 10 + 51 * 10.5)
    assert option.seconds.expected == pytest.approx(
        2.5 + 1 + 517 * 0.018 + 547 + 2.5 + 517 * 0.05 / 32
    )
    assert max(o.memory_mb for o in every(ask, PACE)) == 3008
    assert advise(ask, PACE, Prices()).option is not None


def test_what_does_not_fit_memory_or_time_is_no_option() -> None:
    assert one(Ask(40 * 20e6), memory_mb=128) is None
    assert one(Ask(40 * 20e6, limits=Limits(timeout=40))) is None
    assert one(Ask(40 * 20e6, limits=Limits(timeout=60))) is not None


def every(ask: Ask, pace: Calibration):
    return list(planning._options(ask, pace, Prices()))


@settings(max_examples=15, deadline=None)
@given(
    size=st.floats(0.2, 20), deadline=st.floats(5, 600), budget=st.floats(0.001, 2),
    rate=st.floats(20, 2000), sure=st.booleans(),
)  # fmt: skip
def test_the_choice_is_the_best_of_all(size, deadline, budget, rate, sure) -> None:
    pace = replace(PACE, rows_per_second=rate)
    small = {"partitions_mb": (25.0, 100.0), "memories_mb": (1769, 10_240), "sure": sure}
    ask = Ask(size * GB, deadline, budget, **small)
    advice, options = advise(ask, pace), every(ask, pace)

    def counted(o):
        return (o.seconds.high, o.usd.high) if sure else (o.seconds.expected, o.usd.expected)

    fit = [o for o in options if counted(o)[0] <= deadline and counted(o)[1] <= budget]
    if not fit:
        assert advice.option is None
        assert advice.binds
    else:
        assert advice.option in fit
        assert advice.option.usd.expected == min(o.usd.expected for o in fit)
    assert advice.fastest.seconds.expected == min(o.seconds.expected for o in options)
    assert advice.cheapest.usd.expected == min(o.usd.expected for o in options)
    for before, after in zip(advice.front, advice.front[1:], strict=False):
        assert before.seconds.expected <= after.seconds.expected
        assert before.usd.expected > after.usd.expected


@pytest.mark.parametrize(
    ("changes", "limits", "says"),
    [
        ({}, Limits(concurrency=8), "concurrency: with 16 workers at once"),
        ({"network_mb_s": 0.5, "rows_per_second": 5000.0}, Limits(), "network: with twice"),
        ({"rows_per_second": 5.0}, Limits(memory_mb=1769), "pace of the model: with twice"),
        ({"rows_per_second": 1e5, "ready_seconds": 60.0}, Limits(), "starting: "),
    ],
)
def test_what_binds_is_named(changes, limits, says) -> None:
    ask = Ask(4 * GB, limits=limits, partitions_mb=(5.0, 25.0))
    advice = advise(ask, replace(PACE, **changes))
    assert any(text.startswith(says) for text in advice.binds), advice.binds


def test_a_budget_binds() -> None:
    cheapest = advise(Ask(12.6 * GB), PACE).cheapest.usd.expected
    fastest = advise(Ask(12.6 * GB), PACE).fastest.usd.expected
    between = math.sqrt(cheapest * fastest)
    advice = advise(Ask(12.6 * GB, budget=between), PACE)
    assert advice.option.usd.expected <= between
    assert any(text.startswith("price: ") for text in advice.binds)
    nothing = advise(Ask(12.6 * GB, deadline=1, budget=cheapest / 2), PACE)
    assert nothing.option is None
    assert nothing.binds[0].startswith("deadline: the fastest option takes")
    assert nothing.binds[1].startswith("budget: the cheapest option costs")


def test_nothing_is_possible() -> None:
    with pytest.raises(BadInputError, match=r"memory binds: a worker .* needs 2,4"):
        advise(Ask(GB, limits=Limits(memory_mb=1769)), replace(PACE, base_mb=2048.0))
    with pytest.raises(BadInputError, match=r"needs 301 MB, but functions may have 128 MB"):
        advise(Ask(GB, limits=Limits(memory_mb=128)), replace(PACE, base_mb=255.8))
    with pytest.raises(BadInputError, match="the time-out binds"):
        advise(Ask(GB, limits=Limits(timeout=1)), PACE)
    with pytest.raises(BadInputError, match="above 0"):
        Ask(0)


def test_the_published_system_is_within_the_plan(cai: Path) -> None:
    """From one published run of 41 workers: the map of 517, published as 28.08 s (26.5 to 30.5)."""
    found = from_runs(load_runs([str(cai / "result-partition-25MB" / "1GB" / "1")]), 10_240)
    assert found.ranks == 41
    option = estimate(Ask(12.6 * GB), found, Prices(), 25.0, 517, 517, 10_240, "x86")
    around = option.parts["initialize"] + option.parts["summarize"]
    middle = option.parts["start of the map"] + option.parts["workers"]
    assert middle == pytest.approx(28.08, rel=0.25)
    assert option.seconds.low - around < 26.52
    assert option.seconds.high - around > 30.53


def test_a_calibration_from_runs_of_ours(make_run: Callable[..., object]) -> None:
    made = make_run(ranks=2, rows=150)
    (run,) = load_runs([str(made.path)])
    found = from_runs([run])
    records = [json.loads((made.path / f"{rank}.json").read_text()) for rank in range(2)]
    paces = sorted(r["rows"] / r["total_cpu_time (seconds)"] for r in records)
    assert found.rows_per_second == pytest.approx(sum(paces) / 2)
    assert found.doubt == 2.0  # another machine than a vCPU of Lambda
    stored = sum(path.stat().st_size for path in made.data.glob("*.npz"))
    assert found.row_bytes == pytest.approx(stored / 300)
    with pytest.raises(BadInputError, match="nothing to calibrate from"):
        from_runs([replace(run, records=())])


def test_two_memory_sizes_tell_how_the_pace_grows(cai: Path) -> None:
    (run,) = load_runs([str(cai / "result-partition-25MB" / "1GB" / "1")])
    with pytest.raises(BadInputError, match="give `memory_mb`"):
        from_runs([run])
    slow = tuple(replace(r, model_seconds=1.5 * r.model_seconds) for r in run.records)
    half = replace(run, records=slow, reports=_reports(5120))
    full = replace(run, reports=_reports(10_240))
    assert from_runs([half, full]).scaling == pytest.approx(1.5, rel=1e-6)


def _reports(memory: int) -> tuple[Report, ...]:
    return (Report("r", 6000, 6500, memory, 2800, 500.0),)


def test_from_this_machine() -> None:
    one, two = Pace(100, 0.5, 150, 20_000), Pace(170, 0.5, 160, 20_000)
    found = from_paces([one, replace(one, rows_per_second=110.0), one], [two])
    assert (found.rows_per_second, found.base_mb) == (100, 150)
    assert found.scaling == pytest.approx(170 / 110)  # the best of each
    assert found.ranks == 0
    assert from_paces([one], []).scaling == 1.8
    lowered = from_paces([one], [two], newer_than_avx2=True)
    assert lowered.rows_per_second == pytest.approx(0.72 * one.rows_per_second)
    assert (lowered.scaling, lowered.source) == (
        from_paces([one], [two]).scaling, "this machine, the model alone, x 0.72 for AVX2"
    )  # fmt: skip


def test_words() -> None:
    assert units.size_bytes("12.6GB") == 12.6 * GB
    assert [units.seconds(text) for text in ("60", "60s", "2min", "1.5 h", "250ms")] == [
        60, 60, 120, 5400, 0.25]  # fmt: skip
    assert [units.usd(text) for text in ("1USD", "$0.50", "2", "0.1 usd")] == [1, 0.5, 2, 0.1]
    for read, text in ((units.size_bytes, "12"), (units.seconds, "soon"), (units.usd, "a lot")):
        with pytest.raises(BadInputError, match="give one such as"):
            read(text)


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "calibration.json"
    kept.write_text(json.dumps(PACE.to_json()))
    words = ["plan", "--data", "12.6GB", "--calibration", str(kept)]
    assert main([*words, "--deadline", "60s", "--budget", "1USD"]) == 0
    said = capsys.readouterr().out
    assert "asked      12.6GB in 60 s and for 1 USD" in said
    assert "USD, as billed" in said
    assert "binds" in said
    assert main([*words, "--deadline", "1s", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["option"] is None
    for bad, says in (
        (["--deadline", "soon"], "not a time"), (["--rate", "0"], "above 0"),
        (["--concurrency", "0"], "concurrency must be above 0"), (["--budget", "0"], "above 0"),
    ):  # fmt: skip
        with contextlib.suppress(SystemExit):  # argparse's way for what is no value of the option
            assert main([*words, *bad]) == 2
        assert says in capsys.readouterr().err
    assert main(["plan", "--data", "nowhere", "--calibration", str(kept)]) == 2
    assert "neither a size" in capsys.readouterr().err
    (tmp_path / "bad.json").write_text('{"rows_per_second": -1}')
    assert main(["plan", "--data", "1GB", "--calibration", str(tmp_path / "bad.json")]) == 2
    assert "cannot be read" in capsys.readouterr().err
