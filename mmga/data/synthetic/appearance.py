"""The appearance of a person: build, head and outfit."""

import dataclasses

import numpy as np

from mmga.data.synthetic.garment import (
    Bag,
    Bottom,
    Fashion,
    Top,
    assign_garments,
    assign_shared,
    sample_bag,
    sample_bottom,
    sample_print,
    sample_top,
)
from mmga.data.synthetic.pose import Build, sample_build
from mmga.data.synthetic.textures import (
    FRONT,
    HAIR,
    SKIN,
    TILE_HEIGHT,
    Atlas,
    plain,
    sample_colour,
)

_SHOES = np.array([(30, 30, 34), (70, 56, 46), (120, 122, 124), (222, 220, 214)], np.float32)
HAIR_STYLES = ("bald", "short", "long", "bun", "cap")
_ROWS = np.arange(TILE_HEIGHT)[:, None]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Appearance:
    """Build, head and outfit of one person.

    Attributes:
        build: proportions.
        hair: one of HAIR_STYLES.
        head_tile: face and hair, all around.
        hair_tile: hair alone.
        skin_tile: skin alone.
        shoe_tile: shoes.
        torso_tile: the top with this person's print.
        top: the top.
        bottom: the bottom.
        top_number: number of the top in the wardrobe.
        bottom_number: number of the bottom in the wardrobe.
        bags: carried.
    """

    build: Build
    hair: str
    head_tile: int
    hair_tile: int
    skin_tile: int
    shoe_tile: int
    torso_tile: int
    top: Top
    bottom: Bottom
    top_number: int
    bottom_number: int
    bags: tuple[Bag, ...]


def sample_appearances(
    rng: np.random.Generator,
    atlas: Atlas,
    fashion: Fashion,
    count: int,
    bystanders: int,
    share: int,
) -> tuple[list[Appearance], list[Appearance]]:
    """Sample persons who share a wardrobe.

    Args:
        rng: the stream of outfits.
        atlas: takes their tiles.
        fashion: colour schemes and patterns of their clothes.
        count: number of identities.
        bystanders: number of bystanders.
        share: least number of identities who wear each top, and each bottom.

    Returns:
        the identities, and bystanders who wear the same garments in other combinations.
    """
    top_of, bottom_of, garments = assign_garments(rng, count, share)
    top_of = np.concatenate((top_of, rng.integers(garments, size=bystanders)))
    bottom_of = np.concatenate((bottom_of, rng.integers(garments, size=bystanders)))
    count += bystanders
    tops = [sample_top(rng, atlas, *fashion.cloth(i, False)) for i in range(garments)]
    bottoms = [sample_bottom(rng, atlas, *fashion.cloth(i, True)) for i in range(garments)]
    stock = range(max(1, garments // 3))
    prints = assign_shared(rng, count, [sample_print(rng, fashion) for _ in stock], 0.35)
    bags = [
        assign_shared(rng, count, [sample_bag(rng, atlas, kind, fashion) for _ in stock], portion)
        for kind, portion in (("backpack", 0.25), ("shoulder", 0.25), ("hand", 0.15))
    ]
    shoes = [atlas.add(_shoe(rng)) for _ in range(3)]
    heads = [_sample_head(rng, atlas) for _ in range(max(4, garments // 4))]
    plain_torsos = [atlas.add(top.body) for top in tops]
    persons = []
    for i, motif in enumerate(prints):
        top, torso = tops[top_of[i]], plain_torsos[top_of[i]]
        hair, head_tile, hair_tile, skin_tile = heads[rng.integers(len(heads))]
        persons.append(
            Appearance(
                build=sample_build(rng),
                hair=hair,
                head_tile=head_tile,
                hair_tile=hair_tile,
                skin_tile=skin_tile,
                shoe_tile=shoes[rng.integers(len(shoes))],
                torso_tile=torso if motif is None else atlas.add(motif.on(top.body)),
                top=top,
                bottom=bottoms[bottom_of[i]],
                top_number=int(top_of[i]),
                bottom_number=int(bottom_of[i]),
                bags=tuple(bag for kind in bags if (bag := kind[i]) is not None),
            )
        )
    return persons[:-bystanders], persons[-bystanders:]


def _shoe(rng: np.random.Generator) -> np.ndarray:
    tile = plain(_SHOES[rng.integers(len(_SHOES))])
    return np.where((_ROWS < 8)[..., None], tile * 0.6, tile)


def _sample_head(rng: np.random.Generator, atlas: Atlas) -> tuple[str, int, int, int]:
    skin = SKIN[rng.choice(len(SKIN), p=[0.3, 0.3, 0.2, 0.12, 0.08])] + rng.normal(0, 5, 3)
    hair = HAIR[rng.choice(len(HAIR), p=[0.35, 0.3, 0.17, 0.08, 0.1])] + rng.normal(0, 4, 3)
    style = str(rng.choice(HAIR_STYLES, p=[0.08, 0.42, 0.28, 0.1, 0.12]))
    if style == "cap":
        hair = sample_colour(rng)
    side = FRONT > 11
    covered = ((_ROWS > 21) | (side & (_ROWS > 11)) | ((FRONT > 20) & (_ROWS > 6))) & (
        style != "bald"
    )
    face = plain(skin)
    eyes = (np.abs(FRONT - 5) < 2) & (np.abs(_ROWS - 17) < 2)
    mouth = (FRONT < 4) & (np.abs(_ROWS - 7) < 1)
    face = np.where(eyes[..., None], skin * 0.45, face)
    face = np.where(mouth[..., None], skin * 0.75, face)
    head = np.where(covered[..., None], hair, face)
    return style, atlas.add(head), atlas.add(plain(hair)), atlas.add(plain(skin))
