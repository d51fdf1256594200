import pytest
import torch
from miniatures import load
from PIL import Image

from mmga.common.errors import UserError
from mmga.data.masks import PartMask, write_mask

HEADER = "path,pid,camid,split"


@pytest.fixture
def table(tmp_path):
    def write(*lines):
        (tmp_path / "people.csv").write_text("\n".join(lines) + "\n")
        return tmp_path / "people.csv"

    for name in "abcde":
        (tmp_path / "i").mkdir(exist_ok=True)
        Image.new("RGB", (8, 16), (ord(name), 0, 0)).save(tmp_path / "i" / f"{name}.png")
    return write


ROWS = (
    "i/a.png,3,1,train",
    "i/b.png,3,2,train",
    "i/c.png,-1,1,gallery",
    "i/d.png,9,1,query",
    "i/e.png,9,2,gallery",
)


def test_numbers_are_kept(table):
    data = load("csv", table(HEADER, *ROWS))
    assert data.name == "people"
    assert data.train.pids.tolist() == [3, 3]
    assert data.train.camids.tolist() == [1, 2]
    assert data.gallery.pids.tolist() == [-1, 9]
    assert data.gallery.paths == ["i/c.png", "i/e.png"]
    assert data.query.image(0)[0, 0, 0] == ord("d")
    assert data.query.mask(0) is None


def test_names_are_numbered_in_sorted_order(table):
    path = table(
        HEADER,
        "i/a.png,zoe,left,train",
        "i/b.png,ann,right,train",
        "i/d.png,bob,left,query",
        "i/e.png,bob,right,gallery",
    )
    data = load("csv", path)
    assert data.train.pids.tolist() == [2, 0]
    assert data.query.pids.tolist() == data.gallery.pids.tolist() == [1]
    assert data.train.camids.tolist() == [0, 1]


def test_masks_of_a_column_and_of_a_folder(table, tmp_path):
    for name, value in (("m/one.png", 1), ("f/i/b.png", 2)):
        labels = torch.full((16, 8), value, dtype=torch.uint8)
        write_mask(tmp_path / name, PartMask(labels))
    path = table(f"{HEADER},mask", f"{ROWS[0]},m/one.png", *[f"{row}," for row in ROWS[1:]])
    data = load("csv", path, masks=tmp_path / "f")
    assert data.train.mask(0).labels.unique().tolist() == [1]
    assert data.train.mask(1).labels.unique().tolist() == [2]
    assert data.query.mask(0) is None
    assert load("csv", path, label_set="pascal").train.mask(1) is None
    without = load("csv", table(HEADER, *ROWS), masks=tmp_path / "f")
    assert without.train.mask(0) is None
    assert without.train.mask(1).labels.unique().tolist() == [2]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,pid,split", "a,1,train"], "lacks the column camid"),
        ([], "lacks the column path; .* found nothing"),
        ([HEADER, *ROWS, "i/a.png,3,1,test"], "line 7: split must be train, query or gallery"),
        ([HEADER, *ROWS, "i/a.png,,1,train"], "line 7: pid is empty"),
        ([HEADER, *ROWS, "i/a.png,3"], "line 7: camid is empty"),
        ([HEADER, *ROWS[:3]], "has no row of split query"),
        ([HEADER + ",mask", ROWS[0] + ",gone.png"], r"gone\.png of i/a\.png does not exist"),
    ],
    ids=["column", "empty", "split", "pid", "short", "no query", "mask"],
)
def test_bad_tables(table, lines, message):
    with pytest.raises(UserError, match=rf"people\.csv.*{message}"):
        load("csv", table(*lines))


def test_missing_table(tmp_path):
    with pytest.raises(UserError, match=r"gone\.csv cannot be read"):
        load("csv", tmp_path / "gone.csv")


def test_a_table_of_the_splits_that_are_used(table):
    trained = load("csv", table(HEADER, *ROWS[:2]))
    assert (len(trained.train), len(trained.query), len(trained.gallery)) == (2, 0, 0)
    assert not trained.has_test
    tested = load("csv", table(HEADER, *ROWS[2:]))
    assert (len(tested.train), len(tested.query), len(tested.gallery)) == (0, 1, 2)
    with pytest.raises(UserError, match="holds no image of split train"):
        tested.need("train")
    with pytest.raises(UserError, match="no row of split gallery, but query needs it"):
        load("csv", table(HEADER, ROWS[3]))


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_names_and_delimiters(delimiter, table):
    rows = [line.replace(",", delimiter) for line in ("img_path,PID,camids,split", *ROWS)]
    data = load("csv", table(*rows))
    assert data.train.pids.tolist() == [3, 3]
    assert data.gallery.paths == ["i/c.png", "i/e.png"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (ROWS, "expected names of columns in the first line.* found 'i/a.png,3,1,train'"),
        ([HEADER, *ROWS, "i/a.png,4,1,train"], "lines 2 and 7 say pid '3' and '4' of one path"),
        ([HEADER, *ROWS, "i,a.png,4,1,train"], "row 7 has 5 cells, the header 4"),
        ([HEADER, *ROWS, "i/f.png,NaN,1,train"], "line 7: pid is empty"),
    ],
)
def test_tables_that_mislead(table, lines, message):
    with pytest.raises(UserError, match=message):
        load("csv", table(*lines))


def test_programs_read_data_sets_by_name(tmp_path):
    """Junk stays junk, however identities are written."""
    from mmga.data.datasets import load

    for name, junk in (("{}", "-1"), ("cow{}", "-1"), ("{}.0", "-1.0")):
        lines = ["path,pid,camid,split"]
        lines += [
            f"{s}{c}.jpg,{name.format(3)},{c},{s}" for s in ("query", "gallery") for c in (1, 2)
        ]
        (tmp_path / "own.csv").write_text("\n".join([*lines, f"junk.jpg,{junk},1,gallery"]))
        assert (load("csv", tmp_path / "own.csv").gallery.pids == -1).sum() == 1
    with pytest.raises(UserError, match="colour is no switch of data sets"):
        load("csv", tmp_path / "own.csv", colour=1)


def test_a_file_has_one_path_however_it_is_written(table):
    rows = ["./i/d.png ,9,1,query", "i//d.png,9,1,gallery", "i/e.png,9,2,gallery"]
    data = load("csv", table(HEADER, *rows))
    assert data.query.paths == ["i/d.png"]
    assert data.gallery.paths == ["i/d.png", "i/e.png"]
    assert data.query.image(0)[0, 0, 0] == ord("d")
    with pytest.raises(UserError, match=r"lines 2 and 3 say pid '9' and '8' of one path, i/d\.png"):
        load("csv", table(HEADER, rows[0], "i/d.png,8,1,gallery"))


def test_persons_that_are_trained_on_and_searched_for_are_told(table, caplog):
    rows = ["i/a.png,ann,1,train", "i/b.png,bob,1,train", "i/c.png,bob,2,query"]
    load("csv", table(HEADER, *rows, "i/d.png,cat,1,query", "i/e.png,bob,3,gallery"))
    assert "1 of the 2 query identities are of split train, too, such as bob" in caplog.text
    caplog.clear()
    load("csv", table(HEADER, *ROWS))
    assert not caplog.records
