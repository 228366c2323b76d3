"""Metadata of the request's keys, from which the command-line options and the reference are
made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Flag:
    """How the command line offers a key of the request."""

    flag: str
    """Name of the option, e.g. ``--memory``."""
    metavar: str
    """Placeholder of its value. ``SIZE`` and ``TIME`` accept units; empty if the option is a
    choice."""
    help: str
    """Help text of a few words."""


@dataclass(frozen=True)
class Key:
    """Description of a key in the reference."""

    kind: str
    """Type of the key's values, in one word."""
    default: str
    """Default value in words, as Markdown; empty if there is none."""
    meaning: str
    """Meaning of the key, as Markdown."""
    option: Flag | None = None
    """The command-line option; None if only a request file can set the key."""


KEYS: dict[str, Key] = {
    "bucket": Key(
        "text",
        "",
        "bucket of scripts and results",
    ),
    "data_bucket": Key(
        "text",
        "",
        "bucket of the partitions",
    ),
    "data_prefix": Key(
        "text",
        "whole bucket",
        "folder of the partitions in `data_bucket`; a folder's name, not the beginning of one",
    ),
    "result_path": Key(
        "text",
        "",
        "prefix of the run's results in `bucket`",
    ),
    "file_limit": Key(
        "number",
        "all",
        "how many partitions to use, from the first in natural order",
        Flag("--file-limit", "N", "the first N partitions only"),
    ),
    "world_size": Key(
        "number",
        "one rank a partition",
        "number of ranks; see [assignment](#which-rank-takes-what)",
        Flag("--world-size", "N", "ranks (default: a partition each)"),
    ),
    "batch_size": Key(
        "number",
        "512",
        "rows per model call, at most (1 to 65536). The runtime computes micro-batches "
        "of 32 rows (48 on x86-64 without AVX-512, 16 with several threads) within it, or of "
        "`batch_size` where that is "
        "smaller",
        Flag("--batch-size", "ROWS", "rows per model call, at most"),
    ),
    "object_type": Key(
        "text",
        "`folder`",
        "the kind of `S3_object_name`; `folder` is the one there is",
    ),
    "s3_object_name": Key(
        "text",
        "",
        "folder of the script in `bucket`",
    ),
    "script": Key(
        "text",
        "",
        "the program to run: see [script mode](#script-mode)",
    ),
    "rendezvous_endpoint": Key(
        "text",
        "",
        "`host:port`, or a host alone for port 10000",
    ),
    "fmi_enabled": Key(
        "true/false",
        "",
        "whether the ranks of a script talk to each other: see [scripts that "
        "talk](#scripts-that-talk)",
    ),
    "data_map": Key(
        "any",
        "",
        "ignored with a warning: it is made again from the listing",
    ),
    "data_path": Key(
        "any",
        "",
        "kept for scripts in `payload.json`; `DATA_PATH` is each rank's own share, "
        "whatever stands here",
    ),
    "data": Key(
        "text or list",
        "",
        "in place of `data_bucket`: the path or URL of a folder of partitions, of one"
        " partition file, or a list of partition files of one store",
        Flag("--data", "URL", "folder of partitions: a path or a URL"),
    ),
    "results": Key(
        "text",
        "",
        "in place of `bucket` and `result_path`: the path or URL of a folder for this run alone",
        Flag("--out", "URL", "folder for this run (default runs/NAME)"),
    ),
    "bucket_root": Key(
        "text",
        "",
        "local directory whose sub-folders stand for the buckets",
        Flag("--bucket-root", "DIR", "local folder whose sub-folders stand for the buckets"),
    ),
    "model": Key(
        "text",
        "`default`",
        "`default` (in the package), the path or URL of an ONNX model, or "
        "`python:package.module:Class` ([Python models](model.md#python-models))",
        Flag("--model", "URL", "exported model (default: the package's own)"),
    ),
    "model_path": Key(
        "text",
        "",
        "folder in which the module of a `python:` model is looked for, after all installed ones; "
        "every worker must see it",
        Flag("--model-path", "FOLDER", "folder of a python: model's module"),
    ),
    "signature": Key(
        "object or text",
        "in the model's file, or beside it",
        "what the model takes and gives: an object, or the path or URL of a file of it; see "
        "[signatures](model.md#the-signature)",
        Flag("--signature", "FILE", "what the model takes and gives (default: the model says it)"),
    ),
    "lists": Key(
        "text or list",
        "",
        "outputs of the model that the catalogue takes as lists of one length: `embedding`, `pdf`",
        Flag("--lists", "KINDS", "keep embedding, pdf or both (with a comma) in the catalogue"),
    ),
    "fit": Key(
        "text",
        "",
        "what becomes of images of another size than the model's: `crop` cuts them about their "
        "middle, `pad` puts zeros around them. Without it they are refused",
        Flag("--fit", "", "make images of another size fit the model's"),
    ),
    "precision": Key(
        "text",
        "`float32`",
        "`float32` or `int8`; without the processor's instructions for it, `int8` "
        "works in float32 and says so",
        Flag("--precision", "", "of the encoder (default float32)"),
    ),
    "device": Key(
        "text",
        "`cpu`",
        "`cpu` or `cuda`: what the model computes on; see [a GPU](../how-to/gpu.md)",
        Flag("--device", "", "what the model computes on (default cpu)"),
    ),
    "anomaly": Key(
        "text",
        "`both`",
        "features of the anomaly score: `both`, `embedding`, `residual`, or `none`",
        Flag("--anomaly", "", "what scores are made from (default both)"),
    ),
    "top": Key(
        "number",
        "24",
        "length of the list of the most anomalous objects in the summary",
        Flag("--top", "N", "length of the list of anomalies"),
    ),
    "missing": Key(
        "object",
        "see [missing values](survey.md#missing-values)",
        'values that mean a missing magnitude or redshift, such as `{"redshift": [-1,'
        ' -9], "magnitude": "none"}`',
    ),
    "columns": Key(
        "object",
        "found by themselves",
        'names of the survey\'s columns, such as `{"object_id": "TARGETID", "magnitude": '
        '["MAG_G", "MAG_R"]}`: see [columns](survey.md#names-of-columns)',
    ),
    "layout": Key(
        "text",
        "seen from the shape",
        "how each image lies in the files: `channels-last` (height, width, bands) or "
        "`channels-first`; without it, see [surveys](survey.md#surveys-files-formats-partitions)",
        Flag("--layout", "", "order of the axes of each image (default: seen from the shape)"),
    ),
    "bands": Key(
        "text or list",
        "as the survey says",
        "names of the bands of the survey's images, in their order, as a list or a text with "
        "commas: a model whose signature names its bands gets those, see "
        "[bands](survey.md#bands-by-name)",
        Flag("--bands", "NAME,...", "names of the survey's bands, in the images' order"),
    ),
    "keep": Key(
        "text or list",
        "",
        "further columns of the survey that the catalogue takes, as a list or a text with commas; "
        "`all` for every column of one value per row: see "
        "[columns](survey.md#columns-that-are-kept)",
        Flag("--keep", "COLUMN,...", "survey's columns that the catalogue takes too, or all"),
    ),
    "transport": Key(
        "text",
        "`auto` here, `store` on AWS",
        "how ranks exchange statistics: `store`, `direct`, `relay`, or `auto`: "
        "directly, else through the relay. Whatever fails falls back to the store",
        Flag("--transport", "", "how ranks exchange statistics (default: auto here, store on AWS)"),
    ),
    "silence_timeout": Key(
        "seconds",
        "60",
        "how long a rank may be silent during a collective merge while its process lives;"
        " 0: no limit: [which is which](communicator.md#when-a-rank-counts-as-lost)",
        Flag(
            "--silence-timeout",
            "TIME",
            "longest silence of a living rank in a collective merge (60s)",
        ),
    ),
    "link_timeout": Key(
        "seconds",
        "15",
        "after which a cut link or a dead host counts as a lost rank: [which is "
        "which](communicator.md#when-a-rank-counts-as-lost)",
        Flag("--link-timeout", "TIME", "time until a cut link counts as a lost rank (15s)"),
    ),
    "death_timeout": Key(
        "seconds",
        "2",
        "after which a dead process counts as a lost rank: [which is "
        "which](communicator.md#when-a-rank-counts-as-lost)",
        Flag("--death-timeout", "TIME", "time until a dead process counts as a lost rank (2s)"),
    ),
    "memory_mb": Key(
        "number",
        "1769",
        "MB per worker, 128 to 10240 as on Lambda; 1769 MB is one vCPU there",
        Flag("--memory", "SIZE", "memory of a rank, such as 2GB; a bare number is MB (1769)"),
    ),
    "timeout": Key(
        "seconds",
        "900",
        "longest time of one attempt at a rank",
        Flag(
            "--timeout",
            "TIME",
            "longest time of a rank, such as 10m; a bare number is seconds (900)",
        ),
    ),
    "retries": Key(
        "number",
        "2",
        "further attempts after a failed one",
        Flag("--retries", "N", "attempts after a failed one (2)"),
    ),
    "tolerated_failures": Key(
        "percent",
        "100",
        "on AWS: when more of the ranks fail, the rest is stopped",
        Flag(
            "--tolerated-failures",
            "PERCENT",
            "of the ranks: where more fail, AWS stops the rest (100)",
        ),
    ),
    "workers": Key(
        "number",
        "cores; on AWS no limit",
        "workers at once",
        Flag("--workers", "N", "processes at once (default: cores)"),
    ),
    "threads": Key(
        "number",
        "cores / workers",
        "threads per worker",
        Flag("--threads", "N", "threads per worker (default 1)"),
    ),
}
"""The description of each field of `RunRequest`, in order."""
