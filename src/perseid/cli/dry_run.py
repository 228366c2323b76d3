"""The plan of a run (``perseid run --dry-run``) in words."""

from __future__ import annotations

from collections.abc import Iterator

from perseid.api.progress_display import duration
from perseid.engines import memory
from perseid.engines.run_plan import RunPlan
from perseid.pipeline.manifest import Manifest
from perseid.plaintext import counted

SHOWN = 12
"""How many ranks are listed with their partitions."""


def plan_lines(plan: RunPlan, *, given: bool) -> Iterator[str]:
    """Describe the plan; `given` means that the user stated the rate instead of having it
    measured."""
    manifest = plan.manifest
    size = sum(ref.size for ref in manifest.partitions) / 1e6
    yield f"data       {manifest.data_url}"
    files = len(manifest.partitions)
    yield (
        f"           {counted(files, 'partition')}, {size:,.1f} MB, {counted(plan.rows, 'object')}"
    )
    yield f"results    {manifest.results_url}"
    yield f"model      {manifest.settings.model_url}, {manifest.settings.precision}"
    at_once = f"{plan.workers} at once, threads per worker: {plan.options.threads}"
    yield f"ranks      {manifest.world_size}, {at_once}"
    for rank in range(min(manifest.world_size, SHOWN)):
        keys = [ref.key for ref in manifest.of_rank(rank)]
        named = (
            keys[0] if len(keys) == 1 else f"{keys[0]} … {keys[-1]} ({len(keys)})" if keys else "-"
        )
        yield f"           rank {rank}: {named}"
    if manifest.world_size > SHOWN:
        yield f"           … and {counted(manifest.world_size - SHOWN, 'more rank')}"
    yield from (f"note       {warning}" for warning in manifest.warnings)
    yield from (f"note       {part.key} cannot be read: {part.error}" for part in plan.unreadable)
    yield ""
    yield from _expected(plan, given)


def script_plan(manifest: Manifest) -> Iterator[str]:
    """Describe a request that runs a user's script, whose time cannot be estimated."""
    assert manifest.script is not None
    size = sum(ref.size for ref in manifest.partitions) / 1e6
    yield f"runs       the script {manifest.script['SCRIPT']}, not a model of perseid: give `model`"
    yield "           (or --model) to use perseid's runtime instead"
    yield f"data       {manifest.data_url}"
    yield f"           {counted(len(manifest.partitions), 'partition')}, {size:,.1f} MB"
    yield f"results    {manifest.results_url}"
    yield f"ranks      {manifest.world_size}"
    yield from (f"note       {warning}" for warning in manifest.warnings)
    yield "time, cost not estimated: they depend on the script"


def _expected(plan: RunPlan, given: bool) -> Iterator[str]:
    free, rate = memory.available(), plan.pace.rows_per_second
    limit = plan.options.memory_mb
    source = "as given" if given else "the model alone, timed for a second just now"
    yield f"expected   {rate:,.0f} objects/s per worker ({source})"
    yield f"time       {duration(plan.map_seconds)} on this machine"
    yield (
        f"memory     {plan.worker_mb:,.0f} MB per worker, {plan.total_mb:,.0f} MB in all "
        f"({free:,.0f} MB are free; a rank may take {limit:,} MB)"
    )
    yield f"cost       {plan.cost.total:.6f} USD on AWS at this machine's pace, as billed:"
    for line in plan.cost.lines:
        if line.usd > 0:
            # One request, but one GB-s.
            one = line.quantity == 1 and "-" not in line.unit
            unit = line.unit.removesuffix("s") if one else line.unit
            yield f"           {line.name}: {line.quantity:.6g} {unit}, {line.usd:.6f} USD"
    yield f"           ({plan.price_stamp}; {limit} MB configured, every start cold)"
    yield "accuracy   rows as the partitions state; times to about a third,"
    yield "           because concurrent workers slow each other down, and storage, retries and"
    yield "           other work on the machine are not included"
