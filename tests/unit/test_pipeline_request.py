"""The run request: existing payloads as they are, ours beside them, one sentence a bad value."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perseid.errors import BadInputError
from perseid.pipeline.request import RunRequest

PAYLOAD = {
    "bucket": "cosmicai-data",
    "file_limit": "11",
    "batch_size": 512,
    "object_type": "folder",
    "S3_object_name": "Anomaly Detection",
    "script": "/tmp/Anomaly Detection/Inference/inference.py",
    "result_path": "result-partition-100MB/1GB/1",
    "data_bucket": "cosmicai-data",
    "data_prefix": "100MB",
}
OURS = {"data": "survey", "results": "runs/1"}


def test_the_published_payload_is_read_as_it_is():
    request = RunRequest.parse(PAYLOAD)
    assert (request.file_limit, request.batch_size, request.world_size) == (11, 512, None)
    assert request.script_mode
    assert request.s3_object_name == "Anomaly Detection"
    assert request.results_url == "s3://cosmicai-data/result-partition-100MB/1GB/1"
    assert request.bucket_url("cosmicai-data") == "s3://cosmicai-data"
    assert request.warnings() == ()
    assert request.given() == PAYLOAD


def test_the_course_variant_with_its_further_keys():
    more = {
        "world_size": "4",
        "rendezvous_endpoint": "rendezvous.example.org:10000",
        "fmi_enabled": "true",
        "data_map": {"0": "100MB/1.pt"},
        "data_path": "/tmp/data",
        "colour": "red",
    }
    request = RunRequest.parse(PAYLOAD | more)
    assert (request.world_size, request.fmi_enabled) == (4, True)
    assert request.given()["colour"] == "red"
    said = request.warnings()
    assert len(said) == 3
    assert "'colour' is not known" in said[0]
    assert "data_map" in said[1]
    assert "`data_path` is kept" in said[2]


def test_a_file_of_json(tmp_path: Path):
    path = tmp_path / "payload.json"
    path.write_text(json.dumps(PAYLOAD))
    assert RunRequest.parse(path) == RunRequest.parse(PAYLOAD)
    path.write_text("{nonsense")
    with pytest.raises(BadInputError, match="is not JSON"):
        RunRequest.parse(path)
    path.write_text("[1]")
    with pytest.raises(BadInputError, match="must be a JSON object"):
        RunRequest.parse(path)
    with pytest.raises(BadInputError, match="cannot be read"):
        RunRequest.parse(tmp_path / "nothing.json")


def test_a_model_takes_the_place_of_the_script():
    request = RunRequest.parse(PAYLOAD | {"model": "default"})
    assert not request.script_mode
    assert "`script` is not run" in request.warnings()[0]


def test_blank_values_count_as_left_out():
    request = RunRequest.parse(PAYLOAD | {"file_limit": "", "world_size": " ", "script": ""})
    assert (request.file_limit, request.world_size, request.script) == (None, None, None)
    assert not request.script_mode


def test_buckets_as_folders(tmp_path: Path):
    request = RunRequest.parse(PAYLOAD | {"bucket_root": str(tmp_path)})
    assert request.bucket_url("b") == (tmp_path / "b").as_uri()
    assert request.results_url == (tmp_path / "cosmicai-data" / PAYLOAD["result_path"]).as_uri()


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("file_limit", "eleven", "a whole number from 1"),
        ("file_limit", 0, "a whole number from 1"),
        ("world_size", -3, "a whole number from 1"),
        ("batch_size", "0", "a whole number from 1 to 65536"),
        ("world_size", 10**9, "a whole number from 1 to 100000"),
        ("threads", 10**9, "a whole number from 1 to 4096"),
        ("batch_size", 1.5, "a whole number"),
        ("object_type", "file", "folder"),
        ("result_path", "../other", "a prefix inside the bucket"),
        ("data_prefix", "a/../../b", "inside data_bucket"),
        ("S3_object_name", "..", "inside the bucket"),
        ("bucket", "../etc", "name of a bucket"),
        ("data_bucket", "a/b", "name of a bucket"),
        ("precision", "float16", "float32 or int8"),
        ("anomaly", "all", "both, embedding, residual or none"),
        ("transport", "pigeon", "store, direct, relay or auto"),
        ("memory_mb", 64, "from 128 to 10240"),
        ("timeout", 0, "seconds"),
        ("timeout", float("inf"), "seconds"),
        ("timeout", 1e20, "seconds"),
        ("timeout", "nan", "seconds"),
        ("retries", "many", "from 0 to 100"),
        ("top", -1, "from 0"),
        ("fmi_enabled", "perhaps", "true or false"),
        ("script", 7, "path"),
    ],
)
def test_one_sentence_for_a_bad_value(key: str, value: object, hint: str):
    with pytest.raises(BadInputError) as caught:
        RunRequest.parse(PAYLOAD | {key: value})
    text = str(caught.value)
    assert text.startswith(f"{key} in the request is {value!r}: give ")
    assert hint in text
    assert "\n" not in text
    assert "pydantic" not in text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
NAMES = [field.alias or name for name, field in RunRequest.model_fields.items()]


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), JSON, max_size=4))
def test_whatever_is_given_is_taken_or_refused_by_a_sentence(keys: dict):
    for base in (PAYLOAD, OURS):
        try:
            request = RunRequest.parse(base | keys)
        except BadInputError as error:
            text = str(error)
            assert text
            assert "pydantic" not in text
        else:
            assert request.results_url
            assert all(isinstance(warning, str) for warning in request.warnings())
            json.dumps(request.given())


def test_a_url_is_no_rendezvous_and_is_refused_before_a_run():
    RunRequest.parse(OURS | {"rendezvous_endpoint": "rendezvous.example.org"})
    with pytest.raises(BadInputError, match="is a URL"):
        RunRequest.parse(OURS | {"rendezvous_endpoint": "https://rendezvous.example.org"})


def test_several_bad_values_are_all_named():
    with pytest.raises(BadInputError, match=r"file_limit .*; batch_size "):
        RunRequest.parse(PAYLOAD | {"file_limit": "x", "batch_size": "y"})


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"results": "r"}, "names no data"),
        ({"data": "d"}, "no place for results"),
        ({**OURS, "data_bucket": "b"}, "both `data` and `data_bucket`"),
        ({**OURS, "script": "/tmp/x/a.py"}, "`script` runs only with"),
    ],
)
def test_what_a_request_must_have(keys: dict, sentence: str):
    with pytest.raises(BadInputError, match=sentence):
        RunRequest.parse(keys)


def test_what_a_run_keeps_is_strict_json():
    """Infinities and NaN, which are missing in any case, would be words that JSON lacks."""
    request = RunRequest.parse(
        {**OURS, "missing": {"redshift": "nan,-1,inf", "magnitude": [1e999]}}
    )
    assert request.missing_values.to_json() == {"magnitude": [], "redshift": [-1.0]}


def test_a_list_of_partitions():
    request = RunRequest.parse({"data": ["a/1.pt", "a/2.pt"], "results": "r"})
    assert request.data == ["a/1.pt", "a/2.pt"]
    with pytest.raises(BadInputError, match="data in the request"):
        RunRequest.parse({"data": [1, 2], "results": "r"})


@pytest.mark.parametrize("said", ['"none"', '{"redshift": [-1]}', "null", "[1]"])
def test_options_by_column_replace_whatever_a_request_file_says_of_that_column(said, tmp_path):
    from perseid.cli import make_parser
    from perseid.cli.run import plain_of

    (tmp_path / "request.json").write_text(f'{{"data": "x", "missing": {said}}}')
    options = ["run", str(tmp_path / "request.json"), "--missing", "redshift=-9"]
    assert plain_of(make_parser(["run"]).parse_args(options))["missing"] == {"redshift": "-9"}
