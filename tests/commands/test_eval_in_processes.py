"""`mmga eval` under torchrun: one report, and one sentence where one of the processes fails."""

import json
import os
import subprocess
import sys

import failing
import pytest
import shared_cases
from small_run import write_run
from small_training import table

from mmga import eval as command
from mmga.retrieval.features.load import save_both

MEASURED = ("seconds", "peak_memory_bytes", "process_peak_bytes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("features")
    shared_cases.write(out, "")
    return out


def report(file):
    values = json.loads(file.read_text())
    return {name: value for name, value in values.items() if name not in MEASURED}


@pytest.mark.parametrize(
    ("gallery", "more"),
    [
        ("gallery.npz", []),
        ("shard-*.npz", []),
        ("shard-*.npz", ["--rerank", "--k1", "9"]),
        ("gallery.npz", ["--query-shares", "3"]),
        ("shard-*.npz", ["--protocol", "cuhk03-single-shot", "--query-shares", "3"]),
    ],
)
def test_processes_write_the_report_of_one(folder, gallery, more, tmp_path):
    words = ["--query", str(folder / "query.npz"), "--gallery", str(folder / gallery)]
    words += ["--bootstrap", "10", *more]
    files = [str(tmp_path / name) for name in ("one.json", "one.csv", "three.json", "three.csv")]
    alone = [word for word in words if word not in ("--query-shares", "3")]
    command.main([*alone, "--json", files[0], "--per-query", files[1]])
    last = ["--json", files[2], "--per-query", files[3]]
    codes, said = failing.run("nothing", ["eval", *words, *last], tmp_path)
    assert (codes, said) == ([0, 0, 0], "")
    assert report(tmp_path / "one.json") == report(tmp_path / "three.json")
    assert (tmp_path / "one.csv").read_text() == (tmp_path / "three.csv").read_text()
    printed = [(tmp_path / f"out-{rank}").read_text() for rank in range(3)]
    assert printed[0].startswith("  ") and "queries: 52 of 53" in printed[0]
    assert printed[1:] == ["", ""]


@pytest.mark.parametrize(
    "flags",
    [
        ["--features", "query.npz", "--protocol", "all-vs-all", "--compare", "query.npz"],
        ["--features", "both.npz", "--protocol", "multi-query", "--bootstrap", "10"],
        ["--features", "both.npz", "--explain", "market1501", "no-camera"],
    ],
    ids=["one set", "both sides in a file", "explained"],
)
def test_a_grid_of_processes_writes_the_report_of_one(folder, flags, tmp_path):
    save_both(folder / "both.npz", *shared_cases.sides(""))
    words = [str(folder / word) if word.endswith(".npz") else word for word in flags]
    command.main([*words, "--json", str(tmp_path / "one.json")])
    words += ["--query-shares", "2", "--json", str(tmp_path / "four.json")]
    codes, said = failing.run("nothing", ["eval", *words], tmp_path, 4)
    assert (codes, said) == ([0] * 4, "")
    assert report(tmp_path / "one.json") == report(tmp_path / "four.json")


@pytest.mark.parametrize(
    "flags",
    [
        ["--compare", "query.npz", "gallery.npz", "--bootstrap", "20"],
        ["--explain", "market1501", "no-camera", "--exclude", "abs(time - query.time) < 9"],
    ],
    ids=lambda flags: flags[0],
)
def test_comparisons_are_those_of_one_process(folder, tmp_path, flags, capsys):
    words = ["--query", str(folder / "query.npz"), "--gallery", str(folder / "shard-*.npz")]
    words += [str(folder / word) if word.endswith(".npz") else word for word in flags]
    command.main([*words, "--json", str(tmp_path / "one.json")])
    codes, said = failing.run(
        "nothing", ["eval", *words, "--json", str(tmp_path / "two.json")], tmp_path, 2
    )
    assert (codes, said) == ([0, 0], "")
    assert report(tmp_path / "one.json") == report(tmp_path / "two.json")
    if flags[0] == "--explain":
        one, two = capsys.readouterr().out, (tmp_path / "out-0").read_text()
        assert two == one.replace("one.json", "two.json")


@pytest.mark.parametrize(
    ("how", "codes", "said"),
    [
        ("killed", [1, -9, 1], "process 1 of the 3 of the run ended without a word"),
        ("killed while the others compute", [1, -9, 1], "process 1 of the 3 of the run ended"),
        (
            "out of memory while the others compute",
            [1, 1, 1],
            "a process ran out of memory (Unable to allocate 3 TiB)",
        ),
        ("interrupted", [130] * 3, "interrupted"),
    ],
)
@pytest.mark.parametrize(
    "more", [[], ["--rerank"], ["--query-shares", "2"]], ids=["plain", "re-ranked", "in a grid"]
)
def test_one_that_fails_ends_all(folder, tmp_path, how, codes, said, more):
    words = ["--query", str(folder / "query.npz"), "--gallery", str(folder / "shard-*.npz")]
    words += ["--json", str(tmp_path / "r.json")]
    if "--query-shares" in more:
        codes, said = [*codes, codes[0]], said.replace("of the 3", "of the 4")
    found, errors = failing.run(how, ["eval", *words, *more], tmp_path, len(codes))
    assert found == codes
    assert len(errors.splitlines()) == 1 and said in errors
    assert not list(tmp_path.glob("*.json")) and not list(tmp_path.glob(".*"))


def test_a_bug_ends_all_with_its_traceback(folder, tmp_path):
    words = ["--query", str(folder / "query.npz"), "--gallery", str(folder / "shard-*.npz")]
    codes, errors = failing.run("a bug", ["eval", *words], tmp_path)
    assert codes == [1, 1, 1]
    assert errors.count("Traceback") == 1 and "ZeroDivisionError: of all numbers" in errors


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"--gallery": ["shard-0.npz", "broken.npz", "shard-1.npz"]}, "broken.npz could not be"),
        ({"--query": ["absent.npz"]}, "absent.npz: no such file or folder"),
        (
            {"--rerank": [], "--exact": ["float32"]},
            "not with exact='float32'; start one",
        ),
        ({"--k1": ["7"]}, "--k1 belongs to re-ranking"),
        ({"--query-shares": ["2"]}, "expected a divisor of the number of processes, 3, found 2"),
        (
            {"--query-shares": ["3"], "--rerank": []},
            "queries are not dealt out; leave out query_shares",
        ),
        ({"--quary": []}, "unknown option --quary"),
        ({"--json": ["/proc/none/r.json"]}, "/proc/none/r.json could not be written"),
    ],
)
def test_what_is_wrong_is_said_once(folder, tmp_path, changed, said):
    (folder / "broken.npz").write_bytes((folder / "shard-3.npz").read_bytes()[:9000])
    words = {"--query": ["query.npz"], "--gallery": ["gallery.npz"], **changed}
    flags = []
    for flag, names in words.items():
        flags += [flag, *(str(folder / name) if "." in name else name for name in names)]
    codes, errors = failing.run("nothing", ["eval", *flags], tmp_path)
    assert codes == [2, 2, 2]
    assert len(errors.splitlines()) == 1
    assert errors.startswith("mmga eval: error: ") and said in errors


def test_processes_share_the_images_of_a_run(tmp_path):
    run, root = write_run(tmp_path / "run"), table(tmp_path)
    words = ["--run", str(run), "--data", "csv", "--root", str(root), "--device", "cpu"]
    command.main([*words, "--json", str(tmp_path / "one.json")])
    codes, said = failing.run(
        "nothing", ["eval", *words, "--json", str(tmp_path / "two.json")], tmp_path, 2
    )
    assert codes == [0, 0]
    assert said.count("6 of the 6 query identities are of split train") == 1
    assert report(tmp_path / "one.json") == report(tmp_path / "two.json")


def test_torchrun(folder, tmp_path):
    out = tmp_path / "report.json"
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", "mmga.eval"),
            *("--query", folder / "query.npz", "--gallery", folder / "shard-*.npz"),
            *("--json", out),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("queries: 52 of 53") == 1
    assert report(out)["num_gallery"] == 701
