import numpy as np
import pytest
from persons import SIZE, STANDING

from mmga.bodyparts.skeleton import JOINTS, from_coco, from_points
from mmga.bodyparts.split import divide, drawn


def _with(**joints):
    points = STANDING.copy()
    for name, place in joints.items():
        points[JOINTS.index(name.replace("_", " "))] = place
    return from_points(points)


def test_a_standing_person():
    mask = drawn(from_points(STANDING), SIZE)
    labels = mask.labels.numpy()
    assert mask.parts
    # Joint by joint, the label under it.
    for x, y in STANDING[1:8]:
        assert labels[int(y), int(x)] == 1
    for x, y in STANDING[[9, 10, 12, 13]]:
        assert labels[int(y), int(x)] == 2
    assert labels[60, 32] == 1
    assert labels[70, 32] == 2
    assert labels[0, 0] == labels[127, 0] == labels[105, 32] == 0
    assert (labels[:5] == 0).all()  # nothing above the top of the skull
    assert 0.25 < (labels != 0).mean() < 0.5


def test_limbs_belong_to_their_half_wherever_they_are():
    body = np.ones(SIZE, bool)
    hanging = _with(left_wrist=(54, 84))
    labels = divide(body, hanging).labels.numpy()
    assert labels[82, 54] == 1  # a hand below the hips
    assert labels[82, 38] == 2
    raised = _with(
        left_knee=(50, 58), left_ankle=(50, 82), left_wrist=(50, 20), left_elbow=(52, 28)
    )
    labels = divide(body, raised).labels.numpy()
    assert labels[60, 49] == 2  # a knee above the hips
    assert labels[56, 32] == 1


def test_the_hip_line_is_at_right_angles_to_the_trunk():
    points = STANDING.copy()
    turned = np.stack([32 + (points[:, 1] - 66), 66 - (points[:, 0] - 32)], 1)  # lies, head left
    labels = divide(np.ones((128, 128), bool), from_points(turned)).labels.numpy()
    assert labels[66, 10] == 1
    assert labels[66, 60] == 2
    assert (labels[66, :32] == 1).all()
    assert (labels[66, 33:] == 2).all()


def test_limbs_on_one_another_are_not_speckled():
    # The left arm lies exactly on the left shank, in directions that do not divide evenly.
    knee, ankle = (39.3, 91.7), (36.9, 117.1)
    both = _with(left_knee=knee, left_ankle=ankle, left_elbow=ankle, left_wrist=knee)
    labels = divide(np.ones(SIZE, bool), both).labels.numpy()
    along = np.linspace(knee, ankle, 20)[2:-2].round().astype(int)
    assert len({int(labels[y, x]) for x, y in along}) == 1


def test_without_hips_the_halves_are_unknown():
    points = STANDING.copy()
    points[[8, 11]] = np.nan
    body = np.zeros(SIZE, bool)
    body[10:90, 20:40] = True
    for skeleton in (None, from_points(points)):
        mask = divide(body, skeleton)
        assert not mask.parts
        assert ((mask.labels.numpy() != 0) == body).all()
    assert drawn(from_points(points), SIZE) is None
    one_hip = STANDING.copy()
    one_hip[8] = np.nan
    assert drawn(from_points(one_hip), SIZE).parts


@pytest.mark.parametrize("change", ["upside down", "tiny", "a point"])
def test_what_no_person_looks_like_is_not_drawn(change):
    points = STANDING.copy()
    if change == "upside down":
        points[:, 1] = 127 - points[:, 1]
    else:
        points = 40 + (points - 40) * (0.1 if change == "tiny" else 0)
    assert drawn(from_points(points), SIZE) is None


def test_a_body_may_leave_the_image():
    mask = drawn(from_points(STANDING + np.array((40, 0))), SIZE)
    assert mask.labels.shape == SIZE
    assert (mask.labels[:, -1] != 0).any()
    assert drawn(from_points(STANDING + np.array((400, 0))), SIZE) is None


def test_the_scale_survives_a_short_trunk():
    skeleton = from_points(STANDING)
    assert skeleton.scale == pytest.approx(40, rel=0.2)
    assert skeleton.hip_row == 66
    bent = STANDING.copy()
    bent[:8, 1] += 25
    assert from_points(bent).trunk == pytest.approx(15)
    assert from_points(bent).scale > 30


def test_coco_keypoints():
    known = np.ones(17, bool)
    order = [0, 0, 0, 0, 0, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]  # of ours, for COCO's
    keypoints = STANDING[order]
    skeleton = from_coco(keypoints, known)
    assert skeleton.known.all()
    np.testing.assert_allclose(skeleton.points[2:], STANDING[2:])
    np.testing.assert_allclose(skeleton.points[1], (32, 26))  # between the shoulders
    known[[0, 1, 2, 3, 4, 5, 11]] = False
    skeleton = from_coco(keypoints, known)
    assert [JOINTS[i] for i in np.flatnonzero(~skeleton.known)] == [
        "head", "neck", "left shoulder", "left hip",
    ]  # fmt: skip
    np.testing.assert_allclose(skeleton.shoulders, STANDING[2])
    assert from_coco(keypoints, np.zeros(17, bool)).trunk is None
