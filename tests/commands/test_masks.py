"""`python -m mmga.masks` with a stub detector, and imports through the command line."""

import dataclasses
import errno
import json
import typing

import numpy as np
import pytest
import torch
from miniatures import load
from persons import SIZE, STANDING
from PIL import Image

from mmga import masks
from mmga.bodyparts.detector import DetectedPerson
from mmga.bodyparts.importers import KINDS
from mmga.bodyparts.mask_folder import projection
from mmga.bodyparts.skeleton import from_points
from mmga.common.errors import UserError

FOLDERS = ("bounding_box_train", "query", "bounding_box_test")


class Stub:
    """Finds the same person in every image but those of pure red; counts what it is shown."""

    def __init__(self):
        self.seen = 0
        self.stop_after = None

    def __call__(self, images):
        persons = []
        for image in images:
            if self.seen == self.stop_after:
                raise KeyboardInterrupt
            self.seen += 1
            assert image.dtype == torch.uint8
            body = np.zeros(SIZE, bool)
            body[10:120, 16:48] = True
            red = image[0, 0, 0] > 200
            # A skeleton in every other image.
            skeleton = from_points(STANDING) if image[1, 0, 0] > 100 else None
            persons.append(None if red else DetectedPerson(body, skeleton))
        return persons


@pytest.fixture
def market(tmp_path):
    root = tmp_path / "Market-1501-v15.09.15"
    for folder, count in zip(FOLDERS, (10, 2, 3), strict=True):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            colour = (255 if i == 3 else 20, 150 if i % 2 else 50, 0)
            name = f"{i // 4 + 1:04d}_c{i % 2 + 1}s1_{i:06d}_00.jpg"
            Image.new("RGB", SIZE[::-1], colour).save(root / folder / name)
    return root


def _options(tmp_path, market, **changes):
    return masks.Options(out=tmp_path / "masks", root=market, batch=3, preview=0, **changes)


def test_masks_of_a_set(tmp_path, market, capsys):
    stub = Stub()
    assert masks.body(_options(tmp_path, market), stub) == 0
    out = tmp_path / "masks"
    files = sorted(path.name for path in (out / "bounding_box_train").iterdir())
    assert len(files) == 9  # nobody in the red one
    assert not (out / "query").exists()
    data = load("market1501", market, masks=out)
    with_skeleton, without = data.train.mask(2), data.train.mask(0)
    assert with_skeleton.parts
    assert set(with_skeleton.labels.unique().tolist()) == {0, 1, 2}
    assert with_skeleton.labels[110, 30] == 2
    assert not without.parts
    assert data.train.mask(3) is None
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["finished"] is True
    assert manifest["origin"]["from"] == "torchvision"
    assert manifest["label_set"] == "parts"
    assert manifest["counts"] == {
        "images": 10, "masks": 9, "silhouettes": 5, "without_person": 1, "broken": 0,
    }  # fmt: skip
    first, second = manifest["area_by_camera"]["1"], manifest["area_by_camera"]["2"]
    share = 110 * 32 / (128 * 64)
    assert first == {
        "images": 5, "without_mask": 0.0, "body": round(share, 6), "upper": None, "bottom": None,
    }  # fmt: skip
    assert second["without_mask"] == 0.2
    assert second["upper"] + second["bottom"] == pytest.approx(share, abs=2e-6)
    said = capsys.readouterr().out
    assert "7 images to go, about" in said
    assert "9 masks of 10 images; without a person 1 (10.0%)" in said


def test_an_interrupted_run_goes_on(tmp_path, market, capsys):
    stub = Stub()
    stub.stop_after = 7
    options = _options(tmp_path, market)
    with pytest.raises(KeyboardInterrupt):
        masks.body(options, stub)
    assert "the same command goes on" in capsys.readouterr().err
    out = tmp_path / "masks"
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert len(made) == 5  # two batches of three, nobody in one
    assert json.loads((out / "manifest.json").read_text())["finished"] is False
    again = Stub()
    masks.body(options, again)
    assert again.seen == 4  # not the empty one either
    assert all(path.stat().st_mtime_ns == then for path, then in made.items())
    assert "6 of 10 images are done already" in capsys.readouterr().out
    finished = Stub()
    masks.body(options, finished)
    assert finished.seen == 0


def test_a_folder_made_otherwise_is_refused(tmp_path, market):
    options = _options(tmp_path, market)
    masks.body(options, Stub())
    with pytest.raises(UserError, match="holds masks made with min_size 320, now it is 256"):
        masks.body(dataclasses.replace(options, min_size=256), Stub())
    (tmp_path / "masks" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"holds PNG files and no manifest\.json"):
        masks.body(options, Stub())
    (tmp_path / "masks" / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match="is no manifest of masks"):
        masks.body(options, Stub())


