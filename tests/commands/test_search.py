"""`python -m mmga.search` over feature files."""

import csv
import itertools
import json
import re
import time

import numpy as np
import pytest
from reranking_cases import grid

import mmga
from mmga import search
from mmga.retrieval.reranking.rerank import rerank


@pytest.fixture
def files(tmp_path):
    query = mmga.Features(
        grid(12, 6, 5, 1), [f"p{i % 5}" for i in range(12)], paths=[f"q{i}" for i in range(12)]
    )
    pids = [f"p{i % 7}" for i in range(60)]
    gallery = mmga.Features(grid(60, 6, 5, 2), pids, np.arange(60) % 3)
    query.save(tmp_path / "q.npz")
    gallery.save(tmp_path / "g.npz")
    return tmp_path, query, gallery


def run(folder, *words):
    search.main(["--query", str(folder / "q.npz"), "--gallery", str(folder / "g.npz"), *words])


def fails(words, capsys):
    with pytest.raises(SystemExit) as leave:
        search.main(words)
    assert leave.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_csv_holds_what_nearest_finds(files):
    folder, query, gallery = files
    run(folder, "--topk", "4", "--metric", "euclidean", "--out", str(folder / "r.csv"))
    rows = list(csv.DictReader((folder / "r.csv").open()))
    distances, index = mmga.nearest(query, gallery, 4, "euclidean")
    assert [int(row["gallery"]) for row in rows] == index.flatten().tolist()
    np.testing.assert_allclose([float(row["distance"]) for row in rows], distances.flatten())
    assert [int(row["rank"]) for row in rows] == [1, 2, 3, 4] * 12
    first = rows[4]
    assert first["query"] == "1" and first["query_pid"] == "p1" and first["query_path"] == "q1"
    assert first["gallery_pid"] == f"p{int(first['gallery']) % 7}"
    assert first["gallery_camid"] == str(int(first["gallery"]) % 3)


def test_json_holds_what_rerank_finds(files):
    folder, query, gallery = files
    out = folder / "r.json"
    run(folder, "--topk", "3", "--rerank", "--k1", "7", "--k2", "3", "--out", str(out))
    result = json.loads(out.read_text())
    rule = mmga.KReciprocal(7, 3)
    distances, index = rerank(query, gallery, rule, topk=3)
    assert result["schema"] == 1 and result["topk"] == 3
    assert [row["gallery"] for row in result["results"]] == index.flatten().tolist()
    assert [row["distance"] for row in result["results"]] == distances.flatten().tolist()


def test_expansion_changes_what_is_compared(files):
    folder, query, gallery = files
    out = folder / "r.json"
    run(folder, "--topk", "3", "--expand", "2", "--augment", "3", "--out", str(out))
    among = mmga.retrieval.neighbours.query_expansion.augment_gallery(gallery, 3)
    found = mmga.retrieval.neighbours.query_expansion.expand_queries(query, among, 2)
    _, index = mmga.nearest(found, among, 3)
    rows = json.loads(out.read_text())["results"]
    assert [row["gallery"] for row in rows] == index.flatten().tolist()


def test_csv_table(files, capsys):
    run(files[0], "--topk", "2")
    said = capsys.readouterr().out
    assert re.search(r"^query 0: pid \S+, ", said)
    assert re.search(r"^  rank  distance  gallery +pid", said, re.MULTILINE)
    assert re.search(r"^     1  0\.\d{6} +\d+ +p\d", said, re.MULTILINE)
    assert max(map(len, said.splitlines())) <= 80
    assert len(said.splitlines()) >= 24


def test_index_is_written_and_used(files, capsys):
    folder, query, gallery = files
    index, out = folder / "g.mmga-index", folder / "r.json"
    search.main(["--gallery", str(folder / "g.npz"), "--save-index", str(index), "--k1", "7"])
    assert capsys.readouterr().out == f"index: {index}\n"
    search.main(
        ["--query", str(folder / "q.npz"), "--index", str(index), "--topk", "3", "--out", str(out)]
    )
    rows = json.loads(out.read_text())["results"]
    rule = mmga.KReciprocal(7)
    for number in range(12):
        single = rerank(query.features[number : number + 1], gallery.features, rule)
        here = [row for row in rows if row["query"] == number]
        np.testing.assert_allclose(
            [row["distance"] for row in here], single.sort(dim=1).values[0, :3], atol=1e-6
        )
        assert here[0]["gallery_pid"] == f"p{here[0]['gallery'] % 7}"


