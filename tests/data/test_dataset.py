import io

import numpy as np
import pytest
import torch
from PIL import Image

from mmga.common.errors import UserError
from mmga.data.dataset import ImageFiles, ImageSet, ImageTensors, Subset, read_image
from mmga.data.masks import MaskFolder, PartMask, write_mask


def _picture(height=16, width=8):
    rows = np.linspace(0, 255, height)[:, None, None]
    return np.broadcast_to(rows * [1.0, 0.5, 0.25], (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("suffix", "tolerance"), [("png", 0), ("bmp", 0), ("jpg", 12), ("webp", 12), ("gif", 40)]
)
def test_formats(tmp_path, suffix, tolerance):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(_picture()).save(path)
    image = read_image(path)
    assert image.shape == (3, 16, 8)
    assert image.dtype == torch.uint8
    error = image.permute(1, 2, 0).numpy().astype(int) - _picture()
    assert np.abs(error).max() <= tolerance


def test_grey_images_become_three_channels(tmp_path):
    Image.fromarray(_picture()[..., 0]).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert torch.equal(image[0], image[2])


def test_sixteen_bits_become_eight(tmp_path):
    values = np.arange(0, 65536, 512, dtype=np.uint16).reshape(16, 8)
    Image.fromarray(values).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image[1].numpy(), values >> 8)


@pytest.mark.parametrize("content", ["empty", "text", "short jpeg", "short png", "short bmp"])
def test_broken_images_are_named(tmp_path, content):
    path = tmp_path / "broken.jpg"
    if content.startswith("short"):
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 32, 3), np.uint8)).save(
            buffer, content.split()[1]
        )
        path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    else:
        path.write_bytes(b"" if content == "empty" else b"not an image")
    with pytest.raises(UserError, match=r"broken\.jpg cannot be decoded"):
        read_image(path)


def test_missing_images_are_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.jpg cannot be opened"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(UserError, match="cannot be opened"):
        read_image(tmp_path)


def test_files_with_masks(tmp_path):
    (tmp_path / "i").mkdir()
    for name in "ab":
        Image.fromarray(_picture()).save(tmp_path / "i" / f"{name}.png")
    write_mask(tmp_path / "m" / "i" / "a.png", PartMask(torch.ones(16, 8, dtype=torch.uint8)))
    images = ImageFiles(
        tmp_path, ["i/a.png", "i/b.png"], [7, -1], [1, 2], MaskFolder(tmp_path / "m")
    )
    assert isinstance(images, ImageSet)
    assert len(images) == 2
    assert images.pids.dtype == images.camids.dtype == np.int64
    assert images.mask(0).labels.sum() == 16 * 8
    assert images.mask(1) is None
    subset = Subset(images, [1])
    assert isinstance(subset, ImageSet)
    assert subset.paths == ["i/b.png"]
    assert subset.pids.tolist() == [-1]
    assert torch.equal(subset.image(0), images.image(1))
    with_function = ImageFiles(tmp_path, images.paths, [7, 7], [1, 2], lambda path: path)
    assert with_function.mask(1) == "i/b.png"


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2, 1, 2"):
        ImageFiles(".", ["a", "b"], [1], [1, 2])
    with pytest.raises(ValueError, match="one length"):
        ImageTensors([torch.zeros(3, 2, 2)], [1, 2], [1, 2], paths=["a", "b"])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_images_are_turned_as_exif_says(suffix, orientation, tmp_path):
    """As a viewer shows them: a picture stored turned comes out upright."""
    pixels = np.zeros((32, 16, 3), np.uint8)
    pixels[:16], pixels[16:, :8] = (200, 30, 30), (30, 30, 200)
    stored = {
        1: None,
        3: Image.Transpose.ROTATE_180,
        6: Image.Transpose.ROTATE_90,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    picture = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"turned{suffix}"
    options = {"quality": 98} if suffix in (".jpg", ".webp") else {}
    (picture if stored is None else picture.transpose(stored)).save(file, exif=exif, **options)
    found = read_image(file).permute(1, 2, 0).numpy().astype(int)
    assert found.shape == pixels.shape
    assert np.abs(found - pixels).mean() < 6
