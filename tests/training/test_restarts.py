"""A run that torchrun starts again (`--max-restarts`) goes on from its last checkpoint."""

import os
import signal
import sys

import pytest
import torch
import workers
from small_training import command, data, small, table

from mmga.common.errors import UserError
from mmga.models.checkpoint import load_checkpoint
from mmga.training import trainer


def attempt(restarts: int, words: list[str], killed: bool, said: str) -> None:
    """Train as a process that torchrun has started again so many times; it may be killed."""
    os.environ |= {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_MAX_RESTARTS": "3"}
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(restarts)
    from mmga import train
    from mmga.training.setup import State

    torch.set_num_threads(1)
    save = State.save

    def saved(*given):
        save(*given)
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)

    State.save = saved
    with open(said, "w") as sys.stderr:
        train.main(words)


def code_of(*given) -> int | None:
    process = workers.start(attempt, *given)
    process.join(120)
    return process.exitcode


def test_a_killed_run_goes_on(tmp_path):
    root, said = table(tmp_path), tmp_path / "said"
    more = ("--epochs", "3", "--checkpoint-every", "1")
    words = {name: command(root, tmp_path / name, *more)[3:] for name in ("through", "killed")}
    assert code_of(0, words["through"], False, str(said)) == 0
    assert "goes on" not in said.read_text()
    for restarts, epoch in ((0, 1), (0, 2)):  # as where one on another machine failed
        assert code_of(restarts, words["killed"], True, str(said)) == -signal.SIGKILL
        assert load_checkpoint(tmp_path / "killed" / "last.safetensors").position.epoch == epoch
    assert code_of(1, words["killed"], False, str(said)) == 0
    assert "goes on after step 5, in epoch 3 of 3" in said.read_text()
    left, right = (
        load_checkpoint(tmp_path / name / "last.safetensors").weights
        for name in ("through", "killed")
    )
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_run_that_was_there_is_refused(tmp_path, monkeypatch):
    """Also where torchrun tries a second time."""
    trainer.train(small(), tmp_path, data=data())
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    for restarts in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
        with pytest.raises(UserError, match="already holds a run; add --resume"):
            trainer.train(small(), tmp_path, data=data())
