"""Features as Parquet tables: our own bit for bit, pandas' too, and what is wrong in a sentence."""

import datetime

import numpy as np
import pytest
import torch

import mmga
from mmga import UserError, extract
from mmga import eval as command

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
RANDOM = np.random.default_rng(0)


def rows(dtype, *shape):
    """Numbers of every kind that the type has, denormal ones and a negative zero too."""
    values = RANDOM.normal(size=shape).astype(dtype)
    values.reshape(-1)[:3] = np.finfo(dtype).tiny / 4, -0.0, np.finfo(dtype).max
    return values


def bits(features):
    return features.rows.numbers().numpy().tobytes()


def write(path, **columns):
    parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_features_come_back_bit_for_bit(tmp_path, dtype):
    given = mmga.Features(
        rows(dtype, 7, 5),
        [3, -1, None, 2**50, 0, 1, 2],
        ["a", "b", "", "a", "7", "-1", "c"],
        [f"{i}.png" for i in range(7)],
        columns={"time": np.arange(7), "score": np.array([0.5, np.nan, 1, 2, 3, 4, 5])},
    )
    given.to_parquet(tmp_path / "x.parquet")
    kind = parquet.read_schema(tmp_path / "x.parquet").field("features").type
    assert kind == pyarrow.list_(pyarrow.from_numpy_dtype(dtype), 5)
    for found in (
        mmga.Features.from_parquet(tmp_path / "x.parquet"),
        mmga.load_features(tmp_path / "x.parquet"),
    ):
        assert bits(found) == bits(given) and found.rows.stored == given.rows.stored
        for name in ("pids", "camids", "paths", "camid_names"):
            assert getattr(found, name).tolist() == getattr(given, name).tolist()
        assert found.pid_names is given.pid_names is None
        assert found.columns.keys() == given.columns.keys()
        for name, values in given.columns.items():
            np.testing.assert_array_equal(found.columns[name], values)


def test_any_name_of_a_file(tmp_path):
    given = mmga.Features(rows(np.float32, 2, 3), [0, 1])
    given.to_parquet(tmp_path / "part-0")
    assert bits(mmga.Features.from_parquet(tmp_path / "part-0")) == bits(given)


def test_parts_and_eight_bits(tmp_path):
    parts = mmga.Features(
        parts=rows(np.float32, 4, 3, 5), visibility=RANDOM.random((4, 3)), pids=[0, 1, 2, 3]
    )
    parts.save(tmp_path / "p.parquet")
    found = mmga.load_features(tmp_path / "p.parquet")
    assert bits(found) == bits(parts) and torch.equal(found.visibility, parts.visibility)
    small = mmga.Features(RANDOM.integers(-9, 9, (4, 6), np.int8), [0, 1, 2, 3], scale=[1, 2, 3, 4])
    small.save(tmp_path / "s.parquet")
    found = mmga.load_features(tmp_path / "s.parquet")
    assert bits(found) == bits(small) and torch.equal(found.rows.scale, small.rows.scale)


def test_many_row_groups(tmp_path, monkeypatch):
    from mmga.retrieval.features import parquet as ours

    monkeypatch.setattr(ours, "_GROUP", 100)
    given = mmga.Features(rows(np.float32, 50, 8), range(50))
    given.to_parquet(tmp_path / "x.parquet")
    assert parquet.ParquetFile(tmp_path / "x.parquet").num_row_groups > 10
    assert bits(mmga.load_features(tmp_path / "x.parquet")) == bits(given)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_tables_of_pandas(tmp_path, dtype):
    pandas = pytest.importorskip("pandas")
    values = RANDOM.normal(size=(4, 3)).astype(dtype)
    table = pandas.DataFrame(
        {
            "features": list(values),
            "pid": pandas.array([1, None, -1, 2**60], "Int64"),
            "camid": pandas.Categorical(["x", "y", "x", None]),
            "filename": ["a/1.png", "a/2.png", "b/1.png", "c.png"],
            "time": pandas.to_datetime(["2026-01-01", None, "2026-01-02", "2026-01-03"]),
            "count": pandas.array([1, None, 2, 3], "Int64"),
            "day": True,
        },
        index=["r", "s", "t", "u"],
    )
    table.to_parquet(tmp_path / "x.parquet")
    found = mmga.load_features(tmp_path / "x.parquet")
    np.testing.assert_array_equal(found.features, values.astype(np.float32))
    assert found.rows.stored == (torch.float16 if dtype == np.float16 else torch.float32)
    assert found.pids.tolist() == [1, mmga.retrieval.features.UNKNOWN, -1, 2**60]
    assert found.camid_names.tolist() == ["x", "y"] and found.camids[3] < -1
    assert found.paths.tolist() == table.filename.tolist()
    assert sorted(found.columns) == ["count", "day", "time"]
    assert np.isnan(found.columns["count"][1]) and np.isnat(found.columns["time"][1])
    assert any("float64 rounded" in note for note in found.notes) == (dtype == np.float64)


def test_pandas_reads_ours(tmp_path):
    pandas = pytest.importorskip("pandas")
    given = mmga.Features(rows(np.float32, 4, 3), ["a", "", "b", "-1"], [0, 1, None, 2])
    given.to_parquet(tmp_path / "x.parquet")
    table = pandas.read_parquet(tmp_path / "x.parquet")
    assert list(table.columns) == ["features", "pid", "camid"]
    assert np.stack(table.features).tobytes() == bits(given)
    assert table.pid.isna().tolist() == [False, True, False, False]
    assert table.camid.tolist()[:2] == [0, 1] and table.camid.isna().sum() == 1


