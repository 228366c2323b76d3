"""Check what a request in script mode asks for, before its run begins."""

from __future__ import annotations

from perseid.compat.scripts.script_folder import holds_fmi_configuration, script_key
from perseid.errors import NotFoundError
from perseid.pipeline import layout
from perseid.pipeline.request import RunRequest
from perseid.pipeline.run_settings import ScriptJob
from perseid.storage import Location, Storage


def script_job(request: RunRequest) -> ScriptJob | None:
    """The script that a request names; None if it uses our runtime.

    Raises
    ------
    NotFoundError
        The script is not in its folder; this is checked here so that not every rank has to fail.
    BadInputError
        The path of the script leads out of its folder.
    """
    if not request.script_mode:
        return None
    folder, script = request.s3_object_name or "", request.script or ""
    bucket_url = request.bucket_url(request.bucket or "")
    bucket = Storage(bucket_url)
    key = f"{folder}/{script_key(folder, script)}"
    # One request here instead of a failure of every rank.
    if not bucket.exists(key):
        raise NotFoundError(
            f"script {script!r} is not there: {bucket.where(key)} does not exist; check `script` "
            "and `S3_object_name`, or give `model` to use our runtime instead"
        )
    talks = request.fmi_enabled
    # The request did not say, so the folder is searched for a configuration of FMI.
    if talks is None:
        talks = holds_fmi_configuration(bucket, folder)
    root = (Location.parse(bucket_url) / layout.PAYLOAD).url
    shared = f"{root} is shared by all script runs of the bucket: run them one after the other"
    return ScriptJob(_environment(request), bucket_url, talks, (shared,))


def _environment(request: RunRequest) -> dict[str, str]:
    return {
        "S3_BUCKET": request.bucket or "",
        "S3_OBJECT_NAME": request.s3_object_name or "",
        "SCRIPT": request.script or "",
        "S3_OBJECT_TYPE": request.object_type,
        "DATA_BUCKET": request.data_bucket or "",
        "DATA_PREFIX": request.data_prefix or "",
        "RESULT_PATH": request.result_path or "",
        "BATCH_SIZE": str(request.batch_size),
    }
