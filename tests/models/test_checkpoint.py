"""Checkpoints are whole or not there, and say what is wrong with a file."""

import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mmga.common.errors import UserError
from mmga.models.checkpoint import (
    Checkpoint,
    Position,
    load_checkpoint,
    load_optimizer_state,
    load_weights,
    save_checkpoint,
)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


def contents(net, position=Position(), config=None) -> Checkpoint:  # noqa: B008
    return Checkpoint(net.state_dict(), position, 4, config or {})


def stepped(net: torch.nn.Module) -> torch.optim.Adam:
    optimizer = torch.optim.Adam(net.parameters(), amsgrad=True)
    net(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    return optimizer


def test_round_trip(tmp_path):
    net, path = network(), tmp_path / "last.safetensors"
    optimizer = stepped(net)
    save_checkpoint(path, contents(net, Position(2, 3, 17), {"a": [1]}), optimizer.state_dict())
    loaded = load_checkpoint(path)
    assert (loaded.position, loaded.config) == (Position(2, 3, 17), {"a": [1]})
    assert loaded.num_classes == 4
    other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    load_weights(other, loaded, path)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    state = load_optimizer_state(path, loaded)
    assert torch.equal(state["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


def test_a_checkpoint_always_finds_its_own_optimizer_state(tmp_path, monkeypatch):
    """Killed between the two files, the older pair is still complete."""
    net, path = network(), tmp_path / "last.safetensors"
    optimizer = stepped(net)
    save_checkpoint(path, contents(net, Position(0, 0, 1)), optimizer.state_dict())
    real = os.replace

    def killed(source, target):
        if str(target).endswith("last.safetensors"):
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, contents(net, Position(0, 0, 2)), optimizer.state_dict())
    monkeypatch.undo()
    loaded = load_checkpoint(path)
    assert loaded.position.step == 1
    load_optimizer_state(path, loaded)
    save_checkpoint(path, contents(net, Position(0, 0, 3)), optimizer.state_dict())
    left = sorted(file.name for file in tmp_path.iterdir())
    assert left == ["last.optimizer-3.pt", "last.safetensors"]


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint .*last\.safetensors"):
        load_checkpoint(tmp_path / "last.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_truncated_checkpoint_is_named(tmp_path, keep):
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, contents(network()))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"last\.safetensors cannot be read: truncated"):
        load_checkpoint(path)


def test_a_foreign_file_is_named(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="not a checkpoint of mmga"):
        load_checkpoint(path)


def test_a_truncated_optimizer_state_is_named(tmp_path):
    net, path = network(), tmp_path / "last.safetensors"
    save_checkpoint(path, contents(net, Position(0, 0, 1)), stepped(net).state_dict())
    file = tmp_path / "last.optimizer-1.pt"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"last\.optimizer-1\.pt cannot be read"):
        load_optimizer_state(path, load_checkpoint(path))


def test_weights_of_another_network_are_named(tmp_path):
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, contents(network()))
    with pytest.raises(UserError, match="belongs to another network: Missing key"):
        load_weights(torch.nn.Conv2d(1, 1, 1), load_checkpoint(path), path)


@pytest.mark.parametrize(
    "change",
    [
        {"config": "null"},
        {"config": "[]"},
        {"config": "3"},
        {"num_classes": "-1"},
        {"num_classes": str(10**12)},
        {"num_classes": "9" * 23},
        {"progress": "[]"},
        {"figures": "3"},
    ],
    ids=str,
)
def test_damaged_metadata_is_one_sentence(tmp_path, change):
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, contents(network()))
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(network().state_dict(), path, metadata={**metadata, **change})
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(path)
