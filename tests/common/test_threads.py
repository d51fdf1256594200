"""Threads that wait asleep, processes forked after use, memory that is kept."""

import os
import subprocess
import sys

import pytest

FORKED = """
import os, sys, torch, mmga.ops
torch.set_num_threads(2)
x = torch.ones(600, 600)
def work():
    return (x.exp() + x).sum().item() + (x @ x).sum().item()
here = work()
child = os.fork()
if child == 0:
    os._exit(0 if work() == here else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

WAITS = """
import sys
from mmga.common import cli
cli.threads.wait_asleep()
import os
print(os.environ.get("OMP_WAIT_POLICY"), "torch" in sys.modules)
"""

FAULTS = """
import resource, sys, torch
from mmga.common.memory import keep_freed
if sys.argv[1] == "keep":
    keep_freed()
for _ in range(12):  # the heap is laid out in the first ones
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x = torch.ones(10 << 20)
    y = x * 2
    del x
    z = y + 1
    del y, z
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def python(code, *words, **variables):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "MALLOC_"))}
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**kept, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_process_forked_after_use_computes():
    """It would wait for threads that a fork does not copy."""
    python(FORKED)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, "PASSIVE False"), ({"GOMP_SPINCOUNT": "100"}, "None False")],
)
def test_commands_let_threads_sleep_unless_told_otherwise(variables, expected):
    assert python(WAITS, **variables) == expected


def test_a_command_sets_it_before_torch_is_imported():
    code = "import os; from mmga.train import main; main(['--print-config']); "
    code += "print(os.environ['OMP_WAIT_POLICY'])"
    assert python(code).splitlines()[-1] == "PASSIVE"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_is_kept():
    assert int(python(FAULTS, "keep")) < 100
    assert int(python(FAULTS, "keep", MALLOC_ARENA_MAX="4")) > 100  # the user's own choice
