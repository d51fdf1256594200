"""--exclude: what is left out equals a loop over pairs, and mistakes name their place."""

import json

import naive_evaluation as naive
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmga import eval as command
from mmga.common.errors import UserError
from mmga.retrieval.evaluate import evaluate, evaluate_distances
from mmga.retrieval.explain import explain, table
from mmga.retrieval.features import Features, load_features
from mmga.retrieval.protocols.pair_condition import Exclusion
from mmga.retrieval.reranking.rerank import rerank
from mmga.retrieval.reranking.settings import KReciprocal

NUMBERS = {"time": [10, 55, 90, 200], "speed": [0.5, np.nan, 2.0, 0.0], "b": [3, 0, 1, 2]}
COLUMNS = {
    **{name: np.array(values) for name, values in NUMBERS.items()},
    "byte": np.array([1, 250, 7, 9], np.uint8),
    "nanoseconds": np.array([2**60, 2**60 + 1, 0, 5], np.int64),
    "camid": np.array(["c1", "c2", "c1", "c10"]),
    "occluded": np.array([True, False, False, True]),
}

CONDITIONS = [
    ("time == query.time", lambda q, g: g["time"] == q["time"]),
    ("abs(time - query.time) < 50", lambda q, g: abs(g["time"] - q["time"]) < 50),
    (
        "camid == query.camid and abs(time - query.time) < 100",
        lambda q, g: g["camid"] == q["camid"] and abs(g["time"] - q["time"]) < 100,
    ),
    ("not camid == 'c1' or b * 2 + 1 >= query.b",
     lambda q, g: g["camid"] != "c1" or g["b"] * 2 + 1 >= q["b"]),
    ("0 < time - query.time <= 100", lambda q, g: 0 < g["time"] - q["time"] <= 100),
    ("-time / 2 < -(query.b + 30)", lambda q, g: -g["time"] / 2 < -(q["b"] + 30)),
    ("speed < query.speed", lambda q, g: g["speed"] < q["speed"]),
    ("speed != query.speed",
     lambda q, g: not np.isnan(g["speed"] + q["speed"]) and g["speed"] != q["speed"]),
    ("byte - query.byte < 0", lambda q, g: int(g["byte"]) - int(q["byte"]) < 0),
    ("nanoseconds - query.nanoseconds == 1",
     lambda q, g: int(g["nanoseconds"]) - int(q["nanoseconds"]) == 1),
    ("camid < query.camid", lambda q, g: g["camid"] < q["camid"]),
    ('camid != "c9"', lambda q, g: True),
    ("occluded and not query.occluded", lambda q, g: g["occluded"] and not q["occluded"]),
    ("occluded == query.occluded", lambda q, g: g["occluded"] == q["occluded"]),
    ("b / query.b > 1", lambda q, g: (g["b"] / q["b"] > 1) if q["b"] else g["b"] > 0),
    ("1 < 2", lambda q, g: True),
]  # fmt: skip


@pytest.mark.parametrize(("text", "meant"), CONDITIONS, ids=[one[0] for one in CONDITIONS])
def test_equals_a_loop_over_pairs(text, meant):
    condition = Exclusion(text, COLUMNS, COLUMNS)
    rows = [{name: column[i] for name, column in COLUMNS.items()} for i in range(4)]
    with np.errstate(all="ignore"):
        expected = np.array([[bool(meant(q, g)) for g in rows] for q in rows])
    everything = np.arange(4)
    assert condition.block(everything, everything).tolist() == expected.tolist()
    query, item = (side.ravel() for side in np.indices((4, 4)))
    assert condition.pairs(query, item).tolist() == expected.ravel().tolist()


def test_blocks_larger_than_the_inner_ones():
    generator = np.random.default_rng(0)
    query, gallery = ({"t": generator.integers(0, 100, count)} for count in (70, 9000))
    condition = Exclusion("abs(t - query.t) < 7", query, gallery)
    rows, items = np.arange(5, 70), np.arange(3, 9000)
    expected = abs(gallery["t"][None, items] - query["t"][rows, None]) < 7
    assert (condition.block(rows, items) == expected).all()


