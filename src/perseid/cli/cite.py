"""``perseid cite``: what to cite, with the installed versions."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

import perseid
from perseid.errors import NotInstalledError

FILE = "CITATION.cff"
COMPUTED_WITH = ("numpy", "onnxruntime", "obstore")
"""Packages whose versions affect the results."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``perseid cite``."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--bibtex", action="store_true", help="as BibTeX entries")
    form.add_argument("--json", action="store_true", help="print it as JSON")


def run(args: argparse.Namespace) -> int:
    """Print what to cite."""
    software, *works = cited()
    if args.bibtex:
        entries = [_software(software), *map(_bibtex, works)]
        print("\n\n".join(entries))
        return 0
    computed_with = {name: importlib.metadata.version(name) for name in COMPUTED_WITH}
    if args.json:
        plain = {
            "perseid": perseid.__version__,
            "computed_with": computed_with,
            "works": [asdict(work) for work in (software, *works)],
        }
        print(json.dumps(plain, ensure_ascii=False))
        return 0
    versions = ", ".join(f"{name} {version}" for name, version in computed_with.items())
    print(f"{_names(software)}: perseid, version {perseid.__version__} (with {versions}).")
    for work in works:
        print(f"\n{_names(work)} ({work.year}): {work.title}. {work.address}\n    {work.notes}")
    return 0


@dataclass(frozen=True)
class CitedAuthor:
    """An author of a cited work; a team has no given name."""

    family: str
    given: str = ""


@dataclass(frozen=True)
class CitedWork:
    """An entry of ``CITATION.cff``: perseid itself, or a work that it builds on."""

    kind: str
    """Type in the file: ``software``, ``article``, ``conference-paper`` …"""
    title: str
    authors: tuple[CitedAuthor, ...]
    year: str = ""
    doi: str = ""
    url: str = ""
    notes: str = ""
    """Which part of perseid is based on it."""

    @classmethod
    def of(cls, entry: Any) -> CitedWork:
        """Make it from an entry of the file."""
        return cls(
            entry["type"],
            entry["title"],
            tuple(
                CitedAuthor(one.get("family-names") or one["name"], one.get("given-names", ""))
                for one in entry["authors"]
            ),
            *(str(entry.get(key, "")) for key in ("year", "doi", "url", "notes")),
        )

    @property
    def address(self) -> str:
        """Its DOI as a link, else its URL."""
        return f"https://doi.org/{self.doi}" if self.doi else self.url


def cited() -> list[CitedWork]:
    """Read ``CITATION.cff`` from the package or the source tree: perseid first, then its
    references."""
    for place in (resources.files("perseid") / FILE, Path(__file__).parents[3] / FILE):
        if place.is_file():
            found = yaml.safe_load(place.read_text(encoding="utf-8"))
            return [CitedWork.of(entry) for entry in (found, *found["references"])]
    raise NotInstalledError(f"this installation has no {FILE}: install perseid again")


def _names(work: CitedWork) -> str:
    people = [f"{one.given} {one.family}".strip() for one in work.authors]
    return people[0] if len(people) == 1 else f"{', '.join(people[:-1])} and {people[-1]}"


def _software(given: CitedWork) -> str:
    return (
        f"@software{{perseid,\n  author = {{{{{_names(given)}}}}},\n  title = {{perseid}},\n"
        f"  version = {{{perseid.__version__}}},\n}}"
    )


def _bibtex(work: CitedWork) -> str:
    authors = " and ".join(f"{a.family}, {a.given}".removesuffix(", ") for a in work.authors)
    first = re.sub(r"\W+", "", work.authors[0].family).lower()
    kind = "article" if work.kind == "article" else "inproceedings"
    where = f"doi = {{{work.doi}}}" if work.doi else f"url = {{{work.url}}}"
    fields = [f"author = {{{authors}}}", f"title = {{{work.title}}}"]
    fields += [f"year = {{{work.year}}}", where]
    return f"@{kind}{{{first}{work.year},\n  " + ",\n  ".join(fields) + ",\n}"
