"""Feature files that are wrong, limits too small, and disks that are full: one sentence each."""

import contextlib
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from full_disk import disk_with

from mmga import eval as command
from mmga.common.errors import UserError
from mmga.retrieval.evaluate import evaluate
from mmga.retrieval.features import Features, load_features, save_both
from mmga.retrieval.metrics.report import write_json

CONTAINERS = ["f.npz", "folder", "f.safetensors", "f.mat", "f.h5", "f.pt"]


def need(name):
    pytest.importorskip({".mat": "scipy", ".h5": "h5py"}.get(name[-4:].lstrip("f"), "numpy"))


def arrays(count=6, width=4, **changed):
    generator = np.random.default_rng(0)
    return {
        "features": generator.standard_normal((count, width)).astype(np.float32),
        "pids": np.arange(count) % 3,
        "camids": np.arange(count) % 2,
        **changed,
    }


def fails(capsys, tmp_path, gallery, *more):
    """Evaluate a good query against a gallery that must fail; return the sentence."""
    np.savez(tmp_path / "q.npz", **arrays())
    before = sorted(os.listdir(tmp_path))
    words = ["--query", tmp_path / "q.npz", "--gallery", tmp_path / gallery, *more]
    with pytest.raises(SystemExit) as leave:
        command.main([str(word) for word in [*words, "--json", tmp_path / "out.json"]])
    out, err = capsys.readouterr()
    assert (leave.value.code, out, len(err.splitlines())) == (2, "", 1), err
    assert sorted(os.listdir(tmp_path)) == before
    return err


def test_a_shard_shorter_than_its_ids(capsys, tmp_path):
    np.savez(tmp_path / "g-1.npz", **arrays())
    np.savez(tmp_path / "g-2.npz", **arrays(5, pids=np.arange(6)))
    said = fails(capsys, tmp_path, "g-*.npz")
    assert "g-2.npz: pids: expected one for each of the 5 rows" in said
    assert "found 6" in said


def test_two_dimensions_in_two_shards(capsys, tmp_path):
    np.savez(tmp_path / "g-1.npz", **arrays())
    np.savez(tmp_path / "g-2.npz", **arrays(width=5))
    said = fails(capsys, tmp_path, "g-*.npz")
    assert re.search(r"g-2.npz has rows of 5 values, .*g-1.npz of 4", said)


def test_a_shard_with_other_columns(capsys, tmp_path):
    np.savez(tmp_path / "g-1.npz", **arrays())
    np.savez(tmp_path / "g-2.npz", **arrays(time=np.arange(6)))
    assert "all shards must hold the same" in fails(capsys, tmp_path, "g-*.npz")


@pytest.mark.parametrize("name", ["features", "pids", "camids"])
def test_the_other_byte_order(capsys, tmp_path, name):
    given = arrays()
    given[name] = given[name].astype(given[name].dtype.newbyteorder("S"))
    np.savez(tmp_path / "g.npz", **given)
    said = fails(capsys, tmp_path, "g.npz")
    assert f"g.npz: {name}: expected this machine's byte order" in said
    # In a folder as well, where a large array would be mapped.
    (tmp_path / "folder").mkdir()
    for one, values in given.items():
        np.save(tmp_path / "folder" / f"{one}.npy", values)
    assert "byte order" in fails(capsys, tmp_path, "folder")


@pytest.mark.parametrize("name", ["features", "pids", "camids", "time"])
def test_objects(capsys, tmp_path, name):
    given = arrays(time=np.arange(6))
    objects = np.empty(6, object)
    objects[:] = [{"pickled": 1}] * 6
    np.savez(tmp_path / "g.npz", **{**given, name: objects})
    said = fails(capsys, tmp_path, "g.npz")
    assert f"g.npz: {name}: expected numbers or strings, found an array of objects" in said


