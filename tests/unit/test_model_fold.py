"""The folded graph is the torch network: exact algebra, shown on random weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from networks import random_network, random_rows

from perseid.errors import BadModelError
from perseid.model.config import PUBLISHED, SMALL
from perseid.model.export.exporter import export_model, model_bytes, signature_of
from perseid.model.export.fold import batched
from perseid.model.export.folded import FoldedGraph
from perseid.model.export.folded_blocks import joined_groups
from perseid.model.export.operations import allocated_bytes_per_row
from perseid.model.runtime import ModelRuntime
from perseid.model.signature import METADATA_KEY, ModelSignature
from perseid.model.training.astromae import AstroMAE, to_weights

CONFIGS = {
    "published": PUBLISHED,
    "small": SMALL,
    "quarters": dataclasses.replace(SMALL, scoring="quarters", patch=4, depth=2),
    "no branch": dataclasses.replace(SMALL, pcm_hidden=0, depth=2, decoder_depth=1),
    "no decoder": dataclasses.replace(SMALL, decoder_width=0, depth=1),
    "other bands and size": dataclasses.replace(
        SMALL,
        bands=3,
        size=48,
        depth=2,
        softening=(0.1, 0.2, 0.3),
        magnitude_centre=None,
        magnitude_scale=None,
        embedding=False,
    ),
}


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda name: name.replace(" ", "-"))
def network(request) -> AstroMAE:
    return random_network(CONFIGS[request.param])


def test_folded_graph_is_the_torch_network(network, tmp_path):
    config = network.config
    images, magnitudes = random_rows(70, config)
    export_model(to_weights(network), tmp_path / "m.onnx")
    prediction = ModelRuntime.load(tmp_path / "m.onnx", threads=1).predict(images, magnitudes)
    with torch.no_grad():
        redshift, features = network.predict_with_features(
            torch.from_numpy(images), torch.from_numpy(magnitudes)
        )
    assert redshift.std() > 1e-3  # the comparison is not of constants
    assert np.abs(prediction.redshift - redshift.numpy()[:, 0]).max() < 1e-5
    if prediction.features is None:
        assert features.shape[1] == 0
    else:
        assert np.abs(prediction.features - features.numpy()).max() < 1e-4
        assert (features.std(dim=0) > 1e-4).all()


def test_published_forward_is_what_predict_with_features_gives():
    network = random_network(PUBLISHED)
    images, magnitudes = (torch.from_numpy(a) for a in random_rows(5, PUBLISHED))
    with torch.no_grad():
        assert torch.equal(
            network(images, magnitudes), network.predict_with_features(images, magnitudes)[0]
        )


def test_folding_saves_parameters_and_norms():
    graph = FoldedGraph(to_weights(random_network(PUBLISHED))).build({}).graph
    numbers = sum(int(np.prod(t.dims)) for t in graph.initializer if t.data_type == 1)
    assert 12.2e6 < numbers < 12.6e6  # of 15.9 million
    kinds = [node.op_type for node in graph.node]
    assert "BatchNormalization" not in kinds
    assert kinds.count("LayerNormalization") == 2 * 12 + 1


def test_signature_travels_in_the_file():
    weights = to_weights(random_network(SMALL))
    model = onnx.load_from_string(model_bytes(weights))
    text = {p.key: p.value for p in model.metadata_props}[METADATA_KEY]
    signature = ModelSignature.from_json(text)
    assert signature == signature_of(SMALL)
    assert signature.feature_groups == SMALL.feature_groups
    assert signature.band_names == ("u", "g", "r", "i", "z")


def test_equal_constants_are_stored_once():
    """The encoder runs on whole images and on masked ones with the same weights."""
    weights = to_weights(random_network(SMALL))
    assert len(model_bytes(weights)) < 1.1 * 4 * weights.parameters()


def test_published_allocations_are_the_published_ones():
    total = allocated_bytes_per_row(PUBLISHED) * 5113 / 1e6
    assert total == pytest.approx(71_461.28, abs=0.01)
    assert 1e6 < allocated_bytes_per_row(SMALL) < allocated_bytes_per_row(PUBLISHED)


def test_allocations_of_other_sizes_are_near_what_torch_allocates():
    """Each output once; the profiler counts nested operators too, so it says more."""
    config = dataclasses.replace(PUBLISHED, depth=11)
    network = random_network(config)
    images, magnitudes = (torch.from_numpy(a) for a in random_rows(16, config))
    with (
        torch.no_grad(),
        torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile,
    ):
        network(images, magnitudes)
    told = (
        sum(e.self_cpu_memory_usage for e in profile.key_averages() if e.self_cpu_memory_usage > 0)
        / 16
    )
    assert allocated_bytes_per_row(config) == pytest.approx(told, rel=0.35)


def test_batched_products_are_the_grouped_convolution():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((96, 2, 1, 1))
    x = rng.standard_normal((3, 16, 2, 2))
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(x), torch.from_numpy(weight), groups=8
    ).numpy()
    rows = x.transpose(0, 2, 3, 1).reshape(12, 8, 2).transpose(1, 0, 2)
    found = (rows @ batched(weight, 8)).transpose(1, 0, 2).reshape(3, 2, 2, 96)
    np.testing.assert_allclose(found.transpose(0, 3, 1, 2), expected, atol=1e-12)


def test_groups_join_until_they_are_wide_enough():
    assert joined_groups(48, 192) == 12
    assert joined_groups(24, 96) == 6
    assert joined_groups(1, 8) == 1


def test_weights_of_another_config_are_refused(tmp_path):
    weights = to_weights(random_network(dataclasses.replace(SMALL, depth=1)))
    with pytest.raises(BadModelError, match=r"blocks\.1\.norm1\.weight is missing"):
        dataclasses.replace(weights, config=SMALL)