def test_several_splits(tmp_path, market):
    masks.body(_options(tmp_path, market, splits=("query", "gallery", "query")), Stub())
    made = {path.parent.name for path in (tmp_path / "masks").rglob("*.png")}
    assert made == {"query", "bounding_box_test"}


def test_broken_images_are_named_or_counted(tmp_path, market, capsys):
    broken = sorted((market / "bounding_box_train").iterdir())[4]
    whole = broken.read_bytes()
    broken.write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(UserError, match=f"{broken.name} cannot be decoded"):
        masks.body(_options(tmp_path, market), Stub())
    options = _options(tmp_path, market, skip_broken=True)
    masks.body(options, Stub())
    manifest = json.loads((tmp_path / "masks" / "manifest.json").read_text())
    assert manifest["counts"]["broken"] == 1
    assert manifest["counts"]["masks"] == 8
    assert "1 images cannot be decoded and were left out" in capsys.readouterr().out
    broken.write_bytes(whole)  # mended: it is made now
    stub = Stub()
    masks.body(options, stub)
    assert stub.seen == 1


def test_a_full_disk(tmp_path, market, monkeypatch):
    save, written = Image.Image.save, []

    def full(image, path, *arguments, **names):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return save(image, path, *arguments, **names)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="No space left on device") as said:
        masks.body(_options(tmp_path, market), Stub())
    assert "the same command goes on" in str(said.value)
    assert len(list((tmp_path / "masks" / "bounding_box_train").iterdir())) == 2
    monkeypatch.undo()
    stub = Stub()
    masks.body(_options(tmp_path, market), stub)
    assert stub.seen == 8
    assert len(list((tmp_path / "masks").rglob("*.png"))) == 9


def test_a_long_time_is_announced():
    said = projection(12_928, 20.0 * 12_928, "cpu")
    assert said.startswith("12928 images to go, about 71.8 h here; GPU advised")
    assert projection(100, 60.0, "cpu") == "100 images to go, about 60 s here"
    assert "GPU" not in projection(10, 9000.0, "cuda:0")
    assert "about 10 min here" in projection(10, 600.0, "cpu")


def test_importing_through_the_command_line(tmp_path, market, capsys):
    h5py = pytest.importorskip("h5py")
    poses = tmp_path / "poses"
    poses.mkdir()
    rows = np.stack([STANDING + 1] * 10).transpose(0, 2, 1).reshape(10, 28)
    with h5py.File(poses / "market1501_14point_train.mat", "w") as file:
        file["pp"] = rows
    words = ["--root", market, "--out", tmp_path / "m", "--from", "pose14", "--source", poses]
    masks.main([str(word) for word in (*words, "--preview", 6)])
    out = tmp_path / "m"
    assert len(list((out / "bounding_box_train").iterdir())) == 10
    assert "10 masks of 10 images" in capsys.readouterr().out
    with Image.open(out / "preview.png") as sheet:
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 24)}
    assert {(230, 159, 0), (86, 180, 233)} <= colours  # upper and bottom are drawn
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["origin"] == {
        "data": "market1501", "from": "pose14", "source": "poses", "skeletons": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--from", "lip"], "--source is missing"),
        (["--source", "x"], "--source and --skeletons belong to --from"),
        (
            ["--from", "lip", "--source", "x", "--detector-weights", "y"],
            "leave them out with --from",
        ),
        (["--data", "synthetic"], "exact masks of its own"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--min-size", "8"], "--min-size must be at least 32"),
        (["--root", "nowhere"], "nowhere does not exist"),
        (["--from", "coco", "--source", "x"], "--from"),
    ],
)
def test_bad_input(words, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as leave:
        masks.main(["--out", str(tmp_path / "m"), *words])
    said = capsys.readouterr().err.strip().splitlines()
    assert leave.value.code == 2
    assert len(said) == 1
    assert sentence in said[0]
    assert not (tmp_path / "m").exists()


def test_the_kinds_are_spelled_as_the_library_has_them():
    assert typing.get_args(masks.Kind) == KINDS


def test_an_empty_silhouette_has_no_file(tmp_path, market):
    class Nobody(Stub):
        def __call__(self, images):
            return [DetectedPerson(np.zeros(SIZE, bool), None) for _ in images]

    masks.body(_options(tmp_path, market), Nobody())
    assert not list((tmp_path / "masks").rglob("*.png"))


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        ("../b.jpg", r"\.\./b\.jpg lies outside"),
        ("/b.jpg", r"/b\.jpg lies outside"),
        ("a.png", r"images a\.jpg and a\.png would have one mask"),
    ],
)
def test_masks_stay_in_their_folder(second, sentence, tmp_path):
    rows = [("a.jpg", "train"), (second, "train"), ("q.jpg", "query"), ("g.jpg", "gallery")]
    lines = [f"{path},{i},0,{split}" for i, (path, split) in enumerate(rows)]
    table = tmp_path / "t.csv"
    table.write_text("path,pid,camid,split\n" + "\n".join(lines))
    options = masks.Options(out=tmp_path / "m", data="csv", root=table, preview=0)
    with pytest.raises(UserError, match=sentence):
        masks.body(options, Stub())
    assert not (tmp_path / "m").exists()


