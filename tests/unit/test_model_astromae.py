"""The network: the published sizes, the small one, the masked autoencoder, the weight file."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from perseid.errors import BadModelError
from perseid.model.config import (
    PUBLISHED,
    SMALL,
    AstroMAEConfig,
    residual_names,
    scoring_masks,
    sincos_positions,
)
from perseid.model.training.astromae import AstroMAE, MaskedAutoencoder, from_weights, to_weights
from perseid.model.training.residuals import (
    lopsided_statistics,
    residual_statistics,
)
from perseid.model.weights import Weights, expected_shapes, load_weights, save_weights


def small_model(seed: int = 0, **changes) -> AstroMAE:
    torch.manual_seed(seed)
    return AstroMAE(dataclasses.replace(SMALL, **changes)).eval()


def data(n: int, seed: int = 1) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(n, 5, 32, 32, generator=generator)
    return image, 18 + torch.randn(n, 5, generator=generator)


def test_published_architecture_has_the_published_parameters():
    model = AstroMAE(PUBLISHED)
    assert sum(p.numel() for p in model.parameters()) == 15_902_889
    assert to_weights(model).parameters() == 15_902_889
    unfrozen = [
        p.numel()
        for name, p in model.named_parameters()
        if not name.startswith(("blocks.", "patch_embed.", "cls_token", "pos_embed"))
    ]
    assert 10.3e6 < sum(unfrozen) < 10.5e6  # "10.4 million trainable" is the published figure
    assert model.inception_model.vis_inception[0] is model.inception_model.conv2d_init


@pytest.mark.parametrize("config", [PUBLISHED, SMALL, dataclasses.replace(SMALL, pcm_hidden=0)])
def test_every_name_and_shape_is_known_without_torch(config):
    state = {
        k: tuple(v.shape)
        for k, v in AstroMAE(config).state_dict().items()
        if not k.endswith("num_batches_tracked")
    }
    assert expected_shapes(config) == state


def test_small_model_fits_the_package():
    assert to_weights(small_model()).parameters() * 4 < 10e6


def test_encoder_on_some_patches_is_per_token_exact():
    """Showing all patches in another order is the same tokens in that order."""
    model = small_model()
    image, _ = data(3)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        whole = model.encode(image)
        mixed = model.encode(image, order[None].expand(3, -1))
    assert torch.allclose(mixed[:, 1:], whole[:, 1:][:, order], atol=1e-5)
    assert torch.allclose(mixed[:, 0], whole[:, 0], atol=1e-5)


def test_a_patch_is_predicted_from_others_only():
    """Changing a hidden patch must not change its own prediction."""
    model = small_model()
    mae = MaskedAutoencoder(model)
    image, _ = data(1)
    changed = image.clone()
    changed[:, :, 8:16, 16:24] += 3.0
    with torch.no_grad():
        before = mae.scoring_residual(image) + image
        after = mae.scoring_residual(changed) + changed
    assert torch.allclose(before[:, :, 8:16, 16:24], after[:, :, 8:16, 16:24], atol=1e-5)
    assert not torch.allclose(before[:, :, :8, 16:24], after[:, :, :8, 16:24], atol=1e-4)


@pytest.mark.parametrize("scoring", ["checkerboards", "quarters"])
def test_scoring_masks_hide_each_patch_equally_often(scoring):
    masks = scoring_masks(dataclasses.replace(SMALL, scoring=scoring))
    assert set(masks.sum(axis=0)) == {1 if scoring == "checkerboards" else 3}
    assert len(set(masks.sum(axis=1))) == 1


def test_random_masks_hide_the_ratio_and_repeat_by_seed():
    mae = MaskedAutoencoder(small_model())
    keep, hidden = mae.random_masks(7, 0.75, torch.Generator().manual_seed(5))
    again, _ = mae.random_masks(7, 0.75, torch.Generator().manual_seed(5))
    assert torch.equal(keep, again)
    assert (hidden.sum(dim=1) == 12).all()
    assert (hidden.gather(1, keep) == 0).all()


def test_patchify_is_undone_and_places_patches_by_row():
    mae = MaskedAutoencoder(small_model())
    image, _ = data(2)
    patches = mae.patchify(image)
    assert torch.equal(mae.unpatchify(patches), image)
    assert torch.equal(patches[1, 6].reshape(5, 8, 8), image[1, :, 8:16, 16:24])


def test_pretraining_learns():
    torch.manual_seed(0)
    model = AstroMAE(dataclasses.replace(SMALL, depth=1, decoder_depth=1)).train()
    mae = MaskedAutoencoder(model)
    image = data(32)[0] * 0.05 + torch.linspace(0, 1, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for step in range(40):
        loss = mae(image, 0.5, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.4 * losses[0]


def test_a_masked_autoencoder_needs_a_decoder():
    with pytest.raises(ValueError, match="decoder_width"):
        MaskedAutoencoder(small_model(decoder_width=0))


def test_features_are_finite_for_any_finite_image():
    model = small_model()
    image, magnitude = data(6)
    for row, factor in enumerate((0.0, 1e-30, 1e6, 1e30, 3e38, -3e38)):
        image[row] = factor * torch.sign(image[row])
    magnitude[0] = -9999.0
    with torch.no_grad():
        redshift, features = model.predict_with_features(image, magnitude)
    assert features.shape == (6, 96 + 36)
    assert features.isfinite().all()
    assert redshift.isfinite().all()
    assert features.abs().max() < 1e4


def test_residual_statistics_see_what_they_are_named_for():
    names = residual_names(("u", "g", "r", "i", "z"))
    residual = torch.randn(4, 5, 32, 32, generator=torch.Generator().manual_seed(2))
    residual[1, 2, 5, 7] = -60  # a cosmic ray in r
    residual[2, 3, :, 11] -= 4  # a bad column in i
    residual[3, :, 8:16, 8:16] *= 5  # a patch
    scaled = torch.zeros(4, 5, 32, 32)
    scaled[:, :, 14:18, 14:18] = 3.0
    scaled[0, 1] = scaled[0, 1].roll(1, 1)  # g is not aligned
    residual[0, 4, 14:18, 18:22] += 5  # light beside the middle in z
    values = residual_statistics(residual, 8)
    values = torch.cat([values, lopsided_statistics(residual, scaled)], dim=1)
    assert values.shape == (4, len(names))

    def value(name: str) -> np.ndarray:
        return values[:, names.index(name)].numpy()

    assert np.argmax(value("max_r")) == 1
    assert value("asymmetry")[1] < value("asymmetry")[0] - 1
    assert np.argmax(value("worst_column")) == 2
    assert value("worst_row")[2] < value("worst_column")[2]
    assert np.argmax(value("worst_patch")) == 3
    assert abs(value("total")[0]) < 0.2
    assert np.argmax(value("shift_g")) == 0
    assert np.exp(value("shift_g")[0]) == pytest.approx(0.8, abs=0.2)
    assert np.argmax(value("dipole_z")) == 0


def test_residual_scale_is_the_usual_spread():
    model = small_model()
    mae = MaskedAutoencoder(model)
    image, _ = data(64)
    mae.measure_residual_scale(image, batch=20)
    with torch.no_grad():
        residual = mae.scoring_residual(model.scale_image(image))
    spread = residual.abs().transpose(0, 1).flatten(1).median(dim=1).values * 1.4826
    assert torch.allclose(spread, torch.ones(5), atol=1e-3)


def test_positions_are_distinct_and_zero_for_the_class_token():
    table = sincos_positions(96, 4, class_token=True)
    assert table.shape == (17, 96)
    assert not table[0].any()
    assert len({row.tobytes() for row in table}) == 17
    assert np.allclose(table[1:].std(axis=1), table[1].std(), atol=0.2)


def test_weight_file_round_trip(tmp_path):
    model = small_model()
    save_weights(to_weights(model), tmp_path / "w.npz")
    weights = load_weights(tmp_path / "w.npz")
    assert weights.config == model.config
    for name, array in to_weights(model).arrays.items():
        assert np.array_equal(weights.arrays[name], array), name
    image, magnitude = data(4)
    with torch.no_grad():
        assert torch.equal(from_weights(weights)(image, magnitude), model(image, magnitude))


def test_weights_that_do_not_fit_are_named():
    arrays = dict(to_weights(small_model()).arrays)
    arrays["cls_token"] = np.zeros((1, 1, 7), np.float32)
    arrays["spare"] = arrays.pop("head.bias")
    with pytest.raises(
        BadModelError, match=r"head.bias is missing; spare is unknown; cls_token is"
    ):
        Weights(SMALL, arrays)


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x03\x04 broken"])
def test_a_file_that_is_no_weight_file(tmp_path, content):
    (tmp_path / "w.npz").write_bytes(content)
    with pytest.raises(BadModelError, match=r"w\.npz is not a weight file"):
        load_weights(tmp_path / "w.npz")


@pytest.mark.parametrize(
    "changes",
    [
        {"patch": 7},
        {"heads": 5},
        {"size": 20},
        {"pcm_groups": 7},
        {"softening": (1.0,)},
        {"magnitude_centre": None},
        {"decoder_width": 63},
        {"inception": (1, 2)},
        {"bands": 0},
        {"patch": 32},
    ],
)
def test_sizes_that_do_not_fit(changes):
    with pytest.raises(BadModelError, match="astromae-small"):
        dataclasses.replace(SMALL, **changes)


def test_config_round_trip():
    import json

    assert AstroMAEConfig.from_dict(json.loads(SMALL.to_json())) == SMALL
    with pytest.raises(BadModelError, match="colour"):
        AstroMAEConfig.from_dict({"colour": 1})
