"""Hostile files of every format end in a result or in one sentence, and cost no memory."""

import collections
import itertools
import json
import shutil
import tracemalloc
import warnings

import hostile
import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from small_run import write_run

import mmga
from mmga import models
from mmga.common.errors import UserError
from mmga.config import load_config, recipe_config, to_yaml
from mmga.retrieval.features import Features, load_features
from mmga.retrieval.features.csv_columns import read_columns

FORMATS = ("npz", "packed.npz", "folder", "safetensors", "mat", "packed.mat", "h5", "73.mat", "pt")
DAMAGED = 30  # copies of a file of each format


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def outcome(read, *arguments):
    """Return "read" or "refused"; anything but a result or one sentence fails."""
    try:
        read(*arguments)
    except UserError as error:
        assert "\n" not in str(error) and 20 < len(str(error)) < 600, str(error)
        return "refused"
    return "read"


def example():
    draw = np.random.default_rng(0)
    return Features(
        draw.standard_normal((40, 8)).astype(np.float32),
        draw.integers(0, 9, 40),
        draw.integers(0, 3, 40),
        [f"a/{i}é.png" for i in range(40)],
        columns={"time": draw.random(40)},
    )


def write(path, arrays):
    """Write arrays without any check, in the format of a path of FORMATS."""
    if path.name == "folder":
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
    elif path.suffix == ".npz":
        (np.savez_compressed if "packed" in path.name else np.savez)(path, **arrays)
    elif path.suffix == ".pt":
        torch.save(arrays, path)
    elif path.suffix == ".h5" or path.name == "73.mat":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                text = array.dtype.kind == "U"
                rows = array.T if path.name == "73.mat" else array  # MATLAB has columns first
                file[name] = rows.astype(object) if text else rows
                if path.name == "73.mat":
                    file[name].attrs["MATLAB_class"] = np.bytes_("double")
    else:
        mmga.retrieval.features.containers.write(path, arrays)
        if "packed" in path.name:
            path.write_bytes(hostile.compressed_mat(path.read_bytes()))


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files(tmp_path, name):
    path = tmp_path / name
    write(path, {key: np.asarray(value) for key, value in example().arrays().items()})
    assert outcome(load_features, path) == "read"
    file = path / "features.npy" if path.is_dir() else path
    counted = collections.Counter()
    for bad in hostile.damaged(file.read_bytes(), DAMAGED, seed=1):
        file.write_bytes(bad)
        counted[outcome(load_features, path)] += 1
    assert counted.total() == DAMAGED and counted["refused"] >= DAMAGED // 3


@pytest.mark.parametrize("name", ["npz", "folder", "h5", "pt"])
def test_arrays_of_wrong_types(tmp_path, name):
    counted = collections.Counter()
    for what, arrays in hostile.wrong_arrays():
        try:
            write(tmp_path / name, arrays)
        except (TypeError, ValueError):  # HDF5 has no such type
            continue
        found = outcome(load_features, tmp_path / name)
        counted[found] += 1
        # Truth values and big numbers of the right shape are labels like others.
        assert found == "refused", what
    assert counted["refused"] >= 30


def test_what_declares_a_huge_size_takes_no_memory(tmp_path):
    files = list(hostile.huge_files(tmp_path))
    assert len(files) == 18
    tracemalloc.start()
    try:
        counted = collections.Counter(outcome(load_features, path) for path in files)
        assert counted == {"refused": 18}
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def test_hdf5_that_declares_a_huge_size_takes_no_memory(tmp_path):
    files = list(hostile.huge_hdf5(tmp_path, pytest.importorskip("h5py")))
    tracemalloc.start()
    try:
        assert [outcome(load_features, path) for path in files] == ["refused"] * 6
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def test_something_else_under_the_name(tmp_path):
    example().save(tmp_path / "good.npz")
    good = (tmp_path / "good.npz").read_bytes()
    contents = [b"", b"\0" * 200, b"<html>404</html>", b"features,pids\n1,2\n", good]
    counted = collections.Counter()
    for suffix, content in itertools.product(
        (".npz", ".npy", ".safetensors", ".mat", ".h5", ".pt", ".xyz", ""), contents
    ):
        if (suffix, content) != (".npz", good):
            (tmp_path / f"f{suffix}").write_bytes(content)
            counted[outcome(load_features, tmp_path / f"f{suffix}")] += 1
    for suffix in (".npz", ".safetensors", ".mat", ".h5", ".pt"):
        (tmp_path / f"folder{suffix}").mkdir()
        counted[outcome(load_features, tmp_path / f"folder{suffix}")] += 1
    assert counted == {"refused": 44}


