"""Containers are read back as they were written, and damaged ones are named in one sentence."""

import os
import sys
import warnings

import numpy as np
import pytest
import torch

import mmga
from mmga.common.errors import UserError
from mmga.retrieval.features import Features, containers, load_features, save_both

CONTAINERS = ["f.npz", "folder", "f.safetensors", "f.mat", "f.h5", "f.pt"]


def example(count=5, width=3, dtype=np.float32, seed=0):
    generator = np.random.default_rng(seed)
    return Features(
        generator.standard_normal((count, width)).astype(dtype),
        generator.integers(0, 3, count),
        generator.integers(0, 2, count),
        [f"a/{i}é.png" for i in range(count)],
        columns={"time": generator.random(count), "track": [f"t{i}" for i in range(count)]},
    )


def need(name):
    pytest.importorskip({"f.mat": "scipy", "f.h5": "h5py"}.get(name, "numpy"))


def assert_same(found, wanted):
    assert torch.equal(found.rows.whole().float(), wanted.rows.whole().float())
    assert found.pids.tolist() == wanted.pids.tolist()
    assert found.camids.tolist() == wanted.camids.tolist()
    assert found.paths.tolist() == wanted.paths.tolist()
    assert set(found.columns) == set(wanted.columns)
    for name, column in wanted.columns.items():
        assert found.columns[name].tolist() == column.tolist()


