"""What every engine must do, as one class of tests; an engine joins by one fixture.

The fixture ``lab`` gives a `Lab`: the engine, a place that its workers can reach, and how to let a
rank go wrong there. Everything else is the public interface.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny import classifier_signature, tiny_classifier, tiny_cutouts, tiny_model

import perseid
from perseid.api.runs import begin
from perseid.engines.base import Engine
from perseid.errors import RunInterruptedError
from perseid.pipeline.attempts import Ending
from perseid.storage import Storage
from perseid.survey import write_cutouts

ROWS = (7, 3, 5)
"""Of the partitions: unequal ones, and none of them a whole batch."""
SURPLUS = 5
"""Ranks of a run in which two have nothing to do."""
CLASSIFIER = "classifier.onnx"
"""A model without a redshift, and without a signature of its own: that lies beside it."""
DEADLINE = 120.0
"""Seconds; far above what a run takes."""


@dataclass
class Lab:
    """An engine, and where its workers can read and write."""

    engine: Engine
    root: str
    """Folder or bucket, as a URL."""
    fail: Callable[[str, Mapping[int, Sequence[str]]], None]
    """Plan what goes wrong in the run of this name: for each rank what its first attempts do,
    ``raise``, ``kill`` or ``hang``; later attempts work."""
    begin_elsewhere: Callable[[Mapping[str, object]], None]
    """Begin a run with these keys, so that it goes on without this process."""

    def survey(self) -> None:
        """Put partitions and model in their place."""
        whole, at = tiny_cutouts(sum(ROWS)), 0
        for number, rows in enumerate(ROWS, start=1):
            write_cutouts(whole[at : at + rows], f"{self.root}/survey/{number}.pt")
            at += rows

    def model(self, folder: Path) -> None:
        """Put the model in its place."""
        made = tiny_model(folder / "tiny.onnx")
        other = tiny_classifier(folder / CLASSIFIER, metadata=False)
        store, signature = Storage(self.root), classifier_signature()
        store.put("tiny.onnx", made.read_bytes())
        store.put(CLASSIFIER, other.read_bytes())
        store.put(f"{CLASSIFIER}.signature.json", signature.to_json().encode())

    def keys(self, name: str, **keys: object) -> dict[str, object]:
        """Of a request for a run of this name."""
        plain = {"data": f"{self.root}/survey", "model": f"{self.root}/tiny.onnx", "retries": 1}
        return plain | {"results": self.url(name)} | keys

    def url(self, name: str) -> str:
        """The place of a run."""
        return f"{self.root}/runs/{name}"

    def run(self, name: str, **keys: object) -> perseid.Run:
        """A run, to its end."""
        plain = self.keys(name, **keys)
        data = plain.pop("data")
        return perseid.run(data, engine=self.engine, progress=False, **plain)

    def record(self, name: str, rank: int) -> bytes:
        """A rank's record, as it lies in the store."""
        return Storage(self.url(name)).get(f"{rank}.json")


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Lab:
    """The same survey and models on this machine."""
    folder = tmp_path_factory.mktemp("reference")
    here = Lab(perseid.LocalEngine(workers=1), str(folder), _nothing, _nothing)
    here.survey()
    here.model(folder)
    return here


@pytest.fixture(scope="module")
def reference(here: Lab) -> perseid.Catalogue:
    """The catalogue of the same survey by one rank, on this machine."""
    return here.run("one", world_size=1).catalogue()


@pytest.fixture(scope="module")
def whole(lab: Lab) -> perseid.Run:
    """A run of unequal partitions by more ranks than there are."""
    return lab.run("whole", world_size=SURPLUS)


def _nothing(*_: object) -> None:
    """Nothing goes wrong in the reference."""


