"""make gpu-ablation: seeds side by side, within the time."""

import sys
import time

from paths import REPOSITORY

sys.path.insert(0, str(REPOSITORY))

from benchmarks import gpu_ablation

PROGRAM = """
import signal, sys, time
seed = int(sys.argv[2])
if seed == 2:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
time.sleep(0 if seed < 2 else 60)
"""


def test_the_time_is_kept_and_what_runs_is_asked_to_save():
    begun = time.monotonic()
    codes = gpu_ablation.run([sys.executable, "-c", PROGRAM], range(5), 4.0, 2, 1.0)
    assert time.monotonic() - begun < 30
    assert codes[:2] == [0, 0]  # finished
    assert codes[2] == -9 and codes[3] == 143  # killed, saved
    assert codes[4] is None  # not begun
