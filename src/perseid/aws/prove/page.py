"""The HTML page of a proof: each measured line, and the JSON file itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from perseid.aws.prove.proof import LINES, AwsProof, Line, Value
from perseid.measure.present import pages
from perseid.measure.present.view import (
    DataTable,
    Head,
    PageView,
    Paragraph,
    Preformatted,
    Section,
    StatusView,
    TableEntry,
    Tile,
)


def render_page(proof: AwsProof) -> str:
    """Render one HTML file that contains no links to other sites and no names."""
    measured = sum(line.state == "measured" for line in proof.lines)
    of = f"{measured} of {len(proof.lines)} lines"
    return pages.render(
        PageView(
            title="perseid on AWS",
            eyebrow=f"perseid {proof.version} · {proof.region} · {proof.day}",
            heading="What AWS did",
            sub="Measured by `perseid aws prove`. It names no account, no resource, no address "
            "and no person: it can be mailed as it is.",
            status=StatusView(proof.whole, "whole" if proof.whole else "in part", f"{of} measured"),
            tiles=(
                Tile("Lines", of, "measured"),
                Tile(
                    "Spent", f"{proof.usd:.3f} USD", f"at most, of a cap of {proof.cap_usd:g} USD"
                ),
                Tile("Concurrency", str(proof.concurrency or "not told"), "of the account"),
            ),
            wide_tiles=(),
            sections=(*map(_section, proof.lines), _file(proof)),
            foot="Times and prices are of this account, region and day.",
        )
    )


def _section(line: Line) -> Section:
    rows = tuple((TableEntry(name), TableEntry(value)) for name, value in _flat(line.values))
    table = DataTable((Head("Value", "word"), Head("Found", "word")), rows)
    cost = f"{line.seconds:.1f} s, at most {line.usd:.4f} USD"
    return Section(
        ident=line.name.replace(".", "-"),
        title=f"{line.name}: {line.state}",
        lead=LINES[line.name],
        parts=(Paragraph(line.sentence), *((table,) if rows else ()), Paragraph(cost, note=True)),
    )


def _file(proof: AwsProof) -> Section:
    return Section("file", "The file", parts=(Preformatted(proof.to_json()),))


def _flat(values: Mapping[str, Value], above: str = "") -> Iterator[tuple[str, str]]:
    """Each number, with the path of names that leads to it."""
    for name, value in values.items():
        place = f"{above}{name}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{place} · ")
        elif isinstance(value, tuple):
            yield place, ", ".join(str(one) for one in value)
        else:
            yield place, str(value)
