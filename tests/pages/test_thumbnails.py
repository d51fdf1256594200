"""Small pictures of a page: one header for all, a bound on their size, files by any root."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from mmga.common.errors import UserError
from mmga.pages.thumbnails import thumbnails


@pytest.fixture
def folder(tmp_path):
    draw = np.random.default_rng(0)
    (tmp_path / "deep/er").mkdir(parents=True)
    for number in range(12):
        pixels = draw.integers(0, 256, (128, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"deep/er/{number}.png")
    return tmp_path


def picture(made, number):
    content = base64.b64decode(made.header + made.bodies[number])
    return Image.open(io.BytesIO(content))


def test_header_and_body_are_a_picture(folder):
    made = thumbnails(folder, [f"deep/er/{number}.png" for number in range(12)])
    assert (made.missing, made.damaged, made.dropped, made.notes) == (0, 0, 0, [])
    assert len(base64.b64decode(made.header)) > 600
    for number in range(12):
        with picture(made, number) as one, Image.open(folder / f"deep/er/{number}.png") as other:
            assert one.size == (made.width, made.height)
            small = np.asarray(other.resize(one.size, Image.Resampling.BOX), np.float32)
            assert np.abs(np.asarray(one).mean((0, 1)) - small.mean((0, 1))).max() < 4


def test_the_most_important_pictures_keep_to_the_bound(folder):
    paths = [f"deep/er/{number}.png" for number in range(12)]
    every = thumbnails(folder, paths)
    some = thumbnails(folder, paths, limit=5000)
    assert (some.width, some.height) < (every.width, every.height)
    assert 0 < some.dropped < 12 and all(some.bodies[: 12 - some.dropped])
    assert not any(some.bodies[12 - some.dropped :])
    assert sum(map(len, some.bodies)) < 5000 + 4000  # the last one may end beyond it
    assert f"{some.dropped} of 12 pictures" in some.notes[0]


@pytest.mark.parametrize(
    "path",
    ["deep/er/3.png", "./deep/er/3.png", "/elsewhere/deep/er/3.png", "C:\\x\\deep\\er\\3.png"],
)
def test_paths_may_begin_elsewhere(folder, path):
    assert thumbnails(folder, [path]).bodies[0]


@pytest.mark.parametrize("path", ["", "deep/er", "../x/deep/er/3.png", "deep/er/33.png", "a\0b"])
def test_what_is_no_file_below_the_folder_is_missing(folder, path):
    made = thumbnails(folder, [path])
    assert (made.missing, made.bodies) == (1, [""])


def test_the_longest_path_that_is_there_counts(folder):
    Image.new("RGB", (64, 128), (250, 0, 0)).save(folder / "3.png")
    made = thumbnails(folder, ["elsewhere/3.png", "deep/er/3.png"])
    with picture(made, 0) as flat, picture(made, 1) as drawn:
        assert np.asarray(flat)[..., 1].max() < 60 < np.asarray(drawn)[..., 1].max()


def test_wide_pictures_keep_their_proportions(folder):
    Image.new("RGB", (200, 50), (250, 0, 0)).save(folder / "wide.png")
    made = thumbnails(folder, ["wide.png"])
    with picture(made, 0) as one:
        pixels = np.asarray(one).astype(int)
    red = (pixels[..., 0] > 200) & (pixels[..., 1] < 60)
    assert red[made.height // 2].all() and not red[0].any() and not red[-1].any()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        thumbnails(tmp_path / "none", ["x.png"])
