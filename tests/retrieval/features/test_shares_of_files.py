"""The rows of a gallery that each of several processes reads."""

from pathlib import Path

import numpy as np
import pytest
import torch

import mmga
from mmga.common.distributed import Group
from mmga.retrieval.features.load import load_share


@pytest.fixture
def whole():
    random = np.random.default_rng(0)
    rows = random.standard_normal((2311, 120)).astype(np.float32)  # more than is read at once
    pids = np.array([f"p{pid}" for pid in random.integers(0, 40, 2311)])
    return mmga.Features(rows, pids, random.integers(0, 3, 2311), columns={"time": rows[:, 0]})


def shares(path, world):
    return [load_share(path, Group(rank, world)) for rank in range(world)]


def check(parts, whole):
    held = [part for part in parts if part is not None]
    assert torch.equal(torch.cat([part.features for part in held]), whole.features)
    names = np.concatenate([part.pid_names[part.pids] for part in held])
    assert names.tolist() == whole.pid_names[whole.pids].tolist()
    for name in ("camids", "time"):
        found = [part.camids if name == "camids" else part.columns[name] for part in held]
        expected = whole.camids if name == "camids" else whole.columns[name]
        assert np.concatenate(found).tolist() == expected.tolist()


@pytest.mark.parametrize("suffix", ["", ".npz", ".safetensors", ".mat", ".pt"])
@pytest.mark.parametrize("world", [1, 3])
def test_shares_of_one_file_are_its_rows(whole, tmp_path, suffix, world):
    whole.save(tmp_path / f"g{suffix}")
    parts = shares(tmp_path / f"g{suffix}", world)
    assert [len(part) for part in parts] == ([2311] if world == 1 else [770, 770, 771])
    check(parts, whole)


def test_a_compressed_file_is_read(whole, tmp_path):
    np.savez_compressed(tmp_path / "g.npz", **whole.arrays())
    check(shares(tmp_path / "g.npz", 2), whole)


def test_large_arrays_are_mapped(whole, tmp_path):
    """They take no memory of a process; one process alone reads .npz files as before."""
    for name in ("g.npz", "folder"):
        whole.save(tmp_path / name)
        one, _ = shares(tmp_path / name, 2)
        maps = Path("/proc/self/maps").read_text()
        assert str(tmp_path / name) in maps
        del one
    mmga.load_features(tmp_path / "g.npz")
    assert str(tmp_path / "g.npz") not in Path("/proc/self/maps").read_text()


def test_files_are_dealt_out_and_no_other_is_opened(whole, tmp_path):
    for number, (first, last) in enumerate([(0, 5), (5, 1000), (1000, 1001), (1001, 2311)]):
        whole.cut(first, last).save(tmp_path / f"s-{number}.npz")
    parts = shares(str(tmp_path / "s-*.npz"), 3)
    assert [len(part) for part in parts] == [5, 995, 1311]
    check(parts, whole)
    (tmp_path / "s-0.npz").write_bytes(b"broken")
    assert len(load_share(str(tmp_path / "s-*.npz"), Group(2, 3))) == 1311


def test_there_may_be_more_processes_than_rows(whole, tmp_path):
    whole.cut(0, 2).save(tmp_path / "g.npz")
    parts = shares(tmp_path / "g.npz", 5)
    assert [part is None for part in parts] == [True, True, False, True, False]
    check(parts, whole.cut(0, 2))
