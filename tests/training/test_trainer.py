"""A run can be killed or stopped anywhere and ends as one that ran through."""

import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_training import command, data, small, table

from mmga.common.distributed import Group
from mmga.common.errors import UserError
from mmga.data.build import train_loader
from mmga.extraction.of_run import DataChoice, features_of_run
from mmga.models.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_optimizer_state,
    save_checkpoint,
)
from mmga.models.loading import build_network, load_run
from mmga.training import step, trainer
from mmga.training.validation import score

STEPWISE = {"sampler": "mgn", "p": 6}
"""One step an epoch."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "last.safetensors").weights


def assert_equal_runs(first: Path, second: Path) -> None:
    left, right = weights(first), weights(second)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name
    rows = [
        [
            {key: value for key, value in json.loads(line).items() if key != "images_per_second"}
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (first, second)
    ]
    assert rows[0] == rows[1]


def test_a_run_leaves_everything_in_its_folder(tmp_path):
    told = []
    result = trainer.train(small(), tmp_path, data=data(), progress=lambda *c: told.append(c))
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "last.safetensors", "tensorboard"} <= names
    assert not any(name.startswith(".") for name in names)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert result.steps == sum(line["kind"] == "train" for line in lines)
    assert set(lines[0]) >= {"loss", "triplet", "id", "mask", "mask_whole0", "mask_bottom", "lr"}
    assert 0 <= lines[-1]["mAP"] <= 1
    assert set(lines[-1]["attention"]) == {"whole0", "whole", "upper", "bottom"}
    assert {phase for phase, _, _ in told} >= {"train", "query", "gallery"}


def test_guidance_may_fade_out(tmp_path):
    config = small(loss={"mask_weight": 8.0, "mask_fade": 0.5})
    trainer.train(config, tmp_path, data=data())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for line in (line for line in lines if line["kind"] == "train"):
        weight = 8.0 * (1 - 0.5 * (line["epoch"] - 1) / config.run.epochs)
        total = line["triplet"] + config.loss.id_weight * line["id"] + weight * line["mask"]
        assert line["loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("stop_at", [1, 2, 4])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, stop_at):
    """SIGTERM in the middle of an epoch saves; the resumed run ends with the same bits."""
    trainer.train(small(), tmp_path / "through", data=data())

    def stop(phase, done, total):
        if phase == "train" and done == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(trainer.Stopped):
        trainer.train(small(), tmp_path / "stopped", data=data(), progress=stop)
    assert load_checkpoint(tmp_path / "stopped" / "last.safetensors").position.step == stop_at
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    trainer.train(small(), tmp_path / "stopped", data=data(), resume=True)
    assert_equal_runs(tmp_path / "through", tmp_path / "stopped")


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    """SIGKILL wherever it happens to be, as the command is run by a user."""
    root = table(tmp_path)
    through = subprocess.run(
        command(root, tmp_path / "through"), capture_output=True, text=True, check=False
    )
    assert through.returncode == 0, through.stderr
    out = tmp_path / "killed"
    process = subprocess.Popen(command(root, out), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lines = out / "metrics.jsonl"
        if lines.is_file() and len(lines.read_text().splitlines()) >= 7:
            break
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert load_checkpoint(out / "last.safetensors").position.epoch < 12, "killed too late"
    resumed = subprocess.run(
        command(root, out, "--resume"), capture_output=True, text=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    assert_equal_runs(tmp_path / "through", out)


def test_the_command_saves_on_sigterm_and_says_how_to_go_on(tmp_path):
    root, out = table(tmp_path), tmp_path / "run"
    process = subprocess.Popen(
        command(root, out, "--epochs", "4000"), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (out / "last.safetensors").is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert f"python -m mmga.train --resume --out {out}" in said


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    """It names step and images, and what is on disk is from before it, and finite."""
    real, taken = step.total_loss, []

    def broken(*arguments, **names):
        losses = real(*arguments, **names)
        taken.append(losses)
        return losses | {"loss": losses["loss"] * (torch.nan if len(taken) == 2 else 1)}

    monkeypatch.setattr(step, "total_loss", broken)
    with pytest.raises(UserError, match=r"the loss became nan at step 2 \(batch of 0000"):
        trainer.train(small(batch=STEPWISE), tmp_path, data=data())
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["kind"], last["step"], len(last["paths"])) == ("stopped", 2, 12)
    checkpoint = load_checkpoint(tmp_path / "last.safetensors")
    assert checkpoint.position.step == 1
    assert all(value.isfinite().all() for value in checkpoint.weights.values())
    monkeypatch.undo()
    trainer.train(small(batch=STEPWISE), tmp_path, data=data(), resume=True)
    trainer.train(small(batch=STEPWISE), tmp_path / "through", data=data())
    assert_equal_runs(tmp_path / "through", tmp_path)


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(tmp_path, monkeypatch):
    real = step.total_loss

    def broken(*arguments, **names):
        losses = real(*arguments, **names)
        losses["loss"].register_hook(lambda gradient: gradient * torch.inf)
        return losses

    monkeypatch.setattr(step, "total_loss", broken)
    with pytest.raises(UserError, match="the gradient's norm became nan at step 1"):
        trainer.train(small(), tmp_path, data=data())
    assert not (tmp_path / "last.safetensors").exists()


def train_lines(folder: Path, kind: str = "train") -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def test_the_moving_average_is_what_is_evaluated(tmp_path):
    """It follows the weights as its definition says, survives a stop, and is what a run opens."""
    settings = small(optimizer={"ema": 0.5}, batch=STEPWISE, run={"epochs": 2})
    trainer.train(settings, tmp_path / "through", data=data())

    def stop(phase, done, total):
        if phase == "train" and done == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(trainer.Stopped):
        trainer.train(settings, tmp_path / "run", data=data(), progress=stop)
    first = load_checkpoint(tmp_path / "run" / "last.safetensors")
    trainer.train(settings, tmp_path / "run", data=data(), resume=True)
    assert_equal_runs(tmp_path / "through", tmp_path / "run")
    checkpoint = load_checkpoint(tmp_path / "run" / "last.safetensors")
    name = "layer1.0.conv1.weight"
    assert first.average.keys() == checkpoint.weights.keys()
    # Step 2 keeps min(0.5, 3 / 12) of what step 1 left.
    expected = 0.25 * first.average[name] + 0.75 * checkpoint.weights[name]
    assert checkpoint.position.step == 2
    torch.testing.assert_close(checkpoint.average[name], expected)
    run = load_run(tmp_path / "run")
    assert run.averaged
    assert torch.equal(run.network.state_dict()[name], checkpoint.average[name])
    line = train_lines(tmp_path / "run", "eval")[-1]
    assert line["setting"]["ema"] == 0.5
    metrics = score(run.network, {"query": data().query, "gallery": data().gallery}, settings)
    assert metrics["mAP"] == line["mAP"]


def test_the_best_checkpoint_is_chosen_on_held_out_identities(tmp_path):
    settings = small(data={"val_ids": 2}, batch={"p": 3}, run={"eval_every": 1, "epochs": 4})
    trainer.train(settings, tmp_path, data=data())
    validations = train_lines(tmp_path, "val")
    assert [line["epoch"] for line in validations] == [1, 2, 3, 4]
    assert [line["epoch"] for line in train_lines(tmp_path, "eval")] == [4]  # test figures once
    best = load_checkpoint(tmp_path / "best.safetensors")
    scores = [line["mAP"] for line in validations]
    assert best.metrics["mAP"] == max(scores)
    assert best.position.epoch == scores.index(max(scores)) + 1
    assert best.num_classes == 4  # of six identities, two are held out
    assert load_run(tmp_path / "best.safetensors").step == best.position.step


def test_an_evaluation_that_was_cut_off_is_made_up_for(tmp_path):
    trainer.train(small(), tmp_path, data=data())
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["kind"] != "eval"]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in kept))
    result = trainer.train(small(), tmp_path, data=data(), resume=True)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == lines
    again = trainer.train(small(), tmp_path, data=data(), resume=True)
    assert (
        again.metrics.items() >= {name: result.metrics[name] for name in ("mAP", "rank1")}.items()
    )
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == lines


def test_gradients_are_clipped(tmp_path):
    """Under plain descent a step moves the weights by at most the rate times the norm."""
    settings = small(optimizer={"clip_norm": 0.01})
    network = build_network(settings.model, 6).train()
    parameters = list(network.parameters())
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.SGD(parameters, 1.0)
    loader = train_loader(settings, data().train, torch.device("cpu"), Group())
    taken = step.Step(network, optimizer, settings, Group(), [])
    metrics = taken.take(next(loader.epoch(0)), 1)
    assert metrics["gradient_norm"] > 1
    moved = torch.stack([(p - q).norm() for p, q in zip(parameters, before, strict=True)]).norm()
    assert moved.item() == pytest.approx(0.01, rel=1e-3)


def test_warm_up_reaches_the_optimizer(tmp_path):
    settings = small(
        optimizer={"warmup_epochs": 2, "lr": 0.1, "schedule": "step"}, run={"log_every": 1}
    )
    trainer.train(settings, tmp_path, data=data())
    rates = list(dict.fromkeys(line["lr"] for line in train_lines(tmp_path)))
    assert rates == pytest.approx([0.001, 0.0505, 0.1])


def test_switches_of_precision_and_speed(tmp_path, monkeypatch):
    """bfloat16 and torch.compile give nearly the same losses; deterministic mode is switched on."""
    trainer.train(small(run={"epochs": 1}), tmp_path / "plain", data=data())
    plain = train_lines(tmp_path / "plain")[0]
    trainer.train(
        small(run={"epochs": 1, "precision": "bfloat16"}), tmp_path / "bfloat16", data=data()
    )
    half = train_lines(tmp_path / "bfloat16")[0]
    assert half["loss"] != plain["loss"]
    assert half["loss"] == pytest.approx(plain["loss"], rel=0.03)

    compiled = []
    real = torch.compile

    def traced(module, **names):
        compiled.append(module)
        return real(module, backend="eager", **names)  # the tracing alone

    monkeypatch.setattr(torch, "compile", traced)
    trainer.train(small(run={"epochs": 1, "compile": True}), tmp_path / "compiled", data=data())
    assert compiled
    assert train_lines(tmp_path / "compiled")[0]["loss"] == pytest.approx(plain["loss"], rel=1e-4)

    seen = []
    try:
        trainer.train(
            small(run={"epochs": 1, "deterministic": True}),
            tmp_path / "deterministic",
            data=data(),
            progress=lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()),
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen
    assert all(seen)


def test_a_disk_that_fills_up_leaves_the_old_checkpoint(tmp_path):
    """A limit on the size of files stands for the full disk."""
    result = trainer.train(small(run={"epochs": 1}), tmp_path, data=data())
    before = weights(tmp_path)
    checkpoint = load_checkpoint(tmp_path / "last.safetensors")
    network = build_network(small().model, 6)
    optimizer = torch.optim.Adam(network.parameters())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    small_state = {"state": {}, "param_groups": []}
    for state in (optimizer.state_dict() | {"x": torch.zeros(50_000)}, small_state):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            with pytest.raises(UserError, match=r"could not be written: .*has room"):
                contents = Checkpoint(network.state_dict(), checkpoint.position, 6, {})
                save_checkpoint(tmp_path / "last.safetensors", contents, state)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    after = weights(tmp_path)
    assert result.steps
    assert all(torch.equal(before[name], after[name]) for name in before)
    load_optimizer_state(tmp_path / "last.safetensors", checkpoint)
    assert not [path for path in tmp_path.iterdir() if ".tmp" in path.name]


@pytest.mark.parametrize(
    ("sections", "resume", "sentence"),
    [
        ({}, True, "--resume: there is no checkpoint"),
        ({"batch": {"p": 7}}, False, "6 identities with two images or more"),
        ({"run": {"device": "cuda:99"}}, False, "--device cuda:99: this machine has"),
        ({"run": {"device": "gpu"}}, False, "--device must be auto, cpu, cuda"),
        ({"model": {"backbone": "resnet17"}}, False, "resnet17"),
        ({"data": {"val_ids": 7}}, False, "--val-ids 7: 6 training identities were seen by two"),
        ({"data": {"val_ids": 4}}, False, "2 identities with two images or more"),
        ({"run": {"norm": "synced"}}, False, "--norm synced needs CUDA devices"),
        ({"optimizer": {"ema": 1.0}}, False, "--ema must be from 0 to below 1, got 1.0"),
    ],
)
def test_input_that_cannot_be_trained_on(tmp_path, sections, resume, sentence):
    with pytest.raises(UserError, match=sentence):
        trainer.train(small(**sections), tmp_path, data=data(), resume=resume)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    trainer.train(small(run={"epochs": 1}), tmp_path, data=data())
    with pytest.raises(UserError, match="already holds a run; add --resume"):
        trainer.train(small(), tmp_path, data=data())


@pytest.mark.parametrize("what", ["truncated", "foreign", "another network", "no optimizer"])
def test_checkpoints_that_cannot_be_resumed(tmp_path, what):
    """One sentence names the file; nothing of the run is touched."""
    settings = small(run={"epochs": 1})
    trainer.train(settings, tmp_path, data=data())
    last = tmp_path / "last.safetensors"
    if what == "truncated":
        last.write_bytes(last.read_bytes()[:1000])
        sentence = "last.safetensors cannot be read: truncated"
    elif what == "foreign":
        save_file({"weight": torch.zeros(3)}, last)
        sentence = "not a checkpoint of mmga"
    elif what == "another network":
        settings = small(model={"pool": "gem"})
        sentence = r"--resume cannot change model.pool: .* was trained with avg, now it is gem"
    else:
        (optimizer,) = tmp_path.glob("last.optimizer-*.pt")
        optimizer.unlink()
        sentence = "optimizer state .* cannot be read"
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(UserError, match=sentence):
        trainer.train(settings, tmp_path, data=data(), resume=True)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


def test_the_death_of_a_worker_is_one_sentence(tmp_path):
    """As when the machine's memory runs out."""
    source = data()
    source.train.image = lambda index: os._exit(9)
    with pytest.raises(UserError, match=r"a process that loads images died .*lower --workers"):
        trainer.train(small(data={"workers": 1}, batch=STEPWISE), tmp_path, data=source)
    assert not (tmp_path / "last.safetensors").exists()


