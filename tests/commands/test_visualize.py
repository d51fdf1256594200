"""Sheets of a run: what they say of maps and ranks, and that their footers fit."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import write_run

import mmga
from mmga import extract, visualize
from mmga.common import plots


@pytest.fixture
def table(tmp_path):
    lines = ["path,pid,camid,split"]
    for split, camera in (("train", 1), ("query", 1), ("gallery", 2)):
        for pid in range(3):
            name = f"{split}{pid}.png"
            # Persons 0 and 1 are alike, and 2 is another: that of the gallery is missing.
            colour = (200, 30, 30) if pid < 2 else (30, 30, 200)
            Image.new("RGB", (16, 48), colour).save(tmp_path / name)
            lines.append(f"{name},{7 if name == 'gallery2.png' else pid},{camera},{split}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    return tmp_path / "t.csv"


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_sheets_tell_ranks_and_unguided_maps(weight, table, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    drawn = {}

    def of(name):
        draw = getattr(plots, name)

        def sheet(path, *given):
            drawn[name] = given
            draw(path, *given)

        monkeypatch.setattr(plots, name, sheet)

    of("attention_sheet")
    of("ranked_sheet")
    run = write_run(tmp_path, loss={"mask_weight": weight})
    options = visualize.Options(run=run, data="csv", root=table, rows=3, top=1, device="cpu")
    assert visualize.body(options) == 0
    titles = drawn["ranked_sheet"][2]
    # Equal distances keep the order of the gallery: person 1 comes after 0.
    assert titles[0].endswith("\nfirst match: 1")
    assert titles[1].endswith("\nfirst match: 2")
    assert titles[2].endswith("\nno match there")
    note = "these maps were never guided: the run was trained without masks"
    assert (note in drawn["attention_sheet"]) is (weight == 0)
    assert (note in capsys.readouterr().err) is (weight == 0)
    for name in ("attention.png", "ranked.png"):
        assert Image.open(tmp_path / name).width > 400


def test_the_sheet_ranks_by_the_protocol_of_the_run_and_names_as_the_table_does(
    tmp_path, monkeypatch
):
    """One camera, and each query is a gallery image, too: it does not find itself."""
    pytest.importorskip("matplotlib")
    lines = ["path,pid,camid,split"]
    for place, (person, split) in enumerate(
        [("ann", "query"), ("ann", "gallery"), ("bob", "gallery"), ("bob", "query")]
    ):
        Image.new("RGB", (16, 48), (60 * place, 30, 200 - 60 * place)).save(
            tmp_path / f"{place}.png"
        )
        lines.append(f"{place}.png,{person},hall,{split}")
        if split == "query":
            lines.append(f"{place}.png,{person},hall,gallery")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    drawn = []
    monkeypatch.setattr(plots, "ranked_sheet", lambda *given: drawn.append(given))
    run = write_run(tmp_path, run={"protocol": "no-camera"})
    options = visualize.Options(run=run, data="csv", root=tmp_path / "t.csv", device="cpu")
    assert visualize.body(options) == 0
    _, _, hits, titles = drawn[0]
    assert [title.split("\n")[:2] for title in titles] == [
        ["id ann", "camera hall"],
        ["id bob", "camera hall"],
    ]
    assert all("first match: " in title for title in titles)
    assert [len(row) for row in hits] == [3, 3]
    assert all(sum(right for _, right, _ in row) == 1 for row in hits)
    assert all(line.endswith(", chall") for row in hits for _, _, line in row)


def test_long_names_fit_above_their_pictures():
    assert plots.titled("id 7", "camera 2") == "id 7, camera 2"
    long = plots.titled("id anna-maria-magdalena", "camera courtyard north 1")
    assert long.split("\n") == ["id ann..dalena", "camera..orth 1"]


def test_images_that_the_run_skips_are_left_out(table, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr(plots, "ranked_sheet", lambda *given: drawn.append(given))
    for name in ("query1.png", "gallery0.png"):
        (tmp_path / name).write_bytes(b"no picture")
    run = write_run(tmp_path, data={"skip_broken": True})
    options = visualize.Options(run=run, data="csv", root=table, device="cpu")
    assert visualize.body(options) == 0
    _, _, hits, titles = drawn[0]
    assert [title.split(",")[0] for title in titles] == ["id 0", "id 2"]
    assert [len(row) for row in hits] == [2, 2]


@pytest.mark.parametrize("column", [False, True])
def test_masks_that_a_table_names_have_guided_the_maps(column, table, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    if column:
        lines = table.read_text().splitlines()
        Image.new("L", (16, 48), 1).save(tmp_path / "m.png")
        table.write_text("\n".join([f"{lines[0]},mask", f"{lines[1]},m.png", *lines[2:]]))
    run = write_run(tmp_path, data={"data": "csv", "root": table})
    visualize.main(["--run", str(run), "--device", "cpu"])
    assert ("were never guided" in capsys.readouterr().err) is not column


def test_a_run_is_used_without_the_masks_of_its_training(table, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    settings = {"data": "csv", "root": table, "masks": tmp_path / "gone"}
    run = write_run(tmp_path, data=settings)
    extract.main(["--run", str(run), "--device", "cpu"])
    assert len(mmga.load_features(tmp_path / "query.npz")) == 3
    capsys.readouterr()
    visualize.main(["--run", str(run), "--device", "cpu"])
    assert f"note: there are no masks in {tmp_path / 'gone'} any more" in capsys.readouterr().err


def test_a_saved_gallery_is_that_of_the_run(table, tmp_path, monkeypatch, capsys):
    """Any scale; other rows are warned of, and other widths refused in a sentence."""
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr(plots, "ranked_sheet", lambda *given: drawn.append(given))
    run = write_run(tmp_path)
    words = ("--run", str(run), "--data", "csv", "--root", str(table), "--device", "cpu")
    extract.main([*words, "--out", str(tmp_path)])
    own = mmga.load_features(tmp_path / "gallery.npz")
    rows, labels = own.features.numpy(), {"pids": own.pids, "paths": own.paths}
    for name, changed in (("x", rows), ("scaled", 5 * rows), ("other", rows[:, ::-1].copy())):
        mmga.Features(changed, **labels).save(tmp_path / f"{name}.npz")
        capsys.readouterr()
        visualize.main([*words, "--gallery", str(tmp_path / f"{name}.npz")])
        said = capsys.readouterr().err
        assert ("was not made by this run as it is now" in said) is (name == "other")
    lines = [[line for row in hits for _, _, line in row] for _, _, hits, _ in drawn]
    assert lines[0] == lines[1]
    mmga.Features(rows[:, :9].copy(), **labels).save(tmp_path / "narrow.npz")
    with pytest.raises(SystemExit):
        visualize.main([*words, "--gallery", str(tmp_path / "narrow.npz")])
    assert "with 768 values each, as the run makes them, found [3, 9]" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 9])
def test_a_footer_explains_the_colours(count, tmp_path):
    """The four colours of a label map stand in the lowest part of the sheet."""
    pytest.importorskip("matplotlib")
    labels = torch.zeros(32, 16, dtype=torch.uint8)
    plots.mask_sheet(tmp_path / "a.png", [None] * count, [labels] * count, ["id 1"] * count)
    sheet = np.array(Image.open(tmp_path / "a.png").convert("RGB"))
    colours = {tuple(pixel) for pixel in sheet[-40:].reshape(-1, 3).tolist()}
    assert {(233, 154, 44), (66, 133, 200), (150, 150, 150), (0, 0, 0)} <= colours
    assert (sheet[-40:, -8:] == 255).all()  # nothing is cut off at the right
