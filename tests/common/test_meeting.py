"""Processes of a run that end before all have met."""

import os
import signal
import socket
import subprocess
import sys
import time

import failing
import pytest
import shared_cases
import torch
import torch.distributed as dist
import workers

from mmga.common import distributed, meeting


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    out = tmp_path_factory.mktemp("features")
    for name, side in zip(("query", "gallery"), shared_cases.sides(""), strict=True):
        side.save(out / f"{name}.npz")
    return ["eval", "--query", str(out / "query.npz"), "--gallery", str(out / "gallery.npz")]


@pytest.mark.parametrize(
    ("how", "which", "codes", "said"),
    [
        ("killed before another one is there", 2, [1, None, -9, 1], "process 2 of the 4 of the"),
        ("killed before another one is there", 0, [-9, 1, 1, None], "process 0 of the 4 of the"),
        ("interrupted before another one is there", 2, [130, None, 130, 130], "interrupted"),
        ("interrupted before another one is there", 0, [130, 130, 130, None], "interrupted"),
        ("waiting before another one is there", 0, [2, 2, 2, None], " within 5 s; start all of"),
        ("waiting before another one is there", 1, [None, 2, 2, 2], "process 0 of the 4 of the"),
        ("with a wrong time to wait", 0, [2] * 4, "MMGA_JOIN_TIMEOUT: expected seconds from 1 to"),
        (
            "with a wrong time to wait, one tells it slowly",
            2,
            [2] * 4,
            "MMGA_JOIN_TIMEOUT: expected",
        ),
        ("one has the number of another", 1, [2] * 4, "two processes of the 4 of the run have the"),
        ("none connects", 1, [2] * 4, "did not meet at 127.0.0.1:"),
        ("killed while the others connect", 2, [1, 1, -9, 1], "process 2 of the 4 of the run"),
        ("killed while the others connect", 0, [-9, 1, 1, 1], "process 0 of the 4 of the run"),
        ("without a device", 0, [2] * 4, "--device cpu: there is none"),
        ("without a device", 3, [2] * 4, "--device cpu: there is none"),
        ("without a device, another is late", 0, [2] * 4, "--device cpu: there is none"),
        ("without a device, another is late", 3, [2] * 4, "--device cpu: there is none"),
    ],
)
def test_one_that_ends_before_all_have_met_ends_all(words, tmp_path, how, which, codes, said):
    found, errors = failing.run(how, words, tmp_path, 4, which)
    assert found == codes
    assert len(errors.splitlines()) == 1 and errors.startswith("mmga eval: ")
    assert said in errors


@pytest.mark.parametrize(
    ("how", "words", "codes", "said"),
    [
        ("killed while the others connect", [], [1, 1, -9, 1], "process 2 of the 4 of the run"),
        ("nothing", ["--config", "absent.yaml"], [2] * 4, "absent.yaml cannot be read"),
    ],
)
def test_training_ends_with_one_sentence(tmp_path, how, words, codes, said):
    words = ["train", "--out", str(tmp_path / "out"), *words]
    found, errors = failing.run(how, words, tmp_path, 4, 2)
    assert found == codes
    assert len(errors.splitlines()) == 1 and errors.startswith("mmga train: ")
    assert said in errors


def test_a_connection_that_meets_itself_is_no_answer(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        assert meeting._answers(*address)
    assert not meeting._answers(*address)
    alone = socket.socket()
    alone.bind(("127.0.0.1", 0))
    alone.connect(alone.getsockname())
    monkeypatch.setattr(socket, "create_connection", lambda *_: alone)
    assert not meeting._answers(*address)


def meet_again(rank, port, machine, starts, killed):
    """Meet three times, each process at another time; it may be killed at the end of the first."""
    workers.environment(rank, 2, port)
    if machine is not None:
        os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_RANK": str(machine)}
        os.environ |= {"GROUP_WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": str(starts)}
    connect = dist.init_process_group

    def late(*given, **named):
        time.sleep(2 * rank)
        connect(*given, **named)

    dist.init_process_group = late
    for number in range(3):
        with distributed.join(torch.device("cpu")) as group:
            assert dist.distributed_c10d._get_default_store().timeout == distributed.PATIENCE
            assert group.table([rank + number])[:, 0].tolist() == [number, number + 1]
            if killed:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(2 - 2 * rank)


def codes_of(*running):
    for process in running:
        process.join(120)
    return [process.exitcode for process in running]


def test_processes_meet_again():
    port = workers.free_port()
    running = [workers.start(meet_again, rank, port, None, 0, False) for rank in range(2)]
    assert codes_of(*running) == [0, 0]


def test_processes_that_torchrun_starts_again_meet():
    """Of two machines, that of the process that failed alone counts another start."""
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    for counts, killed in (((0, 0), True), ((0, 1), True), ((0, 2), False)):
        running = [
            workers.start(meet_again, rank, str(store.port), rank, count, killed)
            for rank, count in enumerate(counts)
        ]
        assert codes_of(*running) == ([-signal.SIGKILL] * 2 if killed else [0, 0])


@pytest.mark.skipif(not meeting.whereabouts(os.getpid()), reason="the system has no /proc")
def test_one_that_lives_has_not_ended_however_slow_it_is(words, tmp_path):
    codes, errors = failing.run("one speaks slowly", words, tmp_path, 4, 1)
    assert codes == [0] * 4, errors


@pytest.mark.skipif(not meeting.whereabouts(os.getpid()), reason="the system has no /proc")
def test_who_has_ended_is_known_of_this_machine():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    where = meeting.whereabouts(child.pid)
    assert meeting._has_ended(child.pid, where) is False
    assert meeting._has_ended(child.pid, ["another machine", where[1]]) is None
    assert meeting._has_ended(child.pid, [where[0], "1"]) is True  # another one has its number
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # its parent has not waited for it
    assert meeting._has_ended(child.pid, where) is True
    child.wait()
    assert meeting._has_ended(child.pid, where) is True