def test_a_mat_file_without_the_keys(capsys, tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    scipy_io.savemat(tmp_path / "g.mat", {"gallery_feature": np.zeros((3, 4)), "label": [1, 2, 3]})
    said = fails(capsys, tmp_path, "g.mat")
    assert "g.mat: expected features and pids, or query_f" in said
    assert "found gallery_feature, label" in said
    scipy_io.savemat(
        tmp_path / "half.mat", {"gallery_f": np.zeros((3, 4)), "gallery_cam": [1, 2, 3]}
    )
    with pytest.raises(UserError, match="pids are missing"):
        load_features(tmp_path / "half.mat", "gallery")


def test_too_little_memory_says_how_much_is_enough(capsys, tmp_path):
    np.savez(tmp_path / "g.npz", **arrays(9))
    said = fails(capsys, tmp_path, "g.npz", "--memory", "1K")
    least = re.search(r"memory: 1.0K cannot hold one tile .* give at least (\S+)\n", said).group(1)
    query, gallery = load_features(tmp_path / "q.npz"), load_features(tmp_path / "g.npz")
    assert evaluate(query, gallery, memory=least).mAP == evaluate(query, gallery).mAP
    for wrong in ("0", "-1G", "lots", "1.5.2G"):
        said = fails(capsys, tmp_path, "g.npz", f"--memory={wrong}")
        assert "memory: expected a size such as 2G or 500M" in said


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("size", [0, 100_000])
def test_a_full_disk_leaves_what_was_there(tmp_path, name, size):
    need(name)
    small = Features(**arrays())
    small.save(tmp_path / name)
    before = sorted(os.listdir(tmp_path))
    large = Features(**arrays(4000, 64))
    for save in (large.save, lambda path: save_both(path, large, large)):
        with disk_with(size), pytest.raises(UserError, match="could not be written") as raised:
            save(tmp_path / name)
        assert "\n" not in str(raised.value)
        assert name in str(raised.value)
        assert sorted(os.listdir(tmp_path)) == before
        assert len(load_features(tmp_path / name)) == 6


def test_a_full_disk_while_results_are_written(tmp_path):
    report = evaluate(Features(**arrays()), Features(**arrays(9)))
    (tmp_path / "old.json").write_text("old")
    for write in (
        lambda: report.to_json(tmp_path / "old.json"),
        lambda: report.to_csv(tmp_path / "new.csv"),
        lambda: write_json(tmp_path / "new.json", {"a": 1}),
    ):
        with disk_with(10), pytest.raises(UserError, match=r"could not be written: File too large"):
            write()
    assert os.listdir(tmp_path) == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "old"


def test_an_error_of_ones_own_stays_what_it_is(tmp_path):
    from mmga.common.files import atomic_path

    with pytest.raises(KeyError), atomic_path(tmp_path / "f") as path:
        path.write_text("half")
        raise KeyError("mine")
    assert os.listdir(tmp_path) == []


def test_strings_as_pandas_gives_them():
    """Arrays of objects that are all strings are strings."""
    names = np.array(["a", "b", "a"], dtype=object)
    found = Features(torch.ones(3, 2), names, names, columns={"track": names})
    assert found.pid_names.tolist() == ["a", "b"]
    assert found.columns["track"].dtype.kind == "U"
    with pytest.raises(UserError, match="array of objects"):
        Features(torch.ones(3, 2), np.array(["a", 1, {}], dtype=object))
    with pytest.raises(UserError, match="track: expected numbers or strings"):
        Features(torch.ones(3, 2), [1, 2, 3], columns={"track": np.array(["a", 1, None], object)})


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize(
    "content",
    [
        b"hello",
        b"",
        b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n",
        bytes(range(256)),
    ],
    ids=["text", "nothing", "page", "bytes"],
)
def test_files_of_something_else(capsys, tmp_path, name, content):
    need(name)
    if name == "folder":
        pytest.skip("a folder is no file")
    (tmp_path / name).write_bytes(content)
    said = fails(capsys, tmp_path, name)
    assert str(tmp_path / name) in said


def test_damage_anywhere_is_one_sentence(tmp_path):
    """Whatever a parser trips over; SciPy's own can crash the process and is left out."""
    draw = np.random.default_rng(0)
    for name in ("f.npz", "f.safetensors", "f.h5", "f.pt"):
        need(name)
        Features(**arrays(50)).save(tmp_path / name)
        whole = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
        for _ in range(25):
            bad = whole.copy()
            bad[draw.integers(0, len(bad), 12)] = draw.integers(0, 256, 12)
            (tmp_path / name).write_bytes(bad[: draw.integers(20, len(bad))].tobytes())
            with contextlib.suppress(UserError):
                load_features(tmp_path / name)


def test_arrays_in_a_torch_file(tmp_path):
    given = arrays(pids=np.array([f"p{i}" for i in range(6)]))
    torch.save({**given, "features": torch.from_numpy(given["features"])}, tmp_path / "f.pt")
    found = load_features(tmp_path / "f.pt")
    assert found.pid_names.tolist() == [f"p{i}" for i in range(6)]
    assert found.camids.tolist() == [0, 1] * 3
    torch.save({**given, "pids": np.array([{}, 1], dtype=object)}, tmp_path / "f.pt")
    with pytest.raises(UserError, match="found objects that only unpickling could read"):
        load_features(tmp_path / "f.pt")


def test_the_side_that_is_wrong_is_named(capsys, tmp_path):
    np.savez(tmp_path / "g.npz", **arrays())
    bad = arrays()
    bad["features"][1, 1] = np.nan
    np.savez(tmp_path / "bad.npz", **bad)
    said = fails(capsys, tmp_path, "g.npz", "--compare", tmp_path / "bad.npz", tmp_path / "g.npz")
    assert "--compare: query: 1 of 6 rows of features hold NaN, infinity or numbers past" in said


def test_many_names_are_not_all_listed(tmp_path):
    torch.save({f"{i:04d}_c1.jpg": torch.zeros(3) for i in range(500)}, tmp_path / "f.pt")
    with pytest.raises(UserError, match=r"found 0000_c1.jpg, .*0011_c1.jpg and 488 more$"):
        load_features(tmp_path / "f.pt")


def test_arguments_of_other_kinds():
    side = Features(**arrays())
    with pytest.raises(UserError, match=r"query: expected mmga.Features, found ndarray; wrap it"):
        evaluate(arrays()["features"], side)
    with pytest.raises(UserError, match=r"found str; read the file by mmga.load_features\('q.npz'"):
        evaluate("q.npz", side)
    with pytest.raises(UserError, match=r"rerank: expected mmga.KReciprocal\(...\) or None, found"):
        evaluate(side, side, rerank=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--k1", "5"], "--k1 belongs to re-ranking: give --rerank, too"),
        (["--bootstrap", "-3"], "--bootstrap: expected at least 2 draws, found -3"),
        (["--per-query", "r.json"], "--per-query: expected a .csv file, found r.json"),
    ],
)
def test_options_that_would_be_ignored(capsys, tmp_path, words, message):
    np.savez(tmp_path / "g.npz", **arrays())
    assert message in fails(capsys, tmp_path, "g.npz", *words)


