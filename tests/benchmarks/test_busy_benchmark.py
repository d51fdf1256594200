"""benchmarks/busy.py measures what it says, at a size that takes a second."""

import contextlib
import json
import sys

import pytest
from paths import REPOSITORY


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import busy

    return busy


def test_losses_beside_a_busy_process(script, tmp_path, monkeypatch, capsys):
    table = tmp_path / "table.json"
    words = ["--divide", "60", "--rounds", "1", "--threads", "1", "--busy", "1"]
    monkeypatch.setattr(sys, "argv", ["busy.py", *words, "--json", str(table)])
    monkeypatch.setattr(script.torch, "set_num_threads", lambda count: None)
    running, busy = [], script.busy

    @contextlib.contextmanager
    def seen(count):
        with busy(count) as children:
            assert all(child.poll() is None for child in children)
            yield children
            running.append(children)

    monkeypatch.setattr(script, "busy", seen)
    script.main()
    found = json.loads(table.read_text())
    assert [[child.returncode for child in children] for children in running] == [[], [-9]]
    assert [*found["losses"]] == ["0", "1"] and "/ product" in capsys.readouterr().out
    cases = {"product", "evaluation", "neighbours", "jaccard"}
    for one in found["losses"].values():
        assert {*one} == cases and one["product"]["of_product"] == 1


def test_busy_processes_end_with_an_error(script):
    with pytest.raises(ZeroDivisionError), script.busy(2, settle=0) as children:
        assert all(child.poll() is None for child in children)
        _ = 1 / 0
    assert [child.returncode for child in children] == [-9, -9]


def test_a_loss_is_relative_to_the_products(script):
    seconds = {"0": {"product": 1.0, "jaccard": 0.1}, "2": {"product": 2.0, "jaccard": 0.5}}
    found = script.losses(seconds)
    assert found["2"]["jaccard"] == {"loss": 5.0, "of_product": 2.5}
    assert found["0"]["jaccard"] == {"loss": 1.0, "of_product": 1.0}
