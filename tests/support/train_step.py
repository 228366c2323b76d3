"""One training step of each phase on several ranks and on one: the same gradients.

``train_step.py SURVEY`` under ``perseid comm run``; rank 0 prints ``STEP phase worst``.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

import perseid.torch  # noqa: F401  # registers the backend
from perseid.model.training.data import blocks, gather
from perseid.model.training.data_parallel import DataParallel
from perseid.model.training.train import _begun
from perseid.model.training.train_options import TrainOptions
from perseid.model.training.trainer import Trainer
from perseid.survey.splits import TRAIN

warnings.simplefilter("ignore")
torch.set_num_threads(1)
BATCH = 24


def gradients(data, options, ranks):
    torch.manual_seed(0)
    device = torch.device("cpu")
    trainer = Trainer(_begun(options, data, None, False), data, options, device, ranks=ranks)
    if not options.pretrain_epochs:
        trainer.progress.phase = 1
        trainer._begin_phase()
    trainer._train_mode()
    rows = trainer.rows.order(data.rows(TRAIN, supervised=True)[:BATCH])
    loss = trainer._objective(rows, trainer._generator(0, 1))
    loss.backward()
    found = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    statistics = {n: b for n, b in trainer.model.named_buffers() if n.endswith("running_var")}
    return found, statistics


def small_network():
    """In float64, where nothing but an error can make the ranks differ from one process."""
    torch.manual_seed(1)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.GELU(), torch.nn.Flatten(),
        torch.nn.Linear(8 * 36, 1),
    ).double()  # fmt: skip
    images = 5 + torch.randn(BATCH, 3, 8, 8, dtype=torch.float64)
    ranks = DataParallel(BATCH)
    shared = copy.deepcopy(net)
    ranks.prepare(shared)
    assert type(shared[1]) is not type(net[1])
    part = images[ranks.share(BATCH)]
    net(images).square().mean().backward()
    objective = ranks.wrap(shared, lambda: shared(part).square().mean())
    objective().backward()
    for mine, theirs in zip(shared.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-12)
    for mine, theirs in zip(shared.buffers(), net.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)


if __name__ == "__main__":
    dist.init_process_group("perseid", init_method="perseid://")
    small_network()
    with tempfile.TemporaryDirectory() as folder:
        data = gather(blocks(sys.argv[1]), Path(folder) / "pixels")
    for phase, epochs in (("pretrain", 1), ("redshift", 0)):
        options = TrainOptions(batch=BATCH, pretrain_epochs=epochs, epochs=1, frozen=False)
        alone, statistics = gradients(data, options, None)
        shared, others = gradients(data, options, DataParallel(BATCH))
        assert alone.keys() == shared.keys()
        apart = sum(float((g - shared[name]).square().sum()) for name, g in alone.items())
        worst = (apart / sum(float(g.square().sum()) for g in alone.values())) ** 0.5
        for name, value in statistics.items():
            torch.testing.assert_close(others[name], value, rtol=1e-4, atol=1e-5)
        if dist.get_rank() == 0:
            print(f"STEP {phase} {worst:.3e}", flush=True)
    dist.destroy_process_group()
