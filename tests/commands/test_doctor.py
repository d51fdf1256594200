"""`python -m mmga.doctor` on feature files."""

import contextlib
import re

import numpy as np
import pytest
from terminal import on_a_terminal

from mmga import doctor
from mmga.retrieval.features import Features


def test_doctor_fails_where_no_evaluation_is_possible(tmp_path, capsys):
    pids = np.arange(6) % 3
    good = Features(np.eye(6, 4, dtype=np.float32) + 0.1, pids, np.arange(6) % 2)
    good.save(tmp_path / "good.npz")
    bad = np.eye(6, 4, dtype=np.float32)
    bad[1, 1] = np.nan
    others = {
        "good": (good.features.numpy(), pids, 0),
        "nan": (bad, pids, 2),
        "wide": (np.eye(6, 5, dtype=np.float32), pids, 2),
        "strangers": (np.eye(6, 4, dtype=np.float32), pids + 90, 2),
        "names": (np.eye(6, 4, dtype=np.float32), pids.astype(str), 2),
    }
    for name, (features, ids, code) in others.items():
        Features(features, ids, (np.arange(6) + 1) % 2).save(tmp_path / f"{name}.npz")
        words = ["--query", str(tmp_path / "good.npz"), "--gallery", str(tmp_path / f"{name}.npz")]
        with pytest.raises(SystemExit) if code else contextlib.nullcontext() as leave:
            doctor.main(words)
        assert not code or leave.value.code == code, name
        capsys.readouterr()


def test_lines_keep_to_the_terminal():
    for columns in (60, 80):
        code, said = on_a_terminal(["-m", "mmga.doctor"], columns, TERM="xterm")
        assert code == 0
        assert max(map(len, said.splitlines())) <= columns
        assert re.search(r"^reference +active", said, re.MULTILINE)
