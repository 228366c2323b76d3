"""The runtime: the same bits for a row anywhere, threads, foreign ONNX files, clear refusals."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import random_network, random_rows
from onnx import TensorProto, helper
from tiny import tiny_model

from perseid.errors import BadInputError, BadModelError, NotFoundError
from perseid.model.config import PUBLISHED, SMALL
from perseid.model.export.exporter import export_model, model_bytes
from perseid.model.files import producer_of
from perseid.model.runtime import MICRO_BATCH, ModelRuntime, int8_url, processor
from perseid.model.runtime.processor import (
    LANE_ROWS,
    MOST_LANES,
    has_int8_products,
    usable_threads,
)
from perseid.model.signature import METADATA_KEY
from perseid.model.training.astromae import to_weights
from perseid.storage import Storage

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import avx2

MODELS = {
    "published": dataclasses.replace(PUBLISHED, depth=2),
    "small": dataclasses.replace(SMALL, depth=2),
    "quarters": dataclasses.replace(SMALL, depth=1, scoring="quarters"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for name, config in MODELS.items():
        export_model(to_weights(random_network(config)), folder / f"{name}.onnx")
    return {name: folder / f"{name}.onnx" for name in MODELS}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_a_row_has_the_same_bits_wherever_it_stands(models, name, threads):
    runtime = ModelRuntime.load(models[name], threads=threads)
    images, magnitudes = random_rows(150, MODELS[name])
    whole = runtime.predict(images, magnitudes)
    rng = np.random.default_rng(3)

    def same(rows: np.ndarray) -> None:
        part = runtime.predict(images[rows], magnitudes[rows])
        assert part.redshift.tobytes() == whole.redshift[rows].tobytes()
        if whole.features is not None:
            assert part.features.tobytes() == whole.features[rows].tobytes()

    everything = np.arange(150)
    for start in (1, 7, 31, 32, 33, 65, 149):  # other offsets, other tails
        same(everything[start:])
        same(everything[:start])
    same(rng.permutation(150))
    same(np.repeat(everything[:3], 30))


def test_each_thread_has_calls_of_its_own_only_with_our_models(models, tmp_path):
    """A call of somebody else's model may need gigabytes, so its threads share one."""
    ours, alone = (ModelRuntime.load(models["small"], threads=number) for number in (3, 1))
    assert (ours.threads, ours.micro_batch, alone.micro_batch) == (3, LANE_ROWS, MICRO_BATCH)
    theirs = ModelRuntime.load(tiny_model(tmp_path / "theirs.onnx"), threads=3)
    assert (theirs.threads, theirs.micro_batch) == (3, MICRO_BATCH)
    many = ModelRuntime.load(models["small"], threads=MOST_LANES + 1)
    assert (many.threads, many.micro_batch) == (MOST_LANES + 1, MICRO_BATCH)
    assert producer_of(Path(__file__)) == ""
    images, magnitudes = random_rows(50, MODELS["small"])
    ours._session = None  # every thread fails, and the first error is told
    with pytest.raises(BadModelError, match="fails when it computes"):
        ours.predict(images, magnitudes)


@pytest.mark.parametrize("name", ["published", "small"])
def test_threads_and_rows_per_call_do_not_change_the_bits(models, name):
    images, magnitudes = random_rows(100, MODELS[name])
    one, *others = (
        ModelRuntime.load(models[name], threads=threads, micro_batch=rows).predict(
            images, magnitudes
        )
        for threads, rows in ((1, 32), (2, 32), (1, 48), (2, 48), (3, 32), (6, 8), (7, 32))
    )
    for other in others:
        assert one.redshift.tobytes() == other.redshift.tobytes()
        if one.features is not None:
            assert one.features.tobytes() == other.features.tobytes()


