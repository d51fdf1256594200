"""`python -m mmga.search` by images: from photographs to ranked lists and sheets."""

import csv
import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import SIZE, write_run

import mmga
from mmga import extract, search
from mmga.data.pictures import read_image
from mmga.models import load
from mmga.pages import sheet


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


def picture(file, seed):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Five pictures of a gallery in two folders, named as Market-1501's, and a photograph."""
    monkeypatch.chdir(tmp_path)
    for index in range(5):
        picture(tmp_path / "gallery" / f"{index % 2}/{index:04d}_c{index % 3}s1_00.png", index)
    shutil.copy(tmp_path / "gallery" / "1" / "0003_c0s1_00.png", tmp_path / "photo.png")
    return tmp_path


def found(capsys, *words, out="r.json"):
    search.main([str(word) for word in (*words, "--out", out)])
    said = capsys.readouterr()
    assert said.out.endswith(f"ranked lists: {out}\n")
    return json.loads(open(out).read())["results"], said.err


def fails(capsys, *words):
    with pytest.raises(SystemExit) as leave:
        search.main([str(word) for word in words])
    assert leave.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("mmga search: error: "), said
    return said[-1]


def test_a_photograph_in_a_folder(run, folder, capsys):
    rows, said = found(capsys, "--run", run, "--query", "photo.png", "--gallery", "gallery")
    assert len(rows) == 5  # by default the ten nearest, here all
    assert rows[0]["gallery_path"] == "1/0003_c0s1_00.png" and abs(rows[0]["distance"]) < 1e-6
    assert rows[0]["query_path"] == "photo.png" and rows[0]["query_pid"] is None
    assert (rows[0]["gallery_pid"], rows[0]["gallery_camid"]) == (3, 0)
    assert "note: features of 5 images were extracted, and are kept in" in said
    with torch.inference_mode():
        network = load(run)
        features = [mmga.Features(row, [0]) for row in _rows(network, rows)]
    for row, item in zip(rows, features[1:], strict=True):
        distance, _ = mmga.nearest(features[0], item, 1)
        assert row["distance"] == pytest.approx(float(distance), abs=1e-5)


def _rows(network, rows):
    from mmga.data.dataset import read_image
    from mmga.data.transforms import normalise

    for file in ("photo.png", *(f"gallery/{row['gallery_path']}" for row in rows)):
        image = normalise(read_image(file)[None])
        yield network.embed(image) + network.embed(image.flip(-1))


def test_the_second_start_uses_the_cache(run, folder, capsys):
    words = ("--run", run, "--query", "photo.png", "--gallery", "gallery")
    first, _ = found(capsys, *words)
    second, said = found(capsys, *words)
    assert first == second
    assert f"features of all 5 images are read from {folder}/gallery.mmga-features" in said
    picture(folder / "gallery" / "1" / "0003_c0s1_00.png", 77)
    third, said = found(capsys, *words)
    assert "features of 4 of 5 images are read" in said and "(1 changed)" in said
    assert third[0]["distance"] > 1e-3


def test_several_photographs_and_folders(run, folder, capsys):
    picture(folder / "more" / "b" / "x.png", 20)
    picture(folder / "more" / "a.png", 21)
    words = ("--run", run, "--gallery", "gallery", "--topk", "2", "--query", "photo.png", "more")
    rows, _ = found(capsys, *words)
    assert [row["query_path"] for row in rows[::2]] == ["photo.png", "more/a.png", "more/b/x.png"]
    assert [row["rank"] for row in rows] == [1, 2] * 3


def test_re_ranking_and_tables(run, folder, capsys):
    lines = [
        "path,pid,camid",
        "gallery/0/0000_c0s1_00.png,ann,1",
        "gallery/1/0001_c1s1_00.png,bob,2",
    ]
    (folder / "t.csv").write_text("\n".join(lines))
    words = ("--run", run, "--query", "photo.png", "--gallery", "t.csv", "--rerank", "--k1", "1")
    rows, said = found(capsys, *words)
    assert {row["gallery_pid"] for row in rows} == {"ann", "bob"}
    assert f"kept in {folder}/t.csv.mmga-features" in said


