"""The evaluator on features of a device: no operation mixes host and device tensors."""

import json

import pytest
import torch
from pretended import CUDA, MixedDevices, PretendedDevice
from whole_evaluation import PARTS, figures, sides

import mmga
from mmga.common.errors import UserError
from mmga.retrieval.features.sharded_matrix import ShardedMatrix
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.metrics import rank_certified


@pytest.mark.parametrize("name", PARTS)
def test_nothing_mixes_devices(name):
    expected = json.loads(json.dumps(PARTS[name]("cpu")))
    with PretendedDevice() as device:
        found = PARTS[name]("cuda")
    assert json.loads(json.dumps(found)) == expected
    assert device.near > 20


def test_the_device_is_told_from_the_host():
    with PretendedDevice():
        x = torch.ones(3, device="cuda")
        y = torch.ones(3)
        assert x.device == CUDA and (x * 2 + x).device == CUDA and x.is_cuda
        assert y.device.type == "cpu" and x.cpu().device.type == "cpu"
        assert y.to("cuda").device == CUDA and y.to(x).device == CUDA
        assert x.new_zeros(2).device == CUDA and torch.empty_like(x).device == CUDA
        assert (x * torch.tensor(2.0)).device == CUDA  # a number
        assert x[torch.tensor([0, 1])].device == CUDA  # an index of the host
        y.copy_(x)
        for refused in (
            lambda: x + y,
            lambda: torch.cat([x, y]),
            lambda: y[x.long()],
            lambda: x.numpy(),
            lambda: torch.ops.mmga.squared_norms(x[None]) + torch.zeros(1),
        ):
            with pytest.raises(MixedDevices):
                refused()


def test_a_device_is_asked_a_few_times_whatever_the_number_of_pairs():
    """Each operation is a launch: their number must not grow with pairs that fit together."""
    asked = []
    for count in (300, 3000):
        rows = torch.randn(count, 2048, generator=torch.Generator().manual_seed(0))
        with PretendedDevice() as device:
            vectors = VectorSet([ShardedMatrix([rows.to("cuda")])], "cosine")
            pairs = torch.arange(count, device="cuda").repeat(5)
            before = device.near
            vectors.exact_distances(pairs, pairs.flip(0))
            asked.append((device.near - before, before))
    assert asked[0] == asked[1]


def test_pairs_within_a_radius_are_found_on_the_cpu():
    with PretendedDevice():
        rows = torch.randn(20, 40).to("cuda")
        with pytest.raises(UserError, match="found on the CPU, found cuda:0; give features in"):
            mmga.neighbours_within(rows, 0.5)


@pytest.mark.parametrize("most", [0, 512])
def test_rows_of_many_matches_are_counted_in_tiles(monkeypatch, most):
    expected = figures(mmga.evaluate(*sides("cpu")))
    fused = []
    monkeypatch.setattr(rank_certified, "_MOST_MATCHES", most)
    tile = rank_certified.StagedRows.int8_tile
    monkeypatch.setattr(
        rank_certified.StagedRows, "int8_tile", lambda *given: fused.append(1) or tile(*given)
    )
    with PretendedDevice():
        report = mmga.evaluate(*sides("cuda"))
    assert figures(report) == expected and bool(fused) == bool(most)
    assert report.extra["certified"]["levels"][0]["precision"] == "int8"