MISTAKES = [
    ("camid == query.cam", "query has no column cam .*did you mean query.camid.*position 10"),
    ("tme == 3", "gallery has no column tme .*did you mean time.*position 1 "),
    ("camid == 3", "a string cannot be compared with a number, at position 10"),
    ("abs(camid) < 3", "expected a number, found a string, at position 5"),
    ("time + 3", "found a number, expected a condition"),
    ("time and b == 1", "expected a condition, found a number, at position 1 "),
    ("time == ", "at position"),
    ("time == 3)", "at position"),
    ("", "expected a condition"),
    ("time = 3", r"position .* \(== is equality\)"),
    ("time ** 2 > 3", r"\*\* is not allowed"),
    ("(camid == 'c1') & (b == 1)", "and is meant"),
    ("__import__('os').system('true')", "only function is abs"),
    ("open('x') == 3", r"only function is abs"),
    ("abs(time, b) > 1", "abs.. takes one number"),
    ("[x for x in time]", "listcomp is not allowed"),
    ("gallery.time == 3", "only query.<column> may have a dot"),
    ("query == 3", "written query.<column>"),
    ("True", "True is not allowed"),
    ("occluded < True", "True is not allowed"),
    ("time in b", "in is not allowed"),
    ("é == 1 and tme == 3", "é.* at position 1 "),
    ("'é' == camid and tme == 3", "tme .* at position 18 "),
    ("not " * 5000 + "occluded", "exclude: "),
]


@pytest.mark.parametrize(("text", "sentence"), MISTAKES, ids=[one[0][:30] for one in MISTAKES])
def test_mistakes_name_their_place(text, sentence):
    with pytest.raises(UserError, match=sentence) as raised:
        Exclusion(text, COLUMNS, COLUMNS)
    assert "\n" not in str(raised.value)


def test_columns_of_odd_types():
    with pytest.raises(UserError, match="datetime64"):
        Exclusion("t < query.t", *[{"t": np.zeros(2, "datetime64[s]")}] * 2)
    with pytest.raises(UserError, match="not one"):
        Exclusion("t < query.t", *[{"t": np.zeros((2, 3))}] * 2)


RULES = ("market1501", "market1501-matlab", "other-cameras", "no-camera")


@pytest.mark.program_settings
@settings(max_examples=60, derandomize=True, deadline=None)
@given(data=st.data(), rule=st.sampled_from(RULES))
def test_ranks_and_counts_equal_naive_loops(data, rule):
    queries, items = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 14))

    def several(low, high, count):
        values = st.lists(st.integers(low, high), min_size=count, max_size=count)
        return np.array(data.draw(values))

    q_pids, g_pids = several(-1, 2, queries), several(-1, 2, items)
    q_camids, g_camids = several(0, 1, queries), several(0, 1, items)
    q_times, g_times = several(0, 9, queries), several(0, 9, items)
    q_paths, g_paths = ([f"p{i}" for i in several(0, 12, count)] for count in (queries, items))
    matrix = several(0, 3, queries * items).reshape(queries, items).astype(np.float32)
    condition = "camid == query.camid and abs(time - query.time) < 3"

    def kept(row):
        kept = naive.kept_items(
            row, q_pids[row], q_camids[row], g_pids, g_camids, rule, q_paths[row], g_paths
        )
        out = [
            g for g in kept if g_camids[g] == q_camids[row] and abs(g_times[g] - q_times[row]) < 3
        ]
        return [g for g in kept if g not in out], len(out)

    found = [kept(row) if q_pids[row] != -1 else ([], 0) for row in range(queries)]
    matches = [[g for g in kept if g_pids[g] == q_pids[row]] for row, (kept, _) in enumerate(found)]
    sides = [
        Features(torch.zeros(len(pids), 1), pids, camids, paths, columns={"time": times})
        for pids, camids, paths, times in (
            (q_pids, q_camids, q_paths, q_times),
            (g_pids, g_camids, g_paths, g_times),
        )
    ]
    if not any(matches):
        with pytest.raises(UserError, match=r"no query has a match|junk"):
            evaluate_distances(matrix, *sides, rule, exclude=condition)
        return
    report = evaluate_distances(matrix, *sides, rule, exclude=condition)
    assert report.excluded["expression"] == sum(count for _, count in found)
    without = [row for row in range(queries) if q_pids[row] != -1 and not matches[row]]
    assert report.excluded["queries_without_match"] == len(without)
    for row, (items_kept, _) in enumerate(found):
        if not matches[row]:
            assert report.per_query.first_rank[row] == 0
            continue
        order = sorted(items_kept, key=lambda g: (matrix[row, g], g))
        hits = [place + 1 for place, g in enumerate(order) if g in matches[row]]
        assert report.per_query.first_rank[row] == hits[0]
        assert report.per_query.inverse_negative_penalty[row] == len(hits) / hits[-1]


