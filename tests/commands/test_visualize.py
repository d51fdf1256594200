"""Pictures of runs, photographs, feature files and trainings: what they show and refuse."""

import numpy as np
import pytest
import torch
from figures import texts, verdicts
from PIL import Image
from small_run import write_run

import mmga
from mmga import extract, plots, visualize


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


@pytest.fixture
def drawn(monkeypatch):
    """Figures by the names of their files, which are written as well."""
    pytest.importorskip("matplotlib")
    found, save = {}, plots.save

    def keep(figure, path):
        found[path.stem] = figure
        save(figure, path)

    monkeypatch.setattr(plots, "save", keep)
    return found


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_sheets_tell_ranks_and_unguided_maps(weight, table, tmp_path, drawn, capsys):
    run = write_run(tmp_path, loss={"mask_weight": weight})
    options = visualize.Options(run=run, data="csv", root=table, rows=3, top=1, device="cpu")
    assert visualize.body(options) == 0
    # Equal distances keep the order of the gallery: person 1 comes after 0.
    ranks = [text for text in texts(drawn["ranked"]) if text.startswith(("rank ", "no match"))]
    assert ranks == ["rank 1", "rank 2", "no match"]
    assert verdicts(drawn["ranked"]) == ["right", "wrong", "wrong"]
    note = "these maps were never guided: the run was trained without masks"
    assert (note in texts(drawn["attention"])) is (weight == 0)
    assert (note in capsys.readouterr().err) is (weight == 0)
    for name in ("attention.png", "ranked.png"):
        assert Image.open(tmp_path / name).width > 400


def test_the_sheet_ranks_by_the_protocol_of_the_run_and_names_as_the_table_does(tmp_path, drawn):
    """One camera, and each query is a gallery image, too: it does not find itself."""
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
    run = write_run(tmp_path, run={"protocol": "no-camera"})
    options = visualize.Options(run=run, data="csv", root=tmp_path / "t.csv", device="cpu")
    assert visualize.body(options) == 0
    written = texts(drawn["ranked"])
    assert [text for text in written if text.startswith("id ")] == ["id ann", "id bob"]
    assert sum(text.startswith("rank ") for text in written) == 2
    found = verdicts(drawn["ranked"])
    assert [sorted(found[:3]), sorted(found[3:])] == [["right", "wrong", "wrong"]] * 2
    assert written.count("hall") == 8  # two queries, three items each


def test_images_that_the_run_skips_are_left_out(table, tmp_path, drawn):
    for name in ("query1.png", "gallery0.png"):
        (tmp_path / name).write_bytes(b"no picture")
    run = write_run(tmp_path, data={"skip_broken": True})
    options = visualize.Options(run=run, data="csv", root=table, device="cpu")
    assert visualize.body(options) == 0
    written = texts(drawn["ranked"])
    assert [text for text in written if text.startswith("id ")] == ["id 0", "id 2"]
    assert len(verdicts(drawn["ranked"])) == 4


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


def test_a_saved_gallery_is_that_of_the_run(table, tmp_path, drawn, capsys):
    """Any scale; other rows are warned of, and other widths refused in a sentence."""
    run = write_run(tmp_path)
    words = ("--run", str(run), "--data", "csv", "--root", str(table), "--device", "cpu")
    extract.main([*words, "--out", str(tmp_path)])
    own = mmga.load_features(tmp_path / "gallery.npz")
    rows, labels = own.features.numpy(), {"pids": own.pids, "paths": own.paths}
    shown = []
    for name, changed in (("x", rows), ("scaled", 5 * rows), ("other", rows[:, ::-1].copy())):
        mmga.Features(changed, **labels).save(tmp_path / f"{name}.npz")
        capsys.readouterr()
        visualize.main([*words, "--gallery", str(tmp_path / f"{name}.npz")])
        said = capsys.readouterr().err
        assert ("was not made by this run as it is now" in said) is (name == "other")
        shown.append(texts(drawn["ranked"]))
    assert shown[0] == shown[1]
    mmga.Features(rows[:, :9].copy(), **labels).save(tmp_path / "narrow.npz")
    with pytest.raises(SystemExit):
        visualize.main([*words, "--gallery", str(tmp_path / "narrow.npz")])
    assert "with 768 values each, as the run makes them, found [3, 9]" in capsys.readouterr().err


def fails(capsys, *words):
    """Run the command, which must fail, and return its sentence."""
    with pytest.raises(SystemExit) as leave:
        visualize.main([str(word) for word in words])
    said = capsys.readouterr().err.splitlines()
    assert leave.value.code == 2 and said[-1].startswith("mmga visualize: error: ")
    assert not any("Traceback" in line for line in said)
    return said[-1]


