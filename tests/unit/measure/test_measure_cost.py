"""Prices and bills against sums worked out by hand."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path

import pytest

from perseid.errors import BadInputError
from perseid.measure.cost import Cost, Rendezvous, Usage, cost, map_transitions
from perseid.measure.prices import Prices, load_prices
from perseid.measure.report_line import Report, failed_init_ms
from perseid.measure.sources.load import load_runs

GOLDEN = Path(__file__).parents[2] / "data/golden/runs/complete"


def of(bill: Cost, name: str) -> float:
    return next(line.usd for line in bill.lines if line.name == name)


def test_the_published_75mb_run_costs_what_its_log_says() -> None:
    """173 workers x 33.7 s x 10 GB x 0.0000166667 = 0.9717 USD; by memory used 0.5693."""
    report = Report("r", 33_700, 33_700, 10_240, 5_998)
    bill = cost(Usage([report] * 173))
    assert of(bill, "Lambda compute") == pytest.approx(0.971685, abs=5e-7)
    assert of(bill, "Lambda requests") == pytest.approx(173 * 0.2e-6)
    assert bill.memory_used_variant == pytest.approx(0.56927, abs=5e-6)


def test_the_course_table_is_the_memory_used_variant() -> None:
    """75MB: 173 requests x 17.6 s x 5.9 GB x 0.00001667 = 0.2995, published as 0.30."""
    report = Report("r", 17_600, 17_600, 10_240, 5.9 * 1024)
    assert round(cost(Usage([report] * 173)).memory_used_variant, 2) == 0.30


def test_every_line_by_hand() -> None:
    reports = [Report("a", 1000, 1500, 2048, 100, 500), Report("b", 1000, 1000, 2048, 100)]
    bill = cost(
        Usage(
            reports, tmp_mb=1536, other_tmp_gb_seconds=4.0, failed_init_ms=250.0, transitions=12,
            refused=5, public_bytes=2**29, express_requests=10, express_gb_seconds=2,
            s3_gets=1000, s3_puts=2000, stored_bytes=2**30, stored_seconds=30 * 86400,
            log_bytes=2**29, rendezvous=Rendezvous(1800, vcpu=0.25, memory_gb=0.5),
        )
    )  # fmt: skip
    expected = {
        "Lambda compute": 2 * 2.5 * 0.0000166667,
        "Lambda requests": 2 * 0.2e-6,
        "Lambda failed inits": 2 * 0.25 * 0.0000166667,
        "Lambda /tmp above 512 MB": (1 * 2.5 + 4.0) * 0.0000000309,
        "Step Functions": 7 * 0.000025,
        "Step Functions, refused calls": 5 * 0.000025,
        "Express": 10 * 1e-6,
        "Express duration": 2 * 0.00001667,
        "S3 GET": 0.0004,
        "S3 PUT and LIST": 0.01,
        "S3 storage": 0.023,
        "Fargate vCPU": 0.5 * 0.25 * 0.04048,
        "Fargate memory": 0.5 * 0.5 * 0.004445,
        "Public IPv4": 0.5 * 0.005,
        "CloudWatch Logs": 0.25,
        "Public addresses": 2 * 0.5 * 0.01,
    }
    assert {line.name: line.usd for line in bill.lines} == pytest.approx(expected)
    assert bill.total == pytest.approx(sum(expected.values()))


REPORT = (
    "REPORT RequestId: {}\tDuration: {} ms\tBilled Duration: {} ms\tMemory Size: {} MB\t"
    "Max Memory Used: 90 MB\t"
)


def test_the_bill_of_a_run_on_aws_by_hand(tmp_path: Path) -> None:
    """The run's objects, with logs and times as they come from AWS."""
    folder = tmp_path / "run"
    shutil.copytree(GOLDEN, folder)
    shutil.rmtree(folder / "logs", ignore_errors=True)
    (folder / "logs").mkdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    ranks = len(manifest["assignment"])
    for rank in range(ranks):
        lost = "INIT_REPORT Init Duration: 125.00 ms\tPhase: init\tStatus: timeout\n"
        line = REPORT.format(f"w{rank}", 990.5, 1000, 2048)
        (folder / f"logs/{rank}.log").write_text((lost if rank == 0 else "") + line + "\n")
    (folder / "logs/initialize.log").write_text(REPORT.format("i", 499, 500, 1024) + "\n")
    (folder / "logs/summarize.log").write_text(REPORT.format("s", 1999, 2000, 3072) + "\n")
    engine = {
        "engine": "aws", "attempts": [], "transitions": 40, "refused_transitions": 30,
        "summarize_tmp_mb": 2048, "architecture": "x86", "unreported": 0,
        "executions": [{"seconds": 10.0, "map_seconds": 5.0}],
    }  # fmt: skip
    (folder / "engine.json").write_text(json.dumps(engine))
    [run] = load_runs([str(folder)])
    assert run.usage is not None
    bill = {line.name: line.usd for line in cost(run.usage).lines}
    assert bill["Lambda compute"] == pytest.approx(ranks * 2 * 1.0 * 0.0000166667)
    assert bill["Lambda initialize and summarize"] == pytest.approx(
        (1 * 0.5 + 3 * 2) * 0.0000166667
    )
    assert bill["Lambda failed inits"] == pytest.approx(2 * 0.125 * 0.0000166667)
    assert bill["Lambda /tmp above 512 MB"] == pytest.approx(1.5 * 2 * 0.0000000309)
    assert bill["Lambda requests"] == pytest.approx((ranks + 2) * 0.2e-6)
    assert bill["Step Functions"] == pytest.approx(10 * 0.000025)
    assert bill["Step Functions, refused calls"] == pytest.approx(30 * 0.000025)
    assert cost(run.usage).total == pytest.approx(sum(bill.values()))


