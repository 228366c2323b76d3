"""Measure all lines of a proof in order: deploy stacks, measure, and remove everything again."""

from __future__ import annotations

import getpass
import platform
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from perseid.aws.deploy import service
from perseid.aws.deploy.deployment import deploy
from perseid.aws.deploy.destroy import delete_below, destroy
from perseid.aws.deploy.template import Options
from perseid.aws.observe.calls import Calls
from perseid.aws.prove import functions, survey_map
from perseid.aws.prove.budget import CAP_USD, Budget, FunctionPrice
from perseid.aws.prove.functions import Found
from perseid.aws.prove.proof import AwsProof, Line, Value, anonymous
from perseid.aws.prove.survey_map import MapSize
from perseid.aws.session import Aws, aws_errors
from perseid.aws.stack_resources import StackResources
from perseid.errors import PerseidError
from perseid.measure.fields import Fields
from perseid.measure.prices import Prices

NAME = "perseid-prove"
"""Name of the stack with x86 functions; the one with arm64 functions has the suffix ``-arm``."""
SHARE_OF_MAP = 0.6
"""Share of the cap that the map may cost."""
SHORTEST, LONGEST = 10, 60
"""Bounds of a function's time limit in seconds. No call of a proof lasts longer."""
GANG_ATTEMPTS = 2
"""Number of attempts; the first may fail while functions start."""
RENDEZVOUS_HOURS = 1.0
OTHER_USD = 0.05
"""Highest cost in USD of the map's S3 requests, logs, transitions and storage."""
Tell = Callable[[str], None]


@dataclass(frozen=True)
class ProveSettings:
    """What to measure, and the highest cost."""

    options: Options = field(default_factory=lambda: Options(name=NAME))
    """Options of the stacks, with the account's permissions and resources."""
    architectures: tuple[str, ...] = ("x86_64", "arm64")
    memory_mb: int = 1769
    """Memory of the functions in MB, for which Lambda gives one vCPU."""
    size: MapSize = field(default_factory=MapSize)
    gangs: tuple[int, ...] = (8, 32)
    rendezvous: bool = True
    """Whether functions communicate, for which a VPC and a cluster are created."""
    endpoint: str | None = None
    """An existing rendezvous to use instead of a task of the stack."""
    cap_usd: float = CAP_USD

    def price(self, architecture: str) -> FunctionPrice:
        """Price of calling a worker's function."""
        return FunctionPrice(self.memory_mb, "arm" if architecture == "arm64" else "x86")

    @property
    def timeout(self) -> int:
        """Time limit of a function in seconds, so that all ranks of the map together cost less than
        its share."""
        most = self.price("x86_64").longest(SHARE_OF_MAP * self.cap_usd, self.size.ranks)
        return round(min(LONGEST, max(SHORTEST, most - 0.5)))


def prove(
    aws: Aws, settings: ProveSettings, folder: Path, tell: Tell, **packaging: Any
) -> AwsProof:
    """Measure every line; whatever happens, nothing is left in the account.

    Parameters
    ----------
    folder
        Folder in which the functions' zips are built.
    packaging
        Further arguments for `perseid.aws.deploy.packaging.build`.

    Raises
    ------
    BadInputError
        The cap is too high.
    """
    prover = _Prover(aws, settings, folder, tell, packaging)
    try:
        prover.measure()
    finally:
        prover.remove()
    return prover.proof()