def test_a_full_disk_does_not_end_the_process_that_writes_hdf5(tmp_path):
    """HDF5 ends the process when it leaves after a write that failed; another process tries it."""
    pytest.importorskip("h5py")
    code = (
        "import resource, sys, numpy as np, mmga\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "rows = np.zeros((4000, 16), np.float32)\n"
        "try: mmga.Features(rows, np.arange(4000)).save(sys.argv[1])\n"
        "except mmga.UserError as error: print(error)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "f.h5")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "f.h5 could not be written: File too large" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("missing", "name", "said"),
    [
        ("features", "embeddings", "is embeddings meant? rename it to features"),
        ("features", "fetures", "is fetures meant? rename it to features"),
        ("pids", "labels", "is labels meant? rename it to pids, or give a CSV table"),
        ("pids", "pdis", "is pdis meant? rename it to pids, or give a CSV table"),
        ("pids", "time", "found camids, features, time; add them, or give a CSV table"),
    ],
)
def test_arrays_under_other_names(capsys, tmp_path, missing, name, said):
    given = arrays()
    given[name] = given.pop(missing)
    np.savez(tmp_path / "g.npz", **given)
    assert said in fails(capsys, tmp_path, "g.npz")


def test_pid_and_camid_are_read_as_in_tables(tmp_path):
    given = arrays()
    np.savez(tmp_path / "plain.npz", **given)
    np.savez(
        tmp_path / "g.npz", features=given["features"], pid=given["pids"], camid=given["camids"]
    )
    plain, renamed = load_features(tmp_path / "plain.npz"), load_features(tmp_path / "g.npz")
    assert (renamed.pids == plain.pids).all()
    assert (renamed.camids == plain.camids).all()
    assert not renamed.columns


def test_a_transposed_matrix(capsys, tmp_path):
    given = arrays()
    np.savez(tmp_path / "g.npz", **{**given, "features": given["features"].T})
    said = fails(capsys, tmp_path, "g.npz")
    assert "found 6; the features look transposed, [D, N]: give features.T" in said
    np.savez(tmp_path / "g.npz", **{**given, "pids": given["pids"][:5]})
    assert "look transposed" not in fails(capsys, tmp_path, "g.npz")


def test_a_tensor_alone_and_a_tuple(tmp_path):
    """What torch.save makes of an extraction without labels is read as a .npy file is."""
    given = arrays()
    features = torch.from_numpy(given["features"])
    torch.save(features, tmp_path / "g.pt")
    (tmp_path / "g.csv").write_text("pid\n" + "".join(f"{pid}\n" for pid in given["pids"]))
    found = load_features(tmp_path / "g.pt", columns=tmp_path / "g.csv")
    assert torch.equal(found.features, features)
    assert (found.pids == given["pids"]).all()
    torch.save((features, given["pids"]), tmp_path / "g.pt")
    with pytest.raises(UserError, match=r"dictionary of features, pids and camids, found a tuple"):
        load_features(tmp_path / "g.pt")