def test_damaged_tables(tmp_path):
    table = tmp_path / "t.csv"
    text = "pid,camid,path\n" + "".join(f"{i % 9},{i % 3},a/{i}é.png\n" for i in range(40))
    counted = collections.Counter()
    for bad in hostile.damaged(text.encode(), DAMAGED, seed=2):
        table.write_bytes(bad)
        counted[outcome(read_columns, table)] += 1
    assert counted.total() == DAMAGED and counted["refused"] >= DAMAGED // 4


VALUES = (None, "", "x", -1, 10**12, 1e300, True, [], [[1]], {}, {"a": 1})


def test_damaged_indices(tmp_path):
    mmga.GalleryIndex.build(example()).save(tmp_path / "good.mmga-index")
    query = np.ones(8, np.float32)
    counted = collections.Counter()

    def rerank(folder, verify):
        mmga.GalleryIndex.load(folder, verify=verify).rerank(query)

    def use(change):
        folder = tmp_path / "x.mmga-index"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "good.mmga-index", folder)
        change(folder)
        for verify in (True, False):
            counted[outcome(rerank, folder, verify)] += 1

    meta = json.loads((tmp_path / "good.mmga-index" / "index.json").read_text())
    for name, value in itertools.product(meta, VALUES):
        changed = json.dumps({**meta, name: value})
        use(lambda folder, text=changed: (folder / "index.json").write_text(text))
    for name in meta:
        changed = json.dumps({key: meta[key] for key in meta if key != name})
        use(lambda folder, text=changed: (folder / "index.json").write_text(text))
    for rule in ({"k1": 10}, {"lambda_value": 0.5}, {"variant": "fastreid"}):
        changed = json.dumps({**meta, "rule": {**meta["rule"], **rule}})
        use(lambda folder, text=changed: (folder / "index.json").write_text(text))
    for text in ("", "[]", "3", "null", "{", "[" * 100_000, "\ud800"):
        content = text.encode(errors="surrogatepass")
        use(lambda folder, content=content: (folder / "index.json").write_bytes(content))
    for name in meta["sha256"]:
        if name != "index.json":
            use(lambda folder, name=name: (folder / f"{name}.npy").unlink())
            for array in (np.zeros(3), np.zeros((40, 2), complex), np.array(1), np.array(["a"])):
                use(lambda folder, n=name, a=array: np.save(folder / f"{n}.npy", a))
    # Settings that are left out are the defaults, which they were; and true is 1.
    assert counted["read"] <= 4 and counted["refused"] > 300


def test_damaged_checkpoints(tmp_path):
    path = write_run(tmp_path) / "last.safetensors"
    whole = path.read_bytes()
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert outcome(models.load, path) == "read"
    counted = collections.Counter()
    for name in ("format", "progress", "num_classes", "config"):
        for text in ("null", "[]", "{}", "-1", '{"a": 1}', "", "9" * 5000, "[" * 100_000):
            save_file(tensors, path, {**metadata, name: text})
            counted[outcome(models.load, path)] += 1
        save_file(tensors, path, {key: metadata[key] for key in metadata if key != name})
        counted[outcome(models.load, path)] += 1
    config = json.loads(metadata["config"])
    for key in ("heads", "spatial_kernel", "backbone", "pool", "read0"):
        for value in (10**9, -1, []):
            changed = {**config, "model": {**config["model"], key: value}}
            save_file(tensors, path, {**metadata, "config": json.dumps(changed)})
            counted[outcome(models.load, path)] += 1
    # Without settings they are the defaults, of which the network may be.
    assert counted["refused"] > 45 and counted["read"] <= 2
    for bad in hostile.damaged(whole, 12, seed=3):
        path.write_bytes(bad)
        counted[outcome(models.load, path)] += 1
    assert counted.total() > 60


def test_damaged_configurations(tmp_path):
    path, text = tmp_path / "c.yaml", to_yaml(recipe_config("synthetic"))
    counted = collections.Counter()
    for bad in hostile.damaged(text.encode(), DAMAGED, seed=4):
        path.write_bytes(bad)
        counted[outcome(load_config, path)] += 1
    for name, value in itertools.product(yaml.safe_load(text), VALUES):
        path.write_text(yaml.safe_dump({name: value}))
        counted[outcome(load_config, path)] += 1
    for bad in ("a: &a [*a]", "? [1]\n: 2", "[1]", "3", "a: 2024-99-99", "a: " + "[" * 5000):
        path.write_text(bad)
        counted[outcome(load_config, path)] += 1
    assert counted["refused"] > 90
