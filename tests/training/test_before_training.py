"""What can be known before the first step is said before the first step."""

import dataclasses
import json
import re
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import write_run
from small_training import data, small, table

from mmga import eval as evaluation
from mmga import export, extract, train, visualize
from mmga.common.errors import UserError
from mmga.config import merged, recipe_config
from mmga.data.dataset import Subset
from mmga.data.holdout import hold_out
from mmga.models.checkpoint import Checkpoint, Position, save_checkpoint
from mmga.models.loading import build_network, configuration_of
from mmga.training import trainer


def written(folder, split="", damage=None):
    """Return settings for a table of images, one of whose files is damaged."""
    root = table(folder)
    lines = root.read_text().splitlines()
    if split:  # images of a split get files of their own
        changed = [
            line.replace(line.split(",")[0], f"{split}-{line.split(',')[0]}")
            if line.endswith(split)
            else line
            for line in lines
        ]
        for old, new in zip(lines, changed, strict=True):
            if old != new:
                name = old.split(",")[0]
                (folder / f"{split}-{name}").write_bytes((folder / name).read_bytes())
        root.write_text("\n".join(changed) + "\n")
        victim = folder / next(one for one in changed if one.endswith(split)).split(",")[0]
        damage(victim)
    return {"data": {"data": "csv", "root": root}, "run": {"epochs": 1}}


@pytest.mark.parametrize("split", ["train", "query", "gallery"])
def test_a_missing_image_of_any_split_is_named(tmp_path, split):
    settings = small(**written(tmp_path, split, lambda path: path.unlink()))
    title = "training" if split == "train" else f"csv {split}"
    sentence = rf"1 of \d+ {title} images cannot be read, the first is .*{split}-\d+.png \(No such"
    with pytest.raises(UserError, match=sentence):
        trainer.train(settings, tmp_path / "run", progress=None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "the file is empty"), (b"<html>not found</html>", "cannot identify image file")],
)
def test_files_that_are_no_images_are_named(tmp_path, content, reason):
    settings = written(tmp_path, "gallery", lambda path: path.write_bytes(content))
    with pytest.raises(UserError, match=rf"csv gallery images cannot be read, .*{reason}"):
        trainer.train(small(**settings), tmp_path / "run")
    settings["data"]["skip_broken"] = True
    trainer.train(small(**settings), tmp_path / "run")


