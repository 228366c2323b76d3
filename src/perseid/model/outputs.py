"""Outputs of a model by kind, and the named catalogue columns that each of them becomes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from perseid.errors import BadModelError

LISTS = ("embedding", "pdf")
"""Kinds of outputs that a catalogue keeps as lists, if requested."""
KINDS = ("redshift", "value", "probabilities", "quantiles", "pdf", "embedding", "features")
"""Kinds of outputs; the last two are features for the anomaly score."""
LOW, MIDDLE, HIGH = 0.16, 0.5, 0.84
"""Levels of ``z_lo``, of the prediction if no redshift output exists, and of ``z_hi``."""
CLASS = "class"
"""Column of the most probable class."""
TAKEN = frozenset(
    {"object_id", "partition", "row", "z_spec", "label", "flag", "anomaly_score", "anomaly_rank"}
)
"""Names of catalogue columns that no output may use."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class ModelOutput:
    """One output of a model, and the meaning of its numbers.

    Examples
    --------
    >>> [c.name for c in ModelOutput("q", "quantiles", levels=(0.1, 0.5, 0.9)).output_columns()]
    ['z_q10', 'z_q50', 'z_q90', 'z_pred', 'z_lo', 'z_hi']
    """

    name: str
    """Name of the graph's output, or of the entry that a Python model returns."""
    kind: str
    """One of `KINDS`."""
    column: str = ""
    """For a value: name of its column (empty: `name`). For quantiles and a PDF: their quantity
    (empty: ``z``, the redshift). For probabilities: the question that they answer, if the model
    answers several (``bar`` gives ``p_bar_yes`` and ``bar_class``)."""
    unit: str = ""
    """For a value: its unit in astropy's notation, such as ``dex(Msun)``."""
    ucd: str = ""
    """For a value: its Unified Content Descriptor, if it has one."""
    classes: tuple[str, ...] = ()
    """For probabilities: names of the classes, in the order of the output's numbers."""
    levels: tuple[float, ...] = ()
    """For quantiles: their levels between 0 and 1, ascending."""
    grid: tuple[float, ...] = ()
    """For a PDF: ascending positions at which the density is given, or the edges of its `bins`."""
    logits: bool = False
    """For probabilities and a PDF: whether a softmax must still be applied."""

    bins: bool = False
    """For a PDF: whether `grid` holds the edges of bins, one more than there are numbers."""

    @property
    def numbers(self) -> int:
        """How many numbers per row the output has."""
        many = {"probabilities": len(self.classes), "quantiles": len(self.levels)}
        return many.get(self.kind, len(self.grid) - self.bins if self.kind == "pdf" else 1)

    @property
    def of(self) -> str:
        """The quantity that quantiles and a PDF describe."""
        return self.column or "z"

    def output_columns(self, *, with_prediction: bool = True) -> tuple[OutputColumn, ...]:
        """The catalogue columns that this output becomes.

        `with_prediction` says whether quantiles and a PDF also give the predicted value.
        """
        if self.kind == "redshift":
            return (_redshift(self.name),)
        if self.kind == "value":
            name = self.column or self.name
            return (OutputColumn(name, self.kind, self.name, unit=self.unit, ucd=self.ucd),)
        if self.kind == "probabilities":
            return (*map(self._probability, self.classes), self._most_probable())
        quantiles = [
            OutputColumn(f"{self.of}_q{_percent(level)}", self.kind, self.name, unit=self.unit,
                         level=level, description=f"Quantile {level:g} of {self.of}")
            for level in self.levels
        ]  # fmt: skip
        return (*quantiles, *self._interval(with_prediction))

    def list_column(self) -> OutputColumn:
        """The column that holds a PDF as a list, which a catalogue has on request."""
        return OutputColumn(
            f"{self.of}_pdf", self.kind, self.name, unit=self.unit, width=self.numbers,
            grid=self.grid, bins=self.bins, description=f"Probability density of {self.of}",
        )  # fmt: skip

    def _probability(self, name: str) -> OutputColumn:
        return OutputColumn(
            f"p_{f'{self.column}_' if self.column else ''}{_word(name)}", self.kind, self.name,
            ucd="stat.probability",
            description=f"Probability of the class {name}",
        )  # fmt: skip

    def _most_probable(self) -> OutputColumn:
        return OutputColumn(
            f"{self.column}_{CLASS}" if self.column else CLASS, CLASS, self.name,
            ucd="meta.code.class", classes=self.classes,
            description="The most probable class; missing where flag is not 0",
        )  # fmt: skip

    def _interval(self, with_prediction: bool) -> Iterable[OutputColumn]:
        """The median and the ends of the 68 % interval, as far as the levels cover them."""
        first, last = (self.levels[0], self.levels[-1]) if self.levels else (0.0, 1.0)
        if with_prediction and first <= MIDDLE <= last:
            median = OutputColumn(self.of, "value", self.name, unit=self.unit, ucd=self.ucd)
            yield _redshift(self.name) if self.of == "z" else median
        if first <= LOW and last >= HIGH:
            for end, level in (("lo", LOW), ("hi", HIGH)):
                yield OutputColumn(
                    f"{self.of}_{end}", "interval", self.name, unit=self.unit, level=level,
                    description=f"{self.of} that the true value is below with probability {level}",
                )  # fmt: skip