def test_junk_is_left_out_of_an_index(files, capsys):
    folder, _, gallery = files
    pids = np.where(np.arange(60) < 7, "-1", gallery.pid_names[gallery.pids])
    mmga.Features(gallery.features, pids, paths=[f"g{i}" for i in range(60)]).save(folder / "g.npz")
    index, out = folder / "g.mmga-index", folder / "r.json"
    search.main(["--gallery", str(folder / "g.npz"), "--save-index", str(index)])
    assert "7 junk items (pid -1) are left out of the index" in capsys.readouterr().err
    search.main(["--query", str(folder / "q.npz"), "--index", str(index), "--out", str(out)])
    rows = json.loads(out.read_text())["results"]
    assert all(row["gallery_path"] == f"g{row['gallery'] + 7}" for row in rows)
    assert all(row["gallery_row"] == row["gallery"] + 7 for row in rows)
    words = ["--query", str(folder / "q.npz"), "--gallery", str(folder / "g.npz")]
    said = fails([*words, "--rerank", "--topk", "60"], capsys)
    assert "from 1 to the 53 gallery items (7 junk items are left out), got 60" in said


def test_junk_queries_have_no_re_ranked_list(files, capsys):
    folder, query, _ = files
    pids = [*["p1"] * 11, "-1"]
    mmga.Features(query.features, pids).save(folder / "q.npz")
    out = folder / "r.json"
    run(folder, "--topk", "2", "--rerank", "--out", str(out))
    found = json.loads(out.read_text())["results"]
    assert [row["query"] for row in found] == [i // 2 for i in range(22)]
    assert all(row["gallery"] >= 0 and row["distance"] < 2 for row in found)
    assert "note: 1 of 12 queries are junk (pid -1)" in capsys.readouterr().err
    run(folder, "--topk", "2", "--out", str(out))
    assert len(json.loads(out.read_text())["results"]) == 24


def test_results_from_an_index_name_its_metric(files):
    folder, index, out = files[0], files[0] / "g.mmga-index", files[0] / "r.json"
    gallery = ["--gallery", str(folder / "g.npz"), "--metric", "euclidean"]
    search.main([*gallery, "--save-index", str(index)])
    search.main(
        ["--query", str(folder / "q.npz"), "--index", str(index), "--topk", "2", "--out", str(out)]
    )
    assert json.loads(out.read_text())["metric"] == "euclidean"


def test_ids_come_from_a_table(files, capsys):
    folder, query, gallery = files
    for name, side in (("q", query), ("g", gallery)):
        np.save(folder / f"{name}.npy", side.features.numpy())
        lines = ["path,pid", *(f"{name}{i},{i % 4}" for i in range(len(side)))]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    words = ["--query", str(folder / "q.npy"), "--gallery", str(folder / "g.npy")]
    search.main(words)
    assert "q.npy: pids: 12 of 12 are unknown" in capsys.readouterr().err
    words += ["--query-columns", str(folder / "q.csv")]
    words += ["--gallery-columns", str(folder / "g.csv"), "--out", str(folder / "r.json")]
    search.main(words)
    rows = json.loads((folder / "r.json").read_text())["results"]
    assert all(row["gallery_path"] == f"g{row['gallery']}" for row in rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--query is missing"),
        (["--query", "{q}"], "--gallery is missing"),
        (
            ["--query", "{q}", "--gallery", "{q}", "--out", "r.txt"],
            "end in .csv, .json, .html",
        ),
        (["--query", "{q}", "--gallery", "{g}", "--topk", "61"], "--topk must be from 1 to the 60"),
        (["--features", "{q}", "--query", "{q}"], "leave out --query"),
        (["--query", "{q}", "--gallery", "{q}", "--alpha", "2"], "--alpha belongs to --expand"),
        (["--query", "{q}", "--index", "x.mmga-index", "--rerank"], "leave out --rerank"),
        (["--query", "{q}", "--index", "x.mmga-index"], "is no .mmga-index folder"),
        (
            ["--query", "{q}", "--gallery", "{g}", "--metric", "euclidean", "--expand", "2"],
            "use --metric cosine",
        ),
        (["--query", "{q}", "--gallery", "{g}", "--k1", "0", "--rerank"], "k1 must be"),
        (["--query", "{q}", "--gallery", "{g}", "--k1", "7"], "--k1 belongs to --rerank"),
        (["--query", "{q}", "--index", "x.mmga-index", "--metric", "euclidean"], "out --metric"),
        (["--query", "{q}", "--index", "x.mmga-index", "--lambda-value", ".5"], "--lambda-value"),
        (["--query", "{q}", "--index", "x.mmga-index", "--exact", "float32"], "leave out --exact"),
        (["--query", "{q}", "--index", "x.mmga-index", "--memory", "2G"], "leave out --memory"),
        (["--query", "{q}", "--gallery", "{g}", "--memory", "2X"], "expected a size such as 2G"),
    ],
)
def test_bad_input_is_one_sentence(files, words, message, capsys):
    names = {"q": files[0] / "q.npz", "g": files[0] / "g.npz"}
    assert message in fails([word.format(**names) for word in words], capsys)