def test_a_damaged_mask_of_a_query_is_told_before_training(tmp_path):
    """It is read after the last step, when attention maps are compared with masks."""
    settings = written(tmp_path)
    (tmp_path / "masks").mkdir()
    for index in range(24):
        mask = Image.fromarray(np.ones((32, 16), np.uint8))
        mask.save(tmp_path / "masks" / f"{index:03d}.png")
    (tmp_path / "masks" / "004.png").write_bytes(b"")  # a query's, and trained on later
    settings["data"]["masks"] = tmp_path / "masks"
    with pytest.raises(UserError, match=r"004\.png cannot be read"):
        trainer.train(small(**settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def one_camera():
    sets = data()
    for images in (sets.train, sets.query, sets.gallery):
        images.camids[:] = 0
    return sets


def test_the_protocol_of_a_training_is_used_and_kept(tmp_path):
    with pytest.raises(UserError, match="or choose --protocol no-camera"):
        trainer.train(small(), tmp_path / "run", data=one_camera())
    with pytest.raises(UserError, match=r"two cameras, .* or choose --protocol no-camera"):
        hold_out(one_camera().train, 2)
    settings = small(
        data={"val_ids": 2}, batch={"p": 3}, run={"protocol": "no-camera", "epochs": 1}
    )
    result = trainer.train(settings, tmp_path / "run", data=one_camera())
    assert result.metrics["setting"]["protocol"] == "no-camera"
    assert result.metrics["num_valid_query"] == 6
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (validated,) = [line for line in lines if line["kind"] == "val"]
    assert validated["setting"]["protocol"] == "no-camera"
    assert configuration_of(tmp_path / "run").run.protocol == "no-camera"


UNFIT = [
    pytest.param({"backbone": "timm:test_vit"}, (40, 16), "got 40x16; .* to 32x16 for example",
                 marks=pytest.mark.skipif(find_spec("timm") is None, reason="needs timm")),
    ({"backbone": "osnet_x0_25", "heads": 8}, (40, 16), "2 rows of features, .* raise --height"),
    ({"backbone": "osnet_x0_25"}, (1, 1), "osnet_x0_25 cannot take images of 1x1 .* too small"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "size", "sentence"), UNFIT)
def test_a_size_that_the_network_cannot_take(tmp_path, monkeypatch, model, size, sentence):
    def load(*given):
        raise AssertionError("data were read")

    monkeypatch.setattr(trainer.Sets, "load", load)
    settings = small(model=model, data={"height": size[0], "width": size[1]})
    before = torch.get_rng_state()
    with pytest.raises(UserError, match=sentence):
        trainer.train(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("model", "size", "sentence"), UNFIT)
def test_a_run_whose_network_cannot_take_its_images(tmp_path, capsys, model, size, sentence):
    data = {"height": size[0], "width": size[1]}
    write_run(tmp_path, data=data, **model)
    before = sorted(tmp_path.iterdir())
    for command in (extract, export, visualize):
        with pytest.raises(SystemExit) as leave:
            command.main(["--run", str(tmp_path)])
        assert leave.value.code == 2
        said = capsys.readouterr().err
        assert re.search(f"error: checkpoint {tmp_path}/last.safetensors: .*{sentence}", said)
        assert len(said.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("no-cameras", "--protocol: expected market1501"), ("viper", "mmga eval --run")],
)
def test_protocols_that_training_has_not(tmp_path, name, sentence):
    with pytest.raises(UserError, match=sentence):
        trainer.train(small(run={"protocol": name}), tmp_path / "run", data=data())


def test_eval_of_a_run_uses_the_protocol_of_its_training(tmp_path, capsys):
    """An older run, whose configuration names none, is evaluated by market1501."""
    root = table(tmp_path)
    values = {"data": {"data": "csv", "root": root, "height": 32, "width": 16}}
    for name, protocol in (("new", "no-camera"), ("old", None)):
        config = merged(recipe_config("synthetic"), values, where="test")
        saved = dataclasses.asdict(config)
        saved["data"]["root"] = str(root)
        saved["run"]["protocol"] = protocol
        if protocol is None:
            del saved["run"]["protocol"]
        network = build_network(config.model, 6)
        contents = Checkpoint(network.state_dict(), Position(1, 0, 1), 6, saved)
        save_checkpoint(tmp_path / name / "last.safetensors", contents)
        report = tmp_path / f"{name}.json"
        evaluation.main(["--run", str(tmp_path / name), "--json", str(report)])
    found = [json.loads((tmp_path / f"{n}.json").read_text())["protocol"] for n in ("new", "old")]
    assert found == ["no-camera", "market1501"]


def test_a_training_without_test_split_says_so(tmp_path, capsys, monkeypatch):
    sets = data()
    nothing = Subset(sets.train, [])
    alone = dataclasses.replace(sets, query=nothing, gallery=nothing)
    monkeypatch.setattr("mmga.training.setup.load_mixture", lambda *_: (alone.train, {"x": alone}))
    options = train.Options(out=tmp_path / "run", settings=small(run={"epochs": 1}))
    assert train.body(options) == 0
    said = capsys.readouterr().out
    assert "there is no test split: nothing was evaluated" in said
    assert "mmga.extract --run" in said
    half = dataclasses.replace(sets, gallery=nothing)
    with pytest.raises(UserError, match="test split of test has no gallery image"):
        trainer.train(small(), tmp_path / "half", data=half)


def test_broken_images_are_skipped_to_the_last_figure(tmp_path):
    """Those of training and of queries, also where attention maps are compared with masks."""
    root = table(tmp_path)
    for file in sorted(tmp_path.glob("*.png")):
        mask = tmp_path / "masks" / file.name
        mask.parent.mkdir(exist_ok=True)
        Image.fromarray(np.arange(32 * 16, dtype=np.uint8).reshape(32, 16) % 3).save(mask)
    (tmp_path / "002.png").write_bytes((tmp_path / "002.png").read_bytes()[:200])
    settings = {"data": "csv", "root": root, "masks": tmp_path / "masks", "skip_broken": True}
    config = small(data=settings, run={"epochs": 1}, loss={"guide": "mean"})
    metrics = trainer.train(config, tmp_path / "run").metrics
    assert metrics["num_valid_query"] == 11
    assert metrics["attention"]["whole"]["images"] == 11


def test_a_last_batch_of_one_identity_has_no_other_mask(tmp_path):
    """Seven identities, three in a batch."""
    config = small(batch={"p": 3, "sampler": "mgn"}, loss={"guide": "other"})
    with pytest.raises(UserError, match="2 of the 2 images of a batch are of one identity"):
        trainer.train(config, tmp_path / "run", data=data(7))
    assert not (tmp_path / "run").exists()


def test_a_batch_of_one_identity_has_no_triplet(tmp_path):
    with pytest.raises(UserError, match="--p must be at least 2, because a triplet needs another"):
        trainer.train(small(batch={"p": 1}), tmp_path / "run", data=data())


@pytest.mark.parametrize("column", [False, True])
def test_masks_that_a_table_names_are_known(column, tmp_path, caplog):
    root = table(tmp_path)
    if column:
        Image.fromarray(np.arange(32 * 16, dtype=np.uint8).reshape(32, 16) % 3).save(
            tmp_path / "m.png"
        )
        header, *rows = root.read_text().splitlines()
        root.write_text("\n".join([f"{header},mask", *(f"{row},m.png" for row in rows)]))
    trainer.train(small(data={"data": "csv", "root": root}, run={"epochs": 1}), tmp_path / "run")
    assert ("attention is trained without guidance" in caplog.text) is not column