def _redshift(output: str) -> OutputColumn:
    return OutputColumn(
        "z_pred", "redshift", output, ucd="src.redshift.phot",
        description="Redshift predicted by the model; NaN where flag is not 0",
    )  # fmt: skip


REDSHIFT = ModelOutput("redshift", "redshift")
"""The output of a model that predicts one redshift per object."""


@dataclass(frozen=True)
class OutputColumn:
    """One catalogue column that comes from a model."""

    name: str
    kind: str
    """Kind of the output; or ``class`` for the most probable class, ``interval`` for one end of an
    interval, ``list`` for several numbers per row."""
    output: str
    """Name of the model's output."""
    unit: str = ""
    """Unit in astropy's notation."""
    ucd: str = ""
    """Unified Content Descriptor."""
    description: str = ""
    """Description in a few words."""
    classes: tuple[str, ...] = ()
    """For `CLASS`: names of the classes, indexed by class number."""
    level: float | None = None
    """For a quantile or an end of an interval: its level between 0 and 1."""
    width: int = 0
    """For a list: number of values per row."""
    grid: tuple[float, ...] = ()
    """For a list that is a PDF: its grid, as in `ModelOutput.grid`."""
    bins: bool = False
    """For a list that is a PDF: whether the grid holds bin edges, as in `ModelOutput.bins`."""

    def to_json(self) -> dict[str, object]:
        """Convert to the JSON in a rank's objects and in the footer of a catalogue."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = {n: list(v) if isinstance(v, tuple) else v for n, v in given.items()}
        return {name: value for name, value in plain.items() if value not in ("", [], None, False)}

    @classmethod
    def from_json(cls, value: Any) -> OutputColumn:
        """The inverse of `to_json`; raises `ValueError` if the JSON does not have this form."""
        try:
            lists = {name: tuple(value[name]) for name in ("classes", "grid") if name in value}
            return cls(**{**value, **lists})
        except (TypeError, KeyError) as error:
            raise ValueError("this is not a column of a model") from error


Z_PRED = REDSHIFT.output_columns()[0]


def columns_of(outputs: Iterable[ModelOutput]) -> tuple[OutputColumn, ...]:
    """The columns of all outputs, in order."""
    outputs = tuple(outputs)
    given = {o.column or "z" for o in outputs if o.kind in ("value", "redshift")}
    given |= {"z" for o in outputs if o.kind == "redshift"}
    return tuple(
        column
        for output in outputs
        for column in output.output_columns(with_prediction=output.of not in given)
    )


def check_outputs(outputs: Sequence[ModelOutput], where: str) -> None:
    """Raise `BadModelError` if outputs are not fully described, or two become the same column."""
    for output in outputs:
        said = _wrong(output)
        if said:
            raise BadModelError(f"{where}: the output {output.name!r} {said}")
    found: dict[str, str] = {}
    for column in columns_of(outputs):
        if column.name in TAKEN or column.name in found:
            other = found.get(column.name, "")
            with_ = f"that of {other!r}" if other else "one that every catalogue has"
            raise BadModelError(
                f"{where}: the output {column.output!r} becomes the column {column.name}, as does "
                f"{with_}: give it another `column`, or other names of classes"
            )
        found[column.name] = column.output


def _wrong(output: ModelOutput) -> str:
    if output.kind not in KINDS:
        return f"is of the kind {output.kind!r}: use {', '.join(KINDS)}"
    name = output.column or (output.name if output.kind == "value" else "z")
    if not _NAME.fullmatch(name):
        return f"cannot be the column {name!r}: give a `column` of letters, digits and _"
    if output.kind == "probabilities" and len(set(output.classes)) < 2:
        return "needs `classes`, the names of two classes or more, each once"
    if output.kind == "quantiles" and not (output.levels and _rises(0.0, *output.levels, 1.0)):
        return "needs `levels` between 0 and 1, ascending"
    if output.kind == "pdf" and not (len(output.grid) > 1 and _rises(*output.grid)):
        return "needs a `grid`, the ascending places or edges of its numbers"
    return ""


def _rises(*values: float) -> bool:
    return all(one < two for one, two in pairwise(values))


def _word(name: str) -> str:
    """The name of a class, as part of a column's name."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_") or "_"


def _percent(level: float) -> str:
    """A level as a percentage for names: ``16`` for 0.16, ``2p5`` for 0.025."""
    return f"{level * 100:.6g}".replace(".", "p").zfill(2)
