"""benchmarks/neighbours.py measures and checks what it says, at a size that takes a second."""

import importlib.util
import json
import sys

import numpy as np
import pytest
from paths import REPOSITORY


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import neighbours

    monkeypatch.setattr(neighbours, "FLOAT32_TILE", (32, 64))
    monkeypatch.setattr(neighbours, "INT8_TILE", (64, 96))
    return neighbours


def in_this_process(script, monkeypatch, *words):
    def run(row, names, options, int8=""):
        return script.measure(row, names, options.rounds, options.threads)

    monkeypatch.setattr(script, "in_process", run)
    monkeypatch.setattr(sys, "argv", ["neighbours.py", *words])
    script.main()


@pytest.mark.parametrize("queries", [0, 70])
def test_all_are_checked_and_timed(script, monkeypatch, tmp_path, capsys, queries):
    row = script.Row(queries, 350, 96, "flat", 20)
    monkeypatch.setattr(script, "rows", lambda: [row])
    table = tmp_path / "table.json"
    table.write_text('{"an earlier row": {}}')
    words = ["--rows", "*-flat-*", "--json", str(table), "--without-int8", "none"]
    in_this_process(script, monkeypatch, *words, "--rounds", "2", "--threads", "2")
    kept = json.loads(table.read_text())
    assert [*kept] == ["an earlier row", row.name]
    found, said = kept[row.name]["contenders"], capsys.readouterr().out
    assert [*found] == [*script.CONTENDERS, "mmga, MMGA_INT8=none"]
    for name, one in found.items():
        if "skipped" in one:
            package = script.PACKAGES.get(name, "")
            assert package in one["skipped"] and f"{name} " in said
            assert name != "mmga" and (not package or not _installed(name))
            continue
        assert one["runs"] == len(one["all"]) == 2 and one["seconds"] > 0
        if name.startswith("mmga"):
            assert (one["differ"], one["duplicates_apart"]) == (0, 0)
        elif "differ" in one:
            assert one["differ"] < 0.2 and one["duplicates_apart"] < 1e-5
            assert one["package"].startswith(script.PACKAGES[name])
    assert "differ" in said and not found["product float32"].keys() & {"differ", "skipped"}


def _installed(name):
    module = {"panorama": "faiss", "numkong int8": "numkong"}.get(name, name)
    return importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("queries", [0, 41])
def test_tiles_hold_every_pair(script, queries):
    work = script.work_of(script.Row(queries, 250, 16, "flat", 5), 1)
    height = len(work.queries)
    met = np.zeros((height, 250), dtype=int)
    for mine, theirs in work.places((32, 64)):
        met[mine, theirs] += 1
    wanted = np.triu(np.ones((250, 250)))[:height] if work.own else np.ones_like(met)
    assert met.max() == 1 and (met >= wanted).all()
    assert work.scale((32, 64)) * met.sum() == pytest.approx(wanted.sum())


@pytest.mark.parametrize("key", ["cosine", "product", "squared"])
def test_wrong_neighbours_are_found(script, key):
    work = script.work_of(script.Row(0, 200, 16, "flat", 7), 1)
    keys = script.exact_keys(work, np.arange(200), key)
    index = np.argsort(keys, axis=1, kind="stable")[:, :7]
    distance = np.zeros(index.shape)
    assert script.checked("some", work, index, distance, key)["differ"] == 0
    assert script.checked("mmga", work, index, distance, key)["differ"] == 0
    first, second = work.duplicates[0]
    assert keys[3, first] == keys[3, second]

    swapped = index[:, [0, 1, 2, 4, 3, 5, 6]]
    assert script.checked("some", work, swapped, distance, key)["differ"] > 0.9
    with pytest.raises(SystemExit, match="not those of float64"):
        script.checked("mmga", work, swapped, distance, key)
    twice = index[:, [0, 1, 2, 3, 3, 5, 6]]
    assert script.checked("some", work, twice, distance, key)["differ"] == 1

    distance[second, index[second] == first] = 1e-3
    assert script.checked("some", work, index, distance, key)["duplicates_apart"] == 1e-3


def test_a_long_call_is_not_repeated(script, monkeypatch):
    calls = []
    contender = script.Contender(lambda: calls.append(1), scale=0.5)
    monkeypatch.setitem(script.CONTENDERS, "product int8", lambda work: contender)
    monkeypatch.setattr(script, "LONG", 0.0)
    row = script.Row(0, 60, 8, "flat", 3)
    one = script.measure(row, ["product int8"], 5, 1)["contenders"]["product int8"]
    assert (one["runs"], len(calls)) == (1, 1)
    one = script.measure(row, ["product int8"], 1, 1)["contenders"]["product int8"]
    assert (one["runs"], len(calls)) == (1, 2)
    monkeypatch.setattr(script, "LONG", 60.0)
    one = script.measure(row, ["product int8"], 5, 1)["contenders"]["product int8"]
    assert (one["runs"], len(calls)) == (5, 8)


def test_other_neighbours_without_8_bits_are_an_error(script, monkeypatch):
    found = iter(["one", "other"])

    def run(*given):
        one = {"sha256": next(found), "seconds": 1.0, "runs": 1}
        return {"contenders": {"mmga": one}, "machine": {"backend": ""}}

    monkeypatch.setattr(script, "in_process", run)
    words = ["--rows", "1000x512-flat-k30", "--rivals", "mmga", "--without-int8", "none"]
    monkeypatch.setattr(sys, "argv", ["neighbours.py", *words])
    with pytest.raises(SystemExit, match="MMGA_INT8=none gives other neighbours"):
        script.main()


def test_an_unknown_row_is_named(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["neighbours.py", "--rows", "1x1"])
    with pytest.raises(SystemExit):
        script.main()
    assert "no row is called 1x1; there are 1000x512-flat-k30" in capsys.readouterr().err