def test_bad_neighbors_do_not_matter(models):
    runtime = ModelRuntime.load(models["small"], threads=1)
    images, magnitudes = random_rows(64, SMALL)
    before = runtime.predict(images, magnitudes)
    images, magnitudes = images.copy(), magnitudes.copy()
    images[5], images[40, 2, 3, 3], magnitudes[11] = np.nan, np.inf, np.nan
    after = runtime.predict(images, magnitudes)
    good = np.setdiff1d(np.arange(64), [5, 11, 40])
    assert before.redshift[good].tobytes() == after.redshift[good].tobytes()
    assert before.features[good].tobytes() == after.features[good].tobytes()
    assert np.isnan(after.redshift[[5, 11]]).all()


def test_memory_maps_views_and_odd_arrays(models, tmp_path):
    runtime = ModelRuntime.load(models["small"], threads=1)
    images, magnitudes = random_rows(130, SMALL)
    expected = runtime.predict(images, magnitudes).redshift
    flat = np.concatenate([np.zeros(1, np.uint8), images.view(np.uint8).ravel()])
    flat.tofile(tmp_path / "raw")
    mapped = np.memmap(tmp_path / "raw", np.uint8, mode="r")
    odd = mapped[1:].view(np.float32).reshape(images.shape)
    assert not odd.flags.aligned
    assert not odd.flags.writeable
    np.testing.assert_array_equal(runtime.predict(odd, magnitudes).redshift, expected)
    strided = np.repeat(images, 2, axis=0)[::2]
    np.testing.assert_array_equal(runtime.predict(strided, magnitudes).redshift, expected)
    assert runtime.predict(images[:0], magnitudes[:0]).redshift.shape == (0,)
    assert runtime.predict(images[:0], magnitudes[:0]).features.shape == (
        0,
        runtime.signature.features(),
    )


def test_a_mapped_partition_is_not_copied(models, tmp_path):
    """Peak memory of a prediction over 80 MB of mapped pixels, anonymous pages only."""
    program = f"""
import numpy as np, sys
from perseid.model.runtime import ModelRuntime
def anonymous():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon"))
runtime = ModelRuntime.load({str(models["small"])!r}, threads=1)
images = np.memmap({str(tmp_path / "raw")!r}, np.float32, mode="r", shape=(4096, 5, 32, 32))
magnitudes = np.full((4096, 5), 18.0)
runtime.predict(images[:64], magnitudes[:64])
before = anonymous()
runtime.predict(images, magnitudes)
print(anonymous() - before)
"""
    with open(tmp_path / "raw", "wb") as file:
        file.truncate(4096 * 20480)
    out = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=120
    )
    assert int(out.stdout) < 8 << 10  # KiB; a copy would be 80 MiB


def test_the_runtime_needs_no_torch_and_no_command_line_packages(models):
    program = (
        "import sys; from perseid.model.runtime import ModelRuntime; "
        f"ModelRuntime.load({str(models['small'])!r}); "
        "print(sorted({'torch','onnx','pydantic','rich','pyarrow','astropy'} & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=120
    )
    assert out.stdout.strip() == "[]"


def test_models_by_url(models):
    store = Storage("memory://models")
    store.put("m/small.onnx", models["small"].read_bytes())
    images, magnitudes = random_rows(3, SMALL)
    here = ModelRuntime.load(models["small"].as_uri()).predict(images, magnitudes)
    there = ModelRuntime.load("memory://models/m/small.onnx").predict(images, magnitudes)
    np.testing.assert_array_equal(here.redshift, there.redshift)
    with pytest.raises(NotFoundError, match=r"memory://models/m/none\.onnx"):
        ModelRuntime.load("memory://models/m/none.onnx")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08" * 100])
