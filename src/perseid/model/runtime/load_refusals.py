"""Why onnxruntime refuses a model: its messages, which are long, as one sentence with a remedy."""

from __future__ import annotations

import re

_SENTENCES = (
    (
        r"Opset (?P<has>\d+) is under development.*"
        r"domain (?P<domain>\S+) is till opset (?P<most>\d+)",
        "it uses opset {has} of {domain}, and onnxruntime {version} takes at most {most}: export "
        "it with opset_version={most} or lower, or install a newer onnxruntime",
    ),
    (
        r"Unsupported model IR version: (?P<has>\d+), max supported IR version: (?P<most>\d+)",
        "its file has IR version {has}, and onnxruntime {version} takes at most {most}: export it "
        "with an older onnx, or install a newer onnxruntime",
    ),
    (
        r"Could not find an implementation for (?P<op>\w+)\((?P<opset>\d+)\)",
        "onnxruntime {version} cannot compute its operator {op} (opset {opset}) in the model's "
        "number type on this device: export it in float32",
    ),
    (
        r"Type 'tensor\((?P<kind>\w+)\)' of input parameter \((?P<input>.*?)\) of operator "
        r"\((?P<op>\w+)\)",
        "its operator {op} takes no {kind} (in {input!r}): export it in float32",
    ),
    (
        r"(?P<domain>[\w.]+):(?P<op>\w+)\(-?\d+\) is not a registered function/op",
        "its operator {op} belongs to {domain}, a library of its own, which workers do not have: "
        "export it with ONNX's operators",
    ),
    (
        r"No Op registered for (?P<op>\w+) with domain_version of (?P<opset>\d+)",
        "opset {opset} has no operator {op}: export it again with an opset that has it",
    ),
)


def load_refusal(message: str, version: str) -> str:
    """Why onnxruntime `version` refused to load a model; empty if its message is unknown.

    Example
    -------
    >>> load_refusal("Unsupported model IR version: 99, max supported IR version: 14", "1.32")
    'its file has IR version 99, and onnxruntime 1.32 takes at most 14: export it with an older \
onnx, or install a newer onnxruntime'
    """
    flat = " ".join(message.split())
    for pattern, sentence in _SENTENCES:
        found = re.search(pattern, flat)
        if found is not None:
            return sentence.format(version=version, **found.groupdict())
    return ""