def sets(seed=0, queries=20, items=4200):
    generator = np.random.default_rng(seed)
    made = []
    for count in (queries, items):
        made.append(
            Features(
                generator.integers(-2, 3, (count, 4)).astype(np.float32),
                generator.integers(0, 40, count),
                generator.integers(0, 3, count),
                columns={"time": generator.integers(0, 300, count)},
            )
        )
    return made


CONDITION = "camid == query.camid and abs(time - query.time) < 30"


@pytest.mark.parametrize("protocol", ["market1501", "cuhk03-single-shot"])
def test_features_and_a_given_matrix_agree(protocol):
    query, gallery = sets()
    matrix = torch.cdist(query.features, gallery.features) ** 2
    options = {"protocol": protocol, "exclude": CONDITION}
    found = evaluate(query, gallery, metric="euclidean", **options)
    # A matrix is one tile of 5,000 columns, features give narrow ones.
    given_matrix = evaluate_distances(matrix.round(), query, gallery, **options)
    assert found.cmc == pytest.approx(given_matrix.cmc, abs=1e-12)
    assert found.mAP == pytest.approx(given_matrix.mAP, abs=1e-12)
    assert found.excluded == given_matrix.excluded
    assert found.excluded["expression"] > 1000
    assert found.as_dict()["exclude"] == CONDITION
    assert f"--exclude: {CONDITION}" in found.table()
    assert "further pairs removed by --exclude" in found.table()
    assert found.mAP != evaluate(query, gallery, metric="euclidean", protocol=protocol).mAP


def test_a_whole_protocol_by_condition():
    """The Market rule, written as a condition."""
    query, gallery = sets(1)
    plain = evaluate(query, gallery)
    same = evaluate(
        query, gallery, protocol="no-camera", exclude="pid == query.pid and camid == query.camid"
    )
    assert same.mAP == plain.mAP
    assert same.excluded["expression"] == plain.excluded["same_camera"]
    steps = explain(query, gallery, "market1501", "other-cameras", exclude=CONDITION)
    assert (
        steps[-1]["mAP"]
        == evaluate(query, gallery, protocol="other-cameras", exclude=CONDITION).mAP
    )
    assert CONDITION in table(steps)
    with pytest.raises(UserError, match="exclude less"):
        evaluate(query, gallery, exclude="0 == 0")


def test_re_ranked_figures():
    query, gallery = sets(3, items=300)
    found = evaluate(query, gallery, rerank=KReciprocal(), exclude=CONDITION)
    matrix = rerank(query, gallery)
    expected = evaluate_distances(matrix, query, gallery, exclude=CONDITION)
    assert found.reranked.mAP == pytest.approx(expected.mAP, abs=1e-12)
    assert found.excluded == expected.excluded


def test_command_with_columns_from_a_table(tmp_path, capsys):
    query, gallery = sets(2, items=300)
    paths = {"q": [f"q{i}.png" for i in range(20)], "g": [f"g{i}.png" for i in range(300)]}
    for name, one in (("q", query), ("g", gallery)):
        Features(one.features, one.pids, one.camids, paths[name]).save(tmp_path / f"{name}.npz")
        lines = [
            f"{path},{time}" for path, time in zip(paths[name], one.columns["time"], strict=True)
        ]
        order = np.random.default_rng(0).permutation(len(lines))
        text = "\n".join(["path,time", *(lines[i] for i in order)])
        (tmp_path / f"{name}.csv").write_text(text)
    words = [f"--query={tmp_path}/q.npz", f"--gallery={tmp_path}/g.npz", "--exclude", CONDITION]
    tables = [f"--query-columns={tmp_path}/q.csv", f"--gallery-columns={tmp_path}/g.csv"]
    command.main([*words, *tables, "--json", str(tmp_path / "o.json")])
    found = json.loads((tmp_path / "o.json").read_text())
    expected = evaluate(query, gallery, exclude=CONDITION)
    assert found["mAP"] == expected.mAP
    assert found["excluded"]["expression"] == expected.excluded["expression"] > 0
    capsys.readouterr()
    with pytest.raises(SystemExit) as leave:
        command.main(words)
    assert leave.value.code == 2
    assert "gallery has no column time" in capsys.readouterr().err
    command.main([*words[:2], *tables, "--exclude", CONDITION, "--explain", "market1501",
                  "no-camera", "--json", str(tmp_path / "e.json")])  # fmt: skip
    assert json.loads((tmp_path / "e.json").read_text())["explain"][0]["mAP"] == expected.mAP


