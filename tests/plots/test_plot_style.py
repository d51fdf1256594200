"""Style and files of plots."""

import inspect
import subprocess
import sys
import warnings

import pytest
from paths import REPOSITORY

import mmga

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure

from mmga import plots
from mmga.plots.style import fitted, new_figure, styled, text_width


def test_plots_leave_the_settings_of_the_program_and_know_no_pyplot(tmp_path):
    code = """
import sys
import mmga.plots as plots
assert "matplotlib" not in sys.modules
import matplotlib
matplotlib.rcParams["font.size"] = 31
def settings():  # to ask for the backend would import pyplot
    return {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}
before = settings()
figure = plots.training_curves({"a": [{"kind": "train", "step": 1, "loss": 2.0}]})
plots.save(figure, sys.argv[1])
assert settings() == before
assert figure.axes[0].title.get_fontsize() < 10
assert "matplotlib.pyplot" not in sys.modules
"""
    words = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    subprocess.run(words, check=True, cwd=REPOSITORY)
    assert (tmp_path / "a.png").is_file()


def test_signatures_are_complete_and_every_plot_returns_a_figure():
    found = {name: one for name, one in vars(plots).items() if inspect.isfunction(one)}
    assert len(found) > 14
    for name, one in found.items():
        signature = inspect.signature(one)
        for part in (*signature.parameters.values(), signature.return_annotation):
            assert part is not inspect.Signature.empty and "Any" not in str(part), name
            if isinstance(part, inspect.Parameter):
                assert part.annotation is not inspect.Parameter.empty, name
        if "width" in signature.parameters:
            assert signature.return_annotation == "Figure", name


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_same_plot_is_the_same_file(kind, tmp_path):
    for name in ("a", "b"):
        figure = plots.training_curves({"x": [{"kind": "train", "step": 1, "loss": 2.0}]})
        plots.save(figure, tmp_path / f"{name}.{kind}")
    first, second = ((tmp_path / f"{name}.{kind}").read_bytes() for name in ("a", "b"))
    assert first == second and len(first) > 1000


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(mmga.UserError, match=r"ends in \.png, \.svg or \.pdf"):
        plots.save(Figure(), tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())


def test_text_is_shortened_to_its_room_and_never_read_as_a_formula(tmp_path):
    for line in ("short", "a name that is much too long", "$\\frac{1}{" * 9, ""):
        short = fitted(line, 15)
        assert text_width(short, 7) <= 15
        assert short == line or "…" in short

    @styled
    def draw() -> Figure:
        figure = new_figure(40, 20)
        figure.text(0, 0, "$\\no_formula{$")
        return figure

    plots.save(draw(), tmp_path / "a.png")


def test_letters_that_the_font_lacks_are_boxes_without_a_warning(tmp_path):
    runs = {name: [{"kind": "train", "step": 1, "loss": 2.0}] for name in ("走る人", "🏃")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.save(plots.training_curves(runs), tmp_path / "a.png")


def test_without_matplotlib_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    with pytest.raises(mmga.UserError, match=r"pip install 'mmga\[train\]'"):
        plots.training_curves({})
