"""One training in a folder, stopped by the user, resumed with what may change."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from small_training import command, data, small, table

from mmga import train
from mmga.common.errors import UserError
from mmga.models.checkpoint import load_checkpoint, load_optimizer_state
from mmga.training import trainer
from mmga.training.run_folder import locked

HOLD = """
import os, sys, time
from pathlib import Path
from mmga.training.run_folder import locked
with locked(Path(sys.argv[1])):
    if os.fork() == 0:  # as a process that loads images, which outlives its parent for a while
        time.sleep(20)
        os._exit(0)
    print("held", flush=True)
    time.sleep(20)
"""


def interrupt_at(step, signum=signal.SIGINT):
    def progress(phase, done, total):
        if phase == "train" and done == step:
            os.kill(os.getpid(), signum)

    return progress


def test_a_second_training_in_a_folder_is_refused_until_the_first_dies(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    sentence = rf"process {process.pid} on .* is training in this folder; wait for its end"
    for resume in (False, True):
        with pytest.raises(UserError, match=sentence):
            trainer.train(small(), tmp_path, data=data(), resume=resume)
    process.kill()
    process.wait()
    with locked(tmp_path):  # although the child is alive
        assert (tmp_path / "run.lock").is_file()
    assert not list(tmp_path.iterdir())


def test_a_folder_without_locks_is_told(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError("No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path):
        pass
    assert "cannot be locked (No locks available): start no second training" in caplog.text


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path):
    with pytest.raises(UserError, match="a batch needs 7"):
        trainer.train(small(batch={"p": 7}), tmp_path / "runs" / "x", data=data())
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--out .*file/x cannot be written \(Not a directory\)"):
        trainer.train(small(), tmp_path / "file" / "x", data=data())


def test_the_best_weights_of_an_earlier_run_are_not_taken_for_those_of_a_new_one(tmp_path):
    (tmp_path / "best.safetensors").touch()
    with pytest.raises(UserError, match=r"holds best\.safetensors of an earlier run"):
        trainer.train(small(), tmp_path, data=data())


def test_ctrl_c_saves_and_the_run_goes_on(tmp_path, capfd):
    said = []
    with pytest.raises(trainer.Stopped) as stopped:
        trainer.train(small(), tmp_path, data=data(), progress=interrupt_at(2))
    assert stopped.value.code == 130
    assert "note: stopping and saving; Ctrl-C again ends at once" in capfd.readouterr().err
    assert load_checkpoint(tmp_path / "last.safetensors").position.step == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    trainer.train(small(), tmp_path, data=data(), resume=True, tell=said.append)
    assert said == ["goes on after step 2, in epoch 1 of 3"]


def test_ctrl_c_ends_an_evaluation_whose_checkpoint_is_written(tmp_path):
    def progress(phase, done, total):
        if phase == "query":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(trainer.Stopped):
        trainer.train(small(), tmp_path, data=data(), progress=progress)
    result = trainer.train(small(), tmp_path, data=data(), resume=True)
    assert result.metrics["num_valid_query"] == 6


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    def progress(phase, done, total):
        if done == 1:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer.train(small(), tmp_path, data=data(), progress=progress)
    assert not (tmp_path / "last.safetensors").exists()


def test_the_command_leaves_with_130_on_ctrl_c_of_the_whole_group(tmp_path):
    """A terminal sends the signal to the processes that load images, too."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(table(tmp_path), out, "--epochs", "4000", "--workers", "1"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (out / "last.safetensors").is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert f"python -m mmga.train --resume --out {out}" in said
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The bytes of a run that was stopped after two steps of its first epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(trainer.Stopped):
        trainer.train(small(), folder, data=data(), progress=interrupt_at(2, signal.SIGTERM))
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def put(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("section", "name", "value", "was"),
    [
        ("data", "height", 48, 32),
        ("data", "width", 32, 16),
        ("data", "val_ids", 1, 0),
        ("data", "data_seed", 1, 0),
        ("model", "pool", "gem", "avg"),
        ("batch", "p", 2, 4),
        ("batch", "k", 4, 2),
        ("batch", "sampler", "mgn", "bot"),
        ("optimizer", "amsgrad", False, True),
        ("run", "seed", 1, 0),
    ],
)
def test_what_cannot_change_is_refused_by_name(tmp_path, stopped, section, name, value, was):
    put(tmp_path, stopped)
    sentence = rf"cannot change {section}.{name}: .* was trained with {was}, now it is {value}"
    with pytest.raises(UserError, match=sentence):
        trainer.train(small(**{section: {name: value}}), tmp_path, data=data(), resume=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == stopped


def test_other_images_are_refused(tmp_path, stopped):
    put(tmp_path, stopped)
    other = data()
    other.train.paths[0] = "another.png"
    with pytest.raises(UserError, match=r"trained on other images: 24 images of 6 .* now 24"):
        trainer.train(small(), tmp_path, data=other, resume=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == stopped


def test_what_changes_is_told_and_takes_effect(tmp_path, stopped):
    put(tmp_path, stopped)
    changed = small(optimizer={"lr": 1e-4, "weight_decay": 0.1}, run={"epochs": 2})
    said = []
    trainer.train(changed, tmp_path, data=data(), resume=True, tell=said.append)
    assert said == [
        "goes on after step 2, in epoch 1 of 2, with lr 0.0001 (was 0.002), weight_decay 0.1 "
        "(was 0.0005), epochs 2 (was 3)"
    ]
    last = tmp_path / "last.safetensors"
    groups = load_optimizer_state(last, load_checkpoint(last))["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.1}


def test_the_configuration_of_a_finished_run_stays(tmp_path):
    settings = small(run={"epochs": 1})
    trainer.train(settings, tmp_path, data=data())
    before = (tmp_path / "config.yaml").read_bytes()
    said = []
    changed = small(run={"epochs": 1}, optimizer={"lr": 1.0})
    trainer.train(changed, tmp_path, data=data(), resume=True, tell=said.append)
    assert (tmp_path / "config.yaml").read_bytes() == before
    assert "the run is finished" in said[0]
    assert "nothing is changed by lr 1.0 (was 0.002)" in said[0]


def test_a_resumed_run_needs_no_pre_trained_weights(tmp_path):
    """Their file may be gone: the checkpoint holds every weight."""
    from safetensors.torch import save_file

    from mmga.models.backbone import build_backbone

    file = tmp_path / "tiny.safetensors"
    save_file(build_backbone("tiny").state_dict(), file)
    settings = small(model={"backbone_weights": file}, run={"epochs": 2})
    with pytest.raises(trainer.Stopped):
        trainer.train(settings, tmp_path / "run", data=data(), progress=interrupt_at(2))
    file.unlink()
    trainer.train(settings, tmp_path / "run", data=data(), resume=True)


def test_a_training_shows_the_number_of_its_steps(tmp_path, capsys):
    """Epochs of recipe bot differ by a batch; the last line has everything worth watching."""
    random_counts = data(persons=7, images=5)
    told = []
    result = trainer.train(
        small(batch={"p": 4, "k": 2}, run={"epochs": 4}),
        tmp_path / "told",
        data=random_counts,
        progress=lambda *call: told.append(call),
    )
    assert {total for phase, _, total in told if phase == "train"} == {result.steps}
    settings = replace(small(), run=replace(small().run, epochs=1))
    root = table(tmp_path)
    settings = replace(settings, data=replace(settings.data, data="csv", root=root))
    assert train.body(train.Options(out=tmp_path / "run", settings=settings)) == 0
    said = capsys.readouterr()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-2])
    steps = last["step"]
    (line,) = [one for one in said.err.splitlines() if one.startswith("train:")]
    assert line.startswith(f"train: {steps}/{steps}, ")
    assert f"epoch 1/1, loss {last['loss']:.3g} (triplet " in line
    assert f"identity accuracy {last['accuracy']:.1%}, lr 2e-05, " in line
    assert line.endswith(" images/s")
    assert 0 <= last["accuracy"] <= 1
    assert f"trained {steps} steps" in said.out
