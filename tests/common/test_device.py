import pytest
import torch

from mmga.common.device import resolve_device
from mmga.common.errors import UserError


def test_devices_are_named():
    assert resolve_device("cpu") == resolve_device(torch.device("cpu")) == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(UserError, match="--device must be auto, cpu, cuda or cuda:N, got 'gpu'"):
        resolve_device("gpu")
    with pytest.raises(UserError, match="cpu, cuda or cuda:N, got 'meta'"):
        resolve_device("meta")
    with pytest.raises(UserError, match="device cuda:99: this machine has"):
        resolve_device("cuda:99", "device")


def test_a_cuda_device_has_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    for name in ("auto", "cuda", "cuda:2"):
        assert resolve_device(name) == torch.device("cuda", 2)
    assert resolve_device("cuda:3") == torch.device("cuda", 3)