def test_evaluation_and_shards(tmp_path, capsys):
    centres = RANDOM.normal(size=(5, 6))
    for side, count in (("q", 10), ("g", 40)):
        pids = np.arange(count) % 5
        values = (centres[pids] + RANDOM.normal(size=(count, 6))).astype(np.float32)
        both = mmga.Features(values, pids, np.arange(count) % 3)
        both.save(tmp_path / f"{side}.npz")
        for number, part in enumerate((slice(0, count // 2), slice(count // 2, count))):
            both.select(part).to_parquet(tmp_path / f"{side}-{number}.parquet")
    found = []
    for query, gallery in (("q.npz", "g.npz"), ("q-*.parquet", "g-*.parquet")):
        words = ["--query", str(tmp_path / query), "--gallery", str(tmp_path / gallery)]
        command.main(words)
        found.append(capsys.readouterr().out.split("\n\n")[0])
    assert found[0] == found[1]


def test_extraction_writes_it(tmp_path):
    from PIL import Image
    from small_run import write_run

    Image.new("RGB", (16, 48)).save(tmp_path / "a.png")
    run = write_run(tmp_path / "run")
    words = ["--run", run, "--images", tmp_path, "--out", tmp_path / "x.parquet"]
    extract.main([str(word) for word in words])
    assert len(mmga.load_features(tmp_path / "x.parquet")) == 1


def fails(path):
    with pytest.raises(UserError) as error:
        mmga.load_features(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


LISTS = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"pid": [1, 2, 3]}, "expected a column features, lists of numbers, found pid"),
        (
            {"embedding": LISTS, "pid": [1, 2, 3]},
            "found embedding, pid; if embedding holds them, rename it",
        ),
        ({"features": LISTS}, "pids are missing"),
        ({"features": [[1.0, 2.0], [3.0], [5.0, 6.0]]}, "found 1 values in row 1 and 2 in row 0"),
        ({"features": [[1.0, 2.0], None, [3.0, 4.0]]}, "row 1 holds no list (null)"),
        ({"features": [[1.0, 2.0], [3.0, 4.0], [None, 4.0]]}, "row 2 holds a null among"),
        ({"features": [["a"], ["b"], ["c"]]}, "expected lists of numbers, found lists of string"),
        ({"features": [1.0, 2.0, 3.0]}, "expected [N, D], found shape [3]"),
        ({"features": [[1], [2], [3]]}, "expected float16 or float32"),
        ({"features": LISTS, "pids": [1, 2, 3]}, "several columns hold pids"),
        ({"features": LISTS, "pid": [0.5, 1, 2]}, "pids: expected whole numbers"),
        ({"features": LISTS, "day": [True, None, False]}, "day: 1 of 3 values are missing (null)"),
        (
            {"features": LISTS, "when": [datetime.time(1)] * 3},
            "when: expected numbers, text or times, found time64",
        ),
        ({"features": LISTS, "box": [[1, 2], [1, 2], [1, 2]]}, "box: expected one for each of"),
        ({"features": pyarrow.array([], pyarrow.list_(pyarrow.float32())), "pid": []}, "no values"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, columns, message):
    if "pid" not in columns and message != "pids are missing":
        columns = {**columns, "pid": [1, 2, 3]}
    assert message in fails(write(tmp_path / "x.parquet", **columns))


def test_rows_are_counted_through_the_file(tmp_path):
    """Of lists of lists, and in later row groups, it is the row of the table that is named."""
    lists = [[[1.0], [2.0]], [[1.0], [2.0]], [[1.0], [2.0]], [[1.0], [None]]]
    table = pyarrow.table({"parts": lists, "pid": [0, 1, 2, 3]})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=1)
    assert "row 3 holds a null" in fails(tmp_path / "x.parquet")
    table = pyarrow.table({"features": [[1.0], [2.0], [3.0, 4.0]], "pid": [0, 1, 2]})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=1)
    assert "in row 2 and 1 in row 0" in fails(tmp_path / "x.parquet")


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped"])
def test_a_damaged_file(tmp_path, damage):
    path = tmp_path / "x.parquet"
    mmga.Features(rows(np.float32, 60, 9), range(60)).to_parquet(path)
    whole = bytearray(path.read_bytes())
    if damage == "flipped":
        whole[len(whole) // 3] ^= 255
    contents = {"cut": whole[:-30], "empty": b"", "text": b"path,pid\n", "flipped": whole}
    path.write_bytes(contents[damage])
    assert "could not be read as a .parquet file" in fails(path)


def test_a_table_larger_than_memory(tmp_path, monkeypatch):
    from mmga.common import memory

    path = tmp_path / "x.parquet"
    mmga.Features(np.ones((500, 512), np.float32), np.zeros(500, int)).to_parquet(path)
    monkeypatch.setattr(memory, "available", lambda: 100_000)
    assert path.stat().st_size < 100_000
    assert "does not fit into the memory that is free" in fails(path)


def test_both_sides_are_two_files(tmp_path):
    side = mmga.Features(rows(np.float32, 2, 3), [0, 1])
    with pytest.raises(UserError, match="holds one set of features"):
        mmga.retrieval.features.save_both(tmp_path / "x.parquet", side, side)
    assert list(tmp_path.iterdir()) == []


def test_without_pyarrow(tmp_path, monkeypatch):
    import sys

    given = mmga.Features(rows(np.float32, 2, 3), [0, 1])
    given.to_parquet(tmp_path / "x.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "needs pyarrow, which is not installed" in fails(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"y\.parquet needs pyarrow.*mmga\[parquet\]"):
        given.to_parquet(tmp_path / "y.parquet")
    assert not (tmp_path / "y.parquet").exists()
