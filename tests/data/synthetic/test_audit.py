"""The audit at reduced size, with the limits of the full one."""

import numpy as np
import pytest

from mmga.data.synthetic import synthetic
from mmga.data.synthetic.__main__ import main
from mmga.data.synthetic.audit import MARGIN, audit, mean_average_precision, table
from mmga.data.synthetic.camera import jpeg


@pytest.fixture(scope="module")
def results():
    data = synthetic(seed=1, num_train=8, num_test=40, images_per_camera=3, cameras=4)
    return {result.name: result for result in audit(data)}


def test_what_is_not_the_person_retrieves_at_chance(results):
    chance = results["chance"].value
    probes = [name for name in results if name.startswith(("background", "camera", "silhouette"))]
    assert len(probes) == 6
    for name in probes:
        assert results[name].limit == pytest.approx(chance + MARGIN)
        assert results[name].passed, f"{name}: {results[name].value}, chance {chance}"


def test_patches_do_not_tell_person_from_scene(results):
    assert results["linear probe on patches, IoU"].passed


def test_colours_of_the_person_do_retrieve(results):
    """The probes can find what is there: colours under the true mask are no chance."""
    assert results["colour stripes, true mask"].value > results["chance"].value + 5 * MARGIN


def test_table_names_every_result(results):
    text = table(list(results.values()))
    assert all(name in text for name in results)
    assert "EXCEEDED" not in text


def test_average_precision_follows_the_market_rule():
    # Match in the query's camera first (left out), then a stranger, then the true match.
    value = mean_average_precision(
        np.array([[0.0, 0.1, 0.2]]),
        np.array([1]),
        np.array([1]),
        np.array([1, 2, 1]),
        np.array([1, 1, 2]),
    )
    assert value == pytest.approx(0.5)


def test_jpeg_loses_more_at_lower_quality():
    rng = np.random.default_rng(0)
    frame = rng.uniform(0, 255, (3, 40, 24)).astype(np.float32)
    frame = (frame + np.roll(frame, 1, 1) + np.roll(frame, 1, 2)) / 3
    errors = [np.abs(jpeg(frame, quality) - frame).mean() for quality in (95, 75, 40)]
    assert errors[0] < errors[1] < errors[2]
    flat = np.full((3, 32, 16), 100, np.float32)
    assert np.abs(jpeg(flat, 50).astype(int) - 100).max() <= 3


def test_command_says_what_is_missing(capsys):
    with pytest.raises(SystemExit) as left:
        main([])
    assert left.value.code == 2
    assert "--audit" in capsys.readouterr().err


def test_command_draws_a_sheet(tmp_path, capsys):
    path = tmp_path / "sheet.png"
    main(["--sheet", str(path), "--persons", "2", "--images-per-camera", "2"])
    assert path.read_bytes().startswith(b"\x89PNG")
    assert str(path) in capsys.readouterr().out
