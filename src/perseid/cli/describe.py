"""``perseid model describe``: make a signature from a model's graph and the user's answers."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perseid.model.runtime.proposal import Proposal
    from perseid.model.signature import ModelSignature


def describe(args: argparse.Namespace) -> int:
    """Propose a signature, ask for what the graph does not show, and write it next to the model."""
    from perseid.model.runtime import ModelRuntime
    from perseid.model.runtime.proposal import propose
    from perseid.model.signature import BESIDE
    from perseid.storage import Storage

    proposal = propose(args.model)
    signature = proposal.signature if args.yes else _asked(proposal)
    signature.check("this signature")
    ModelRuntime.load(args.model, threads=1, signature=signature)
    store, key = Storage.holding(f"{args.model}{BESIDE}")
    text = json.dumps(signature.to_plain(), indent=1)
    store.put(key, text.encode())
    print(text)
    columns = ", ".join(column.name for column in signature.output_columns())
    print(f"{store.where(key)}: new columns of the catalogue: {columns or 'none, only scores'}")
    return 0


def _asked(proposal: Proposal) -> ModelSignature:
    """Ask the user about outputs whose kind the graph does not show."""
    from perseid.model.runtime.proposal import kinds_for, with_kind

    for output in proposal.signature.outputs:
        if output.name in proposal.unknown:
            kinds = kinds_for(output)
            question = f"What is the output {output.name} ({output.numbers} a row): "
            kind = _answer(question + " or ".join(kinds), output.kind)
            proposal = replace(proposal, signature=with_kind(proposal, output.name, kind))
    outputs = []
    for output in proposal.signature.outputs:
        if output.kind == "probabilities":
            named = _answer(f"Names of the {output.numbers} classes of {output.name}, with commas",
                            ",".join(output.classes))  # fmt: skip
            output = replace(output, classes=tuple(name.strip() for name in named.split(",")))
        elif output.kind == "quantiles":
            said = _answer(f"Levels of the {output.numbers} quantiles of {output.name}",
                           ",".join(f"{level:.4g}" for level in output.levels))  # fmt: skip
            output = replace(output, levels=tuple(_number(one) for one in said.split(",")))
        outputs.append(output)
    return replace(proposal.signature, outputs=tuple(outputs))


def _number(text: str) -> float:
    from perseid.errors import BadInputError

    try:
        return float(text)
    except ValueError as error:
        raise BadInputError(f"{text.strip()!r} is not a number") from error


def _answer(question: str, proposed: str) -> str:
    from perseid.errors import BadInputError

    try:
        return input(f"{question} [{proposed}]: ").strip() or proposed
    except EOFError as error:
        raise BadInputError(
            f"{question}: there is no terminal to answer in; give --yes to accept {proposed!r}"
        ) from error