def test_masks_that_cover_too_little(tmp_path):
    root, masks = table(tmp_path), tmp_path / "masks"
    masks.mkdir()
    Image.fromarray(np.ones((32, 16), np.uint8)).save(masks / "000.png")
    sections = {"data": {"data": "csv", "root": root, "masks": masks}}
    named = r"1 of 24 training images have a mask; .*masks/001\.png and .*allow-missing"
    with pytest.raises(UserError, match=named):
        trainer.train(small(**sections), tmp_path / "run")
    sections["data"]["allow_missing_masks"] = True
    sections["run"] = {"epochs": 1}
    trainer.train(small(**sections), tmp_path / "run")


def test_a_test_split_without_matches_is_refused_before_the_first_step(tmp_path):
    sets = data()
    for images in (sets.query, sets.gallery):
        images.camids[:] = 0
    with pytest.raises(UserError, match="no query has a match in the gallery"):
        trainer.train(small(), tmp_path / "run", data=sets)
    assert not (tmp_path / "run" / "last.safetensors").exists()


def test_a_table_of_training_images_alone(tmp_path):
    lines = table(tmp_path).read_text().splitlines()
    kept = [line for line in lines if not line.endswith(("query", "gallery"))]
    (tmp_path / "table.csv").write_text("\n".join(kept) + "\n")
    sections = {"data": {"data": "csv", "root": tmp_path / "table.csv"}, "run": {"epochs": 1}}
    result = trainer.train(small(**sections), tmp_path / "run")
    assert result.steps > 0
    assert result.metrics == {}
    with pytest.raises(UserError, match="holds no image of split query, which is needed here"):
        features_of_run(tmp_path / "run", DataChoice())
    (tmp_path / "table.csv").write_text("\n".join([lines[0], *lines[2::2]]) + "\n")
    assert [len(side) for side in features_of_run(tmp_path / "run", DataChoice())] == [12, 12]
    with pytest.raises(UserError, match="holds no image of split train"):
        trainer.train(small(**sections), tmp_path / "again")


def test_names_of_a_table_are_kept_in_features(tmp_path):
    trainer.train(
        small(**{"data": {"data": "csv", "root": table(tmp_path)}, "run": {"epochs": 1}}),
        tmp_path / "run",
    )
    text = (tmp_path / "table.csv").read_text().splitlines()
    cells = [line.split(",") for line in text[1:]]
    named = [f"{path},cow{pid},c{camid},{split}" for path, pid, camid, split in cells]
    (tmp_path / "table.csv").write_text("\n".join([text[0], *named]) + "\n")
    query, gallery = features_of_run(tmp_path / "run", DataChoice())
    assert query.pid_names.tolist() == gallery.pid_names.tolist() == [f"cow{i}" for i in range(6)]
    assert query.camid_names.tolist() == ["c0"]
    assert gallery.camid_names.tolist() == ["c1"]
