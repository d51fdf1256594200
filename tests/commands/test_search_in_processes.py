"""`mmga search` under torchrun: one file of results, and what several processes cannot do yet."""

import failing
import pytest
import shared_cases
from PIL import Image

import mmga
from mmga import search as command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("features")
    shared_cases.write(out, "names")
    return out


def words_of(folder, gallery, *more):
    sides = ["--query", str(folder / "query.npz"), "--gallery", str(folder / gallery)]
    return [*sides, *map(str, more)]


@pytest.mark.parametrize(
    ("gallery", "name", "more"),
    [
        ("gallery.npz", "found.csv", ["--metric", "euclidean"]),
        ("shard-*.npz", "found.json", ["--metric", "euclidean"]),
        ("shard-*.npz", "found.csv", ["--rerank", "--k1", "9"]),
        ("gallery.npz", "found.csv", ["--expand", "4"]),
        ("shard-*.npz", "found.json", ["--augment", "3", "--expand", "2", "--rerank"]),
    ],
)
def test_processes_write_the_lists_of_one(folder, gallery, name, more, tmp_path, capsys):
    words = words_of(folder, gallery, "--topk", 12, *more, "--out")
    (tmp_path / "one").mkdir()
    command.main([*words, str(tmp_path / "one" / name)])
    notes = capsys.readouterr().err
    codes, said = failing.run("nothing", ["search", *words, str(tmp_path / name)], tmp_path)
    assert codes == [0, 0, 0]
    assert sorted(said.splitlines()) == sorted(notes.splitlines()) and "are unknown" in said
    assert (tmp_path / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    lists = shared_cases.NUM_QUERY - ("--rerank" in more)  # of which one is of junk
    assert len((tmp_path / name).read_text().splitlines()) > lists * 12


@pytest.mark.parametrize("gallery", ["gallery.npz", "shard-*.npz"])
def test_processes_save_and_search_an_index(gallery, tmp_path, capsys):
    folder = tmp_path / "features"
    folder.mkdir()
    shared_cases.write(folder, "")
    mmga.load_features(folder / "query.npz").cut(0, 4).save(tmp_path / "few.npz")
    (tmp_path / "one").mkdir()
    built = ["--gallery", str(folder / gallery), "--k1", "9", "--save-index"]
    search = ["--query", str(tmp_path / "few.npz"), "--topk", "5", "--index"]
    index, out = "gallery.mmga-index", "found.csv"
    command.main([*built, str(tmp_path / "one" / index)])
    command.main([*search, str(tmp_path / "one" / index), "--out", str(tmp_path / "one" / out)])
    printed = capsys.readouterr()
    codes, said = failing.run("nothing", ["search", *built, str(tmp_path / index)], tmp_path)
    assert codes == [0, 0, 0], said
    assert said in printed.err and "1 junk items (pid -1) are left out of the index" in said
    assert (tmp_path / "out-0").read_text() == f"index: {tmp_path / index}\n"
    expected = (tmp_path / "one" / out).read_bytes()
    for number in (1, 2, 3):
        words = ["search", *search, str(tmp_path / index), "--out", str(tmp_path / out)]
        codes, said = failing.run("nothing", words, tmp_path, number)
        assert codes == [0] * number, said
        assert (tmp_path / out).read_bytes() == expected
    assert b"gallery_row" in expected and len(expected.splitlines()) == 1 + 4 * 5


def test_more_processes_than_items(folder, tmp_path):
    mmga.load_features(folder / "gallery.npz").cut(0, 2).save(tmp_path / "two.npz")
    words = words_of(folder, tmp_path / "two.npz", "--topk", 2, "--augment", 1, "--rerank", "--out")
    (tmp_path / "one").mkdir()
    command.main([*words, str(tmp_path / "one" / "found.csv")])
    codes, said = failing.run("nothing", ["search", *words, str(tmp_path / "found.csv")], tmp_path)
    assert codes == [0, 0, 0], said
    assert (tmp_path / "found.csv").read_bytes() == (tmp_path / "one/found.csv").read_bytes()


def test_the_first_process_prints(folder, tmp_path, capsys):
    command.main(words_of(folder, "gallery.npz", "--topk", 2))
    expected = capsys.readouterr().out
    words = words_of(folder, "gallery.npz", "--topk", 2)
    codes, said = failing.run("nothing", ["search", *words], tmp_path)
    assert codes == [0, 0, 0], said
    printed = [(tmp_path / f"out-{rank}").read_text() for rank in range(3)]
    assert printed == [expected, "", ""]


def test_the_first_process_draws_the_sheet(folder, tmp_path):
    for number in range(50):
        Image.new("RGB", (8, 16), (number, 90, 90)).save(tmp_path / f"{number}.jpg")
    mmga.load_features(folder / "query.npz").cut(0, 4).save(tmp_path / "few.npz")
    words = ["--query", str(tmp_path / "few.npz"), "--gallery", str(folder / "shard-*.npz")]
    words += ["--topk", "3", "--images", str(tmp_path), "--out"]
    (tmp_path / "one").mkdir()
    command.main([*words, str(tmp_path / "one" / "found.html")])
    out = str(tmp_path / "found.html")
    codes, said = failing.run("nothing", ["search", *words, out], tmp_path, 2)
    assert codes == [0, 0], said
    assert (tmp_path / "found.html").read_text() == (tmp_path / "one/found.html").read_text()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--index", "x.mmga-index"], "x.mmga-index is no .mmga-index folder"),
        (["--model", "a:b"], "--model: several processes search files of features; extract them"),
        (["--exact", "float32"], "exact: several processes find certified neighbours, found"),
        (["--gallery", "shard-0.npz", "broken.npz", "shard-1.npz"], "broken.npz could not be"),
        (["--out", "/proc/none/r.json"], "/proc/none/r.json could not be written"),
    ],
)
def test_what_does_not_fit_is_said_once(folder, tmp_path, more, said, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "broken.npz").write_bytes((folder / "shard-3.npz").read_bytes()[:9000])
    words = ["--query", "query.npz", "--gallery", "gallery.npz", "--out", str(tmp_path / "r.csv")]
    for flag in ("--gallery", "--out"):
        if more[0] == flag or (flag, more[0]) == ("--gallery", "--index"):
            at = words.index(flag)
            del words[at : at + 2]
    codes, errors = failing.run("nothing", ["search", *words, *more], tmp_path, 2)
    assert codes == [2, 2]
    errors = [line for line in errors.splitlines() if ": note: " not in line]
    assert len(errors) == 1
    assert errors[0].startswith("mmga search: error: ") and said in errors[0]
    assert not list(tmp_path.glob("r.*")) and not (folder / "x.mmga-index").exists()


@pytest.mark.parametrize("more", [[], ["--rerank"]], ids=["plain", "re-ranked"])
def test_one_that_is_killed_ends_all(folder, tmp_path, more):
    words = words_of(folder, "shard-*.npz", *more, "--out", tmp_path / "r.csv")
    codes, errors = failing.run("killed while the others compute", ["search", *words], tmp_path)
    assert codes == [1, -9, 1]
    assert len(errors.splitlines()) == 1
    assert "process 1 of the 3 of the run ended" in errors
    assert not list(tmp_path.glob("r.*")) and not list(tmp_path.glob(".*"))
