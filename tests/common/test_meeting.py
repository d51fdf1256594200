"""Processes of a run that end before all have met."""

import os
import subprocess
import sys

import failing
import pytest
import shared_cases

from mmga.common import meeting


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
        ("waiting before another one is there", 0, [2, 2, 2, None], " within 5 s; start all of"),
        ("with a wrong time to wait", 0, [2] * 4, "MMGA_JOIN_TIMEOUT: expected seconds from 1 to"),
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


@pytest.mark.skipif(not meeting._whereabouts(os.getpid()), reason="the system has no /proc")
def test_one_that_lives_has_not_ended_however_slow_it_is(words, tmp_path):
    codes, errors = failing.run("one speaks slowly", words, tmp_path, 4, 1)
    assert codes == [0] * 4, errors


@pytest.mark.skipif(not meeting._whereabouts(os.getpid()), reason="the system has no /proc")
def test_who_has_ended_is_known_of_this_machine():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    where = meeting._whereabouts(child.pid)
    assert meeting._has_ended(child.pid, where) is False
    assert meeting._has_ended(child.pid, ["another machine", where[1]]) is None
    assert meeting._has_ended(child.pid, [where[0], "1"]) is True  # another one has its number
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # its parent has not waited for it
    assert meeting._has_ended(child.pid, where) is True
    child.wait()
    assert meeting._has_ended(child.pid, where) is True