def test_a_file_that_is_no_model(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(BadModelError, match=r"m\.onnx is not a model that onnxruntime can load"):
        ModelRuntime.load(tmp_path / "m.onnx")


def test_no_model_there(tmp_path):
    with pytest.raises(BadModelError, match=r"there is no model at .*gone\.onnx"):
        ModelRuntime.load(tmp_path / "gone.onnx")


def test_arrays_that_do_not_fit_the_model(models):
    runtime = ModelRuntime.load(models["small"])
    images, magnitudes = random_rows(2, SMALL)
    with pytest.raises(
        BadModelError, match=r"takes float32 images .* \(5, 32, 32\), not .*\(4, 32"
    ):
        runtime.predict(images[:, :4], magnitudes[:, :4])
    with pytest.raises(BadModelError, match="float64"):
        runtime.predict(images.astype(np.float64), magnitudes)
    with pytest.raises(BadModelError, match=r"takes magnitudes \(2, 5\), not \(2, 4\)"):
        runtime.predict(images, magnitudes[:, :4])


@pytest.mark.parametrize("options", [{"precision": "int4"}, {"threads": 0}, {"micro_batch": 0}])
def test_options_that_mean_nothing(models, options):
    with pytest.raises(BadInputError):
        ModelRuntime.load(models["small"], **options)


def foreign_model(
    path: Path,
    *,
    batch="rows",
    image="pixels",
    extra=None,
    redshift=("z", ["rows"]),
    magnitude=TensorProto.FLOAT,
    features=0,
    metadata=None,
    size: object = 16,
) -> Path:
    """Redshift = mean magnitude + mean pixel, made with plain ONNX by somebody else."""
    nodes, outputs = [], []
    inputs = [helper.make_tensor_value_info(image, TensorProto.FLOAT, [batch, 3, size, size])]
    nodes.append(helper.make_node("ReduceMean", [image], ["p"], axes=[1, 2, 3], keepdims=0))
    result = "p"
    if magnitude:
        inputs.append(helper.make_tensor_value_info("mags", magnitude, [batch, 3]))
        nodes.append(helper.make_node("ReduceMean", ["mags"], ["m"], axes=[1], keepdims=0))
        nodes.append(helper.make_node("Cast", ["m"], ["mf"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Add", ["p", "mf"], ["s"]))
        result = "s"
    if extra:
        inputs.append(helper.make_tensor_value_info(extra, TensorProto.FLOAT, [batch]))
        nodes.append(helper.make_node("Add", [result, extra], ["e"]))
        result = "e"
    if redshift[0] == "quantiles":
        nodes.append(
            helper.make_node("ReduceMean", [image], ["quantiles"], axes=[2, 3], keepdims=0)
        )
    elif len(redshift[1]) == 2:
        columns = helper.make_tensor("two", TensorProto.INT64, [1], [-1])
        nodes.append(helper.make_node("Constant", [], ["axis"], value=columns))
        nodes.append(helper.make_node("Unsqueeze", [result, "axis"], [redshift[0]]))
    else:
        nodes.append(helper.make_node("Identity", [result], [redshift[0]]))
    outputs.append(helper.make_tensor_value_info(redshift[0], TensorProto.FLOAT, redshift[1]))
    if features:
        nodes.append(helper.make_node("ReduceMean", [image], ["features"], axes=[2, 3], keepdims=0))
        outputs.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, [batch, 3]))
    graph = helper.make_graph(nodes, "foreign", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if metadata:
        helper.set_model_props(model, metadata)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch": 10},
        {"batch": "n"},
        {"redshift": ("redshift", ["rows", 1])},
        {"magnitude": TensorProto.DOUBLE},
        {"features": 3},
    ],
)
def test_bring_your_own_model(tmp_path, changes):
    runtime = ModelRuntime.load(foreign_model(tmp_path / "theirs.onnx", **changes))
    assert (runtime.signature.bands, runtime.signature.height) == (3, 16)
    assert runtime.micro_batch == (10 if changes.get("batch") == 10 else MICRO_BATCH)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((77, 3, 16, 16)).astype(np.float32)
    magnitudes = rng.standard_normal((77, 3))
    prediction = runtime.predict(images, magnitudes)
    expected = images.mean(axis=(1, 2, 3)) + magnitudes.mean(axis=1)
    np.testing.assert_allclose(prediction.redshift, expected, atol=1e-5)
    if changes.get("features"):
        assert runtime.signature.feature_groups == {"embedding": 3}
        np.testing.assert_allclose(prediction.features, images.mean(axis=(2, 3)), atol=1e-5)
    else:
        assert prediction.features is None


def test_a_model_of_images_alone(tmp_path):
    runtime = ModelRuntime.load(foreign_model(tmp_path / "m.onnx", magnitude=None))
    images = np.ones((3, 3, 16, 16), np.float32)
    np.testing.assert_allclose(runtime.predict(images, np.zeros((3, 3))).redshift, 1.0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"extra": "airmass"}, "a worker gives only image"),
        ({"size": "side"}, "does not say how large its images are"),
        ({"redshift": ("quantiles", ["rows", 3])}, "no output redshift"),
        ({"metadata": {METADATA_KEY: "{nonsense"}}, "cannot be read"),
        ({"metadata": {METADATA_KEY: '{"name": "x", "bands": 5}'}}, "says of itself"),
    ],
)
def test_foreign_models_that_cannot_be_used(tmp_path, changes, sentence):
    with pytest.raises(BadModelError, match=sentence):
        ModelRuntime.load(foreign_model(tmp_path / "m.onnx", **changes))