def test_features_of_one_side_and_an_index(run, folder, capsys):
    words = ("--run", run, "--query", "photo.png")
    direct, _ = found(capsys, *words, "--gallery", "gallery")
    extract.main(["--run", str(run), "--images", "gallery", "--out", "g.npz"])
    mixed, _ = found(capsys, *words, "--gallery", "g.npz", "--topk", "5")
    assert [r["gallery_path"] for r in direct] == [r["gallery_path"] for r in mixed]
    index = ("--save-index", "g.mmga-index", "--k1", "2", "--k2", "1")
    capsys.readouterr()
    search.main(["--run", str(run), "--gallery", "gallery", *index])
    assert "features of all 5 images are read" in capsys.readouterr().err
    ranked, _ = found(capsys, *words, "--index", "g.mmga-index", "--topk", "5")
    assert ranked[0]["gallery_path"] == direct[0]["gallery_path"]
    for out in ("s.html", "s.png"):
        more = ("--index", "g.mmga-index", "--topk", "3", "--out", out)
        assert "by --images" in fails(capsys, *words, *more)
        search.main([str(one) for one in (*words, *more, "--images", "gallery")])
        assert (folder / out).exists()


def test_any_network(run, folder, capsys):
    words = ("--model", "torchvision.models:resnet18", "--model-arguments", '{"num_classes": 8}')
    torch.manual_seed(0)
    size = ("--height", "32", "--width", "16")
    rows, said = found(capsys, *words, *size, "--query", "photo.png", "--gallery", "gallery")
    assert rows[0]["gallery_path"] == "1/0003_c0s1_00.png"
    torch.manual_seed(0)
    _, said = found(capsys, *words, *size, "--query", "photo.png", "--gallery", "gallery")
    assert "features of all 5 images are read" in said
    _, said = found(capsys, *words, *size[:3], "24", "--query", "photo.png", "--gallery", "gallery")
    assert "it held those of another network" in said


def test_a_pattern_need_not_fit_the_query(run, folder, capsys):
    pattern = ("--pattern", r"(?P<pid>\d+)_c(?P<camid>\d)s1_00")
    words = ("--run", run, "--query", "photo.png", "--gallery", "gallery", *pattern)
    rows, _ = found(capsys, *words)
    assert rows[0]["query_pid"] is None and rows[0]["gallery_pid"] == 3
    (folder / "photo.png").rename(folder / "0004_c2s1_00.png")
    rows, _ = found(capsys, *words[:2], "--query", "0004_c2s1_00.png", *words[4:])
    assert rows[0]["query_pid"] == 4


def test_the_printed_list_leaves_out_what_is_not_known(run, folder, capsys):
    for index, file in enumerate(sorted((folder / "gallery").rglob("*.png"))):
        file.rename(folder / "gallery" / f"{index}.png")
    search.main(["--run", str(run), "--query", "photo.png", "--gallery", "gallery"])
    said, notes = capsys.readouterr()
    assert re.match(r"query 0: path photo.png\n  rank  distance  gallery  path\n", said)
    assert "unknown" not in notes and "--pattern" not in notes


