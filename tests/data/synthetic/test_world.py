"""What the synthetic pictures must hold: exact masks, shared clothes, single challenges."""

import collections

import numpy as np
import pytest

from mmga.data.synthetic.challenge import CHALLENGES
from mmga.data.synthetic.garment import assign_garments
from mmga.data.synthetic.render import Canvas, Light, Solid
from mmga.data.synthetic.streams import stream
from mmga.data.synthetic.world import Shot, World, WorldOptions


def world(split="test", challenge="clean", severity=3, persons=12, **options):
    options |= {"cameras": 3, "challenge": challenge, "severity": severity}
    return World(7, split, persons, WorldOptions(**options))


SHOTS = [Shot(person, camera, 0) for person in range(6) for camera in range(2)]


@pytest.fixture(scope="module")
def clean():
    there = world()
    return [there.picture(shot) for shot in SHOTS]


def test_a_solid_is_where_its_geometry_says():
    canvas = Canvas(np.zeros((40, 40, 3), np.float32))
    texels = np.full((32 * 64, 3), 200, np.uint8)
    disc = Solid((20, 20), (20, 20.01), (8, 8), 0, label=1)
    canvas.paint([disc], texels, Light(1.0, 0, 0, 0))
    y, x = np.mgrid[:40, :40]
    distance = np.hypot(y - 20, x - 20)
    labels = canvas.labels()
    assert (labels[distance < 7.4] == 1).all()
    assert (labels[distance > 8.6] == 0).all()
    # Coverage sums to the area of the disc.
    assert canvas.cover.sum() == pytest.approx(np.pi * 64, rel=0.01)
    np.testing.assert_allclose(canvas.colour[20, 20], 200, rtol=0.02)


def test_masks_agree_with_rendering_without_the_person(clean):
    """Before the sensor, the person changes exactly the pixels that the mask's cover names."""
    there = world()
    for shot, picture in zip(SHOTS, clean, strict=True):
        empty = there.picture(shot, with_person=False)
        changed = np.abs(picture.composed - empty.composed).max(-1)
        cover = picture.cover.sum(-1)
        assert not changed[cover == 0].any()
        assert not empty.labels.any()
        # A body can have the scene's colour by chance, but not in more than a few pixels.
        assert (changed[cover > 0.9] > 0.5).mean() > 0.97
        assert np.array_equal(picture.labels > 0, cover >= 0.5)
        assert {1, 2} <= set(np.unique(picture.labels).tolist())


def test_occluders_leave_the_mask():
    there, hidden = world(), world(challenge="occlusion")
    lost = []
    for shot in SHOTS:
        whole, rest = there.picture(shot).labels > 0, hidden.picture(shot).labels > 0
        assert not (rest & ~whole).any()
        lost.append(1 - rest.sum() / whole.sum())
    assert 0.2 < np.mean(lost) < 0.7


def test_upper_lies_above_bottom(clean):
    for picture in clean:
        rows = [np.nonzero(picture.labels == label)[0].mean() for label in (1, 2)]
        assert rows[0] + 20 < rows[1]


@pytest.mark.parametrize("count", [25, 48, 150, 300])
def test_every_garment_is_shared(count):
    tops, bottoms, garments = assign_garments(stream("assign_garments", count), count, 5)
    for worn in (tops, bottoms):
        shares = collections.Counter(worn.tolist())
        assert len(shares) == garments and min(shares.values()) >= 5
    assert len(set(zip(tops.tolist(), bottoms.tolist(), strict=True))) == count


def test_persons_wear_what_was_assigned():
    there = world(persons=30)
    for number in ("top_number", "bottom_number"):
        shares = collections.Counter(getattr(person, number) for person in there.persons)
        assert min(shares.values()) >= 5
    by_top = collections.defaultdict(set)
    for person in there.persons:
        by_top[person.top_number].add(id(person.top))
    assert all(len(tops) == 1 for tops in by_top.values())


