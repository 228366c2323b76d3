"""``perseid cite``: what to cite, with the versions that are installed here."""

from __future__ import annotations

import argparse
import importlib.metadata
import re
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

import perseid
from perseid.errors import NotInstalledError

FILE = "CITATION.cff"
COMPUTED_WITH = ("numpy", "onnxruntime", "obstore")
"""Packages whose versions a result depends on."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid cite``."""
    parser.add_argument("--bibtex", action="store_true", help="as BibTeX entries")


def run(args: argparse.Namespace) -> int:
    """Print what to cite."""
    given = citation()
    if args.bibtex:
        entries = [_software(given), *map(_bibtex, given["references"])]
        print("\n\n".join(entries))
        return 0
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in COMPUTED_WITH)
    print(f"{_names(given)}: perseid, version {perseid.__version__} (with {versions}).")
    for work in given["references"]:
        print(f"\n{_names(work)} ({work['year']}): {work['title']}. {_place(work)}\n"
              f"    {work['notes']}")  # fmt: skip
    return 0


def citation() -> dict[str, Any]:
    """``CITATION.cff``: in the package, or beside the source that is being worked on."""
    for place in (resources.files("perseid") / FILE, Path(__file__).parents[3] / FILE):
        if place.is_file():
            found: dict[str, Any] = yaml.safe_load(place.read_text(encoding="utf-8"))
            return found
    raise NotInstalledError(f"this installation has no {FILE}: install perseid again")


def _names(work: dict[str, Any]) -> str:
    people = [
        f"{one['given-names']} {one['family-names']}" if "family-names" in one else one["name"]
        for one in work["authors"]
    ]
    return people[0] if len(people) == 1 else f"{', '.join(people[:-1])} and {people[-1]}"


def _place(work: dict[str, Any]) -> str:
    return f"https://doi.org/{work['doi']}" if "doi" in work else str(work.get("url", ""))


def _software(given: dict[str, Any]) -> str:
    return (
        f"@software{{perseid,\n  author = {{{{{_names(given)}}}}},\n  title = {{perseid}},\n"
        f"  version = {{{perseid.__version__}}},\n}}"
    )


def _bibtex(work: dict[str, Any]) -> str:
    authors = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in work["authors"])
    first = re.sub(r"\W+", "", work["authors"][0]["family-names"]).lower()
    kind = "article" if work["type"] == "article" else "inproceedings"
    where = f"doi = {{{work['doi']}}}" if "doi" in work else f"url = {{{work.get('url', '')}}}"
    fields = [f"author = {{{authors}}}", f"title = {{{work['title']}}}"]
    fields += [f"year = {{{work['year']}}}", where]
    return f"@{kind}{{{first}{work['year']},\n  " + ",\n  ".join(fields) + ",\n}"
