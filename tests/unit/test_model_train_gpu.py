"""Training on a GPU; skipped where torch sees none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import tiny_cutouts

from perseid.errors import RunInterruptedError
from perseid.model.config import PUBLISHED
from perseid.model.training.astromae import AstroMAE
from perseid.model.training.data import gather
from perseid.model.training.device_rows import DeviceRows, GpuRows, fitting_batch
from perseid.model.training.step_graph import StepGraph
from perseid.model.training.steps import RunningMean
from perseid.model.training.train import TrainOptions, train
from perseid.model.training.train_options import fitted_config
from perseid.model.training.trainer import Trainer

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="training on a GPU needs one that torch sees"
)
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return gather([tiny_cutouts(300, side=16)], tmp_path_factory.mktemp("gpu") / "scratch")


def test_rows_on_a_gpu_are_those_of_the_arrays(data):
    here, there = DeviceRows(data, torch.device("cpu")), GpuRows(data, CUDA)
    rows = np.random.default_rng(0).permutation(300)[:50]
    for symmetry in range(8):
        got = there.images(there.order(rows), symmetry)
        assert torch.equal(got.cpu(), here.images(rows, symmetry))
    assert torch.equal(there.magnitudes(there.order(rows)).cpu(), here.magnitudes(rows))
    assert torch.equal(there.redshift(there.order(rows)).cpu(), here.redshift(rows))
    noise = there.jittered(there.order(rows), 1.0, np.random.default_rng(1)).cpu()
    assert 0 < (noise - here.magnitudes(rows)).std() < 0.1


def test_the_running_mean_at_once_is_that_of_each(data):
    tensors = {"a": torch.randn(5, 7), "b": torch.randn(3), "n": torch.tensor(4)}
    one = RunningMean(0.9, tensors)
    two = RunningMean(0.9, {name: tensor.to(CUDA) for name, tensor in tensors.items()})
    for _ in range(5):
        tensors = {n: t + 1 if n == "n" else torch.randn_like(t) for n, t in tensors.items()}
        one.update(tensors)
        two.update({name: tensor.to(CUDA) for name, tensor in tensors.items()})
    for name in tensors:
        torch.testing.assert_close(two.mean[name].cpu(), one.mean[name])


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_a_training_learns_and_goes_on(data, tmp_path, precision):
    options = TrainOptions(pretrain_epochs=4, epochs=4, batch=32, precision=precision)
    parts = [tiny_cutouts(300, side=16)]
    whole = train(parts, tmp_path / "a", options, device="cuda")
    losses = [entry["loss"] for entry in whole.history["epochs"]]
    assert losses[3] < losses[0]
    assert losses[7] < losses[4]
    for steps in (5, 30):  # within each phase
        left = iter(range(steps))
        with pytest.raises(RunInterruptedError):
            train(parts, tmp_path / "b", options, device="cuda", resume=True,
                  stop=lambda left=left: next(left, None) is None)  # fmt: skip
    again = train(parts, tmp_path / "b", options, device="cuda", resume=True)
    resumed = [entry["loss"] for entry in again.history["epochs"]]
    np.testing.assert_allclose(resumed, losses, rtol=0.05)  # sums on a GPU have no fixed order


@pytest.mark.parametrize("phase", [0, 1])
def test_a_step_waits_for_nothing_and_has_the_gradients_of_plain_passes(data, phase):
    options = TrainOptions(batch=32)
    torch.manual_seed(0)
    trainer = Trainer(AstroMAE(fitted_config(options, data)), data, options, CUDA)
    trainer.progress.phase = phase
    trainer._begin_phase()
    trainer._train_mode()
    rows = trainer.rows.order(np.arange(32))
    inputs = [trainer._inputs(rows, np.random.default_rng(seed)) for seed in (0, 1)]
    graph = StepGraph(trainer._objective_of, inputs[0], trainer.model)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    loss = graph(inputs[1]).clone()
    got = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    statistics = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.model.load_state_dict(before)
    trainer.model.zero_grad(set_to_none=True)
    expected = trainer._objective_of(*inputs[1])
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=1e-6)
    for name, parameter in trainer.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(got[name], parameter.grad, rtol=1e-2, atol=1e-4)
    for name, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(statistics[name], tensor, rtol=1e-4, atol=1e-5)
    trainer._step(rows, 0, 100)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer._step(rows, 1, 100)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_batch_that_fits():
    batch = fitting_batch(PUBLISHED, 10**7, CUDA)
    assert 128 <= batch <= 4096
    assert batch & (batch - 1) == 0
