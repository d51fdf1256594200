"""The evaluator on features of a device: no operation mixes host and device tensors."""

import json

import pytest
import torch
from pretended import CUDA, MixedDevices, PretendedDevice
from whole_evaluation import PARTS


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
