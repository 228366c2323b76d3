"""Tags that the user gives to a stack."""

from __future__ import annotations

import re
from collections.abc import Sequence

from perseid.errors import BadInputError

_TAG = re.compile(r"(?!aws:|perseid:)[\w .:/+@-]{1,128}=[\w .:/=+@-]{0,256}", re.IGNORECASE)


def check_tags(tags: Sequence[str]) -> None:
    """Raise `BadInputError` unless each tag is ``KEY=VALUE`` as AWS takes it, with its own key."""
    for tag in tags:
        if not _TAG.fullmatch(tag):
            raise BadInputError(
                f"--tag {tag!r} must be KEY=VALUE, with at most 128 and 256 characters, and the "
                "key must not begin with aws: or perseid:"
            )
    keys = [tag.partition("=")[0] for tag in tags]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise BadInputError(f"--tag gives {twice!r} more than one value: give it once")


def tag_values(tags: Sequence[str]) -> dict[str, str]:
    """Map the key of each tag to its value."""
    return {key: value for key, _, value in (tag.partition("=") for tag in tags)}
