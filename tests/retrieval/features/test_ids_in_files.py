"""Identities and cameras mean the same in every container, on both sides, in every command."""

import json

import numpy as np
import pytest
import torch

import mmga
from mmga import eval as evaluation
from mmga import search
from mmga.common.errors import UserError
from mmga.common.ids import UNKNOWN
from mmga.retrieval.features import load_features, save_both
from mmga.retrieval.features.containers import write

CONTAINERS = ("npz", "folder", "mat", "h5", "pt", "safetensors", "table")
# Two persons, one junk row, one unknown row; each as a file may spell them.
WRITINGS = {
    "integers": np.array([7, 8, -1, UNKNOWN]),
    "floats": np.array([7.0, 8.0, -1.0, np.nan]),
    "digits": np.array(["7", "8", "-1", ""]),
    "spreadsheet": np.array(["7.0", "8.0", "-1.0", "nan"]),
    "names": np.array(["ann", "bob", "-1", ""]),
    "names and floats": np.array(["7.0", "bob", "-1.0", "NaN"]),
}


def stored(folder, container, name, rows, pids, camids):
    """Write features as a container holds them; return what names them on the command line."""
    arrays = {"features": rows, "pids": pids, "camids": camids}
    if container != "table":
        path = folder / (name if container == "folder" else f"{name}.{container}")
        write(path, arrays)
        return path, None
    write(folder / f"{name}.npz", {"features": rows})
    table = folder / f"{name}.csv"
    lines = [f"{pid},{camid}" for pid, camid in zip(pids.tolist(), camids.tolist(), strict=True)]
    table.write_text("\n".join(["pid,camid", *lines]).replace(str(UNKNOWN), "") + "\n")
    return folder / f"{name}.npz", table