@pytest.fixture
def sides(tmp_path):
    """Feature files of six persons in two cameras, with images."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((6, 8))
    for side, count in (("query", 12), ("gallery", 36)):
        pids, camids = np.arange(count) % 6, np.arange(count) // 6 % 2
        paths = [f"set/{side}/{place}.png" for place in range(count)]
        values = rows[pids] + 0.3 * generator.standard_normal((count, 8))
        features = mmga.Features(values.astype(np.float32), pids, camids, paths)
        features.save(tmp_path / f"{side}.npz")
        (tmp_path / side).mkdir()
        for place in range(count):
            Image.new("RGB", (8, 16), (place, 0, 0)).save(tmp_path / side / f"{place}.png")
    return ["--query", tmp_path / "query.npz", "--gallery", tmp_path / "gallery.npz"]


ALL = ["ranked", "hardest", "easiest", "cameras", "cmc", "roc", "det", "distances", "map"]


def test_feature_files_alone_give_lists_and_figures(sides, tmp_path, drawn, capsys):
    out = tmp_path / "out"
    words = [*sides, "--images", tmp_path, "--out", out, "--rows", 2, "--topk", 3]
    visualize.main([str(word) for word in words])
    said = capsys.readouterr()
    assert list(drawn) == ALL and "note" not in said.err
    assert [line.rsplit(": ")[1] for line in said.out.splitlines()] == [
        str(out / f"{name}.png") for name in ALL
    ]
    report = mmga.evaluate(*(mmga.load_features(file) for file in (sides[1], sides[3])))
    reds = [int(axes.images[0].get_array()[0, 0, 0]) for axes in drawn["hardest"].axes]
    hardest = plots.hardest(report, 2)
    assert [reds[0], reds[4]] == hardest.tolist() and len(reds) == 8
    (curve,) = drawn["cmc"].axes[0].get_lines()
    assert curve.get_ydata().tolist() == report.cmc[:20].tolist()


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_pictures_are_chosen_by_name_format_and_width(kind, sides, tmp_path, drawn, capsys):
    words = [*sides, "--plots", "map", "cmc", "--format", kind, "--sheet-width", "column"]
    visualize.main([str(word) for word in (*words, "--out", tmp_path / "out")])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"cmc.{kind}",
        f"map.{kind}",
    ]
    assert [round(figure.get_figwidth() * 25.4) for figure in drawn.values()] == [88, 88]
    assert "note" not in capsys.readouterr().err


def test_what_features_do_not_allow_is_said_once_or_refused(sides, tmp_path, drawn, capsys):
    for side in ("query", "gallery"):
        found = mmga.load_features(tmp_path / f"{side}.npz")
        mmga.Features(found.features, found.pids).save(tmp_path / f"{side}.npz")
    words = [*sides, "--protocol", "no-camera", "--rows", 1, "--topk", 2, "--out", tmp_path / "out"]
    visualize.main([str(word) for word in words])
    assert "cameras" not in drawn and len(drawn) == len(ALL) - 1
    said = capsys.readouterr().err
    assert "note: no picture cameras: figures by camera pair need camids" in said
    assert "note: without --images the lists show no pictures" in said
    drawn.clear()
    assert "need camids" in fails(capsys, *words, "--plots", "cmc", "cameras")
    assert not drawn  # nothing half-drawn


def test_images_that_are_missing_are_counted(sides, tmp_path, drawn, capsys):
    for path in (tmp_path / "gallery").iterdir():
        path.unlink()
    words = [*sides, "--rows", 2, "--plots", "ranked", "--out", tmp_path / "out", "--images"]
    visualize.main([str(word) for word in (*words, tmp_path)])
    assert "images are not in" in capsys.readouterr().err
    assert "none of the" in fails(capsys, *words, tmp_path / "out")
    assert "expected a folder" in fails(capsys, *words, tmp_path / "query.npz")


def test_an_image_that_is_none_is_counted(sides, tmp_path, drawn, capsys):
    (tmp_path / "query" / "0.png").write_text("no picture")
    words = [*sides, "--rows", 2, "--plots", "ranked", "--out", tmp_path / "out", "--images"]
    visualize.main([str(word) for word in (*words, tmp_path)])
    said = capsys.readouterr().err
    assert "images that cannot be shown: 1, the first because image" in said
    assert "0.png cannot be decoded" in said


def test_photographs_get_the_maps_of_a_run_and_true_masks(tmp_path, drawn, capsys):
    run = write_run(tmp_path / "run")
    for place, name in enumerate("abcd"):
        image = tmp_path / "photographs" / f"{name}.png"
        image.parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 48), (60 * place, 0, 0)).save(image)
    (tmp_path / "masks").mkdir()
    Image.new("L", (16, 48), 1).save(tmp_path / "masks" / "c.png")
    words = ["--run", run, "--device", "cpu", "--images", tmp_path / "photographs"]
    visualize.main([str(word) for word in (*words, "--rows", 2)])
    heads = ["whole", "upper", "bottom"]
    written = [text for text in texts(drawn["photographs"]) if text not in BAR]
    assert written == ["a", *heads, "d", *heads]  # side by side
    assert "2 of 4 photographs are drawn" in capsys.readouterr().err
    assert (run / "photographs.png").is_file()
    file = tmp_path / "photographs" / "b.png"
    visualize.main([str(word) for word in (*words, file, "--masks", tmp_path / "masks")])
    written = [text for text in texts(drawn["photographs"]) if text not in BAR]
    heads.append("true mask")
    assert written == ["a", *heads, "b", *heads, "c", "d", "b"]
    assert "no photograph has a mask there" in fails(capsys, *words, "--masks", run)
    assert "no such" not in fails(capsys, *words[:4], "--images", tmp_path / "none.png")


BAR = ("attention   0", "1")


class Named(torch.nn.Module):
    """A network that names its maps."""

    def forward(self, images):
        level = images.mean(1)[:, ::4, ::4]
        return {"level": 3 * level, "half": 0 * level[:, None] + 0.5, "rows": images.mean((2, 3))}


class Attending(Named):
    def attention(self, images):
        return {"own": torch.sigmoid(images.mean(1, keepdim=True))}


SCALED = "from the least value to the greatest: level"


@pytest.mark.parametrize(
    ("name", "heads"), [("Named", [SCALED, "a", "level", "half"]), ("Attending", ["a", "own"])]
)
def test_any_network_that_names_its_maps_is_drawn(name, heads, tmp_path, drawn):
    Image.new("RGB", (16, 48), (60, 0, 0)).save(tmp_path / "a.png")
    words = ["--model", f"test_visualize:{name}", "--images", tmp_path / "a.png", "--out", tmp_path]
    words += ["--height", 32, "--width", 16, "--device", "cpu"]
    visualize.main([str(word) for word in words])
    written = [text for text in texts(drawn["photographs"]) if text not in BAR]
    assert written == heads
    assert drawn["photographs"].axes[-1].images[0].get_array().shape == (32, 16, 3)


def test_training_curves_of_runs_are_drawn_together(tmp_path, drawn):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 2}\n')
    words = ["--metrics", tmp_path / "one", tmp_path / "two" / "metrics.jsonl", "--out", tmp_path]
    visualize.main([str(word) for word in words])
    assert [text.get_text() for text in drawn["training"].legends[0].get_texts()] == [
        "one, training",
        "two, training",
    ]


def test_flags_that_do_not_belong_together_are_refused(sides, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    photograph = tmp_path / "query" / "1.png"
    for words, sentence in (
        ([], "--run is missing"),
        ([*sides, "--masks", "m"], "--masks does not belong to feature files"),
        (["--metrics", "r", "--topk", 3], "--topk does not belong to --metrics"),
        (["--images", photograph], "either --run or --model"),
        (["--run", "r", "--model", "a:b", "--images", photograph], "either --run or --model"),
        (["--model", "a:b"], "needs photographs: name them with --images"),
        (["--run", "r", "--images", photograph, "--height", 9], "--height belongs to --model"),
        (["--run", "r", "--plots", "cmc"], "--plots does not belong to a run's test split"),
        (["--run", "r", "--rows", 0], "--rows and --topk must be at least 1"),
        ([*sides, "--protocol", "viper"], "--protocol viper is the mean of several rankings"),
        ([*sides, "--sheet-width", "wide"], "--sheet-width: expected 20 to 1000 mm, column or"),
        ([*sides, "--sheet-width", "nan"], "--sheet-width: expected 20 to 1000 mm, column or"),
        ([*sides, "--topk", 30], "--topk 30: 31 pictures in a row do not fit a width of 180 mm"),
        (["--metrics", tmp_path / "none"], "cannot be read"),
        (
            ["--model", "torch.nn:Flatten", "--images", photograph, "--device", "cpu"],
            "maps [B, 1, h, w] by name; found Tensor",
        ),
    ):
        assert sentence in fails(capsys, *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
