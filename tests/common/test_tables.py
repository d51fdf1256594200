"""Tables as spreadsheets and scripts write them, and paths that two files write differently."""

import numpy as np
import pytest

from mmga.common.errors import UserError
from mmga.common.paths import matched
from mmga.common.tables import read_table
from mmga.retrieval.features import load_features

ROWS = [["a.png", "7", "c1"], ["b, the second.png", "ann", "c2"]]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("first", ["", "sep={}\n"])
def test_delimiters_and_encodings(delimiter, encoding, first, tmp_path):
    lines = [["path", "pid", "camid"], *([f'"{cell}"' for cell in row] for row in ROWS)]
    text = first.format(delimiter) + "\r\n".join(delimiter.join(line) for line in lines)
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    table = read_table(tmp_path / "t.csv", "table")
    assert (table.header, table.rows) == (["path", "pid", "camid"], ROWS)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a.png,7,1\nb.png,8,2\n", "expected names of columns .*, found 'a.png,7,1'"),
        ("7\n8\n", "expected names of columns .*, found '7'"),
        ("path,pid\na,b.png,7\n", "row 2 has 3 cells, the header 2"),
        ("path,path\na,b\n", "the columns path and path are the same to a reader"),
        ("pid,camid,pids\n1,2,3\n", "columns pid and pids are the same .* meant as pid"),
        ("path,pid\na,7.0e+00\nb,1.23457E+11\n", "line 3: pid 1.23457E\\+11 is a long number"),
        ("pid;camid\n1E+12;1\n", "line 2: pid 1E\\+12 is a long number"),
        ("time,time\na,b\n", "expected distinct column names, found time, time"),
    ],
)
def test_tables_that_are_none(text, sentence, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_table(tmp_path / "t.csv", "table")
    (tmp_path / "t.csv").write_bytes("path,pid\na,Jürgen\n".encode("cp1252"))
    with pytest.raises(UserError, match="save it as CSV in UTF-8"):
        read_table(tmp_path / "t.csv", "table")


def test_columns_without_a_name_are_left_out(tmp_path):
    (tmp_path / "t.csv").write_text(",path,pid,\n0,a.png,7,\n1,b.png,8,\n")
    table = read_table(tmp_path / "t.csv", "table")
    assert (table.header, table.rows) == (["path", "pid"], [["a.png", "7"], ["b.png", "8"]])
    (tmp_path / "t.csv").write_text(",,\n1,2,3\n")
    with pytest.raises(UserError, match="expected distinct column names"):
        read_table(tmp_path / "t.csv", "table")


def features(folder, **names):
    """Three rows that hold their own number, and a table that names them in another order."""
    np.savez(folder / "f.npz", features=np.eye(3, 4, dtype="f4"), **names)
    return folder / "f.npz"


@pytest.mark.parametrize(
    "name", ["paths", "names", "files", "img_path", "imgs", "filename", "image_paths"]
)
@pytest.mark.parametrize("column", ["path", "Path", "name", "file", "img_paths", "images"])
def test_rows_are_found_by_whatever_names_them(name, column, tmp_path):
    path = features(tmp_path, **{name: np.array(["a.png", "b.png", "c.png"])})
    (tmp_path / "t.csv").write_text(f"{column},pid\nc.png,3\na.png,1\nb.png,2\n")
    found = load_features(path, columns=tmp_path / "t.csv")
    assert found.pids.tolist() == [1, 2, 3]
    assert found.paths.tolist() == ["a.png", "b.png", "c.png"]
    assert found.notes == []


def test_names_of_persons_are_no_paths(tmp_path):
    path = features(tmp_path, paths=np.array(["a.png", "b.png", "c.png"]))
    (tmp_path / "t.csv").write_text("name,path,pid\nann,c.png,3\nann,a.png,1\nbob,b.png,2\n")
    found = load_features(path, columns=tmp_path / "t.csv")
    assert found.pids.tolist() == [1, 2, 3]
    assert found.columns["name"].tolist() == ["ann", "bob", "ann"]
    (tmp_path / "t.csv").write_text("name,pid\nann,3\nann,1\nbob,2\n")
    assert load_features(path, columns=tmp_path / "t.csv").columns["name"].tolist()[2] == "bob"


def test_order_is_said(tmp_path):
    path = features(tmp_path)
    (tmp_path / "t.csv").write_text("path,pid\nc.png,3\na.png,1\nb.png,2\n")
    found = load_features(path, columns=tmp_path / "t.csv")
    assert found.pids.tolist() == [3, 1, 2]
    assert "line i was taken for row i" in found.notes[0]
    assert f"no paths to match in {path}" in found.notes[0]


@pytest.mark.parametrize(
    ("wanted", "listed"),
    [
        (["a.jpg", "b.jpg"], ["b.png", "a.png"]),
        (["q/a.jpg", "q/b.jpg"], ["/data/q/b.jpg", "/data/q/a.jpg"]),
        (["/data/q/a.jpg", "/data/g/a.jpg"], ["g/a.jpg", "q/a.jpg"]),
        (["q\\a.jpg", "q\\b.jpg"], ["q/b.jpg", "./q/a.jpg"]),
        (["a", "b"], ["x/b.png", "x/a.png"]),
    ],
)
def test_paths_that_differ_in_folder_or_suffix(wanted, listed):
    places, note = matched(wanted, listed, ("f", "t"))
    assert places.tolist() == [1, 0]
    assert "2 of 2 paths differ from those of f in folder or suffix" in note
    assert f"{wanted[0]} with {listed[1]}" in note


@pytest.mark.parametrize(
    ("wanted", "listed", "sentence"),
    [
        (["q/a.jpg"], ["g/a.jpg"], "the first is q/a.jpg; those of t are such as g/a.jpg"),
        (["a.jpg"], ["q/a.jpg", "g/a.jpg"], "2 paths fit a.jpg of f, such as q/a.jpg and g/a.jpg"),
        (["a.jpg", "a.png"], ["a.png"], "a.png fits both a.jpg and a.png of f"),
        (["a.jpg"], ["a.png", "a.bmp"], "2 paths fit a.jpg"),
    ],
)
def test_paths_that_do_not_fit(wanted, listed, sentence):
    with pytest.raises(UserError, match=sentence):
        matched(wanted, listed, ("f", "t"))


def test_lines_of_one_path(tmp_path):
    path = features(tmp_path, paths=np.array(["a.png", "b.png", "c.png"]))
    table = tmp_path / "t.csv"
    table.write_text("path,pid\nc.png,3\na.png,1\n\nb.png,2\nc.png,3.0\n")
    assert load_features(path, columns=table).pids.tolist() == [1, 2, 3]
    table.write_text("path,pid\nc.png,3\na.png,1\n\nb.png,2\nc.png,4\n")
    with pytest.raises(UserError, match=r"lines 2 and 6 say pid '3' and '4' of one path, c\.png"):
        load_features(path, columns=table)


@pytest.mark.parametrize("name", ["image", "img_path", "FILENAME", "files"])
def test_paths_without_suffix_that_come_twice_are_paths(name, tmp_path):
    file = features(tmp_path, paths=np.array(["x_2", "x_1", "x_1"]))
    (tmp_path / "t.csv").write_text(f"{name},pid\nx_1,7\nx_1,7\nx_2,8\n")
    assert load_features(file, columns=tmp_path / "t.csv").pids.tolist() == [8, 7, 7]
