"""Skeletons of fourteen joints, of any detector."""

import dataclasses

import numpy as np

JOINTS = (
    "head",
    "neck",
    "right shoulder",
    "right elbow",
    "right wrist",
    "left shoulder",
    "left elbow",
    "left wrist",
    "right hip",
    "right knee",
    "right ankle",
    "left hip",
    "left knee",
    "left ankle",
)
"""The order of convolutional pose machines (Wei et al., CVPR 2016): 14-point files hold it."""

HEAD, NECK = 0, 1
SHOULDERS, HIPS = (2, 5), (8, 11)
ARMS = ((2, 3), (3, 4), (5, 6), (6, 7))
THIGHS = ((8, 9), (11, 12))
SHANKS = ((9, 10), (12, 13))

THIGH, SHANK = 0.71, 0.75
"""Length of the longer thigh and of the longer shank, in trunks: the medians over the 14-point
skeletons of Market-1501's training images."""

# COCO's order: nose, eyes, ears, then shoulders, elbows, wrists, hips, knees, ankles, left first.
_COCO_FACE = (0, 1, 2, 3, 4)
_COCO = {2: 6, 3: 8, 4: 10, 5: 5, 6: 7, 7: 9, 8: 12, 9: 14, 10: 16, 11: 11, 12: 13, 13: 15}


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Skeleton:
    """Joints of one person.

    Attributes:
        points: float64 [14, 2], x and y in pixels, in the order of JOINTS.
        known: bool [14], joints that were found.
    """

    points: np.ndarray
    known: np.ndarray

    def middle(self, *joints: int) -> np.ndarray | None:
        """Return the mean [2] of those of `joints` that are known; None where none is."""
        there = [joint for joint in joints if self.known[joint]]
        return self.points[there].mean(0) if there else None

    @property
    def shoulders(self) -> np.ndarray | None:
        """The middle of the shoulders [2], or the neck where neither is known."""
        middle = self.middle(*SHOULDERS)
        return self.middle(NECK) if middle is None else middle

    @property
    def hips(self) -> np.ndarray | None:
        """The middle of the hips [2], or None."""
        return self.middle(*HIPS)

    @property
    def hip_row(self) -> int | None:
        """The row of the hips, where a dress is split."""
        hips = self.hips
        return None if hips is None else round(float(hips[1]))

    @property
    def trunk(self) -> float | None:
        """Length from shoulders to hips in pixels; None where either is not known."""
        shoulders, hips = self.shoulders, self.hips
        if shoulders is None or hips is None:
            return None
        return float(np.linalg.norm(hips - shoulders))

    @property
    def scale(self) -> float | None:
        """Length of the trunk in pixels, estimated from all limbs; None where the trunk is unknown.

        The trunk or a thigh of a person who bends or sits is foreshortened: the median of trunk,
        thighs and shanks is robust to one of them.
        """
        trunk = self.trunk
        if trunk is None:
            return None
        lengths = [trunk]
        for pairs, share in ((THIGHS, THIGH), (SHANKS, SHANK)):
            limbs = [
                float(np.linalg.norm(self.points[a] - self.points[b]))
                for a, b in pairs
                if self.known[a] and self.known[b]
            ]
            if limbs:
                lengths.append(max(limbs) / share)
        return float(np.median(lengths))


def from_points(points: np.ndarray) -> Skeleton:
    """Return a skeleton from 14 points [14, 2] in the order of JOINTS; NaN is not known."""
    points = np.asarray(points, np.float64)
    return Skeleton(points, np.isfinite(points).all(1))


def from_coco(keypoints: np.ndarray, known: np.ndarray) -> Skeleton:
    """Return a skeleton from COCO's 17 keypoints.

    The head is the middle of the known points of the face; the neck that of both shoulders.

    Args:
        keypoints: [17, 2], x and y in pixels.
        known: bool [17].
    """
    points = np.full((len(JOINTS), 2), np.nan)
    face = [i for i in _COCO_FACE if known[i]]
    if face:
        points[HEAD] = keypoints[face].mean(0)
    for joint, coco in _COCO.items():
        if known[coco]:
            points[joint] = keypoints[coco]
    points[NECK] = points[list(SHOULDERS)].mean(0)  # NaN unless both are known
    return from_points(points)
