"""Identities written as text: numbers, names, junk, unknown."""

import numpy as np
import pytest

import mmga
from mmga.common import ids
from mmga.common.errors import UserError
from mmga.config import DataConfig
from mmga.data.readers.by_name import load


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["3", "-1", "12"], [3, -1, 12]),
        (["3.0", "-1.0", "12"], [3, -1, 12]),
        (["cow", "-1", "ant"], [1, -1, 0]),
        (["cow", "-1.0", "7"], [1, -1, 0]),
        (["0.5", "7"], [0, 1]),
    ],
    ids=str,
)
def test_text_becomes_numbers(values, expected):
    assert ids.numbered(values).tolist() == expected


@pytest.mark.parametrize("word", ["", " ", "nan", "NaN", "None", "null", "N/A", "<NA>"])
def test_unknown_identities(word, tmp_path):
    assert ids.unknown(["a", word]).tolist() == [1]
    for name in ("pids", "camids"):
        labels = {"pids": ["a", "b"], "camids": ["x", "y"]} | {name: ["a", word]}
        features = mmga.Features(np.ones((2, 4), np.float32), **labels)
        assert getattr(features, name).tolist() == [0, ids.UNKNOWN]
        assert features.notes == [f"{name}: 1 of 2 are unknown"]
    table = tmp_path / "t.csv"
    table.write_text(f'path,pid,camid,split\na.png,ann,1,train\nb.png,"{word}",2,query\n')
    with pytest.raises(UserError, match="line 3: pid is empty"):
        load(DataConfig(data="csv", root=table))


@pytest.mark.parametrize(
    ("values", "expected", "names"),
    [
        ([1.0, np.nan], [1, ids.UNKNOWN], None),
        ([7, None, -1], [7, ids.UNKNOWN, -1], None),
        ([2**60 + 1, None], [2**60 + 1, ids.UNKNOWN], None),
        (["ann", None, -1, 7.0], [1, ids.UNKNOWN, -1, 0], ["7", "ann"]),
        (["ann", np.nan, "-1.0", "7", "7.0"], [1, ids.UNKNOWN, -1, 0, 0], ["7", "ann"]),
        ([b"ann", b"", b"-1"], [0, ids.UNKNOWN, -1], ["ann"]),
        (np.array([b"ann", b"", b"-1"]), [0, ids.UNKNOWN, -1], ["ann"]),
        (np.array([" ann", "ann ", "bob"]), [0, 0, 1], ["ann", "bob"]),
        (np.ma.array([5, 6, -1], mask=[0, 1, 0]), [5, ids.UNKNOWN, -1], None),
        (np.array(["0001_1", "00_011"]), [0, 1], ["0001_1", "00_011"]),
    ],
    ids=str,
)
def test_values_of_python(values, expected, names):
    features = mmga.Features(np.ones((len(expected), 4), np.float32), values)
    assert features.pids.tolist() == expected
    assert (None if names is None else features.pid_names.tolist()) == names


def test_digits_with_underscores_are_names():
    """int() takes 0001_1 and 00_011 for 11."""
    assert ids.numbered(["0001_1", "00_011", "7"]).tolist() == [0, 1, 2]


@pytest.mark.parametrize("junk", ["-1", "-1.0"])
def test_junk_among_names(junk, tmp_path):
    features = mmga.Features(np.ones((3, 4), np.float32), ["cow", junk, "ant"])
    assert features.pids.tolist() == [1, -1, 0]
    assert features.pid_names.tolist() == ["ant", "cow"]
    rows = [("a.png", "cow", "train"), ("b.png", "ant", "query"), ("c.png", "ant", "gallery")]
    rows.append(("d.png", junk, "gallery"))
    lines = [f"{path},{pid},{place},{split}" for place, (path, pid, split) in enumerate(rows)]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["path,pid,camid,split", *lines]) + "\n")
    assert load(DataConfig(data="csv", root=table)).gallery.pids.tolist() == [0, -1]


def test_words_and_the_most_frequent_codes():
    codes = np.array([7, ids.UNKNOWN, 3, 7, 3, 5, 9, ids.UNKNOWN, ids.UNKNOWN])
    found, others = ids.most_frequent(codes, 3)
    assert (found.tolist(), others) == ([3, 5, 7], 1)
    assert ids.words(codes[:3], None) == ["7", "?", "3"]
    names = np.array(["ann", "bob"])
    assert ids.words(np.array([1, ids.UNKNOWN, ids.JUNK, 0]), names) == ["bob", "?", "-1", "ann"]