@pytest.mark.parametrize("name", CONTAINERS)
def test_saved_and_read(tmp_path, name):
    need(name)
    wanted = example()
    wanted.save(tmp_path / name)
    found = load_features(tmp_path / name)
    assert_same(found, wanted)
    assert found.notes == []
    assert os.listdir(tmp_path) == [name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_features(tmp_path / name)


@pytest.mark.parametrize("name", CONTAINERS)
def test_both_sides_in_one_file(tmp_path, name):
    need(name)
    query, gallery = example(seed=1), example(7, seed=2)
    save_both(tmp_path / name, query, gallery)
    assert_same(load_features(tmp_path / name, side="query"), query)
    assert_same(load_features(tmp_path / name, side="gallery"), gallery)
    with pytest.raises(UserError, match="holds query and gallery: say which"):
        load_features(tmp_path / name)


@pytest.mark.parametrize("name", CONTAINERS)
def test_strings_and_half_precision(tmp_path, name):
    need(name)
    wanted = Features(np.eye(4, dtype=np.float16), ["b", "a", "-1", "b"], ["x", "y", "x", "x"])
    assert wanted.pids.tolist() == [1, 0, -1, 1]
    assert wanted.pid_names.tolist() == ["a", "b"]
    wanted.save(tmp_path / name)
    found = load_features(tmp_path / name)
    assert found.pids.tolist() == wanted.pids.tolist()
    assert found.pid_names.tolist() == ["a", "b"]
    assert found.camid_names.tolist() == ["x", "y"]
    # MATLAB has no half precision; everything else keeps it.
    assert found.rows.dtype == (torch.float32 if name == "f.mat" else torch.float16)


def test_a_folder_is_memory_mapped(tmp_path):
    wanted = Features(np.zeros((400, 1024), np.float32), np.arange(400))
    wanted.save(tmp_path / "folder")
    arrays = containers.read(tmp_path / "folder")
    assert isinstance(arrays["features"], np.memmap)
    assert not isinstance(arrays["pids"], np.memmap)


def test_parts_with_visibility(tmp_path):
    parts = np.random.default_rng(0).standard_normal((4, 3, 2)).astype(np.float32)
    wanted = Features(pids=[0, 1, 2, 3], parts=parts, visibility=np.eye(4, 3, dtype=np.float32))
    wanted.save(tmp_path / "f.npz")
    found = load_features(tmp_path / "f.npz")
    assert torch.equal(found.parts, wanted.parts)
    assert torch.equal(found.visibility, wanted.visibility)


def test_wider_types_are_rounded_and_reported():
    double = Features(np.zeros((2, 2)), [0, 1])
    assert double.rows.dtype == torch.float32
    assert double.notes == ["features: float64 rounded to float32"]
    brain = Features(torch.zeros(2, 2, dtype=torch.bfloat16), [0, 1])
    assert brain.notes == ["features: bfloat16 widened to float32"]
    assert Features(torch.zeros(2, 2), np.array([0.0, 1.0])).notes == [
        "pids: stored as float64, read as int64"
    ]


@pytest.mark.parametrize("name", ["e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu"])
def test_eight_bits_are_widened(tmp_path, name):
    from safetensors.torch import save_file

    kind = getattr(torch, f"float8_{name}")
    stored = torch.tensor([[1.0, 0.5], [4.0, 8.0]]).to(kind)
    torch.save({"features": stored, "pids": torch.arange(2)}, tmp_path / "f.pt")
    found = [load_features(tmp_path / "f.pt")]
    if not name.endswith("uz"):  # which safetensors does not know in every version
        save_file({"features": stored, "pids": torch.arange(2)}, tmp_path / "f.safetensors")
        found.append(load_features(tmp_path / "f.safetensors"))
    for one in found:
        assert one.features.tolist() == [[1.0, 0.5], [4.0, 8.0]]
        assert one.features.dtype == torch.float32
        assert f"features: float8_{name} widened to float32" in one.notes[0]


def test_shards_in_natural_order(tmp_path):
    whole = example(12)
    for number, at in (("10", slice(9, 12)), ("2", slice(4, 9)), ("1", slice(0, 4))):
        whole.select(at).save(tmp_path / f"shard-{number}.npz")
    assert_same(load_features(tmp_path / "shard-*.npz"), whole)
    listed = load_features([tmp_path / "shard-2.npz", tmp_path / "shard-1.npz"])
    assert listed.pids.tolist() == [*whole.pids[4:9], *whole.pids[:4]]
    assert len(listed.rows.shards) == 2


def test_string_pids_agree_between_two_sets():
    query = Features(torch.eye(2), ["b", "d"])
    gallery = Features(torch.eye(3, 2), ["a", "b", "d"])
    report = mmga.evaluate(query, gallery, protocol="no-camera")
    assert report.num_valid_query == 2
    assert report.distractors == 1
    with pytest.raises(UserError, match="pids: the query has strings and the gallery integers"):
        mmga.evaluate(query, Features(torch.eye(3, 2), [0, 1, 2]), protocol="no-camera")


def broken(tmp_path, **arrays):
    np.savez(tmp_path / "f.npz", **arrays)
    return tmp_path / "f.npz"


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"features": np.zeros((3, 2), "f4"), "pids": np.zeros(2, int)}, "3 rows of features.*2"),
        ({"features": np.zeros((3, 2), "f4")}, "pids are missing"),
        ({"pids": np.zeros(2, int)}, "expected features and pids.*found pids"),
        ({"features": np.zeros((3, 2), ">f4"), "pids": np.zeros(3, int)}, "byte order.*>f4"),
        ({"features": np.zeros(3, "f4"), "pids": np.zeros(3, int)}, r"expected \[N, D\].*\[3\]"),
        ({"features": np.zeros((0, 2), "f4"), "pids": np.zeros(0, int)}, "found no values"),
        ({"features": np.zeros((2, 2), int), "pids": np.zeros(2, int)}, "float16 or float32"),
        ({"features": np.zeros((2, 2), "f4"), "pids": np.array([0.5, 1])}, "found fractions"),
        (
            {"features": np.zeros((2, 2), "f4"), "pids": np.array([2**24, 1], "f4")},
            "collide from 16777216 on",
        ),
        (
            {"features": np.zeros((2, 2), "f4"), "pids": [0, 1], "camids": [0]},
            "camids: expected one for each of the 2 rows",
        ),
    ],
)
def test_bad_arrays_are_named(tmp_path, arrays, sentence):
    path = broken(tmp_path, **arrays)
    with pytest.raises(UserError, match=sentence) as caught:
        load_features(path)
    assert str(path) in str(caught.value)


def test_objects_are_refused(tmp_path):
    np.savez(tmp_path / "f.npz", features=np.array([{}], dtype=object), pids=[0])
    with pytest.raises(UserError, match="array of objects"):
        load_features(tmp_path / "f.npz")
    torch.save({"features": torch.zeros(1, 1), "pids": Features}, tmp_path / "f.pt")
    with pytest.raises(UserError, match="only unpickling could read"):
        load_features(tmp_path / "f.pt")
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "pids.npy", np.array([{}], dtype=object))
    with pytest.raises(UserError, match="array of objects"):
        load_features(tmp_path / "folder")


@pytest.mark.parametrize("name", CONTAINERS)
def test_truncated_files_are_named(tmp_path, name):
    need(name)
    path = tmp_path / name
    example(300, 300).save(path)
    if path.is_dir():
        path = path / "features.npy"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="could not be read"):
        load_features(tmp_path / name)