class Conformance:
    """The suite."""

    def test_it_says_what_it_can_do(self, lab):
        found = lab.engine.capabilities
        assert found.device == "cpu"
        assert found.max_parallel is None or found.max_parallel >= 1
        assert found.memory_per_rank is None or found.memory_per_rank >= 128

    def test_a_complete_run_says_so_and_gives_the_same_catalogue(self, whole, reference):
        assert whole.incomplete is None
        assert whole.status().state == "complete"
        assert whole.summary["rows"]["received"] == sum(ROWS)
        assert [rank.rows for rank in whole.ranks] == [*ROWS, 0, 0]
        assert whole.catalogue().difference(reference) is None

    def test_a_classifier_gives_the_same_catalogue(self, lab, here):
        model = {name: f"{one.root}/{CLASSIFIER}" for name, one in (("lab", lab), ("here", here))}
        run = lab.run("classified", model=model["lab"])
        assert run.incomplete is None
        wanted = here.run("classified", model=model["here"], world_size=1).catalogue()
        assert run.catalogue().difference(wanted) is None
        assert "class" in wanted.column_names

    def test_every_attempt_is_measured(self, whole):
        attempts = whole.result.mapped.attempts
        assert sorted(one.rank for one in attempts) == list(range(SURPLUS))
        assert {one.ending for one in attempts} == {Ending.DONE}
        assert all(one.duration_ms > 0 for one in attempts)
        assert whole.table().rows[0]["cost"] > 0

    def test_a_finished_run_is_found_again(self, lab, whole):
        again = perseid.open_run(whole.url, engine=lab.engine)
        assert again.summary == whole.summary
        assert again.wait(progress=False).incomplete is None
        assert again.catalogue().equals(whole.catalogue())
        assert not again.stop()
        assert any("REPORT RequestId" in line for _, line in again.logs(0))

    def test_a_failing_rank_is_named_and_resumed(self, lab, reference):
        lab.fail("failing", {1: ["raise", "raise"]})
        run = lab.run("failing")
        assert "ranks 1 of 3" in run.incomplete
        assert run.status().state == "incomplete"
        assert [rank.done for rank in run.ranks] == [True, False, True]
        untouched = lab.record("failing", 0)
        lab.fail("failing", {})
        again = perseid.resume(run, engine=lab.engine, progress=False)
        assert again.incomplete is None
        assert lab.record("failing", 0) == untouched
        assert again.catalogue().difference(reference) is None
        assert again.ranks[1].attempt == 3

    def test_a_killed_rank_is_tried_again(self, lab, reference):
        lab.fail("killed", {2: ["kill"]})
        run = lab.run("killed")
        assert run.incomplete is None
        endings = [one.ending for one in run.result.mapped.attempts if one.rank == 2]
        assert len(endings) == 2
        assert endings[0] in (Ending.KILLED, Ending.NO_RESULT)
        assert endings[1] is Ending.DONE
        assert run.catalogue().difference(reference) is None

    def test_a_run_is_stopped_and_resumed(self, lab, reference):
        lab.fail("stopped", {2: ["hang"]})
        request = perseid.RunRequest.parse(lab.keys("stopped"))
        run = begin(request, lab.engine, lambda event: None)
        until(lambda: run.status().done == 2)
        assert run.status().state == "running"
        assert run.stop()
        with pytest.raises(RunInterruptedError, match="perseid resume"):
            run.wait(DEADLINE, progress=False)
        assert perseid.open_run(run.url, engine=lab.engine).status().state == "not ended"
        lab.fail("stopped", {})
        again = perseid.resume(run.url, engine=lab.engine, progress=False)
        assert again.incomplete is None
        assert again.catalogue().difference(reference) is None

    def test_a_run_that_was_begun_elsewhere_is_found_and_followed(self, lab, reference):
        lab.begin_elsewhere(lab.keys("elsewhere"))
        store = Storage(lab.url("elsewhere"))
        until(lambda: store.exists("driver.json") and store.exists("manifest.json"))
        run = perseid.open_run(lab.url("elsewhere"), engine=lab.engine)
        events: list[object] = []
        assert run.wait(DEADLINE, progress=events.append).incomplete is None
        assert events
        assert run.catalogue().difference(reference) is None


def until(condition: Callable[[], bool]) -> None:
    """Wait for it, within the deadline."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.05)