def _parsing(tmp_path, market, values, count=10, how="L"):
    folder = tmp_path / "parsing" / "bounding_box_train"
    folder.mkdir(parents=True)
    for file in sorted((market / "bounding_box_train").iterdir())[:count]:
        Image.fromarray(values).convert(how).save(folder / f"{file.name}.png")
    return tmp_path / "parsing"


def _import(tmp_path, market, kind, source):
    assert masks.body(_options(tmp_path, market, kind=kind, source=source)) == 0


def test_images_without_a_file_are_counted(tmp_path, market, capsys):
    values = np.zeros(SIZE, np.uint8)
    values[20:60], values[60:110] = 5, 9
    _import(tmp_path, market, "lip", _parsing(tmp_path, market, values, count=7))
    said = capsys.readouterr()
    assert "note: 3 of 10 images have no file in" in said.err
    assert "such as bounding_box_train/" in said.err
    assert "7 masks of 10 images" in said.out


def test_cameras_are_called_as_the_table_calls_them(tmp_path, capsys):
    lines = ["path,pid,camid,split"]
    for place, camera in enumerate(("hall", "courtyard") * 2):
        Image.new("RGB", SIZE[::-1], (20, 150, 0)).save(tmp_path / f"{place}.png")
        lines.append(f"{place}.png,ann,{camera},train")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    options = masks.Options(
        out=tmp_path / "m", data="csv", root=tmp_path / "t.csv", preview=0, device="cpu"
    )
    assert masks.body(options, Stub()) == 0
    assert "\ncourtyard       2" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "m" / "manifest.json").read_text())
    assert list(manifest["area_by_camera"]) == ["courtyard", "hall"]


def test_an_image_of_two_splits_counts_in_both(tmp_path, market):
    name = sorted(market.glob("bounding_box_train/*"))[3].relative_to(market)  # nobody is in it
    table = market / "t.csv"
    rows = "".join(f"{name},1,{place},{split}\n" for place, split in ((1, "query"), (1, "gallery")))
    table.write_text(f"path,pid,camid,split\n{rows}")
    options = masks.Options(
        out=tmp_path / "m", data="csv", root=table, preview=0, splits=("query", "gallery")
    )
    assert masks.body(options, Stub()) == 0
    manifest = json.loads((tmp_path / "m" / "manifest.json").read_text())
    assert manifest["finished"]
    assert manifest["counts"]["without_person"] == 2


def test_files_that_come_later_are_imported_by_the_same_command(tmp_path, market, capsys):
    values = np.zeros(SIZE, np.uint8)
    values[20:60], values[60:110] = 5, 9
    source = _parsing(tmp_path, market, values, count=7)
    _import(tmp_path, market, "lip", source)
    for file in (market / "bounding_box_train").iterdir():
        Image.fromarray(values).save(source / "bounding_box_train" / f"{file.stem}.png")
    capsys.readouterr()
    _import(tmp_path, market, "lip", source)
    said = capsys.readouterr()
    assert "10 masks of 10 images; without a person 0" in said.out
    assert "7 of 10 images are done already; remove" in said.out
    assert not said.err


def test_a_part_that_no_imported_mask_holds_is_named(tmp_path, market, caplog):
    values = np.zeros(SIZE, np.uint8)
    values[20:60], values[60:110] = 5, 2  # clothes and hair
    _import(tmp_path, market, "lip", _parsing(tmp_path, market, values))
    assert "warning: bottom body occurs in none of the 10 masks with parts" in caplog.text


def test_masks_that_fill_their_images_are_told(tmp_path, market, caplog):
    values = np.full(SIZE, 255, np.uint8)
    values[:4] = 0
    _import(tmp_path, market, "silhouette", _parsing(tmp_path, market, values))
    assert "are the masks inverted" in caplog.text


def test_turned_images_and_masks_are_counted_once(tmp_path, market, caplog):
    exif = Image.Exif()
    exif[0x0112] = 6
    for file in sorted((market / "bounding_box_train").iterdir())[:4]:
        Image.new("RGB", SIZE, (9, 90, 9)).save(file, exif=exif)  # lies on its side
    masks.body(_options(tmp_path, market), Stub())
    (line,) = [line for line in caplog.messages if "EXIF" in line]
    assert "4 files" in line
    assert load("market1501", market, masks=tmp_path / "masks").train.mask(0).labels.shape == SIZE
