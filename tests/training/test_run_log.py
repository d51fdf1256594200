"""What a killed run wrote after its last checkpoint is cut off when it goes on."""

import json

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


def test_numbers_become_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, 0)
    log.write("train", 1, {"loss": 0.5, "rmse": {"whole": 0.25}, "note": "text"})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["train/loss", "train/rmse/whole"]
    assert events.Scalars("train/rmse/whole")[0].value == 0.25
