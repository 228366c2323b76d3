"""Write the tables of docs/reference/request.md from the request's fields; a test compares them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from perseid.pipeline.request import RunRequest
from perseid.pipeline.request_keys import KEYS

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "request.md"
FIRST_OF_OURS = "data"
"""The fields before it are those of existing payloads."""


def page() -> str:
    """The page as it is, with its tables made again."""
    names = list(RunRequest.model_fields)
    first = names.index(FIRST_OF_OURS)
    text = PAGE.read_text(encoding="utf-8")
    for mark, part in (("payload keys", names[:first]), ("our keys", names[first:])):
        table = "\n".join(_table(part))
        pattern = rf"(<!-- {mark} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda m, table=table: f"{m[1]}{table}\n{m[2]}", text, flags=re.S)
    return text


def _table(names: list[str]) -> Iterator[str]:
    yield "| key | option | type | default | meaning |"
    yield "| --- | --- | --- | --- | --- |"
    for name in names:
        key = KEYS[name]
        option = f"`{key.option.flag}`" if key.option else ""
        alias = RunRequest.model_fields[name].alias or name
        cells = (f"`{alias}`", option, key.kind, key.default, key.meaning)
        yield "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