def test_absent_and_unknown_files(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        load_features(tmp_path / "absent.npz")
    with pytest.raises(UserError, match="no file matches"):
        load_features(tmp_path / "shard-*.npz")
    (tmp_path / "f.csv").write_text("1")
    with pytest.raises(UserError, match=r"expected .npz, .safetensors"):
        load_features(tmp_path / "f.csv")
    with pytest.raises(UserError, match=r"expected .npz"):
        example().save(tmp_path / "f.txt")
    assert os.listdir(tmp_path) == ["f.csv"]


def test_mat_without_the_keys(tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    savemat(tmp_path / "f.mat", {"query_f": np.zeros((2, 2), "f4"), "other": 1})
    with pytest.raises(UserError, match=r"pids are missing|expected gallery_f"):
        load_features(tmp_path / "f.mat", side="query")
    with pytest.raises(UserError, match="expected gallery_f"):
        load_features(tmp_path / "f.mat", side="gallery")


def test_shards_must_fit_together(tmp_path):
    example(3, 2).save(tmp_path / "s-1.npz")
    example(3, 4).save(tmp_path / "s-2.npz")
    with pytest.raises(UserError, match=r"s-2.npz has rows of 4 values, .*s-1.npz of 2"):
        load_features(tmp_path / "s-*.npz")


def test_a_missing_extra_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "f.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"needs h5py.*pip install 'mmga\[h5\]'"):
        load_features(tmp_path / "f.h5")


def test_nan_in_features_is_named():
    features = torch.zeros(3, 2)
    features[1, 1] = torch.nan
    good = Features(torch.ones(3, 2), [0, 1, 2], [1, 1, 1])
    with pytest.raises(UserError, match=r"query: 1 of 3 rows .* the first is row 1"):
        mmga.evaluate(Features(features, [0, 1, 2], [0, 0, 0]), good)
    features[1, 1] = torch.inf
    with pytest.raises(UserError, match="gallery: 1 of 3 rows"):
        mmga.evaluate(good, Features(features, [0, 1, 2], [0, 0, 0]))


def test_nan_in_given_distances_is_named():
    labels = Features(torch.ones(2, 1), [0, 1])
    with pytest.raises(UserError, match="query 1: a distance is NaN"):
        mmga.evaluate_distances(np.array([[0, 1], [np.nan, 1]]), labels, labels, "no-camera")


@pytest.mark.parametrize("name", ["f.npz", "f", "f.safetensors", "f.mat", "f.pt"])
def test_blanks_at_the_ends_of_paths_and_times(tmp_path, name):
    rows, paths = np.eye(3, dtype=np.float32), [" a.jpg", "b ", "c d.jpg"]
    Features(rows, [0, 1, 2], paths=paths).save(tmp_path / name)
    assert load_features(tmp_path / name).paths.tolist() == paths
    times = np.array(["2020-01-01", "2021-01-01", "NaT"], "datetime64[s]")
    timed = Features(rows, [0, 1, 2], columns={"seen": times})
    if name in ("f.npz", "f"):
        timed.save(tmp_path / f"new_{name}")
        found = load_features(tmp_path / f"new_{name}").columns["seen"]
        assert np.array_equal(found, times, equal_nan=True)
    else:
        with pytest.raises(UserError, match=r"seen: a \.\w+ file holds no times"):
            timed.save(tmp_path / name)


def test_a_file_that_is_given_twice_and_a_table_that_replaces_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("g-1.npz", "g-2.npz", "folder"):
        Features(np.eye(3, dtype=np.float32), [0, 1, 2]).save(name)
    assert len(load_features("g-*.npz")) == 6
    with pytest.raises(UserError, match="is given twice, so that its rows would count"):
        load_features(["g-*.npz", tmp_path / "g-1.npz"])
    for table, value in (("folder/columns.csv", 5), ("other.csv", 6)):
        (tmp_path / table).write_text(f"time\n{value}\n{value}\n{value}\n")
    assert load_features("folder").columns["time"].tolist() == [5, 5, 5]
    replaced = load_features("folder", columns="other.csv")
    assert replaced.columns["time"].tolist() == [6, 6, 6]
    assert "columns.csv was not read" in replaced.notes[0]


@pytest.mark.parametrize("name", ["pids", "camids", "paths", "features", "visibility"])
def test_a_column_cannot_take_the_name_of_other_values(name):
    with pytest.raises(UserError, match=f"columns: none can be called {name}"):
        Features(np.eye(3, dtype=np.float32), [0, 1, 2], columns={name: [7, 8, 9]})