def test_tables_that_do_not_fit(tmp_path):
    rows = np.zeros((3, 2), np.float32)
    Features(rows, [1, 2, 3], paths=["a", "b", "c"]).save(tmp_path / "f.npz")
    np.savez(tmp_path / "bare.npz", features=rows)

    def load(text, file="f.npz"):
        (tmp_path / "t.csv").write_text(text)
        return load_features(tmp_path / file, columns=tmp_path / "t.csv")

    found = load("path,time,note\nc,3,z\nb,,y\na,1,x\n")
    assert found.columns["time"].tolist()[::2] == [1, 3]
    assert np.isnan(found.columns["time"][1])
    assert found.columns["note"].tolist() == ["x", "y", "z"]
    found = load("pid,camid,frame\nx,c1,5\ny,c2,6\nx,c1,7\n", "bare.npz")
    assert found.pid_names.tolist() == ["x", "y"]
    assert found.columns["frame"].tolist() == [5, 6, 7]
    assert found.columns["frame"].dtype == np.int64
    for text, sentence in (
        ("path,time\na,1\nb,2\n", "1 of 3 paths.*the first is c"),
        ("time\n1\n2\n", "2 lines.* 3 rows"),
        ("time,time\n1,2\n", "distinct column names"),
        ("time\n", "one line for each row"),
        ("time,x\n1\n", "row 2 has 1 cells"),
        ("features\n1\n1\n1\n", "both hold a column features"),
    ):
        with pytest.raises(UserError, match=sentence):
            load(text)
    with pytest.raises(UserError, match=r"none\.csv cannot be read as a CSV table"):
        load_features(tmp_path / "f.npz", columns=tmp_path / "none.csv")
    Features(rows, [1, 2, 3]).save(tmp_path / "folder")
    (tmp_path / "folder" / "columns.csv").write_text("time\n1\n2\n3\n")
    assert load_features(tmp_path / "folder").columns["time"].tolist() == [1, 2, 3]


def test_rows_in_one_array_and_labels_in_a_table(tmp_path):
    rows = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
    np.save(tmp_path / "f.npy", rows)
    (tmp_path / "t.csv").write_text("pid,camid,time\na,1,5\nb,2,6\na,1,7\nb,3,8\n")
    found = load_features(tmp_path / "f.npy", columns=tmp_path / "t.csv")
    assert found.features.numpy().tolist() == rows.tolist()
    assert found.camids.tolist() == [1, 2, 1, 3]
    with pytest.raises(UserError, match=r"pids are missing; found features; add them"):
        load_features(tmp_path / "f.npy")
    np.save(tmp_path / "p.npy", rows[:, None])
    assert load_features(tmp_path / "p.npy", columns=tmp_path / "t.csv").parts.shape == (4, 1, 2)


WRITINGS = {
    "numbers": [1.0, 2.0, np.nan, 1.0],
    "strings": ["01", "2.0", "", " 1"],
    "objects": np.array(["1", 2, None, 1.0], object),
}


@pytest.mark.parametrize("query", WRITINGS)
@pytest.mark.parametrize("gallery", WRITINGS)
def test_ids_and_cameras_are_equal_where_they_spell_the_same(query, gallery):
    rows = np.eye(4, dtype=np.float32)
    sides = (Features(rows, [5, 6, 7, 8], WRITINGS[kind]) for kind in (query, gallery))
    everything = np.arange(4)
    same = Exclusion.of("camid == query.camid", *sides).block(everything, everything)
    expected = np.zeros((4, 4), bool)
    expected[np.ix_([0, 3], [0, 3])] = expected[1, 1] = True  # what is unknown equals nothing
    assert same.tolist() == expected.tolist()


def test_a_string_is_compared_with_cameras_by_what_it_spells():
    cameras = ["07", "7.0", "c1", ""]
    both = Features(np.eye(4, dtype=np.float32), [1, 1, 2, 2], cameras)
    pairs = np.arange(4)
    assert Exclusion.of("camid == '7'", both, both).pairs(pairs, pairs).tolist() == [
        True, True, False, False
    ]  # fmt: skip
    assert Exclusion.of("camid != '007'", both, both).pairs(pairs, pairs).tolist() == [
        False, False, True, False
    ]  # fmt: skip
