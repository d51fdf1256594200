"""What a killed run wrote after its last checkpoint is cut off when it goes on."""

import json
import resource

import pytest
from small_training import data, small

from mmga.common.errors import UserError
from mmga.models.checkpoint import load_checkpoint
from mmga.training import trainer
from mmga.training.run_log import RunLog


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_log_is_cut_back_to_the_checkpoint(tmp_path):
    log = RunLog(tmp_path, 0)
    for step in range(1, 6):
        log.write("train", step, {"loss": 1.0 / step, "rmse": {"whole": 0.5}})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # killed while writing
    log = RunLog(tmp_path, 3)
    log.write("train", 4, {"loss": 9.0})
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    assert lines(tmp_path)[-1] == {"kind": "train", "step": 4, "loss": 9.0}


def test_every_line_is_json(tmp_path):
    log = RunLog(tmp_path, 0)
    log.write("eval", 1, {"attention": {"upper": {"iou": float("nan"), "rmse": 0.5}}})
    log.close()

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line["attention"] == {"upper": {"iou": None, "rmse": 0.5}}


def test_numbers_become_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, 0)
    log.write("train", 1, {"loss": 0.5, "rmse": {"whole": 0.25}, "note": "text"})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["train/loss", "train/rmse/whole"]
    assert events.Scalars("train/rmse/whole")[0].value == 0.25


def test_a_full_disk_is_one_sentence_and_leaves_whole_lines(tmp_path):
    """A limit on the size of files stands for it."""
    log = RunLog(tmp_path, 0)
    log.write("train", 1, {"loss": 0.5})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, limits[1]))
    try:
        with pytest.raises(UserError, match="could not be written: File too large; make room"):
            log.write("train", 2, {"loss": 0.25})
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert lines(tmp_path) == [{"kind": "train", "step": 1, "loss": 0.5}]


@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard"])
def test_a_log_that_cannot_be_opened_is_one_sentence(tmp_path, name):
    path = tmp_path / name
    path.mkdir() if name == "metrics.jsonl" else path.touch()
    with pytest.raises(UserError, match=r"could not be written: (Is a directory|File exists)"):
        RunLog(tmp_path, 0)


def test_a_disk_that_fills_up_in_training_leaves_the_last_checkpoint(tmp_path, capfd):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(phase, done, total):
        if phase == "train" and done == 4:  # in the second epoch
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))

    try:
        with pytest.raises(UserError, match=r"could not be written: .* make room and go on with"):
            trainer.train(small(), tmp_path, data=data(), progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "Traceback" not in capfd.readouterr().err
    assert load_checkpoint(tmp_path / "last.safetensors").position.epoch == 1
    trainer.train(small(), tmp_path, data=data(), resume=True)