@pytest.mark.parametrize("kind", WRITINGS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_and_writing(container, kind, tmp_path):
    pids = WRITINGS[kind]
    path, table = stored(tmp_path, container, "f", np.eye(4, 3, dtype=np.float32) + 1, pids, pids)
    features = load_features(path, columns=table)
    assert (features.pids == -1).tolist() == [False, False, True, False]
    assert (features.pids == UNKNOWN).tolist() == [False, False, False, True]
    assert (features.camids == UNKNOWN).tolist() == [False, False, False, True]
    assert features.pids[0] != features.pids[1]
    features.save(tmp_path / "again.safetensors")
    again = load_features(tmp_path / "again.safetensors")
    assert again.pids.tolist() == features.pids.tolist()
    assert again.camids.tolist() == features.camids.tolist()


@pytest.mark.parametrize("query", ["7", "7.0", 7, 7.0, np.int32(7), "07", " 7 "])
@pytest.mark.parametrize("gallery", [["7", "ann", "-1"], [7, 8, -1], [7.0, 8.0, np.nan]])
def test_sides_of_different_writings_match(query, gallery):
    rows = np.eye(3, dtype=np.float32)
    one = mmga.Features(rows[:1] + 0.1, [query], [1])
    other = mmga.Features(rows, gallery, ["2", "3", "4"])
    report = mmga.evaluate(one, other)
    assert (report.num_valid_query, report.mAP) == (1, 1)
    # The camera is the query's own, however it is written.
    alone = mmga.Features(rows, gallery, ["1.0", "3", "4"])
    with pytest.raises(UserError, match="seen by the query's own camera only"):
        mmga.evaluate(one, alone)


def test_names_and_numbers_without_a_common_writing():
    rows = np.eye(2, dtype=np.float32)
    with pytest.raises(UserError, match="the query has strings and the gallery integers"):
        mmga.evaluate(mmga.Features(rows, ["ann", "bob"]), mmga.Features(rows, [0, 1]))


def sides(unknown):
    """Queries and gallery, with or without rows of which the identity or camera is not known."""
    generator = np.random.default_rng(3)
    query = (generator.standard_normal((8, 6)).astype("f4"), np.arange(8) % 4, np.zeros(8))
    rows = generator.standard_normal((40, 6)).astype("f4")
    gallery = (rows, np.arange(40) % 5, 1.0 + np.arange(40) % 2)
    made = []
    for (features, pids, camids), missing in ((query, [2]), (gallery, [0, 5, 6])):
        pids, camids = pids.astype(float), camids.copy()
        pids[-1] = -1
        if unknown:
            pids[missing] = np.nan
            camids[-2] = np.nan
            made.append(mmga.Features(features, pids, camids))
        else:
            rest = np.delete(np.arange(len(pids)), [*missing, len(pids) - 2])
            made.append(mmga.Features(features[rest], pids[rest], camids[rest]))
    return made


@pytest.mark.parametrize("protocol", ["market1501", "market1501-matlab", "other-cameras"])
def test_unknown_rows_are_left_out_and_counted(protocol):
    settings = {"protocol": protocol, "rerank": mmga.KReciprocal(6, 3)}
    found = mmga.evaluate(*sides(unknown=True), **settings).as_dict()
    expected = mmga.evaluate(*sides(unknown=False), **settings).as_dict()
    assert found["excluded"].pop("unknown_queries") == 2
    assert found["excluded"].pop("unknown") == 4
    for name in ("mAP", "mINP", "cmc", "reranked", "excluded", "num_valid_query", "distractors"):
        assert found[name] == expected[name], name


def test_an_unknown_camera_counts_where_no_camera_is_asked():
    report = mmga.evaluate(*sides(unknown=True), protocol="no-camera")
    assert report.excluded["unknown_queries"] == 1
    assert report.excluded["unknown"] == 3


@pytest.mark.parametrize(
    ("pids", "sentence"),
    [
        (["", "", ""], "query: all 3 pids are unknown .empty or NaN., so none can be ranked"),
        ([np.nan, -1, -1], "of 3 rows 1 have an unknown pid, 2 are junk"),
    ],
)
def test_nothing_is_known(pids, sentence):
    rows = np.eye(3, dtype=np.float32)
    gallery = mmga.Features(rows, [1, 2, 3], [1, 2, 3])
    with pytest.raises(UserError, match=sentence):
        mmga.evaluate(mmga.Features(rows, pids, [4, 4, 4]), gallery)
    unseen = mmga.Features(rows, [1, 2, 3], [None] * 3)
    with pytest.raises(UserError, match="needs the camids of the query, which are missing"):
        mmga.evaluate(unseen, gallery)


def test_search_finds_what_is_unknown_and_not_what_is_junk(tmp_path):
    rows = torch.eye(6)
    mmga.Features(rows[:2], [np.nan, np.nan], paths=["a", "b"]).save(tmp_path / "q.npz")
    gallery = mmga.Features(rows, ["", "zoe", "-1", "ann", "", "bob"])
    gallery.save(tmp_path / "g.npz")
    words = [f"--query={tmp_path}/q.npz", f"--gallery={tmp_path}/g.npz", "--topk=5"]
    for more in ((), ("--rerank", "--k1=3", "--k2=2")):
        search.main([*words, *more, f"--out={tmp_path}/r.json"])
        found = json.loads((tmp_path / "r.json").read_text())["results"]
        first = [one for one in found if one["rank"] == 1]
        assert [(one["query_pid"], one["gallery"]) for one in first] == [(None, 0), (None, 1)]
        assert [one["gallery_pid"] for one in first] == [None, "zoe"]
        assert any(one["gallery"] == 4 for one in found)
        if more:
            assert all(one["gallery"] != 2 for one in found)
        else:
            assert {one["gallery_pid"] for one in found if one["gallery"] == 2} == {"-1"}
    search.main([*words, f"--out={tmp_path}/r.csv"])
    assert ",nan" not in (tmp_path / "r.csv").read_text()


def test_tables_fill_in_what_a_file_does_not_know(tmp_path, capsys):
    save_both(tmp_path / "both.npz", *sides(unknown=True))
    np.savez(tmp_path / "q.npz", features=np.eye(3, dtype="f4"), pids=[np.nan, np.nan, 4])
    (tmp_path / "t.csv").write_text("pid\nann\n\n5\n")
    features = load_features(tmp_path / "q.npz", columns=tmp_path / "t.csv")
    assert features.arrays()["pids"].tolist() == ["ann", "", "4"]
    evaluation.main([f"--features={tmp_path}/both.npz", f"--per-query={tmp_path}/p.csv"])
    assert "unknown" in capsys.readouterr().out
    assert (tmp_path / "p.csv").read_text().splitlines()[3].startswith("2,,0,")


def test_a_table_that_contradicts_a_file(tmp_path):
    rows, paths = np.eye(4, 6, dtype="f4"), [f"{row}.jpg" for row in range(4)]
    table = tmp_path / "t.csv"

    def loaded(pids, cells, **more):
        np.savez(tmp_path / "f.npz", features=rows, pids=pids, **more)
        table.write_text("\n".join(["path,pid,seconds", *cells]) + "\n")
        return load_features(tmp_path / "f.npz", columns=table)

    other_order = ["0.jpg,8,0", "1.jpg,7,1", "2.jpg,7,2", "3.jpg,9,3"]
    for pids in ([7, 7, 8, 9], ["7.0", "07", "8", "9"], [7.0, 7.0, 8.0, 9.0]):
        with pytest.raises(mmga.UserError, match="rows, first for row 0, 8 where the file says 7"):
            loaded(pids, other_order)
    renumbered = loaded([0, 0, 1, 2], ["0.jpg,7,0", "1.jpg,7,1", "2.jpg,8,2", "3.jpg,9,3"])
    assert renumbered.pids.tolist() == [0, 0, 1, 2]
    assert "those of the file are used" in renumbered.notes[-1]
    by_path = loaded([7, 7, 8, 9], other_order, paths=paths)
    assert "pid is another than in" in by_path.notes[-1]
    agreed = loaded([7, 7, 8, 9], ["0.jpg,7,0", "1.jpg,7.0,1", "2.jpg,,2", "3.jpg,09,3"])
    assert agreed.pids.tolist() == [7, 7, 8, 9] and len(agreed.notes) == 1


def test_a_pattern_reads_paths(tmp_path, capsys):
    rows = np.eye(4, 6, dtype=np.float32) + np.eye(4, 6, 1, dtype=np.float32)
    paths = [f"{name}/cam{camera}_1.jpg" for name in ("ann", "bob") for camera in (1, 2)]
    np.savez(tmp_path / "g.npz", features=rows, img_path=np.array(paths))
    mmga.Features(rows, [np.nan, "zoe", None, ""], paths=paths).save(tmp_path / "q.npz")
    words = [f"--query={tmp_path}/q.npz", f"--gallery={tmp_path}/g.npz"]
    pattern = "--pattern=(?P<pid>[^/]+)/cam(?P<camid>[0-9])"
    with pytest.raises(SystemExit):
        evaluation.main(words)
    assert "pids are missing" in capsys.readouterr().err
    evaluation.main([*words, pattern, f"--json={tmp_path}/r.json"])
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["num_valid_query"], report["excluded"]["queries_without_match"]) == (3, 1)
    assert any("4 of 4 names were read by the pattern" in note for note in report["notes"])
    search.main([*words, pattern, "--topk=1", f"--out={tmp_path}/r.json"])
    found = json.loads((tmp_path / "r.json").read_text())["results"]
    assert [one["query_pid"] for one in found] == ["ann", "zoe", "bob", "bob"]
    assert [one["gallery_camid"] for one in found] == [1, 2, 1, 2]
    assert "note: " in capsys.readouterr().err
    mmga.Features(rows, [1, 2, 3, 4]).save(tmp_path / "q.npz")
    with pytest.raises(SystemExit):
        evaluation.main([*words, pattern])
    assert "--pattern reads paths of images, which the file does not hold" in (
        capsys.readouterr().err
    )
