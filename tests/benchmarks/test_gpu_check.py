"""make gpu-check without a card: what runs, what is skipped, and that no figure comes of it."""

import json
import os
import re
import sys
import time

import pytest
import torch
from paths import REPOSITORY

sys.path.insert(0, str(REPOSITORY))

from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check import attention, evaluation, report, timing, training

CPU = torch.device("cpu")
SIZES = {"persons": 6, "queries": 20, "gallery": 60, "distractors": 10}


@pytest.fixture(autouse=True)
def no_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def checked(tmp_path, monkeypatch, capsys, checks, *words):
    for name in gpu_check.CHECKS:
        done = checks.get(name, lambda card, seconds: None)
        monkeypatch.setitem(gpu_check.CHECKS, name, done)
    path = tmp_path / "result.json"
    code = gpu_check.main(["--json", str(path), *words])
    return code, json.loads(path.read_text()), capsys.readouterr().out


def test_a_rehearsal_is_no_measurement(tmp_path, monkeypatch, capsys):
    code, found, said = checked(tmp_path, monkeypatch, capsys, {})
    assert code == 0 and "a rehearsal, which measures nothing" in said
    assert found["card"] is None and found["rehearsal"] is True and found["rates"] is None
    states = {step["name"]: step["state"] for step in found["steps"]}
    assert [*states] == [*gpu_check.LIMITS]
    done = {name for name, state in states.items() if state == "done"}
    assert done == {*gpu_check.NEEDS_NO_CARD}
    assert {states[name] for name in {*states} - done} == {"skipped"}
    for step in found["steps"]:
        assert step["figures"] == []
        assert (step["reason"] == "no GPU on this machine") == (step["state"] == "skipped")
    assert found["versions"]["torch"] == torch.__version__ and len(found["commit"]) == 40


def test_a_failing_step_is_told_and_the_others_run(tmp_path, monkeypatch, capsys):
    def fails(card, seconds):
        gpu_check.run([sys.executable, "-c", "print('why'); raise SystemExit(3)"], 20)

    checks = {"build": fails, "compile": lambda card, seconds: 1 / 0}
    code, found, said = checked(tmp_path, monkeypatch, capsys, checks)
    assert code == 1 and "failed: build, compile" in said
    steps = {step["name"]: step for step in found["steps"]}
    assert steps["build"]["reason"].startswith("exit 3: why")
    assert "ZeroDivisionError" in steps["compile"]["reason"]
    assert steps["emulation"]["state"] == "done"


def test_steps_can_be_chosen(tmp_path, monkeypatch, capsys):
    _, found, _ = checked(tmp_path, monkeypatch, capsys, {}, "--only", "build", "plain")
    reasons = {step["name"]: step["reason"] for step in found["steps"]}
    assert reasons["compile"] == "not asked for" and reasons["build"] == ""


def test_a_rehearsal_is_kept_out_of_the_results(monkeypatch, capsys):
    before = {*report.RESULTS.iterdir()}
    path = report.RESULTS / "rehearsal.json"
    code = gpu_check.main(["--json", str(path), "--only", "plain"])
    assert code == 2 and {*report.RESULTS.iterdir()} == before
    assert "nothing was measured" in capsys.readouterr().err
    assert report.RESULTS not in gpu_check.default_path(None).parents
    assert gpu_check.default_path("NVIDIA H200") == report.RESULTS / "gpu_nvidia_h200.json"


def test_no_test_is_no_success(tmp_path):
    path = tmp_path / "test_it.py"
    bare = [path, "-c", os.devnull, "--noconftest", "-o", "addopts=-q"]
    path.write_text("import pytest\npytest.skip(allow_module_level=True)")
    with pytest.raises(gpu_check.Failed):
        gpu_check.pytest(bare, 60)
    path.write_text("import pytest\ndef test_it(): pass\ndef test_other(): pytest.skip()")
    gpu_check.pytest(bare, 60)


def test_limits_fit_the_time():
    """Steps end at their own limits, and those that need a card fit together with the build."""
    needed = {*gpu_check.LIMITS} - {"training_compiled", "compile", "emulation"}
    assert sum(gpu_check.LIMITS[name] for name in needed) <= gpu_check.SECONDS == 480
    assert [*gpu_check.LIMITS][-2:] == ["compile", "emulation"]
    assert {*gpu_check.CHECKS, "rates", *gpu_check.measures()} == {*gpu_check.LIMITS}
    with pytest.raises(gpu_check.TookTooLong, match=r"took more than 1 s"):
        gpu_check.run([sys.executable, "-c", "import time; time.sleep(9)"], 1)


