"""Two processes take the steps of one: same losses, same gradients, one voice."""

import json
import os
import socket
import subprocess
import sys

import group_of_two
import pytest
import torch

from mmga.common.distributed import Group, environment
from mmga.common.errors import UserError
from mmga.common.meeting import refuse
from mmga.config import merged, recipe_config
from mmga.models.checkpoint import load_checkpoint
from mmga.training import trainer
from mmga.training.step import synced

# The current folder stays first on the path, as with `python -m`.
START = f"import runpy; runpy.run_path({group_of_two.__file__!r}, run_name='__main__')"


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes wrote (group_of_two.py)."""
    out, port = tmp_path_factory.mktemp("group"), free_port()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", START, str(out), str(rank), port],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=300)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    for process, errors in zip(running, said, strict=True):
        assert process.returncode == 0, errors
    return out


def lines(folder, kind):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


@pytest.mark.parametrize(
    ("name", "broken"), [("even", ()), ("uneven", tuple(range(0, 32, 5)))], ids=["even", "uneven"]
)
def test_losses_and_gradients_are_those_of_one_process(folder, name, broken):
    """Uneven: images are left out as broken, so that the processes' shares differ."""
    one = group_of_two.gradients(Group(), broken)
    two = [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert two[0]["images"] == two[1]["images"] == one["images"]
    for found in two:
        metrics, expected = found["metrics"], one["metrics"]
        maps, expected_maps = metrics.pop("map_gradients"), dict(expected["map_gradients"])
        assert metrics == pytest.approx(
            {k: v for k, v in expected.items() if k != "map_gradients"}, rel=1e-5, abs=1e-5
        )
        assert maps == pytest.approx(expected_maps, rel=1e-4, abs=1e-6)
        assert found["gradients"].keys() == one["gradients"].keys()
        for key, gradient in found["gradients"].items():
            torch.testing.assert_close(gradient, one["gradients"][key], rtol=1e-5, atol=1e-5)
    # Not for want of size: the gradients that were compared are far above the tolerance.
    assert one["metrics"]["gradient_norm"] > 1


def test_a_run_of_two_logs_the_losses_of_a_run_of_one(folder, tmp_path):
    trainer.train(group_of_two.config(), tmp_path, data=group_of_two.data())
    one, two = lines(tmp_path, "train"), lines(folder / "two", "train")
    assert len(one) == len(two) > 2
    for left, right in zip(one, two, strict=True):
        assert left["step"] == right["step"]
        # Adam makes noise of the size of the rate out of gradients that should vanish.
        tolerance = 1e-5 if left["step"] == 1 else 2e-3
        for name in ("loss", "triplet", "id", "mask", "mask_whole0", "mask_bottom"):
            assert right[name] == pytest.approx(left[name], rel=tolerance, abs=tolerance)
    assert lines(folder / "two", "eval")[0]["num_valid_query"] == 16


def test_features_are_sharded_without_changing_a_bit(folder):
    one = group_of_two.features(Group())
    for rank in (0, 1):
        assert torch.equal(torch.load(folder / f"features-{rank}.pt", weights_only=True), one)


def test_a_stopped_run_of_two_goes_on_bit_for_bit(folder):
    through, stopped = (
        load_checkpoint(folder / name / "last.safetensors") for name in ("through-local", "stopped")
    )
    assert through.position == stopped.position
    for name, value in through.weights.items():
        assert torch.equal(value, stopped.weights[name]), name
        assert torch.equal(through.average[name], stopped.average[name]), name
    assert lines(folder / "stopped", "val") == lines(folder / "through-local", "val")
    assert (folder / "stopped" / "best.safetensors").is_file()


def test_no_thread_of_the_process_group_outlives_it(folder):
    """One that does may abort the process while the interpreter shuts down."""
    for rank in (0, 1):
        threads = json.loads((folder / f"threads-{rank}.json").read_text())
        assert not [name for name in threads if "gloo" in name]


def test_an_error_of_one_process_ends_both(folder):
    first, second = (json.loads((folder / f"errors-{r}.json").read_text()) for r in (0, 1))
    assert second["one"] == ["UserError", "only here"]
    assert first["one"] == ["PeerError", "process 1 of the run met an error: only here"]
    assert (first["bug"][0], second["bug"][0]) == ("PeerError", "RuntimeError")
    assert (first["all"], second["all"][0]) == (["UserError", "everywhere"], "PeerError")
    assert first["loading"][0] == "PeerError"
    assert "cannot be decoded" in second["loading"][1]
    assert first["not finite"][0] == "NotFinite"
    assert "the loss became nan at step 1" in first["not finite"][1]
    assert second["not finite"][0] == "PeerError"
    assert "every image of a process' share" in first["whole share"][1]
    assert "--p must be a multiple of the 2 processes" in first["dealing"][1]
    stopped = lines(folder / "nan", "stopped")[0]
    assert len(stopped["paths"]) == 8  # of both processes


def test_the_command_says_one_sentence(folder):
    """What is wrong for all is said once, and all leave with 2."""
    first, second = (json.loads((folder / f"errors-{r}.json").read_text()) for r in (0, 1))
    assert (first["command"][0], second["command"]) == (2, [2, ""])
    assert len(first["command"][1].splitlines()) == 1
    assert "mmga train: error: " in first["command"][1]
    assert "nowhere" in first["command"][1]


@pytest.mark.parametrize(
    ("device", "world", "norm", "p", "expected"),
    [
        ("cuda", 4, "auto", 16, True),  # 16 images each
        ("cuda", 2, "auto", 16, False),  # 32 each
        ("cuda", 2, "synced", 16, True),
        ("cuda", 4, "local", 16, False),
        ("cuda", 4, "frozen", 16, False),
        ("cuda", 1, "synced", 16, False),
        ("cpu", 4, "auto", 16, False),
    ],
)
def test_when_batch_normalisation_is_synced(device, world, norm, p, expected):
    config = merged(recipe_config("mgn"), {"run": {"norm": norm}, "batch": {"p": p}}, where="test")
    assert synced(config, torch.device(device), world) is expected


def test_synced_batch_normalisation_needs_cuda():
    config = merged(recipe_config("mgn"), {"run": {"norm": "synced"}}, where="test")
    with pytest.raises(UserError, match="--norm synced needs CUDA devices"):
        synced(config, torch.device("cpu"), 2)


def test_the_conversion_keeps_every_weight():
    network = group_of_two.build_network(group_of_two.config().model, 4)
    names = list(network.state_dict())
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    assert list(converted.state_dict()) == names
    norms = [m for m in converted.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(m, torch.nn.SyncBatchNorm) for m in norms)


def test_a_world_without_ranks_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="RANK is not; start the processes with torchrun"):
        environment()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("WORLD_SIZE", "two", "from 1 to 1048576, found 'two'"),
        ("WORLD_SIZE", "0", "from 1 to 1048576, found '0'"),
        ("WORLD_SIZE", "9" * 5000, "from 1 to 1048576, found '9999"),
        ("RANK", "2", "from 0 to 1, found '2'"),
        ("LOCAL_RANK", "-1", "from 0 to 1, found '-1'"),
        ("LOCAL_RANK", "", "from 0 to 1, found ''"),
        ("MASTER_PORT", "http", "from 1 to 65535, found 'http'"),
        ("MASTER_PORT", "65536", "from 1 to 65535, found '65536'"),
    ],
)
def test_a_variable_that_is_no_such_number_is_named(monkeypatch, name, value, expected):
    right = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_PORT": "29500"}
    for other, given in (right | {"MASTER_ADDR": "127.0.0.1"}).items():
        monkeypatch.setenv(other, given)
    assert environment() == (1, 2, 1)
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^{name}: expected a whole number {expected}") as told:
        environment()
    if name != "LOCAL_RANK":  # which the others need not know
        assert refuse(told.value) is told.value  # and meets nobody
