"""`python -m mmga.doctor` on feature files."""

import contextlib
import re
from pathlib import Path

import numpy as np
import pytest
from miniatures import images
from small_run import write_run
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
        "names": (np.eye(6, 4, dtype=np.float32), np.char.add("p", pids.astype(str)), 2),
    }
    for name, (features, ids, code) in others.items():
        Features(features, ids, (np.arange(6) + 1) % 2).save(tmp_path / f"{name}.npz")
        words = ["--query", str(tmp_path / "good.npz"), "--gallery", str(tmp_path / f"{name}.npz")]
        with pytest.raises(SystemExit) if code else contextlib.nullcontext() as leave:
            doctor.main(words)
        assert not code or leave.value.code == code, name
        capsys.readouterr()


def test_doctor_takes_the_inputs_of_eval_and_sums_up(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
    np.save("q.npy", rows[:6])
    np.save("g.npy", rows[6:])
    for side, camid in (("q", 0), ("g", 1)):
        lines = [f"{i % 3},{camid + camid * (i > 2)},{side}{i}.jpg" for i in range(6)]
        Path(f"{side}.csv").write_text("\n".join(["pid,camid,path", *lines]))
    sides = ["--query", "q.npy", "--gallery", "g.npy"]
    sides += ["--query-columns", "q.csv", "--gallery-columns", "g.csv"]
    doctor.main([*sides, "--protocol", "other-cameras", "--metric", "cosine"])
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("query: q.csv: line i was taken for row i of q.npy")
    assert out[2] == "checked: query: 6 x 4 float32, identities: 3, cameras: 1, paths: yes"
    assert "matches under protocol other-cameras, cosine distances" in out[4]
    assert out[-1] == "summary: findings: 2; an evaluation is possible"
    Features(rows, np.arange(12) % 3).save("one.npz")
    doctor.main(["--features", "one.npz", "--protocol", "all-vs-all"])
    out = capsys.readouterr().out
    assert "identities: 3, paths: no" in out
    assert out.endswith("summary: findings: 0; nothing found that would spoil an evaluation\n")
    doctor.main([*sides, "--metric", "euclidean"])
    assert "summary: findings: 4; an evaluation is possible" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        doctor.main([*sides[:4], "--protocol", "market1501"])
    assert "pids are missing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        doctor.main(["--metric", "euclidean"])
    assert "--query is missing" in capsys.readouterr().err


def test_doctor_looks_at_a_run(tmp_path, capsys):
    write_run(tmp_path / "run")
    images(
        tmp_path / "VIPeR",
        [f"{cam}/{p:03d}_45.bmp" for cam in ("cam_a", "cam_b") for p in range(8)],
    )
    words = ["--run", tmp_path / "run", "--data", "viper", "--root", tmp_path, "--device", "cpu"]
    doctor.main([str(word) for word in [*words, "--protocol", "viper"]])
    assert "checked: query: 4 x" in capsys.readouterr().out


def test_lines_keep_to_the_terminal():
    for columns in (60, 80):
        code, said = on_a_terminal(["-m", "mmga.doctor"], columns, TERM="xterm")
        assert code == 0
        assert max(map(len, said.splitlines())) <= columns
        assert re.search(r"^reference +active", said, re.MULTILINE)
