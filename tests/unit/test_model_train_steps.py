"""The pieces of a training step."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from perseid.errors import BadInputError
from perseid.model.training.astromae import AstroMAE, MaskedAutoencoder
from perseid.model.training.data import gather
from perseid.model.training.device_rows import fitting_batch
from perseid.model.training.steps import (
    LOSS_SCALE,
    SYMMETRIES,
    LossSum,
    RunningMean,
    WhitenedLinear,
    color_parameters,
    encoder_parameters,
    head_only,
    image_parameters,
    rate,
    redshift_loss,
    turned,
)
from perseid.model.training.train_options import CONFIGS, TrainOptions, fitted_config
from perseid.survey.cutouts import Cutouts


def test_the_symmetries_are_the_eight_of_the_square():
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    seen = {tuple(turned(image, s).flatten().tolist()) for s in range(SYMMETRIES)}
    assert len(seen) == 8
    assert torch.equal(turned(image, 0), image)
    assert tuple(torch.rot90(image, 1, (2, 3)).flatten().tolist()) in seen


def test_the_rate_rises_then_falls_to_zero():
    rates = [rate(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(1.0, abs=0.03)
    assert np.argmax(rates) in range(95, 105)
    assert rates[-1] < 1e-5
    assert rate(0, 1) > 0


def test_the_loss_is_the_scaled_mean_of_dz():
    loss = redshift_loss(torch.tensor([[0.1], [0.3]]), torch.tensor([0.0, 0.25]))
    assert float(loss) == pytest.approx(LOSS_SCALE * (0.1 + 0.05 / 1.25) / 2, rel=1e-6)


def test_the_whitened_layer_folds_into_an_ordinary_one():
    torch.manual_seed(0)
    r = torch.randn(500, 1)
    inputs = 18 + 2 * r + 0.1 * torch.randn(500, 5)  # colors are a twentieth of the magnitudes
    layer = WhitenedLinear(torch.nn.Linear(5, 7), inputs)
    white = (inputs - layer.mean) @ layer.whiten.T
    np.testing.assert_allclose(np.cov(white.numpy().T, ddof=0), np.eye(5), atol=0.02)
    with torch.no_grad():
        np.testing.assert_allclose(layer.folded()(inputs), layer(inputs), atol=2e-3)
        again = WhitenedLinear(layer.folded(), inputs, trained=True)
        np.testing.assert_allclose(again(inputs), layer(inputs), atol=2e-3)


def test_the_running_mean_starts_at_the_values_and_follows_them():
    tensor = torch.zeros(3)
    mean = RunningMean(0.9, {"a": tensor, "n": torch.tensor(0)})
    for step in range(300):
        tensor.fill_(5.0)
        mean.update({"a": tensor, "n": torch.tensor(step)})
    np.testing.assert_allclose(mean.mean["a"], 5.0, atol=1e-4)
    assert int(mean.mean["n"]) == 299


@pytest.mark.parametrize(
    ("wrong", "phrase"),
    [
        ({"batch": 1}, "batch is 1"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"epochs": -1}, "epochs is -1"),
        ({"config": "huge"}, "'huge' is not known"),
        ({"mask_ratio": 1.0}, "mask_ratio is 1.0"),
        ({"precision": "float16"}, "'float16' is not known"),
    ],
)
def test_options_that_cannot_be_used_are_refused(wrong, phrase):
    with pytest.raises(BadInputError, match=phrase):
        TrainOptions(**wrong)


def _survey(bands: int, size: int, tmp_path):
    rng = np.random.default_rng(1)
    images = rng.normal(scale=0.05, size=(300, bands, size, size)).astype(np.float32)
    magnitudes = (18 + 1.5 * rng.normal(size=(300, bands))).astype(np.float32)
    return gather([Cutouts(images, magnitudes, rng.random(300))], tmp_path / "s")


def test_the_small_network_is_fitted_to_the_survey(tmp_path):
    config = fitted_config(TrainOptions(), _survey(3, 16, tmp_path))
    assert (config.bands, config.size) == (3, 16)
    np.testing.assert_allclose(config.softening, 0.1, rtol=0.1)
    np.testing.assert_allclose(config.magnitude_centre, 18, atol=0.5)
    np.testing.assert_allclose(config.magnitude_scale, 1.5, rtol=0.2)


def test_the_published_network_is_fitted_to_the_survey_too(tmp_path):
    """With pixels as they are its autoencoder learnt nothing but the bright ones."""
    data = _survey(5, 32, tmp_path)
    config = fitted_config(TrainOptions(config="published"), data)
    assert config.softening is not None
    assert config.magnitude_centre is not None
    bright = torch.from_numpy(data.images[:8] * 1000)
    model = AstroMAE(replace(config, depth=1))
    loss = MaskedAutoencoder(model)(bright, 0.5, torch.Generator().manual_seed(0))
    assert loss.item() < 100


@pytest.mark.parametrize("scoring", ["quarters", "checkerboards"])
def test_the_autoencoder_works_in_mixed_precision(scoring):
    config = replace(CONFIGS["small"], depth=2, scoring=scoring)
    autoencoder = MaskedAutoencoder(AstroMAE(config))
    images = torch.randn(6, 5, 32, 32)
    losses = []
    for mixed in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = autoencoder(images, 0.5, torch.Generator().manual_seed(1))
        loss.backward()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_a_sum_of_losses_goes_on_from_a_checkpoint():
    losses = [torch.tensor(value) for value in (0.1, 0.7, 0.25)]
    whole, half = LossSum(), LossSum()
    for loss in losses:
        whole.add(loss)
    for loss in losses[:2]:
        half.add(loss)
    again = LossSum(half.value)
    again.add(losses[2])
    assert again.value == whole.value == sum(map(float, losses))


def test_the_batch_of_a_processor_is_the_usual_one():
    assert fitting_batch(CONFIGS["published"], 10**6, torch.device("cpu")) == TrainOptions().batch


def test_options_of_earlier_versions_are_the_same():
    """A checkpoint of a version without precisions goes on."""
    assert "precision" not in TrainOptions().to_json()
    assert TrainOptions(precision="tf32").to_json()["precision"] == "tf32"


def test_cutouts_must_be_square(tmp_path):
    data = gather([Cutouts(np.zeros((4, 5, 32, 16), np.float32), np.zeros((4, 5)))], tmp_path / "s")
    with pytest.raises(BadInputError, match="32 x 16 pixels"):
        fitted_config(TrainOptions(), data)


def test_every_parameter_is_trained_by_one_phase_or_is_fixed(tmp_path):
    model = AstroMAE(fitted_config(TrainOptions(), _survey(5, 32, tmp_path)))
    groups = [encoder_parameters(model), image_parameters(model), color_parameters(model)]
    trained = [id(p) for group in groups for p in group]
    assert len(trained) == len(set(trained))
    left = [n for n, p in model.named_parameters() if id(p) not in set(trained)]
    assert left == ["pos_embed"]


def test_without_images_the_prediction_depends_on_magnitudes_alone(tmp_path):
    model = AstroMAE(fitted_config(TrainOptions(), _survey(5, 32, tmp_path))).eval()
    magnitudes = torch.full((2, 5), 18.0)
    with torch.no_grad():
        got = head_only(model, magnitudes)
        brighter = head_only(model, magnitudes - 1)
    assert torch.allclose(got[0], got[1], atol=1e-6)
    assert not torch.allclose(got, brighter, atol=1e-4)
