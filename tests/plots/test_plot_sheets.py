"""Sheets of pictures: what stands where, how it is framed, and that nothing overlaps."""

import numpy as np
import pytest
import torch

import mmga

pytest.importorskip("matplotlib")
from figures import frames, legend, overlap, texts, verdicts

from mmga import plots


def picture(value, size=(24, 12)):
    return torch.full((3, *size), value, dtype=torch.uint8, device="cpu")


def maps(count, *names):
    values = torch.linspace(0, 1, count * 8, dtype=torch.float32, device="cpu")
    return {name: values.reshape(count, 1, 4, 2) for name in names}


def shown(figure):
    """Pictures of a sheet, in their order."""
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def test_figure_1_has_an_image_its_maps_over_it_and_its_mask():
    label = torch.zeros(24, 12, dtype=torch.uint8, device="cpu")
    label[4:12], label[12:20] = 1, 2
    figure = plots.attention_sheet(
        [picture(100), picture(200)],
        maps(2, "whole", "upper", "bottom"),
        [label, None],
        ["ann", "bob"],
        width=plots.COLUMN,
    )
    heads = ["ann", "whole", "upper", "bottom", "true mask"]
    assert [text for text in texts(figure) if text not in ("attention   0", "1")] == [*heads, "bob"]
    image, whole, upper, _, mask = shown(figure)[:5]
    assert (image == 100).all() and image.shape == (24, 12, 3)
    np.testing.assert_array_equal(whole, upper)
    # Over a flat image a linear map stays monotone along its columns: it is interpolated.
    brightness = whole.mean(-1)[:, 6]
    assert (np.diff(brightness) >= 0).all() and len(np.unique(brightness.round(6))) > 8
    assert len({tuple(colour) for colour in mask.reshape(-1, 3).tolist()}) == 3
    assert legend(figure) == ["background", "upper body", "bottom body", "other body"]


def test_maps_stand_alone_with_their_own_pixels_where_that_is_asked_for():
    figure = plots.attention_sheet([picture(9)], maps(1, "whole"), alone=True, note="a note")
    _, alone, over = shown(figure)[:3]
    assert alone.shape == (4, 2) and over.shape == (24, 12, 3)
    assert "a note" in texts(figure) and legend(figure) == []


def test_wide_sheets_set_images_side_by_side():
    figure = plots.attention_sheet([picture(9)] * 5, maps(5, "whole", "upper", "bottom"))
    left = sorted({round(axes.get_position().x0, 4) for axes in figure.axes if axes.images})
    assert len(left) == 8  # two blocks of four
    assert figure.get_figwidth() * 25.4 <= plots.PAGE + 1e-6


def test_frames_tell_right_wrong_and_left_out_by_more_than_colour():
    hits = [
        plots.Hit(picture(1), "right", "0.10\nc1"),
        plots.Hit(None, "wrong", "0.20\nc2"),
        plots.Hit(picture(3), "excluded", "0.30\nc3"),
        plots.Hit(picture(4), "unknown", "0.40"),
    ]
    figure = plots.ranked_sheet([picture(0)], [hits], ["id 7\nc1\nrank 1"])
    assert verdicts(figure) == ["right", "wrong", "excluded"]
    assert len({colour for colour, _ in frames(figure)}) == 4
    assert len({str(style) for _, style in frames(figure)}) == 3  # dashes and dots
    assert legend(figure) == [
        "query",
        "✓ same identity",
        "✗ another identity",
        "- left out by the protocol",
        "identity not known",
    ]
    inside = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert inside == ["no\nimage"]


def test_long_names_fit_above_their_pictures():
    long = "id anna-maria-magdalena $x_1$\ncamera courtyard north 1"
    hits = [plots.Hit(picture(1), "wrong", "0.10\nthe camera behind the old station")] * 9
    figure = plots.ranked_sheet([picture(0)] * 2, [hits, hits], [long, "id 1\nc2"])
    figure.draw_without_rendering()
    written = [text for text in figure.texts if text.get_text()]
    for place, one in enumerate(written):
        box = one.get_window_extent()
        assert box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1
        assert not any(overlap(one, other) for other in written[place + 1 :])
        assert not any(overlap(one, axes) for axes in figure.axes)


@pytest.mark.parametrize("count", [1, 9])
def test_a_footer_explains_the_colours_below_the_pictures(count, tmp_path):
    labels = torch.zeros(32, 16, dtype=torch.uint8, device="cpu")
    figure = plots.mask_sheet([None] * count, [labels] * count, ["id 1"] * count)
    plots.save(figure, tmp_path / "a.png")
    figure.draw_without_rendering()
    (box,) = figure.legends
    extent = box.get_window_extent()
    assert len(legend(figure)) == 4
    assert extent.x1 <= figure.bbox.x1 and extent.y0 >= 0
    assert not any(overlap(box, axes) for axes in figure.axes)


def test_masks_stand_beside_their_images_and_alone_without():
    label = torch.ones(24, 12, dtype=torch.uint8, device="cpu")
    beside = plots.mask_sheet([picture(5), None], [label, None], ["a", "b"])
    assert [array.shape for array in shown(beside)] == [(24, 12, 3)] * 2 + [(2, 1, 3)]
    assert [text.get_text() for axes in beside.axes for text in axes.texts] == ["no\nmask"]
    alone = plots.mask_sheet([None, None], [label, label], ["a", "b"])
    assert len(alone.axes) == 2


def test_sheets_that_cannot_be_drawn_are_refused_in_a_sentence():
    hits = [[plots.Hit(None, "wrong", "")] * 20]
    with pytest.raises(mmga.UserError, match=r"21 pictures .* 88 mm, which has room for 10;"):
        plots.ranked_sheet([None], hits, [""], width=plots.COLUMN)
    plots.ranked_sheet([None], [hits[0][:9]], [""], width=plots.COLUMN)
    with pytest.raises(mmga.UserError, match="mm high, more than 7000; ask for fewer rows"):
        plots.ranked_sheet([None] * 500, [[]] * 500, [""] * 500)
    with pytest.raises(mmga.UserError, match="images: expected at least one, found none"):
        plots.attention_sheet([], {})