class _Prover:
    def __init__(
        self, aws: Aws, settings: ProveSettings, folder: Path, tell: Tell,
        packaging: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.budget = Budget(settings.cap_usd)
        self.aws, self.settings, self.folder, self.tell = aws, settings, folder, tell
        self.calls, self.packaging = Calls(aws), dict(packaging)
        self.lines: list[Line] = []
        self.begun: list[str] = []
        """Names of the stacks that must be removed at the end."""
        self.places: dict[str, StackResources] = {}
        """Resources of the deployed stacks, by architecture."""
        self.concurrency = _concurrency(aws)

    def measure(self) -> None:
        for architecture in self.settings.architectures:
            self._deploy(architecture)
        deployed = [f"{name} functions" for name in self.places]
        if deployed:
            self._add("deploy", 0.0, lambda: self._deployed(deployed))
        for architecture in self.settings.architectures:
            self._functions(architecture)
        self._meet()
        self._map()

    def _deploy(self, architecture: str) -> None:
        options = self._options(architecture)
        began = time.monotonic()
        self.begun.append(options.name)
        try:
            done = deploy(
                self.aws, options, self.folder / architecture, self._told_of_stack,
                lambda changes: True, **self.packaging,
            )  # fmt: skip
            self.places[architecture] = StackResources.of_outputs(done.outputs, options.name)
        except PerseidError as error:
            said = f"{architecture} functions cannot be deployed: {error}"
            self._take(Line("deploy", "failed", said, time.monotonic() - began))

    def _told_of_stack(self, event: object) -> None:
        """Report only sentences of a deployment, not the events of each resource, which would be
        too much."""
        if isinstance(event, str):
            self.tell(event)

    def _options(self, architecture: str) -> Options:
        settings, arm = self.settings, architecture == "arm64"
        meets = settings.rendezvous and settings.endpoint is None and not arm
        options = replace(
            settings.options,
            name=settings.options.name + ("-arm" if arm else ""),
            architecture=architecture,
            memory_mb=settings.memory_mb,
            timeout=settings.timeout,
            log_days=1,
            rendezvous=meets,
        )
        if meets:
            return options
        return replace(
            options, cluster=None, vpc=None, subnets=None, zone=None, record=None, image=None
        )

    def _deployed(self, what: Iterable[str]) -> Found:
        return Found(f"deployed: {', '.join(what)}", {"timeout_seconds": self.settings.timeout})

    def _functions(self, architecture: str) -> None:
        place, price = self.places.get(architecture), self.settings.price(architecture)
        names = (f"{architecture}.start", f"{architecture}.processor")
        if place is None:
            for name in names:
                self._take(Line(name, "skipped", f"no {architecture} functions were deployed"))
            return
        each = price.calls(1, self.settings.timeout)
        most = (functions.COLD + functions.WARM) * each
        self._add(names[0], most, lambda: functions.starts(self.calls, place.worker, price))
        self._add(names[1], each, lambda: functions.processor(self.calls, place.worker, price))

    def _meet(self) -> None:
        endpoint = self._rendezvous()
        for world in self.settings.gangs:
            self._gang(f"gang-{world}", world, endpoint)
        if endpoint is not None and self.settings.endpoint is None:
            service.stop(self.aws, self.settings.options.name)

    def _rendezvous(self) -> str | None:
        """The rendezvous that the functions use; None if there is none."""
        settings = self.settings
        if settings.endpoint is not None or not settings.rendezvous:
            why = "another server is used" if settings.endpoint else "it was not asked for"
            self._take(Line("rendezvous", "skipped", why))
            return settings.endpoint
        prices, found = Prices(), []
        most = RENDEZVOUS_HOURS * (
            0.25 * prices.fargate_vcpu_hour("x86").usd
            + 0.5 * prices.fargate_gb_hour("x86").usd
            + prices.ipv4_hour.usd
        )

        def start() -> Found:
            began = time.monotonic()
            status = service.start(self.aws, settings.options.name, self.tell)
            found.append(status.task.address)
            seconds = round(time.monotonic() - began, 1)
            return Found(f"its address was there after {seconds:g} s", {"seconds": seconds})

        self._add("rendezvous", most, start)
        return found[0] if found else None

    def _gang(self, name: str, world: int, endpoint: str | None) -> None:
        place, price = self.places.get("x86_64"), self.settings.price("x86_64")
        why = ""
        if place is None or endpoint is None:
            why = "there is no rendezvous to meet at"
        elif self.concurrency is not None and self.concurrency < world:
            why = f"the account may run {self.concurrency} functions at once"
        if why or place is None or endpoint is None:
            self._take(Line(name, "skipped", why))
            return
        most = GANG_ATTEMPTS * price.calls(world, self.settings.timeout)

        def meet() -> Found:
            for left in reversed(range(GANG_ATTEMPTS)):
                job = f"prove-{uuid.uuid4().hex[:12]}"
                try:
                    return functions.gang(self.calls, place.worker, world, job, endpoint, price)
                except PerseidError as error:
                    if not left:
                        raise
                    self.tell(f"once more, with warm functions: {error}")
            raise AssertionError

        self._add(name, most, meet)

    def _map(self) -> None:
        place, size = self.places.get("x86_64"), self.settings.size
        most = self.settings.price("x86_64").calls(size.ranks, self.settings.timeout) + OTHER_USD
        if place is None:
            for name in ("map", "bill"):
                self._take(Line(name, "skipped", "no x86_64 functions were deployed"))
            return
        bills: list[Found] = []

        def run() -> Found:
            survey_map.put_survey(self.aws.client("s3"), place.bucket, size, self.tell)
            mapped, bill = survey_map.run_map(self.calls, place, size, most, self.tell)
            bills.append(bill)
            return mapped

        self._add("map", most, run)
        if bills:
            self._add("bill", 0.0, lambda: bills[0])
        else:
            self._take(Line("bill", "skipped", "there was no map to bill"))

    def remove(self) -> None:
        """Remove everything that was created."""
        began, left, errors = time.monotonic(), [], []
        for name in self.begun:
            try:
                self._empty(name)
                left += [f"{one.why}" for one in destroy(self.aws, name, lambda event: None,
                                                         delete_bucket=True)]  # fmt: skip
            except PerseidError as error:
                errors.append(str(error))
        seconds = time.monotonic() - began
        if errors:
            self._take(Line("destroy", "failed", "; ".join(errors), seconds))
        else:
            said = f"{len(self.begun)} stacks are gone; left: {'; '.join(left) or 'nothing'}"
            self._take(Line("destroy", "measured", said, seconds))

    def _empty(self, name: str) -> None:
        """Delete the objects that the map left in a bucket that stays."""
        for place in self.places.values():
            if place.state_machine.endswith(f":{name}-run"):
                with aws_errors():
                    delete_below(self.aws.client("s3"), place.bucket, "prove/")

    def _add(self, name: str, most: float, work: Callable[[], Found]) -> None:
        if why := self.budget.lacks(most):
            self._take(Line(name, "skipped", why))
            return
        began, found = time.monotonic(), None
        self.tell(f"{name} ...")
        try:
            found = work()
        except PerseidError as error:
            line = Line(name, "failed", str(error))
        else:
            line = Line(name, "measured", found.sentence, values=found.values)
        usd = self.budget.take(most, None if found is None else found.usd)
        self._take(replace(line, seconds=time.monotonic() - began, usd=usd))

    def _take(self, line: Line) -> None:
        line = replace(
            line, sentence=self._told(line.sentence), values=_each(line.values, self._told)
        )
        self.lines.append(line)
        self.tell(f"{line.name}: {line.state}: {line.sentence}")

    def _told(self, text: str) -> str:
        return anonymous(text, self.private)

    @property
    def private(self) -> tuple[str, ...]:
        """Names of the account, the person and the machine, which are kept out of the proof."""
        arn = str(self.aws.caller_identity()["Arn"])
        buckets = [place.bucket for place in self.places.values()]
        words = arn.rpartition(":")[2].split("/")[1:]
        return (self.aws.account, *words, *buckets, getpass.getuser(), platform.node())

    def proof(self) -> AwsProof:
        """The findings so far."""
        day = datetime.now(UTC).date().isoformat()
        return AwsProof(tuple(self.lines), self.aws.region, day, self.budget.cap, self.concurrency)


def _each(values: Mapping[str, Value], told: Callable[[str], str]) -> dict[str, Value]:
    """The same values, with all texts made anonymous."""

    def one(value: Value) -> Value:
        if isinstance(value, str):
            return told(value)
        if isinstance(value, float):
            # As exact as it was measured, but with too few digits to look like an account's number.
            return float(f"{value:.7g}")
        if isinstance(value, Mapping):
            return _each(value, told)
        return tuple(map(one, value)) if isinstance(value, tuple) else value

    return {told(name): one(value) for name, value in values.items()}


def _concurrency(aws: Aws) -> int | None:
    """Number of functions that may run at once; None if the account does not say."""
    try:
        with aws_errors():
            found = aws.client("lambda").get_account_settings()
    except PerseidError:
        return None
    return Fields(found).inner("AccountLimit").count("UnreservedConcurrentExecutions")
