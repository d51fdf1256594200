"""What a figure shows, read back from it."""

SIGNS = {"✓": "right", "✗": "wrong", "-": "excluded"}


def texts(figure):
    """Texts on a figure itself, in the order in which they were written."""
    return [text.get_text() for text in figure.texts]


def verdicts(figure):
    """Signs above the items of ranked lists, as words."""
    return [SIGNS[text[0]] for text in texts(figure) if text[:2] in ("✓ ", "✗ ", "- ")]


def frames(figure):
    """Colour and style of the frame of each picture that has one."""
    from matplotlib.colors import to_hex

    spines = [axes.spines["left"] for axes in figure.axes]
    return [
        (to_hex(one.get_edgecolor()), one.get_linestyle()) for one in spines if one.get_visible()
    ]


def legend(figure):
    """Entries of all legends."""
    found = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    return [text.get_text() for one in found if one is not None for text in one.get_texts()]


def lines(axes):
    """Points of the lines of axes by their labels."""
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


def overlap(one, other):
    """Whether two things of a figure, once drawn, share pixels."""
    return bool(one.get_window_extent().overlaps(other.get_window_extent()))