def test_splits_have_places_and_clothes_of_their_own():
    train, test = world("train"), world("test")
    camera = train.cameras[0]
    assert np.array_equal(camera.gains, test.cameras[0].gains)
    places = [w.panorama(camera, i).tobytes() for w in (train, test) for i in range(2)]
    assert len(set(places)) == 4
    assert not np.array_equal(train.assets.texels[: 32 * 64], test.assets.texels[: 32 * 64])


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_tracklets_share_their_backdrop_with_probability_rho(rho):
    there = world(persons=30, rho=rho)
    shots = [Shot(p, c, f) for p in range(30) for c in range(3) for f in range(8)]
    shared = np.mean([there.backdrop(shot) == (shot.person, shot.camera) for shot in shots])
    assert shared == pytest.approx(rho, abs=0.08)


def test_a_shared_backdrop_is_the_same_scene():
    there = world(rho=1.0)
    first, second = (there.picture(Shot(0, 0, frame)).scene for frame in (0, 1))
    apart = world(rho=0.0)
    third, fourth = (apart.picture(Shot(0, 0, frame)).scene for frame in (0, 1))

    def likeness(a, b):
        small = [x.reshape(16, 8, 8, 8, 3).mean((1, 3)).reshape(-1) for x in (a, b)]
        return np.corrcoef(*small)[0, 1]

    assert likeness(first, second) > likeness(third, fourth) + 0.1


@pytest.mark.parametrize("challenge", CHALLENGES)
def test_a_challenge_changes_what_it_names_alone(challenge, clean):
    there = world(challenge=challenge)
    for shot, before in zip(SHOTS[:6], clean, strict=False):
        after = there.picture(shot)
        assert getattr(after.levels, challenge) == 3
        assert sum(getattr(after.levels, other) for other in CHALLENGES) == 3
        assert after.backdrop == before.backdrop
        same_body = np.array_equal(before.labels, after.labels)
        same_scene = np.array_equal(before.scene, after.scene)
        if challenge == "clutter":
            # Behind the person: the body and its cover stay as they are.
            assert same_body and np.array_equal(before.cover, after.cover)
            solid = before.cover.sum(-1) > 0.999
            assert np.abs(before.composed[solid] - after.composed[solid]).max() < 0.3
            assert not same_scene
        elif challenge == "occlusion":
            assert same_scene and not same_body
        elif challenge == "pose":
            assert not same_body
        else:
            assert not same_body and not same_scene


def test_severities_are_ordered():
    def mean(challenge, measure):
        worlds = [world(challenge=challenge, severity=s) for s in (1, 2, 3)]
        return [np.mean([measure(w.picture(shot)) for shot in SHOTS]) for w in worlds]

    cut = mean("misalignment", lambda picture: _cut(picture.box))
    assert cut[0] < cut[1] < cut[2]
    visible = mean("occlusion", lambda picture: (picture.labels > 0).mean())
    assert visible[0] > visible[1] > visible[2]


def _cut(box):
    """Largest share of the body's extent that lies beyond one side of a 128 x 64 frame."""
    left, top, right, bottom = box
    wide, tall = right - left, bottom - top
    return max(-left / wide, (right - 64) / wide, -top / tall, (bottom - 128) / tall, 0.0)


def test_misalignment_cuts_the_body_and_adds_scene():
    there = world(challenge="misalignment")
    for shot in SHOTS:
        picture = there.picture(shot)
        assert 0.2 < _cut(picture.box) < 0.5
        labels = picture.labels > 0
        edges = labels[0].any(), labels[-1].any(), labels[:, 0].any(), labels[:, -1].any()
        assert any(edges)
        # No flat or black border: the scene goes on to every edge of the frame.
        scene = picture.scene
        for edge in (scene[:3], scene[-3:], scene[:, :3], scene[:, -3:]):
            assert edge.mean() > 8 and edge.std() > 0.5


def test_bystanders_are_not_labelled():
    there = world(challenge="clutter")
    for shot in SHOTS[:4]:
        assert not there.picture(shot, with_person=False).labels.any()


def test_other_sizes_show_the_same_person():
    small, large = world().picture(SHOTS[0]), world(size=(256, 128)).picture(SHOTS[0])
    assert large.image.shape == (3, 256, 128)
    shrunk = large.labels[::2, ::2] > 0
    both, either = shrunk & (small.labels > 0), shrunk | (small.labels > 0)
    assert both.sum() / either.sum() > 0.85
