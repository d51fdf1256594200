import numpy as np
import pytest
import torch
from PIL import Image

from mmga.common.errors import UserError
from mmga.data.masks import (
    LABEL_SETS,
    MaskFolder,
    PartMask,
    check_size,
    part_targets,
    read_mask,
    to_part_mask,
    write_mask,
)


def _png(path, values, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, np.uint8))
    if mode == "P":
        image = image.convert("L")
        image.putpalette([7, 7, 7] * 256)
    image.save(path)
    return path


# Label by label: 0 background, u upper, b bottom, w whole only.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("parts", "0ubw"),
        ("lip", "0uuuuuuubbuubuuubbbb"),
        ("atr", "0uuuubbuubbubbuuwu"),
        ("pascal", "0uuuubb"),
        ("densepose", "0uuuubbb"),
    ],
)
def test_label_sets_follow_the_table(name, expected):
    values = np.arange(len(expected), dtype=np.uint8)[None]
    assert "".join("0ubw"[v] for v in to_part_mask(values, name).labels[0].tolist()) == expected
    with pytest.raises(UserError, match=f"x.png holds label {len(expected)}"):
        to_part_mask(values + 1, name, name="x.png")


def test_dresses_are_split_at_the_hips():
    dress = np.full((4, 1), 6, np.uint8)
    assert to_part_mask(dress, "lip", hip=3).labels.flatten().tolist() == [1, 1, 1, 2]
    assert to_part_mask(dress, "lip").labels.flatten().tolist() == [1, 1, 1, 1]
    coat = np.full((4, 1), 7, np.uint8)
    assert to_part_mask(coat, "lip", hip=3).labels.flatten().tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("mode", ["L", "P"])
def test_palette_files_hold_labels(tmp_path, mode):
    path = _png(tmp_path / "a.png", [[0, 1, 2], [3, 2, 1]], mode)
    assert read_mask(path).labels.tolist() == [[0, 1, 2], [3, 2, 1]]


@pytest.mark.parametrize("parts", [True, False])
def test_a_mask_survives_its_file(tmp_path, parts):
    labels = torch.tensor([[0, 1, 2, 3]] * 3, dtype=torch.uint8)
    mask = PartMask(labels if parts else (labels > 0).to(torch.uint8) * 3, parts)
    write_mask(tmp_path / "deep" / "a.png", mask)
    back = read_mask(tmp_path / "deep" / "a.png")
    assert back.parts is parts
    assert torch.equal(back.labels, mask.labels)


def test_an_empty_silhouette_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="empty silhouette"):
        write_mask(tmp_path / "a.png", PartMask(torch.zeros(2, 2, dtype=torch.uint8), parts=False))
    assert not list(tmp_path.iterdir())


def test_silhouettes_may_be_halved(tmp_path):
    path = _png(tmp_path / "a.png", [[0, 255]] * 4)
    assert not read_mask(path).parts
    halved = read_mask(path, split=0.25)
    assert halved.parts
    assert halved.labels.tolist() == [[0, 1], [0, 2], [0, 2], [0, 2]]
    assert read_mask(_png(tmp_path / "b.png", [[0, 1]]), "silhouette").labels.tolist() == [[0, 3]]


def test_bad_files_are_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(UserError, match=r"broken\.png cannot be read"):
        read_mask(tmp_path / "broken.png")
    _png(tmp_path / "colour.png", np.zeros((2, 2, 3)))
    with pytest.raises(UserError, match=r"colour\.png must be an 8-bit single-channel"):
        read_mask(tmp_path / "colour.png")
    whole = _png(tmp_path / "ok.png", np.arange(6).reshape(2, 3))
    whole.write_bytes(whole.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"ok\.png cannot be read"):
        read_mask(whole)
    with pytest.raises(UserError, match="'lap' is not known"):
        MaskFolder(tmp_path, "lap")
    with pytest.raises(UserError, match="none does not exist"):
        MaskFolder(tmp_path / "none")


def test_a_folder_finds_masks_by_relative_path(tmp_path):
    _png(tmp_path / "train" / "0001.png", [[0, 5, 4]])
    folder = MaskFolder(tmp_path, "pascal")
    assert folder("train/0001.jpg").labels.tolist() == [[0, 2, 1]]
    assert folder("train/0002.jpg") is None
    assert folder.count(["train/0001.jpg", "train/0002.jpg"]) == 1


def test_size_mismatch_names_the_image():
    mask = PartMask(torch.zeros(4, 2, dtype=torch.uint8))
    check_size(mask, torch.zeros(3, 4, 2), "a.jpg")
    with pytest.raises(UserError, match=r"mask of a\.jpg is 4 x 2 pixels and the image 4 x 3"):
        check_size(mask, torch.zeros(3, 4, 3), "a.jpg")


def test_targets_are_area_averages():
    labels = torch.tensor(
        [
            [[1, 1, 0, 0], [2, 3, 0, 0]],
            [[3, 3, 3, 0], [0, 0, 0, 3]],
            [[1, 1, 1, 1], [1, 1, 1, 1]],
            [[0, 0, 0, 0], [0, 0, 0, 0]],
        ],
        dtype=torch.uint8,
    )
    parts = torch.tensor([True, False, True, True])
    has_mask = torch.tensor([True, True, False, True])
    targets, known = part_targets(labels, parts, has_mask, (1, 2))
    assert targets.dtype == torch.float32
    assert targets[0].tolist() == [[[1, 0]], [[0.5, 0]], [[0.25, 0]]]
    assert targets[1, 0].tolist() == [[0.5, 0.5]]
    assert targets[3].sum() == 0  # parsed, nobody visible: known to be empty
    assert known.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]]


def test_targets_keep_the_mass_of_the_mask():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (5, 96, 32), generator=generator, dtype=torch.uint8)
    yes = torch.ones(5, dtype=torch.bool)
    targets, _ = part_targets(labels, yes, yes, (24, 8))
    expected = torch.stack([(labels > 0), labels == 1, labels == 2], 1).double().mean((2, 3))
    torch.testing.assert_close(targets.double().mean((2, 3)), expected, rtol=0, atol=1e-6)


def test_targets_may_have_blurred_borders():
    labels = torch.zeros(1, 40, 9, dtype=torch.uint8)
    labels[:, :20] = 1
    yes = torch.ones(1, dtype=torch.bool)
    targets, known = part_targets(labels, yes, yes, (40, 9), blur=0.1)
    upper = targets[0, 1, :, 4]
    assert known.all() and (upper[:16] > 0.999).all() and (upper[24:] < 0.001).all()
    assert (upper[16:25].diff() < 0).all()
    torch.testing.assert_close(upper + upper.flip(0), torch.ones(40))
    hard, _ = part_targets(labels, yes, yes, (40, 9))
    assert torch.equal(hard[0, 1], (labels[0] == 1).float())


def test_every_set_is_readable_by_name():
    for name in (*LABEL_SETS, "silhouette"):
        assert to_part_mask(np.zeros((2, 2), np.uint8), name).labels.sum() == 0