def test_inits_that_failed() -> None:
    """By AWS's documentation of both forms; an init that succeeded is in the REPORT."""
    text = (
        "INIT_REPORT Init Duration: 1236.04 ms\tPhase: init\tStatus: timeout\n"
        "INIT_REPORT Init Duration: 900.00 ms Phase: invoke Status: error Error Type: "
        "Runtime.ExitError\n"
        "INIT_REPORT Init Duration: 50.00 ms\tPhase: init\tStatus: success\n"
    )
    as_json = {
        "time": "2026-11-26T10:00:00.000Z", "type": "platform.initReport",
        "record": {"phase": "init", "status": "error", "metrics": {"durationMs": 10.5}},
    }  # fmt: skip
    whole = {**as_json, "record": {"phase": "init", "status": "success",
                                   "metrics": {"durationMs": 99}}}  # fmt: skip
    lines = "\n".join(map(json.dumps, (as_json, whole)))
    assert failed_init_ms(text + lines) == pytest.approx(1236.04 + 900 + 10.5)


def test_fargate_bills_at_least_a_minute() -> None:
    short, minute = (cost(Usage(rendezvous=Rendezvous(s))).total for s in (3.0, 60.0))
    assert short == minute > 0


def test_arm_is_cheaper_by_its_list_price() -> None:
    reports = [Report("a", 1000, 1000, 1024, 100)]
    arm = cost(Usage(reports, architecture="arm"))
    assert of(arm, "Lambda compute") == pytest.approx(0.0000133334)
    with pytest.raises(BadInputError, match="architecture is x86 or arm"):
        cost(Usage(reports, architecture="riscv"))


def test_transitions_count_retries() -> None:
    assert map_transitions(invocations=41, ranks=41) == 44
    assert map_transitions(invocations=45, ranks=41) == 48


def test_each_price_has_a_date_a_region_and_a_source() -> None:
    for name, price in Prices():
        assert price.usd > 0, name
        assert date.fromisoformat(price.date) >= date(2026, 1, 1), name
        assert price.region == "us-east-1", name
        assert price.source.startswith("aws.amazon.com/"), name
        assert price.unit, name


def test_prices_of_another_region(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    path.write_text(
        json.dumps(
            {
                "lambda_gb_second_x86": {"usd": 0.00002, "region": "eu-x", "date": "2026-05-01"},
                "s3_put": 0,
            }
        )
    )
    prices = load_prices(path)
    assert prices.lambda_gb_second("x86").usd == 0.00002
    assert prices.lambda_gb_second("x86").source == "given by the user"
    assert prices.s3_put.usd == 0
    assert prices.s3_get == Prices().s3_get
    assert "eu-x, us-east-1" in prices.stamp()
    assert "2026-05-01 to" in prices.stamp()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[1]", "must be a JSON object"),
        ('{"gold": 1}', "no price is called 'gold'"),
        ('{"s3_get": "cheap"}', "must be a number of USD per GET request"),
        ('{"s3_get": -1}', "must be a number"),
        ('{"s3_get": true}', "must be a number"),
        ('{"s3_get": {"usd": 1, "colour": 2}}', "must be a number"),
    ],
)
def test_bad_prices_are_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "prices.json"
    path.write_text(text)
    with pytest.raises(BadInputError, match=says):
        load_prices(path)
    with pytest.raises(BadInputError, match="cannot be read"):
        load_prices(tmp_path / "none.json")