def test_a_step_in_this_process_is_stopped_and_what_it_found_is_kept(monkeypatch, tmp_path):
    def slow(device, deadline):
        yield report.Figure("first", 1.0)
        time.sleep(60)

    monkeypatch.setattr(gpu_check, "measures", lambda: {"plain": slow})
    monkeypatch.setattr(gpu_check, "card_of", lambda device: "a card")
    monkeypatch.setattr(timing, "measured_rates", lambda device: {})
    monkeypatch.setitem(gpu_check.LIMITS, "plain", 6)
    written = []

    def keep(rates, steps):
        written.append([(step.name, len(step.figures)) for step in steps])

    begun = time.monotonic()
    _, _, steps = gpu_check.check(CPU, ["rates", "plain"], lambda line: None, keep)
    assert time.monotonic() - begun < 30
    (step,) = (step for step in steps if step.name == "plain")
    assert step.reason == "stopped after 6 s" and step.figures == [
        {"name": "first", "seconds": 1.0}
    ]
    assert len(written) == len(gpu_check.LIMITS)  # after every step


def test_a_figure_stands_beside_both_floors():
    rates = {"copy_bytes_per_second": 100.0, "tf32_operations_per_second": 1000.0}
    found = report.Figure("x", 4.0, 200, 3000, "tf32", {"note": 1}).beside(rates)
    assert found["floor_seconds"] == 3.0 and found["share_of_floor"] == 0.75
    assert found["copy_bytes_per_second"] == 100.0 and found["operations_per_second"] == 1000.0
    assert report.Figure("y", 4.0).beside(rates) == {"name": "y", "seconds": 4.0}


def test_the_benchmarks_run_in_miniature():
    """Their code is right, whatever it takes: on the CPU, at a size that says nothing."""
    late = time.monotonic() + 60
    rates = timing.measured_rates(CPU, 32)
    assert all(rate > 0 for rate in rates.values()) and len(rates) == 5
    maps = {"8x4x2": (8, 4, 2)}
    found = [*attention.figures(CPU, late, 2, maps, compiled=False)]
    assert len(found) == 3 * 2 * 2 * 2 * 2 and all(one.seconds > 0 for one in found)
    plain = [*evaluation.plain(CPU, late, SIZES, 16)]
    assert [one.seconds > 0 for one in plain] == [True] * 3 and plain[1].more["same_as_cpu"]
    near = [*evaluation.neighbours(CPU, late, SIZES, 16, 30)]
    assert [one.rate for one in near] == ["int8", "ieee"] and near[0].more["same_as_cpu"]
    (clustered,) = evaluation.jaccard(CPU, late, 90, 16)
    assert "x 16" in clustered.name
    (whole,) = evaluation.reranked(CPU, late, SIZES, 16, 30, 1)
    assert whole.more["mAP"] > 0.5 and "110 items" in whole.name
    steps = [*training.figures(CPU, late, 2, (64, 32), "tiny")]
    assert steps[1].more["times_without_attention"] > 0
    one_graph = [*training.compiled(CPU, late, 2, (64, 32), "tiny", None)]
    assert ["plain" in one.name for one in one_graph] == [False, True]
    assert not [*attention.figures(CPU, 0.0, 2, maps, compiled=False)]  # the time is over


def test_products_with_counting_run_in_miniature():
    late = time.monotonic() + 60
    found = [*evaluation.counting(CPU, late, SIZES, (8, 16))]
    assert [one.seconds > 0 for one in found] == [True] * 2
    assert (evaluation.Counting(CPU, 8, SIZES).count().ranks() >= 1).all()
    assert not [*evaluation.counting(CPU, 0.0, SIZES)]  # the time is over


def test_the_documentation_names_every_kernel_and_step():
    text = (REPOSITORY / "docs" / "gpu.md").read_text()
    sources = (REPOSITORY / "csrc" / "cuda").glob("*.cpp")
    kernels = {
        name for path in sources for name in re.findall(r'm\.impl\("(\w+)"', path.read_text())
    }
    table = text[text.index("| tensors on") : text.index("`python -m mmga.doctor`")]
    assert kernels <= {*re.findall(r"`(\w+)`", table)} and len(kernels) > 17
    for words in re.findall(r"benchmarks.gpu_check --only ([\w ]+)", text):
        assert {*words.split()} <= {*gpu_check.LIMITS}
    assert "not yet measured" in text


def test_the_documentation_has_the_model():
    from benchmarks import gpu_model

    text = (REPOSITORY / "docs" / "gpu.md").read_text()
    assert gpu_model.table() in text and "nothing in this table was measured" in text
    certified, plain = ([*stages] for stages in [*gpu_model.SHAPES.values()][-2:])
    assert sum(one.seconds() for one in certified) < sum(one.seconds() for one in plain)
    (stage,) = (one for one in certified if "products" in one.what)
    assert stage.int8 == pytest.approx(519281**2 * 512)