def test_results_say_the_metric_and_the_rule_of_the_index(files):
    folder = files[0]
    index, out = folder / "g.mmga-index", folder / "r.json"
    words = ["--query", str(folder / "q.npz"), "--out", str(out)]
    build = ["--gallery", str(folder / "g.npz"), "--save-index", str(index)]
    search.main([*build, "--metric", "euclidean", "--k1", "7"])
    search.main([*words, "--index", str(index)])
    found = json.loads(out.read_text())
    assert (found["metric"], found["rerank"]["k1"]) == ("euclidean", 7)
    search.main([*words, "--gallery", str(folder / "g.npz")])
    found = json.loads(out.read_text())
    assert (found["metric"], found["rerank"]) == ("cosine", None)


@pytest.mark.parametrize(("words", "first"), [([], 1), (["--exact", "float32"], 0)])
def test_near_ties_have_the_order_asked_for(tmp_path, words, first):
    farther = np.float32(0.01)  # by less than float32 tells, and before the nearer one
    gallery = np.array([[1, farther], [1, np.nextafter(farther, np.float32(0))]], np.float32)
    mmga.Features(np.eye(1, 2, dtype=np.float32), [0]).save(tmp_path / "q.npz")
    mmga.Features(gallery, [0, 0]).save(tmp_path / "g.npz")
    run(tmp_path, "--topk", "1", "--out", str(tmp_path / "r.json"), *words)
    assert json.loads((tmp_path / "r.json").read_text())["results"][0]["gallery"] == first


@pytest.mark.parametrize(
    "words",
    [
        ["--topk", "3"],
        ["--topk", "3", "--rerank", "--k1", "7"],
        ["--topk", "3", "--augment", "3"],
        ["--topk", "3", "--expand", "3"],
        ["--save-index", "{g}.mmga-index"],
    ],
)
def test_too_little_memory_says_how_much_is_enough(files, words, capsys):
    folder = files[0]
    given = ["--query", str(folder / "q.npz"), "--gallery", str(folder / "g.npz")]
    given += [word.format(g=folder / "g") for word in words] + ["--out", str(folder / "r.csv")]
    memory = "4K"
    for _ in range(3):  # averages may fit where the search after them does not
        said = fails([*given, "--memory", memory], capsys)
        assert "memory: " in said and not (folder / "r.csv").exists()
        memory = re.search(r"give at least (\S+)\n", said).group(1)
        try:
            search.main([*given, "--memory", memory])
        except SystemExit:
            capsys.readouterr()
            continue
        break
    assert (folder / "r.csv").exists()


def test_what_lasts_is_told_with_the_time_left(files, monkeypatch, capsys):
    folder, clock = files[0], itertools.count(0, 11)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    run(folder, "--topk", "3", "--augment", "3", "--expand", "3", "--out", str(folder / "r.csv"))
    said = capsys.readouterr().err
    assert re.search(r"^results: 5/12, 44 s, ETA 62 s$", said, re.MULTILINE)
    index = str(folder / "g.mmga-index")
    search.main(["--gallery", str(folder / "g.npz"), "--save-index", index])
    words = ["--query", str(folder / "q.npz"), "--index", index]
    search.main([*words, "--topk", "3", "--out", str(folder / "r.csv")])
    assert re.search(r"^re-ranking: 5/12, 44 s, ETA 62 s$", capsys.readouterr().err, re.MULTILINE)


def test_features_without_identities(files, capsys):
    """A search asks for no labels, which a gallery from the field has none of."""
    folder, query, gallery = files
    np.savez(folder / "q.npz", features=query.features.numpy())
    np.savez(
        folder / "g.npz", features=gallery.features.numpy(), paths=[f"{i}.jpg" for i in range(60)]
    )
    run(folder, "--topk", "2")
    out, err = capsys.readouterr()
    assert "g.npz: pids: 60 of 60 are unknown" in err
    assert re.search(r"query 0\n  rank  distance  gallery  path\n +1  0\.\d+ +\d+  \d+\.jpg\n", out)


def test_a_small_gallery_is_listed_whole(files, capsys):
    folder, _, gallery = files
    gallery.select(slice(4)).save(folder / "g.npz")
    run(folder, "--out", str(folder / "r.csv"))
    assert len((folder / "r.csv").read_text().splitlines()) == 1 + 12 * 4


def test_the_list_of_shards_that_is_searched_is_not_overwritten(files, capsys):
    folder, *_ = files
    shards = folder / "list.json"
    shards.write_text('{"schema": 1, "shards": [{"file": "g.npz"}]}')
    words = ["--query", str(folder / "q.npz"), "--gallery", str(shards), "--out", str(shards)]
    assert "given as --gallery, too; name another" in fails(words, capsys)
    assert "shards" in shards.read_text()


def test_the_table_names_its_distance(files, capsys):
    run(files[0], "--topk", "1", "--metric", "euclidean")
    assert capsys.readouterr().out.endswith("\ndistances: euclidean\n")
    run(files[0], "--topk", "1", "--rerank", "--k1", "7")
    assert "\ndistances: cosine, re-ranked by k1 7, k2 6, " in capsys.readouterr().out
