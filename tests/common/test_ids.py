"""Identities written as text: numbers, names, junk, unknown."""

import numpy as np
import pytest

import mmga
from mmga.common import ids
from mmga.common.errors import UserError
from mmga.config import DataConfig
from mmga.data.readers.by_name import load
from mmga.retrieval.features.csv_columns import read_columns


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


@pytest.mark.parametrize("word", ["", " ", "nan", "NaN", "None", "null", "N/A"])
def test_unknown_identities_are_refused(word, tmp_path):
    assert ids.unknown(["a", word]).tolist() == [1]
    for name in ("pids", "camids"):
        labels = {"pids": ["a", "b"], "camids": ["x", "y"]} | {name: ["a", word]}
        with pytest.raises(UserError, match=f"{name}: 1 are empty or NaN, the first is row 1"):
            mmga.Features(np.ones((2, 4), np.float32), **labels)
    table = tmp_path / "t.csv"
    table.write_text(f'pid,camid\nann,c1\n"{word}",c2\n')
    with pytest.raises(UserError, match="the pid of 1 rows is empty, the first is row 3"):
        read_columns(table)


def test_a_nan_is_unknown():
    with pytest.raises(UserError, match="pids: 1 are empty or NaN, the first is row 1"):
        mmga.Features(np.ones((2, 4), np.float32), [1.0, np.nan])


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
