"""What docs/scale.md says is run by two processes; examples/ say what the commands take."""

import os
import re
import shlex
import subprocess
import sys

import failing
import numpy as np
import pytest
import shared_cases
import workers
import yaml
from paths import REPOSITORY
from PIL import Image
from small_run import SIZE, write_run

from mmga import eval as command
from mmga.common import cli

TEXT = (REPOSITORY / "docs" / "scale.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
(SHELL,) = (text.splitlines() for language, text in BLOCKS if language == "sh")
(PYTHON,) = (text for language, text in BLOCKS if language == "python")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    query, gallery = shared_cases.sides("")
    query.save("query.npz")
    gallery.cut(0, 300).save("shard-0.npz")
    gallery.cut(300, len(gallery)).save("shard-1.npz")
    write_run(tmp_path / "runs" / "x")
    (tmp_path / "photos").mkdir()
    rows = ["path,pid,camid,split"]
    for index in range(6):
        pixels = np.full((*SIZE, 3), index * 20, np.uint8)
        rows.append(f"photos/{index // 2:04d}_c1s1_{index:06d}.png,{index // 2},1,train")
        Image.fromarray(pixels).save(rows[-1].split(",")[0])
    (tmp_path / "photos.csv").write_text("\n".join(rows))
    return tmp_path


def test_commands_run(folder):
    for line in SHELL:
        words = shlex.split(line)
        assert words[:4] == ["torchrun", "--nproc-per-node", "2", "-m"] and words[5] == "--"
        verb = words[4].removeprefix("mmga.")
        codes, said = failing.run("nothing", [verb, *words[6:]], folder, 2)
        assert codes == [0, 0], said
    assert (folder / "report.json").is_file() and (folder / "gallery.json").is_file()
    assert (folder / "masks" / "manifest.json").is_file()


def example(rank: int, port: str, out: str) -> None:
    workers.environment(rank, 2, port)
    with open(out, "w") as sys.stdout:
        exec(compile(PYTHON, "docs/scale.md", "exec"), {})


def test_the_program_runs(folder):
    port = workers.free_port()
    running = [workers.start(example, rank, port, f"out-{rank}") for rank in range(2)]
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0, 0]
    assert "queries: 52 of 53" in (folder / "out-0").read_text()
    assert (folder / "out-1").read_text() == ""


def options_of(words):
    at = words.index("--", words.index("-m"))
    assert words[at - 2 : at] == ["-m", "mmga.eval"]
    return cli.parse("eval", command.Options, words[at + 1 :])


def test_slurm(tmp_path):
    """The script is run with programs that print what they were given."""
    for name in ("scontrol", "srun"):
        file = tmp_path / name
        file.write_text('#!/bin/sh\n[ "$1" = show ] && echo "one\ntwo" || printf "%s\\n" "$@"\n')
        file.chmod(0o755)
    given = {"SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "one,two"}
    path = f"{tmp_path}:{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", REPOSITORY / "examples" / "slurm.sh", "/features"],
        env={"PATH": path, "HOME": "/root", **given},
        capture_output=True,
        text=True,
        check=True,
    )
    words = ran.stdout.splitlines()
    assert words[:2] == ["--kill-on-bad-exit=1", "torchrun"]
    assert words[words.index("--rdzv-endpoint") + 1] == "one:29500"
    assert options_of(words).query == ("/features/query.npz",)


def test_pytorchjob():
    job = yaml.safe_load((REPOSITORY / "examples" / "pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    machines = job["spec"]["pytorchReplicaSpecs"]
    assert set(machines) == {"Master", "Worker"}
    for machine in machines.values():
        (container,) = machine["template"]["spec"]["containers"]
        assert container["name"] == "pytorch"
        limit = container["resources"]["limits"]["nvidia.com/gpu"]
        assert str(limit) == job["spec"]["nprocPerNode"]
        assert options_of(container["command"]).gallery == ("/features/gallery.json",)
