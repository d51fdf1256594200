"""Triton's product-and-count against the reference, and machine code for GPUs."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import REPOSITORY

import mmga
from mmga.ops import distance, reference
from mmga.ops.ranking import Matches

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def triton():
    if importlib.util.find_spec("triton") is None:
        absent = "triton is not installed"
        required = os.environ.get("MMGA_REQUIRE_KERNELS", "").split(",")
        (pytest.fail if "triton" in required else pytest.skip)(absent)
    from mmga.ops.triton import ranking as triton_ranking

    return triton_ranking


def problem(queries, items, dimensions, metric, seed=0):
    """Features of small integers, whose products are exact in every precision, with duplicates."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randint(-2, 3, (queries, dimensions), generator=generator).float()
    gallery = torch.randint(-2, 3, (items, dimensions + 3), generator=generator).float()
    gallery = gallery[:, :dimensions]  # rows with a gap
    gallery[items // 2 : items // 2 + 5] = query[0]
    code = torch.randint(0, 4, (queries + items,), generator=generator, dtype=torch.int32)
    code[0] = 9  # has no match
    name = reference.METRICS[metric]
    terms = [distance.key_terms(reference.squared_norms(side), name) for side in (query, gallery)]
    same = code[:queries, None] == code[queries:]
    ignored_row, ignored_item = same.nonzero().unbind(1)
    matched = torch.rand(len(ignored_item), generator=generator) < 0.3
    return query, gallery, terms, code, (ignored_row, ignored_item, matched)


def offsets(rows, count):
    counts = torch.bincount(rows, minlength=count)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


@pytest.mark.parametrize("metric", [1, 2], ids=["cosine", "euclidean"])
@pytest.mark.parametrize("precision", ["ieee", "tf32x3", "tf32", "bf16"])
@pytest.mark.parametrize("queries, items, dimensions", [(1, 1, 1), (70, 200, 19), (5, 131, 70)])
def test_equals_reference(triton, queries, items, dimensions, precision, metric):
    if precision != "ieee" and DEVICE == "cpu" and queries != 70:
        pytest.skip("the interpreter knows one precision: other block shapes are seen once")
    if precision == "bf16" and DEVICE == "cpu":
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16 as integers")
    query, gallery, terms, code, (row, item, matched) = problem(queries, items, dimensions, metric)
    keys = reference.ranking_keys(query @ gallery.T, terms[0][:, None], terms[1], metric)
    start, ignored_start = offsets(row[matched], queries), offsets(row, queries)
    on_device = [one.to(DEVICE) for one in (query, gallery, *terms)]
    found_keys = triton.match_keys(
        *on_device, metric, start.to(DEVICE), item[matched].to(DEVICE), precision=precision
    )
    assert torch.equal(found_keys.cpu(), keys[row[matched], item[matched]])

    expected = Matches.of(
        start, item[matched], keys[row[matched], item[matched]], ignored_start, item
    )
    none = torch.empty(0)
    reference.count_preceding(
        keys, none, none, 0, 7, start, expected.match_item + 7, expected.match_key, ignored_start,
        item + 7, None, None, None, expected.preceding, expected.tied, expected.nearest,
        expected.moved,
    )  # fmt: skip
    matches = Matches.of(
        start.to(DEVICE), item[matched].to(DEVICE) + 7, found_keys, ignored_start.to(DEVICE),
        item.to(DEVICE) + 7,
    )  # fmt: skip
    rest = gallery.shape[0] // 3  # in two blocks
    for left, right in ((rest, items), (0, rest)):
        triton.count_preceding(
            on_device[0], on_device[1][left:right], on_device[2], on_device[3][left:right], metric,
            code[:queries].to(DEVICE), code[queries + left : queries + right].to(DEVICE), matches,
            offset=7 + left, precision=precision,
        )  # fmt: skip
    for name in ("match_item", "preceding", "tied", "nearest"):
        wanted = getattr(expected, name) + (7 if name == "match_item" else 0)
        assert torch.equal(getattr(matches, name).cpu(), wanted), name
    assert expected.tied.sum() > 0 or queries == 1


def test_bad_arguments_are_named(triton):
    x, term = torch.zeros(2, 3, device=DEVICE), torch.zeros(2, device=DEVICE)
    start, item = torch.zeros(3, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="precision must be one of ieee, tf32x3, tf32, bf16"):
        triton.match_keys(x, x, term, term, 1, start, item, precision="fp8")
    with pytest.raises(ValueError, match="metric must be 1"):
        triton.match_keys(x, x, term, term, 0, start, item)
    with pytest.raises(ValueError, match="query must be float32"):
        triton.match_keys(x.double(), x, term, term, 1, start, item)
    with pytest.raises(ValueError, match="equal widths"):
        triton.match_keys(x, x[:, :2].contiguous(), term, term, 1, start, item)


def test_kernels_compile_without_spilling(tmp_path):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    program = REPOSITORY / "tests" / "support" / "compile_triton_ranking.py"
    root = Path(mmga.__file__).parents[1]
    variables = os.environ | {"PYTHONPATH": str(root), "TRITON_CACHE_DIR": str(tmp_path)}
    variables.pop("TRITON_INTERPRET", None)
    result = subprocess.run(
        [sys.executable, program, "90"], env=variables, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    reports = [json.loads(line) for line in result.stdout.splitlines()]
    assert {report["precision"] for report in reports} == {"ieee", "tf32x3", "tf32", "bf16"}
    assert len(reports) == 8
    for report in reports:
        assert report["STACK"] == report["LOCAL"] == 0, report
        assert 0 < report["REG"] <= 255
        # The matrix units do what they are meant to do, and float32 is not handed to them.
        assert report["tensor_cores"] == (report["precision"] != "ieee"), report