def test_where_int8_lies():
    assert int8_url("s3://b/m.onnx") == "s3://b/m.int8.onnx"
    assert int8_url("/a/m.int8.onnx") == "/a/m.int8.onnx"


def test_threads_follow_affinity_quota_and_lambda(tmp_path, monkeypatch):
    cores = len(__import__("os").sched_getaffinity(0))
    monkeypatch.delenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", raising=False)
    groups = tmp_path / "groups"  # of a process that is two groups below the one with a limit
    groups.write_text("3:cpuset:/\n0::/half/service\n1:cpu,cpuacct:/../elsewhere\n")
    (tmp_path / "half" / "service").mkdir(parents=True)
    (tmp_path / "half" / "service" / "cpu.max").write_text("max 100000\n")
    (tmp_path / "half" / "cpu.max").write_text("50000 100000\n")
    assert usable_threads(tmp_path, groups) == 1
    (tmp_path / "half" / "cpu.max").unlink()
    assert usable_threads(tmp_path) == cores
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_threads(tmp_path) == cores
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert usable_threads(tmp_path) == 1
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_threads(tmp_path) == 1
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert usable_threads(tmp_path) == cores
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "1769")
    assert usable_threads(tmp_path) == 1


def test_vnni_is_read_from_the_flags_of_all_cores(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags\t\t: fpu avx512_vnni\n\nflags\t\t: fpu avx_vnni\n")
    assert has_int8_products(cpuinfo) is processor._products_are_exact()
    cpuinfo.write_text("flags\t\t: fpu avx512_vnni\n\nflags\t\t: fpu avx2\n")
    assert not has_int8_products(cpuinfo)
    cpuinfo.write_text("Features : asimd\n")
    assert not has_int8_products(cpuinfo)
    assert not has_int8_products(tmp_path / "none")


def test_a_process_that_cannot_use_vnni_takes_no_int8(tmp_path):
    """The kernel's list still has it; the sums of this process saturate."""
    found, reason = avx2.variables(tmp_path)
    if reason:
        pytest.skip(reason)
    ask = "from perseid.model.runtime.processor import has_int8_products as f; print(f())"
    done = subprocess.run(
        [sys.executable, "-c", ask], env={**os.environ, **found}, capture_output=True, text=True,
        check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == "False"


def test_model_bytes_are_the_same_every_time():
    weights = to_weights(random_network(MODELS["small"]))
    assert model_bytes(weights) == model_bytes(weights)


LITTLE_MEMORY = """
import resource, sys
import numpy as np
from perseid.model.runtime import ModelRuntime

def leave(megabytes):
    taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (megabytes << 20), resource.RLIM_INFINITY))

import onnxruntime
if sys.argv[1] == "load":
    leave(4)
runtime = ModelRuntime.load("default", threads=1, micro_batch=2048)
images, magnitudes = np.zeros((2048, 5, 32, 32), np.float32), np.zeros((2048, 5))
leave(4)
runtime.predict(images, magnitudes)
"""


@pytest.mark.parametrize("when", ["load", "predict"])
def test_a_model_that_finds_no_memory_is_no_bad_model(when: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, when], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    name = {"load": "default", "predict": "astromae-small"}[when]
    said = f"there is not enough memory for the model {name}"
    assert done.stderr.splitlines()[-1] == f"MemoryError: {said}"
