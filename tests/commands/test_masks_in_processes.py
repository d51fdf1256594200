"""`mmga masks` under torchrun: the masks, counts and preview of one process."""

import json

import failing
import numpy as np
import pytest
from PIL import Image

from mmga import masks

COUNT, EMPTY, BROKEN = 23, (3, 11, 20), 14


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table of images, and silhouettes of them; some are empty, one image is broken."""
    root = tmp_path_factory.mktemp("masks")
    random = np.random.default_rng(0)
    (root / "silhouettes").mkdir()
    lines = ["path,pid,camid,split"]
    for index in range(COUNT):
        pixels = random.integers(0, 256, (32, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{index}.png")
        body = np.zeros((32, 16), np.uint8)
        body[4 : 20 + index // 2, 3:13] = 0 if index in EMPTY else 255
        Image.fromarray(body).save(root / "silhouettes" / f"{index}.png")
        lines.append(f"{index}.png,{index // 4},{index % 3},train")
    (root / f"{BROKEN}.png").write_bytes(b"no picture")
    (root / "t.csv").write_text("\n".join(lines))
    return root


def words(folder, out, *more):
    table = ("--data", "csv", "--root", folder / "t.csv", "--out", out)
    size = ("--batch-size", "2", "--device", "cpu")
    return [str(word) for word in (*table, *size, *more)]


def imported(folder):
    return ("--from", "silhouette", "--source", folder / "silhouettes", "--preview", "4")


def files(out):
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def one(folder):
    """What one process writes."""
    masks.main(words(folder, folder / "one", *imported(folder)))
    return files(folder / "one")


@pytest.mark.parametrize("world", [2, 5])
def test_any_number_of_processes_writes_the_same(folder, one, tmp_path, world, capsys):
    codes, said = failing.run(
        "nothing",
        ["masks", *words(folder, tmp_path / "m", *imported(folder))],
        tmp_path,
        world,
    )
    assert (codes, said) == ([0] * world, "")
    assert files(tmp_path / "m") == one
    assert len(one) == COUNT - len(EMPTY) + len(("manifest", "preview", "without person"))
    masks.main(words(folder, tmp_path / "m", *imported(folder)))  # all of them are there
    assert files(tmp_path / "m") == one
    printed = [(tmp_path / f"out-{rank}").read_text() for rank in range(world)]
    assert f"20 masks of {COUNT} images; without a person 3" in printed[0]
    assert not any(printed[1:])


def test_the_parser_makes_the_masks_of_one_process(folder, tmp_path):
    made = ("--skip-broken", "--preview", "3")
    masks.main(words(folder, tmp_path / "one", *made))
    codes, said = failing.run("nothing", ["masks", *words(folder, tmp_path / "m", *made)], tmp_path)
    assert (codes, said) == ([0, 0, 0], "")
    assert files(tmp_path / "m") == files(tmp_path / "one")
    counts = json.loads((tmp_path / "m" / "manifest.json").read_text())["counts"]
    assert counts["broken"] == 1 and counts["images"] == COUNT
    assert "1 images cannot be decoded" in (tmp_path / "out-0").read_text()


def test_finished_masks_survive_a_killed_process(folder, one, tmp_path):
    made = ["masks", *words(folder, tmp_path / "m", *imported(folder))]
    codes, said = failing.run("killed while the others compute", made, tmp_path)
    assert codes == [1, -9, 1]
    assert len(said.splitlines()) == 1
    assert "process 1 of the 3 of the run ended without a word" in said
    left = files(tmp_path / "m")
    assert not json.loads(left.pop("manifest.json"))["finished"]
    left.pop("without_person.1.txt")  # the third image
    assert left.items() <= one.items() and len(left) == 5  # the first batch of each
    written = {name: (tmp_path / "m" / name).stat().st_mtime_ns for name in left}
    codes, said = failing.run("nothing", made, tmp_path, 2)
    assert (codes, said) == ([0, 0], "")
    assert files(tmp_path / "m") == one
    assert {name: (tmp_path / "m" / name).stat().st_mtime_ns for name in left} == written


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), f"{BROKEN}.png cannot be decoded"),
        (("--from", "lip", "--source", "/nowhere"), "/nowhere"),
        (("--batch-size", "0"), "--batch-size must be at least 1, got 0"),
    ],
)
def test_what_is_wrong_is_said_once(folder, tmp_path, more, said):
    codes, errors = failing.run(
        "nothing", ["masks", *words(folder, tmp_path / "m", *more)], tmp_path
    )
    assert codes == [2, 2, 2]
    assert len(errors.splitlines()) == 1
    assert errors.startswith("mmga masks: error: ") and said in errors