def test_a_page_holds_the_photographs(run, folder):
    words = ["--run", str(run), "--query", "photo.png", "--gallery", "gallery", "--topk", "4"]
    search.main([*words, "--out", "s.html"])
    page = (folder / "s.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 5
    assert re.search(r'alt="Rank 1: 1/0003_c0s1_00.png"', page)


def test_a_picture_holds_the_photographs(run, folder):
    pytest.importorskip("matplotlib")
    shutil.copy(folder / "photo.png", folder / "0003_c9s1_00.png")
    words = ["--run", str(run), "--query", "0003_c9s1_00.png", "--gallery", "gallery"]
    search.main([*words, "--out", "s.png"])
    assert Image.open(folder / "s.png").size[0] > 300


@pytest.mark.parametrize(("out", "module"), [("s.html", "jinja2"), ("s.png", "matplotlib")])
def test_a_package_that_is_missing_is_said_at_once(run, folder, capsys, monkeypatch, out, module):
    monkeypatch.setitem(sys.modules, module, None)
    words = ("--run", run, "--query", "photo.png", "--gallery", "gallery", "--out", out)
    assert f"--out {out} needs {module}, which is not installed" in fails(capsys, *words)
    assert not (folder / "gallery.mmga-features").exists()


def test_re_ranking_a_small_gallery(run, folder, capsys):
    rows, _ = found(
        capsys, "--run", run, "--query", "photo.png", "--gallery", "gallery", "--rerank"
    )
    assert rows[0]["gallery_path"] == "1/0003_c0s1_00.png" and len(rows) == 5


def test_a_sheet_of_feature_files(run, folder, capsys):
    for side in ("gallery",):
        extract.main(["--run", str(run), "--images", side, "--out", f"{side}.npz"])
    words = ["--query", "gallery.npz", "--gallery", "gallery.npz", "--topk", "2"]
    (folder / "gallery" / "1" / "0003_c0s1_00.png").write_bytes(b"no image")
    search.main([*words, "--images", "gallery", "--out", "s.html"])
    assert "images of s.html cannot be read, the first is gallery/1/0003" in capsys.readouterr().err
    page = (folder / "s.html").read_text()
    assert "This image cannot be read" in page and page.count("the query's own file") == 5


@pytest.mark.parametrize("out", ["s.html", "s.png"])
def test_a_sheet_shows_nothing_from_outside_of_its_folder(tmp_path, monkeypatch, capsys, out):
    """Paths in files of features are strangers' text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for name in ("images/a.png", "images/b.png", "outside.png"):
        Image.new("RGB", (8, 16)).save(name)
    paths = ["a.png", "elsewhere/b.png", "none.png", "../outside.png", f"{tmp_path}/outside.png"]
    mmga.Features(torch.eye(5), range(5), paths=paths).save("g.npz")
    read = []
    monkeypatch.setattr(sheet, "read_image", lambda file: read.append(file) or read_image(file))
    words = ["--query", "g.npz", "--gallery", "g.npz", "--topk", "1", "--out", out]
    search.main([*words, "--images", "images"])
    assert {str(file) for file in read} == {"images/a.png", "images/b.png"}
    said = f"note: 6 images of {out} are not below images, the first is none.png\n"
    assert said in capsys.readouterr().err
    if out == "s.html":
        page = (tmp_path / out).read_text()
        assert page.count("This image is not there") == 6 and "cannot be read" not in page
        assert page.count("the query's own file") == 2
    assert "--images: none is no folder" in fails(capsys, *words, "--images", "none")


def test_a_csv_file_names_the_photographs(run, folder):
    words = ["--run", str(run), "--query", "photo.png", "--gallery", "gallery", "--out", "r.csv"]
    search.main(words)
    rows = list(csv.DictReader((folder / "r.csv").open()))
    assert rows[0]["query_path"] == "photo.png" and len(rows) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--query photo.png --gallery gallery", "give their network by --run or --model"),
        ("--gallery gallery --query g.npz", "--gallery gallery is no file of features"),
        ("--run RUN --query none.png --gallery gallery", "--query none.png: no such file"),
        ("--run RUN --query bad.png --gallery gallery", "image bad.png cannot be decoded"),
        ("--run RUN --query photo.png g.npz --gallery gallery", "--query g.npz: expected an image"),
        ("--run RUN --query photo.png --gallery empty", "--gallery empty: no image file there"),
        ("--run RUN --query photo.png --gallery gallery gallery", "expected one folder or table"),
        ("--run RUN --query g.npz --gallery g.npz", "neither --query nor --gallery names any"),
        ("--run RUN --model a:b --query photo.png --gallery gallery", "are two networks"),
        ("--run RUN --query photo.png --gallery gallery --height 9", "--height belongs to --model"),
        ("--query g.npz --gallery g.npz --batch-size 3", "--batch-size belongs to images"),
        ("--query g.npz --gallery g.npz --no-flip-test", "--no-flip-test belongs to images"),
        ("--query g.npz --gallery g.npz --out s.png", "holds no paths of images"),
        ("--run RUN --query photo.png --gallery gallery --gallery-columns t.csv", "not to images"),
        ("--run RUN --query photo.png --gallery gallery --topk 9", "from 1 to the 5 gallery"),
        (
            "--run RUN --query photo.png --gallery gallery --batch-size 0",
            "--batch-size must be at least 1",
        ),
        (
            "--run RUN --query photo.png --gallery gallery --cache-folder photo.png",
            "--cache-folder photo.png cannot be written",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(run, folder, capsys, words, message):
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "empty").mkdir()
    mmga.Features(torch.eye(5, 4), [0] * 5).save("g.npz")
    given = [str(run) if word == "RUN" else word for word in words.split()]
    assert message in fails(capsys, *given)
    assert not (folder / "s.png").exists()


def test_a_broken_image_of_the_gallery(run, folder, capsys):
    (folder / "gallery" / "bad.jpg").write_bytes(b"\xff\xd8\xff no picture")
    words = ("--run", run, "--query", "photo.png", "--gallery", "gallery")
    assert "image gallery/bad.jpg cannot be decoded" in fails(capsys, *words)
    rows, said = found(capsys, *words, "--skip-broken")
    assert len(rows) == 5
    assert "--gallery: 1 of 6 images are left out, the first as image gallery/bad.jpg" in said


def test_a_page_that_cannot_be_written(run, folder, capsys):
    words = ("--run", run, "--query", "photo.png", "--gallery", "gallery")
    (folder / "s.html").mkdir()
    (folder / "s.html" / "a").touch()
    assert "s.html could not be written" in fails(capsys, *words, "--out", "s.html")
    assert [file.name for file in folder.iterdir() if ".tmp" in file.name] == []
