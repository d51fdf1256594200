"""`evaluate(precision=...)` by the Triton kernels, under Triton's interpreter without a card."""

import contextlib
import importlib.util
import json
import typing

import numpy as np
import pytest
import torch
from pretended import PretendedDevice
from whole_evaluation import sides

import mmga
from mmga import eval as command
from mmga.common.errors import UserError
from mmga.ops.precision import PRECISIONS
from mmga.retrieval.tiles import sources

ON_CARD = torch.cuda.is_available()


@pytest.fixture
def device(monkeypatch):
    """Enter a device; without a card one that is pretended, with Triton's interpreter."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    if ON_CARD:
        return lambda free=None: contextlib.nullcontext()
    from mmga.ops.triton import ranking as triton_ranking

    monkeypatch.setattr(triton_ranking, "_on", lambda device: contextlib.nullcontext())
    for name in ("match_keys_kernel", "count_preceding_kernel"):
        monkeypatch.setattr(triton_ranking, name, Interpreted(getattr(triton_ranking, name)))
    return lambda free=8 << 30: PretendedDevice(free)


class Interpreted:
    """A kernel whose interpreter sees the tensors as they are, on the CPU."""

    launches = 0

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            Interpreted.launches += 1
            with torch._C.DisableTorchFunction():
                self.kernel[grid](*arguments, **options)

        return launch


def scores(report):
    """What must be equal, and what is of another order by name only."""
    figures = report.as_dict()
    left_out = ("seconds", "peak_memory_bytes", "process_peak_bytes", "backend", "notes")
    for name in (*left_out, "exact", "precision"):
        del figures[name]
    per_query = report.per_query
    names = ("average_precision", "first_rank", "tied")
    return json.dumps([figures, [getattr(per_query, name).tolist() for name in names]])


def small(protocol):
    """The sets that a protocol ranks."""
    query, gallery = sides("cpu")
    return (gallery.select(range(90)),) if protocol == "all-vs-all" else (query, gallery)


@pytest.mark.parametrize(
    "protocol, precision, metric",
    [
        ("market1501", "tf32x3", "cosine"),
        ("market1501", "tf32", "euclidean"),
        ("market1501", "bf16", "cosine"),
        ("other-cameras", "tf32", "cosine"),
        ("all-vs-all", "tf32", "euclidean"),
    ],
)
def test_ranks_equal_those_of_float32(device, monkeypatch, protocol, precision, metric):
    """Features of small integers, whose products are exact in every precision."""
    if precision == "bf16" and not ON_CARD:
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16 as integers")
    monkeypatch.setattr(sources, "DEVICE_TILE", (64, 64))  # several blocks
    sets, options = small(protocol), {"protocol": protocol, "metric": metric}
    expected = mmga.evaluate(*sets, exact="float32", **options)
    Interpreted.launches = 0
    with device():
        found = mmga.evaluate(*sets, device="cuda", precision=precision, **options)
    assert ON_CARD or Interpreted.launches >= 3
    assert scores(found) == scores(expected)
    assert found.precision == found.exact == precision
    assert found.backend.startswith("triton kernels (")
    assert found.table().endswith(f", {precision} products")


@pytest.mark.skipif(ON_CARD, reason="what is free on a card is not ours to say")
def test_streamed_blocks_are_counted_alike(device, monkeypatch):
    monkeypatch.setattr(sources, "DEVICE_TILE", (64, 64))
    monkeypatch.setattr(sources, "QUERY_BYTES", 64 * 4 * 6)  # 64 queries in one sweep
    (gallery,) = small("all-vs-all")
    expected = mmga.evaluate(gallery, protocol="all-vs-all", exact="float32")
    with device(1000) as pretended:
        found = mmga.evaluate(gallery, protocol="all-vs-all", device="cuda", precision="tf32")
    assert pretended.transfers == 1 and "streamed" in found.notes[0]
    assert scores(found) == scores(expected)


def test_re_ranking_stays_float32(device):
    rule = mmga.KReciprocal(k1=7, k2=3)
    expected = mmga.evaluate(*sides("cpu"), rerank=rule, exact="float32")
    with device():
        found = mmga.evaluate(*sides("cpu"), rerank=rule, device="cuda", precision="tf32")
    assert scores(found) == scores(expected) and found.reranked is not None


def test_what_other_precisions_do_not_do(device):
    query, gallery = sides("cpu")

    def refused(words, **options):
        with device(), pytest.raises(UserError, match=f"precision: tf32 {words}.*; use ieee"):
            mmga.evaluate(query, gallery, device="cuda", precision="tf32", **options)

    refused("gives an order of its own, not exact='float32'", exact="float32")
    refused("counts ranks alone, not verification", verification=True)
    refused("counts ranks alone", protocol="cuhk03-single-shot")
    refused("leaves out identities and cameras", exclude="camid == query.camid")
    query = mmga.Features(query.rows.whole() * 1e19, query.pids, query.camids)
    refused("keeps float32's range, which these features exceed")


def test_the_cpu_knows_ieee_alone(monkeypatch):
    query, gallery = sides("cpu")
    for precision in PRECISIONS[1:]:
        with pytest.raises(
            UserError,
            match=f"precision: {precision} works on CUDA devices, not on cpu; use ieee",
        ):
            mmga.evaluate(query, gallery, precision=precision)
    with pytest.raises(UserError, match=r"precision: expected ieee or .* found 'float32'"):
        mmga.evaluate(query, gallery, precision="float32")
    assert mmga.evaluate(query, gallery, precision="ieee").precision == "ieee"


def test_triton_must_be_there(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with PretendedDevice(), pytest.raises(UserError, match="needs Triton, which is not installed"):
        mmga.evaluate(*sides("cpu"), device="cuda", precision="tf32")


def test_the_command_offers_them_all(tmp_path, capsys):
    hints = typing.get_type_hints(command.Options)
    assert typing.get_args(hints["precision"]) == PRECISIONS
    points = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    for name, count in (("q", 10), ("g", 30)):
        features = mmga.Features(points[:count], np.arange(count) % 3, np.full(count, len(name)))
        features.save(tmp_path / f"{name}.npz")
    words = ["--query", f"{tmp_path}/q.npz", "--gallery", f"{tmp_path}/g.npz"]
    words += ["--protocol", "no-camera"]
    command.main([*words, "--precision", "ieee"])
    assert "ieee products" in capsys.readouterr().out
    with pytest.raises(SystemExit) as leave:
        command.main([*words, "--precision", "tf32"])
    said = capsys.readouterr().err
    assert leave.value.code == 2 and said.count("\n") == 1 and "tf32 works on CUDA" in said
