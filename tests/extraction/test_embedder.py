"""Weights of foreign networks, wrapped as trainers save them."""

import argparse
import datetime
import pathlib
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from mmga import extract, search, visualize
from mmga.common.errors import UserError
from mmga.extraction.embedder import embedder_of_model, foreign_network


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())


NAME = f"{__name__}:small"
WEIGHTS = small().state_dict()
PREFIXED = {f"module.{name}": value for name, value in WEIGHTS.items()}
ARRAYS = {name: value.numpy() for name, value in WEIGHTS.items()}
SETTINGS = argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("runs"))
COMPILED = {f"_orig_mod.{name}": value for name, value in WEIGHTS.items()}


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        PREFIXED,
        COMPILED,
        {"state_dict": WEIGHTS, "epoch": 60},
        {"model": WEIGHTS, "iteration": 9},
        {"net": {"state_dict": PREFIXED}},
        {"state_dict": PREFIXED, "rank1": np.float64(0.9), "best": np.float32(0.8)},
        {f"module.model.backbone.{name}": value for name, value in WEIGHTS.items()},
        {"network": WEIGHTS, "args": SETTINGS, "date": datetime.date(2020, 1, 2)},
        {"ema": {"module": PREFIXED}, "mAP": np.array([0.1, 0.2])},
        {**ARRAYS, "epoch": 3, "name": "r50"},
        {"weights": WEIGHTS},
    ],
    ids=[
        *("plain", "module", "compiled", "state_dict", "model", "nested", "with NumPy scores"),
        *("several prefixes", "settings beside", "average", "arrays", "weights"),
    ],
)
def test_wrapped_weights_are_read(content, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    network = foreign_network(NAME, weights=tmp_path / "w.pth")
    for name, value in network.state_dict().items():
        assert torch.equal(value, WEIGHTS[name])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"epoch": 3, "score": 0.5}, "expected tensors by name.*found epoch, score"),
        ([1, 2], "expected tensors by name.*found no names"),
        ({**WEIGHTS, "head.bias": torch.ones(2)}, "has unknown head.bias and 0 more"),
        ({"0.weight": WEIGHTS["0.weight"]}, "lacks 0.bias and 4 more of 7 names"),
        ({**WEIGHTS, "0.bias": torch.ones(9)}, "size mismatch for 0.bias"),
    ],
    ids=["no weights", "a list", "unknown", "missing", "shape"],
)
def test_weights_that_do_not_fit_are_one_sentence(content, said, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=said) as error:
        foreign_network(NAME, weights=tmp_path / "w.pth")
    assert "\n" not in str(error.value)


def named() -> nn.Module:
    return nn.ModuleDict({"model": small()})


def test_a_prefix_that_the_network_has_is_kept(tmp_path):
    own = {f"model.{name}": value for name, value in WEIGHTS.items()}
    torch.save({f"module.{name}": value for name, value in own.items()}, tmp_path / "w.pth")
    network = foreign_network(f"{__name__}:named", weights=tmp_path / "w.pth")
    assert all(torch.equal(value, own[name]) for name, value in network.state_dict().items())


class Made:
    """What only this file's code can make; making it is noticed."""

    made = 0

    def __init__(self, value=None):
        type(self).made += 1

    def __reduce__(self):
        return Made, (1,)


def test_objects_beside_the_weights_are_named_and_never_made(tmp_path):
    torch.save({"state_dict": WEIGHTS, "trainer": Made()}, tmp_path / "w.pth")
    before = Made.made
    with pytest.raises(UserError) as error:
        foreign_network(NAME, weights=tmp_path / "w.pth")
    said = str(error.value)
    assert Made.made == before
    assert f"({__name__}.Made)" in said and "save model.state_dict() alone" in said
    assert "\n" not in said and "\x1b" not in said


class Classified(nn.Sequential):
    """A network with a classifier of 751 identities."""

    def __init__(self, softmax: bool = False) -> None:
        layers = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 751)]
        super().__init__(*layers, *([nn.Softmax(1)] if softmax else []))


def fixed() -> nn.Module:
    """As a function that loads its weights by itself."""
    network = small()
    network.load_state_dict(WEIGHTS)
    return network


def test_random_weights_are_warned_of(caplog, tmp_path):
    foreign_network(NAME)
    assert f"--model {NAME} has random weights (0.weight, 2 in all)" in caplog.text
    assert """--model-arguments '{"pretrained": true}'""" in caplog.text
    foreign_network("torchvision.models:squeezenet1_1")
    assert """--model-arguments '{"weights": "DEFAULT"}'""" in caplog.text
    caplog.clear()
    torch.save(WEIGHTS, tmp_path / "w.pth")
    foreign_network(NAME, weights=tmp_path / "w.pth")
    foreign_network(f"{__name__}:fixed")
    foreign_network("torch.nn:Flatten")
    assert not caplog.text


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("Classified", "{}", "the scores of 751 classes"),
        ("Classified", '{"softmax": true}', "the probabilities of 751 classes"),
        ("fixed", "{}", None),
    ],
)
def test_class_scores_are_warned_of_once(name, arguments, said, caplog):
    embedder = embedder_of_model(f"{__name__}:{name}", arguments, None, (8, 4), "cpu", True)
    for _ in range(2):
        embedder(torch.rand(2, 3, 8, 4))
    assert caplog.text.count("not features") == (said is not None)
    assert said is None or said in caplog.text


class Picky(nn.Module):
    """A network for images of one size."""

    pretrained_cfg: ClassVar = {"input_size": (3, 32, 16)}

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3 * 32 * 16, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.inner(images.flatten(1))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (extract, "--images {here}/images --out {here}/g.npz"),
        (extract, "--data synthetic --out {here}/g"),
        (search, "--query {here}/images/0.png --gallery {here}/images --cache-folder {here}/kept"),
        (visualize, "--images {here}/images --out {here}/pictures"),
    ],
)
def test_a_size_that_a_network_cannot_take(command, words, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_text("an image that nobody reads")
    with pytest.raises(SystemExit) as leave:
        command.main([*words.format(here=tmp_path).split(), "--model", f"{__name__}:Picky"])
    assert leave.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].endswith("change --height and --width, to timm's 32x16 for example")
    assert f"--model {__name__}:Picky cannot take images of 256x128 pixels (mat1" in said[-1]
    assert not any("drawing" in line for line in said)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
