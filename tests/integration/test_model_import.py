"""Published checkpoints: a whole pickled module of classes that do not exist here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import random_network, random_rows

from perseid.cli import main
from perseid.errors import BadModelError
from perseid.model.config import PUBLISHED
from perseid.model.export.importer import import_checkpoint
from perseid.model.training.astromae import AstroMAE, from_weights, to_weights
from perseid.model.weights import load_weights

PROGRAM = '''
"""Save a network as the existing system does, with classes in modules of its own."""
import os, sys, types
import torch
from torch import nn

def module(name):
    made = sys.modules[name] = types.ModuleType(name)
    return made

module("blocks"), module("timm"), module("timm.models"), module("timm.layers")
vit, photoz = module("blocks.model_vit_inception"), module("blocks.photoz")
cell = module("NormalCell")
embed = module("timm.layers.patch_embed")

def define(where, *names):
    for name in names:
        kind = type(name, (nn.Module,), {"__module__": where.__name__, "forward": lambda s, x: x})
        setattr(where, name, kind)

define(vit, "ViT_Astro")
define(cell, "NormalCell", "AttentionPerformer", "Mlp")
define(photoz, "Input_Mix_Model", "InceptionBlock", "ConvBlock")
define(embed, "PatchEmbed")
FOREIGN = {
    "AstroMAE": vit.ViT_Astro, "Block": cell.NormalCell, "Attention": cell.AttentionPerformer,
    "Mlp": cell.Mlp, "InceptionModel": photoz.Input_Mix_Model,
    "InceptionBlock": photoz.InceptionBlock, "ConvUnit": photoz.ConvBlock,
    "PatchEmbed": embed.PatchEmbed,
}

def foreign(ours, name=""):
    """The same tree with classes of those modules, and settings under the names used there."""
    kind = FOREIGN.get(type(ours).__name__)
    if kind is None:
        if isinstance(ours, (nn.Sequential, nn.ModuleList)):
            for key, child in ours._modules.items():
                ours._modules[key] = foreign(child, key)
        return ours
    theirs = kind()
    for key, value in ours._parameters.items():
        setattr(theirs, key, value)
    for key, value in ours._buffers.items():
        theirs.register_buffer(key, value)
    for key, child in ours._modules.items():
        if child is not None:
            setattr(theirs, key, foreign(child, key))
    if name == "attn":
        theirs.num_heads = ours.heads
    if name == "mlp":
        theirs.act = nn.GELU()
    return theirs

sys.path[:0] = sys.argv[2:]
from networks import random_network
from perseid.model.config import PUBLISHED

def make(kind, out):
    network = random_network(PUBLISHED)
    if kind == "state":
        saved = network.state_dict()
    elif kind == "trainer":
        saved = {"epoch": 3, "state_dict": nn.DataParallel(network).state_dict()}
    else:
        tree = foreign(network)
        for index, block in enumerate(tree.inception_model.vis_inception):
            if type(block) is photoz.InceptionBlock:
                block.is_custom = index == 10
        stem = tree.inception_model.conv2d_init
        assert tree.inception_model.vis_inception[0] is stem  # one convolution under two names
        if kind == "tanh":
            tree.blocks[3].mlp.act = nn.GELU(approximate="tanh")
        if kind == "heads":
            for block in tree.blocks:
                block.attn.num_heads = 6
        if kind == "eps":
            tree.fc_norm.eps = 1e-5
        if kind == "shapes":
            tree.head = nn.Linear(192, 100)
            del tree.cls_token
            tree.extra = nn.Parameter(torch.zeros(3))
        if kind == "nan":
            tree.head.bias.data[7] = float("nan")
        if kind == "half":
            tree = tree.half()
        if kind == "malicious":
            class Bomb:
                def __reduce__(self):
                    return os.system, ("touch " + out + ".ran",)
            tree.bomb = Bomb()
        saved = nn.DataParallel(tree)
    torch.save(saved, out)

KINDS = "module state trainer half malicious shapes tanh heads eps nan".split()
for kind in KINDS:
    make(kind, os.path.join(sys.argv[1], kind + ".pt"))
'''


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A function that gives the checkpoint of one kind; all are made in another process."""
    folder = tmp_path_factory.mktemp("checkpoints")
    (folder / "save.py").write_text(PROGRAM)
    support = Path(__file__).parent.parent / "support"
    command = [sys.executable, str(folder / "save.py"), str(folder), str(support)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return lambda kind: folder / f"{kind}.pt"


@pytest.fixture(scope="module")
def network() -> AstroMAE:
    return random_network(PUBLISHED)


def same_weights(arrays, network: AstroMAE) -> bool:
    expected = to_weights(network).arrays
    assert set(arrays) == set(expected)
    return all(np.array_equal(arrays[name], expected[name]) for name in expected)


def test_a_whole_pickled_module_of_unknown_classes(checkpoint, network, tmp_path, capsys):
    file = checkpoint("module")
    with pytest.raises(ModuleNotFoundError):  # torch itself cannot read it here
        torch.load(file, weights_only=False)
    out = tmp_path / "w.npz"
    assert main(["model", "import", str(file), str(out)]) == 0
    said = capsys.readouterr().out
    assert "15,902,889 parameters" in said
    assert "blocks.model_vit_inception.ViT_Astro" in said
    weights = load_weights(out)
    assert same_weights(weights.arrays, network)
    images, magnitudes = (torch.from_numpy(a) for a in random_rows(4, PUBLISHED))
    with torch.no_grad():
        assert torch.equal(from_weights(weights)(images, magnitudes), network(images, magnitudes))


def test_import_needs_no_torch(checkpoint, tmp_path):
    program = (
        "import sys; sys.modules['torch'] = None; from perseid.cli import main; "
        f"sys.exit(main(['model', 'import', {str(checkpoint('module'))!r}, "
        f"{str(tmp_path / 'w.npz')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["state", "trainer"])
def test_state_dicts(checkpoint, network, kind):
    found = import_checkpoint(checkpoint(kind))
    assert found.kind == "state_dict"
    assert same_weights(found.weights.arrays, network)


def test_half_precision_is_widened(checkpoint, network):
    found = import_checkpoint(checkpoint("half"))
    expected = to_weights(network).arrays["head.weight"].astype(np.float16)
    np.testing.assert_array_equal(found.weights.arrays["head.weight"], expected.astype(np.float32))


def test_code_in_a_checkpoint_is_not_run(checkpoint, network):
    file = checkpoint("malicious")
    found = import_checkpoint(file)
    assert same_weights(found.weights.arrays, network)
    assert not Path(f"{file}.ran").exists()


@pytest.mark.parametrize(
    ("kind", "sentences"),
    [
        (
            "shapes",
            [
                "cls_token is missing",
                "extra is unknown",
                "head.weight is (100, 192), not (192, 192)",
            ],
        ),
        ("tanh", ["blocks.3.mlp.act.approximate is 'tanh', not 'none'"]),
        ("heads", ["blocks.0.attn.num_heads is 6, not 3"]),
        ("eps", ["fc_norm.eps is 1e-05, not 1e-06"]),
        ("nan", ["head.bias holds numbers that are not finite"]),
    ],
)
def test_what_does_not_fit_is_reported(checkpoint, kind, sentences):
    with pytest.raises(BadModelError) as caught:
        import_checkpoint(checkpoint(kind))
    for sentence in sentences:
        assert sentence in str(caught.value)


def test_files_that_hold_no_network(tmp_path, capsys):
    torch.save([1, 2, 3], tmp_path / "list.pt")
    torch.save({"epoch": 1}, tmp_path / "epoch.pt")
    (tmp_path / "text.pt").write_text("hello")
    for name, sentence in {
        "list.pt": "holds a list",
        "epoch.pt": "neither a module nor a dictionary of tensors",
        "text.pt": "no weights can be read",
    }.items():
        assert main(["model", "import", str(tmp_path / name), str(tmp_path / "w.npz")]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "w.npz").exists()
