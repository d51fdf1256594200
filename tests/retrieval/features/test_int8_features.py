"""Features of 8 bits with a scale stand for the float32 products of both, and are read as such."""

import numpy as np
import pytest
import torch

import mmga
from mmga.common.errors import UserError
from mmga.retrieval.features.sharded_matrix import ShardedMatrix

FORMATS = ["f.npz", "f.safetensors", "f.h5", "f.pt", "f.mat", "folder"]


def quantised(count=70, width=24, seed=0):
    """Integers, a scale for each row, and the values that they stand for."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, width)) * rng.uniform(0.5, 2, (count, 1))
    scale = (np.abs(rows).max(1) / 127).astype(np.float32)
    numbers = np.rint(rows / scale[:, None]).astype(np.int8)
    return numbers, scale, numbers.astype(np.float32) * scale[:, None]


def both(count=70, seed=0):
    numbers, scale, values = quantised(count, seed=seed)
    pids, camids = np.arange(count) % 9, np.arange(count) // 9 % 3
    return mmga.Features(numbers, pids, camids, scale=scale), mmga.Features(values, pids, camids)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("exact", ["certified", "float32"])
def test_neighbours_are_those_of_the_values(metric, exact):
    gallery, values = both()
    query = quantised(9, seed=1)[2]
    expected = mmga.nearest(query, values, 20, metric, exact=exact)
    found = mmga.nearest(query, gallery, 20, metric, exact=exact)
    assert all(map(np.array_equal, found, expected))
    graphs = [mmga.kneighbors_graph(one, 5, metric, exact=exact) for one in (gallery, values)]
    assert np.array_equal(*map(mmga.to_dense, graphs))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("exact", ["certified", "float32"])
def test_figures_are_those_of_the_values(metric, exact):
    reports = [
        mmga.evaluate(query, gallery, metric=metric, rerank=mmga.KReciprocal(5, 3), exact=exact)
        for query, gallery in zip(both(20, seed=1), both(), strict=True)
    ]
    for one, other in (reports, [report.reranked for report in reports]):
        assert one.mAP == other.mAP and np.array_equal(one.cmc, other.cmc)


@pytest.mark.parametrize("name", FORMATS)
def test_files_keep_integers_and_scale(tmp_path, name):
    pytest.importorskip({"f.h5": "h5py", "f.safetensors": "safetensors"}.get(name, "numpy"))
    gallery, values = both()
    gallery.save(tmp_path / name)
    read = mmga.load_features(tmp_path / name)
    assert read.rows.stored == torch.int8 and "int8" in repr(read) and "scale" not in read.columns
    assert torch.equal(read.features, values.features) and read.rows.nbytes == 4 * 70 * 24
    assert torch.equal(read.select([3, 1]).features, values.features[[3, 1]])
    mmga.retrieval.features.save_both(tmp_path / f"both{name}", gallery, gallery)
    side = mmga.load_features(tmp_path / f"both{name}", side="gallery")
    assert torch.equal(side.features, values.features) and side.rows.stored == torch.int8


def test_shards_and_one_scale_for_all(tmp_path):
    numbers = quantised()[0]
    for place, rows in enumerate((slice(0, 30), slice(30, 70))):
        pids = np.arange(rows.stop - rows.start)
        np.savez(
            tmp_path / f"s{place}.npz", features=numbers[rows], pids=pids, scale=0.25 * place + 1
        )
    read = mmga.load_features(str(tmp_path / "s*.npz"))
    expected = numbers * np.repeat([1, 1.25], [30, 40]).astype(np.float32)[:, None]
    assert np.array_equal(read.features, expected)
    found = mmga.nearest(expected[:5], read, 10, "euclidean")[1]
    assert np.array_equal(found, mmga.nearest(expected[:5], expected, 10, "euclidean")[1])


def test_a_plain_number_in_a_pt_file_is_a_scale(tmp_path):
    numbers = torch.from_numpy(quantised()[0])
    for name, rows in (("int8", numbers), ("float32", numbers.float())):
        torch.save({"features": rows, "pids": torch.arange(70), "scale": 0.5}, tmp_path / "f.pt")
        read = mmga.load_features(tmp_path / "f.pt")
        expected = numbers.float() * (0.5 if name == "int8" else 1)
        assert torch.equal(read.features, expected) and not read.columns


def test_galleries_are_read_block_by_block(tmp_path, monkeypatch):
    gallery, values = both(9000)
    gallery.save(tmp_path / "folder")
    expected = mmga.nearest(values.features[:7], values, 5)
    read = mmga.load_features(tmp_path / "folder")
    heights, block = [], ShardedMatrix.block

    def measured(self, start, stop, out=None):
        heights.append(stop - start)
        return block(self, start, stop, out)

    monkeypatch.setattr(ShardedMatrix, "block", measured)
    found = mmga.nearest(values.features[:7], read, 5)
    assert torch.equal(found[1], expected[1]) and torch.equal(found[0], expected[0])
    assert 0 < max(heights) <= 4096


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_float16_galleries_on_disk_are_exact(tmp_path, metric):
    values = torch.from_numpy(quantised(60, 2048)[2]).half()
    mmga.Features(values.repeat(5, 1), np.arange(300)).save(tmp_path / "folder")
    gallery = mmga.load_features(tmp_path / "folder")
    assert isinstance(np.load(tmp_path / "folder" / "features.npy", mmap_mode="r"), np.memmap)
    query = values[:9].float()
    found = mmga.nearest(query, gallery, 12, metric)
    expected = mmga.nearest(query, values.float().repeat(5, 1), 12, metric)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert (found[0][:, :5] == 0).all()


def test_without_a_scale_there_are_directions_alone():
    numbers, _, _ = quantised()
    gallery = mmga.Features(numbers, np.arange(70))
    assert gallery.notes == ["int8 features without a scale: directions alone"]
    found = mmga.nearest(gallery, gallery, 6)[1]
    assert torch.equal(found, mmga.nearest(*[torch.from_numpy(numbers).float()] * 2, 6)[1])
    for search in (
        lambda: mmga.nearest(gallery, gallery, 6, "euclidean"),
        lambda: mmga.evaluate(gallery, gallery, metric="euclidean", protocol="no-camera"),
        lambda: mmga.neighbours_within(gallery, 1.0, "euclidean"),
    ):
        with pytest.raises(UserError, match="int8 numbers without a scale have no lengths"):
            search()


@pytest.mark.parametrize(
    ("dtype", "scale", "sentence"),
    [
        (np.int8, np.ones(3), "scale: expected one number, or one for each of the 4 rows"),
        (np.int8, [1, 2, 0, 4], "scale: expected positive numbers, found 0.0 for row 2"),
        (np.int8, np.nan, "scale: expected positive numbers, found nan for row 0"),
        (np.float32, 1.0, "scale belongs to int8 features, found features of float32"),
        (np.uint8, 1.0, "expected float16 or float32, or int8 with a scale, found uint8"),
    ],
)
def test_what_is_no_scale(dtype, scale, sentence):
    with pytest.raises(UserError, match=sentence):
        mmga.Features(np.ones((4, 2), dtype), np.arange(4), scale=scale)


def test_a_scale_of_other_features_is_a_column(tmp_path):
    np.savez(
        tmp_path / "f.npz",
        features=np.ones((4, 2), np.float32),
        pids=[0, 1, 2, 3],
        scale=[1, 2, 3, 4],
    )
    assert mmga.load_features(tmp_path / "f.npz").columns["scale"].tolist() == [1, 2, 3, 4]
    with pytest.raises(UserError, match="none can be called scale"):
        mmga.Features(np.ones((2, 2), np.int8), [0, 1], columns={"scale": [1, 2]})
