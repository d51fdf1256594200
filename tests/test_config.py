"""Recipes, YAML and the sentences for what does not fit."""

import os
import subprocess
import sys

import pytest
from paths import REPOSITORY

from mmga.common.errors import UserError
from mmga.config import Config, check, load_config, merged, recipe_config, save_config
from mmga.training.lr_schedule import learning_rate


@pytest.mark.parametrize("recipe", ["mgn", "bot", "strong", "synthetic"])
def test_a_recipe_survives_the_way_through_yaml(recipe, tmp_path):
    config = recipe_config(recipe)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_yaml_starts_from_its_recipe(tmp_path):
    (tmp_path / "c.yaml").write_text("recipe: bot\noptimizer: {lr: 1e-4}\nbatch:\n  p: 8\n")
    config = load_config(tmp_path / "c.yaml")
    assert (config.optimizer.lr, config.batch.p) == (1e-4, 8)
    assert config.model.neck == "bnneck"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("optimizer: {learning_rate: 1}", r"no key optimizer.learning_rate; there are lr"),
        ("batch: {smapler: mgn}", r"no key batch.smapler; did you mean batch.sampler\?"),
        ("modle: {}", r"no key modle; did you mean model\?"),
        ("batch: {p: 3.5}", r"batch.p must be of type int, got 3.5"),
        ("batch: {p: true}", r"batch.p must be of type int, got True"),
        ("model: {heads: 4}", r"model.heads must be one of 3, 8, got 4"),
        ("batch: 3", r"batch must be a section, found 3"),
        ("recipe: best", r"recipe must be one of synthetic, mgn, bot, strong, got 'best'"),
        ("- 1", r"must hold sections"),
        ("a: [", r"is not YAML"),
        ("2020-99-99", r"is not YAML"),
        ("run: {epochs: !!python/name:os.system x}", r"is not YAML"),
        ("false", r"must hold sections"),
        ("optimizer: {lr: .nan}", r"optimizer.lr must be a finite number, got nan"),
        ("optimizer: {lr: 1" + 400 * "0" + "}", r"optimizer.lr must be a finite number"),
        ("model: {heads: 3.0}", r"model.heads must be one of 3, 8, got 3.0"),
        ("model: {spatial_kernel: true}", r"model.spatial_kernel must be one of 1, 3, got True"),
        ("model: {heads: [3]}", r"model.heads must be one of 3, 8, got \[3\]"),
        ("data: {also: market1501}", r"data.also must be a list"),
        ("data:", r"data must be a section, found None"),
    ],
)
def test_what_does_not_exist_is_named(text, sentence, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        load_config(path)


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"c\.yaml is not UTF-8 text"):
        load_config(tmp_path / "c.yaml")


def test_a_configuration_does_not_depend_on_the_locale(tmp_path):
    """Read and printed where the locale knows ASCII alone."""
    (tmp_path / "c.yaml").write_text("data: {root: für-alle}\n", encoding="utf-8")
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "mmga.train", "--config", "c.yaml"]
    for words, code in ((["--print-config"], 0), (["--data", "market1501"], 2)):
        done = subprocess.run(
            [*command, *words],
            cwd=tmp_path,
            env=os.environ | environment | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert r"f\xFCr-alle" in done.stdout or r"f\xfcr-alle" in done.stderr


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml cannot be read"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"data": {"data": "market1501"}}, "--root is missing"),
        ({"batch": {"k": 1}}, "--k must be at least 2"),
        ({"model": {"heads": 8}, "data": {"height": 32}}, "--height must be at least 33 for"),
        ({"run": {"epochs": 0}}, "--epochs must be at least 1, got 0"),
        ({"optimizer": {"lr": 0.0}}, "--lr must be above 0"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr must be a finite number"),
        ({"batch": {"flip": 2.0}}, "--flip must be at most 1, got 2.0"),
        ({"batch": {"erasing": -0.1}}, "--erasing must not be negative, got -0.1"),
        ({"data": {"halved_at": 50.0}}, "--halved-at must be at most 1, got 50.0"),
        ({"data": {"severity": 4}}, "--severity must be at most 3, got 4"),
        ({"data": {"persons": 1}}, "--persons must be at least 2, got 1"),
        ({"loss": {"smoothing": 1.5}}, "--smoothing must be at most 1, got 1.5"),
        ({"loss": {"mask_blur": 0.2}}, "--mask-blur must be at most 0.1, got 0.2"),
        ({"loss": {"mask_fade": 2.0}}, "--mask-fade must be at most 1, got 2.0"),
        ({"batch": {"part_drop": -1.0}}, "--part-drop must not be negative"),
        ({"optimizer": {"milestones": [30, 0]}}, "--milestones must be at least 1, got 0"),
        ({"optimizer": {"gamma": -0.1}}, "--gamma must not be negative"),
        ({"run": {"seed": -1}}, "--seed must not be negative"),
        ({"run": {"seed": 2**63}}, "--seed must be at most"),
        ({"run": {"epochs": 10**20}}, "--epochs must be at most 1000000000"),
        ({"run": {"threads": -2}}, "--threads must not be negative"),
        ({"run": {"threads": 100000}}, "--threads must be at most 1024"),
        ({"data": {"workers": 1000000}}, "--workers must be at most 1024"),
        ({"optimizer": {"lr": 1e300}}, "--lr must be at most 1000000000"),
        ({"data": {"masks": "m"}}, "--masks is for data sets of files"),
        ({"data": {"splits_file": "s"}}, "--splits-file is for data sets of files"),
    ],
)
def test_values_that_do_not_fit_together(values, sentence):
    with pytest.raises(UserError, match=sentence):
        check(merged(Config(), values, where="test"))


def test_learning_rates_of_the_published_recipes():
    bot = recipe_config("bot").optimizer
    rates = [learning_rate(bot, epoch, 120) for epoch in (0, 5, 10, 39, 40, 69, 70, 119)]
    expected = [3.5e-6, 3.5e-4 * 0.505, 3.5e-4, 3.5e-4, 3.5e-5, 3.5e-5, 3.5e-6, 3.5e-6]
    assert rates == pytest.approx(expected, rel=1e-12)
    mgn = recipe_config("mgn").optimizer
    assert [learning_rate(mgn, epoch, 500) for epoch in (0, 99, 100, 450)] == pytest.approx(
        [2e-4, 2e-4, 1e-4, 2e-4 * 0.5**7]
    )
    strong = recipe_config("strong").optimizer
    assert learning_rate(strong, 60, 120) == pytest.approx(3.5e-4 / 2)


def test_the_configuration_imports_no_torch():
    code = "import sys, mmga.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
