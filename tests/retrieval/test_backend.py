"""The report names what ranked: kernels of the device at hand, or the reference."""

import numpy as np
import pytest
import torch

import mmga
from mmga.ops import _extension
from mmga.retrieval import evaluate as evaluation


@pytest.mark.parametrize("served", [("CPU",), ("CUDA",), ()])
def test_the_backend_is_that_of_the_device(monkeypatch, served):
    monkeypatch.setattr(
        evaluation,
        "has_kernel",
        lambda name, key: name == "count_preceding" and key in served,
    )
    record = {kind: _extension.Library(True, f"made for {kind}") for kind in ("cpu", "cuda")}
    monkeypatch.setattr(_extension, "load", lambda: record)
    for kind in ("cpu", "cuda"):
        wanted = f"{kind} kernels (made for {kind})" if kind.upper() in served else "reference"
        assert evaluation._backend(torch.device(kind)) == wanted


def test_the_report_says_backend_and_precision():
    points = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    query = mmga.Features(points[:5], np.arange(5), np.zeros(5, int))
    gallery = mmga.Features(points[5:], np.arange(15) % 5, np.ones(15, int))
    wanted = evaluation._backend(torch.device("cpu"))
    for exact in ("certified", "float32"):
        report = mmga.evaluate(query, gallery, exact=exact)
        assert report.backend == wanted and report.precision == "ieee"
        assert report.as_dict()["precision"] == "ieee"
        assert report.table(verbose=True).endswith(f"{wanted}, ieee products")
    given = mmga.evaluate_distances(torch.rand(5, 15), query, gallery)
    assert given.backend == wanted and given.precision is None
    assert given.table(verbose=True).endswith(wanted)
