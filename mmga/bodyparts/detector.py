"""Detect the person of a crop with torchvision's Mask R-CNN and Keypoint R-CNN.

The weights of both are COCO's and are downloaded, or read from files.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from mmga.bodyparts.skeleton import Skeleton, from_coco
from mmga.bodyparts.split import divide
from mmga.common.errors import UserError, first_line
from mmga.common.files import patient
from mmga.common.weights import read_weights, unwrapped
from mmga.data.masks import PartMask

PERSON = 1
"""COCO's label."""

PROPOSALS, DETECTIONS = 100, 20
"""Proposals that are classified, and boxes whose masks are made, in a crop: it holds a person or a
few, where torchvision's 1000 and 100 are for whole photographs."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class DetectedPerson:
    """The person of a crop.

    Attributes:
        body: bool [H, W].
        skeleton: None where no skeleton was found for this body.
    """

    body: np.ndarray
    skeleton: Skeleton | None


class Detector(Protocol):
    """Finds the person of each crop."""

    def __call__(self, images: Sequence[torch.Tensor]) -> list[DetectedPerson | None]:
        """Return the person of each image, uint8 [3, H, W]; None where nobody was found."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Thresholds:
    """Thresholds of a detection.

    Attributes:
        score: least score of a person's box.
        mask: least value of a pixel of the body.
        keypoint: least score of a joint (a logit, as torchvision gives it).
        overlap: least IoU of a skeleton's box with the body's.
    """

    score: float = 0.5
    mask: float = 0.5
    keypoint: float = 0.0
    overlap: float = 0.5


class _Kind(NamedTuple):
    """A network of torchvision: its builder, its weights and a prefix of their names."""

    builder: str
    weights: str
    head: str


_KINDS = {
    "mask": _Kind(
        "maskrcnn_resnet50_fpn_v2",
        "MaskRCNN_ResNet50_FPN_V2_Weights",
        "roi_heads.mask_predictor.",
    ),
    "keypoint": _Kind(
        "keypointrcnn_resnet50_fpn",
        "KeypointRCNN_ResNet50_FPN_Weights",
        "roi_heads.keypoint_predictor.",
    ),
}


class TorchvisionDetector:
    """Mask R-CNN (ResNet-50 FPN v2) for the body, Keypoint R-CNN (ResNet-50 FPN) for the skeleton.

    Args:
        weights: files of weights, recognised by their contents; missing ones are downloaded.
        min_size: shorter side in pixels to which crops are enlarged.
        device: where the networks run.
        thresholds: of a detection.

    Raises:
        UserError: weights cannot be read, do not fit or cannot be downloaded.
    """

    def __init__(
        self,
        weights: Sequence[str | os.PathLike[str]] = (),
        *,
        min_size: int = 320,
        device: torch.device | str = "cpu",
        thresholds: Thresholds | None = None,
    ) -> None:
        self.thresholds = Thresholds() if thresholds is None else thresholds
        self.device = torch.device(device)
        states = _read_files(weights)
        self.models = {}
        self.weights: dict[str, str] = {}
        for kind in _KINDS:
            state, self.weights[kind] = states.get(kind) or _download(kind)
            model = build(kind, min_size, self.thresholds.score)
            try:
                model.load_state_dict(state)
            except RuntimeError as error:
                raise UserError(
                    f"weights {self.weights[kind]} do not fit torchvision's {_KINDS[kind].builder} "
                    f"({str(error).splitlines()[-1].strip()}); expected {_file_name(kind)}"
                ) from error
            self.models[kind] = model.to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, images: Sequence[torch.Tensor]) -> list[DetectedPerson | None]:
        """Return the person of each image, uint8 [3, H, W]; None where nobody was found."""
        batch = [image.to(self.device).float() / 255 for image in images]
        found = {
            kind: [{name: value.cpu() for name, value in one.items()} for one in model(batch)]
            for kind, model in self.models.items()
        }
        return [
            choose(mask, keypoint, self.thresholds)
            for mask, keypoint in zip(found["mask"], found["keypoint"], strict=True)
        ]


def masks_of(find: Detector) -> Callable[[Sequence[torch.Tensor]], list[PartMask | None]]:
    """Return a function that makes the masks of a batch of images from the persons found in them.

    Args:
        find: finds the persons.
    """

    def masks(images: Sequence[torch.Tensor]) -> list[PartMask | None]:
        return [
            None
            if person is None or not person.body.any()
            else divide(person.body, person.skeleton)
            for person in find(images)
        ]

    return masks


def choose(
    masks: Mapping[str, torch.Tensor], keypoints: Mapping[str, torch.Tensor], limits: Thresholds
) -> DetectedPerson | None:
    """Return the person nearest the centre of a crop.

    Args:
        masks: results of Mask R-CNN: boxes [N, 4], labels [N], scores [N], masks [N, 1, H, W].
        keypoints: results of Keypoint R-CNN: boxes [M, 4], scores [M], keypoints [M, 17, 3],
            keypoints_scores [M, 17].
        limits: of a detection.
    """
    height, width = masks["masks"].shape[-2:]
    bodies = masks["masks"][:, 0] >= limits.mask  # [N, H, W]
    there = (masks["labels"] == PERSON) & (masks["scores"] >= limits.score)
    there &= bodies.flatten(1).any(1)
    if not there.any():
        return None
    places = there.nonzero()[:, 0]
    boxes = masks["boxes"][places]
    # In units of the crop: a crop is far higher than wide.
    centres = (
        (boxes[:, :2] + boxes[:, 2:])
        / 2
        / torch.tensor([width, height], dtype=torch.int64, device="cpu")
    )
    away = (centres - 0.5).norm(dim=1)  # [N]
    best = int(places[int(away.argmin())])  # of equals the first, which scores highest
    return DetectedPerson(
        bodies[best].numpy().copy(), _skeleton_of(masks["boxes"][best], keypoints, limits)
    )


def _skeleton_of(
    box: torch.Tensor, keypoints: Mapping[str, torch.Tensor], limits: Thresholds
) -> Skeleton | None:
    """Return the skeleton whose box overlaps `box` [4] most."""
    if not len(keypoints["boxes"]):
        return None
    from torchvision.ops import box_iou

    overlaps = box_iou(box[None], keypoints["boxes"])[0]  # [M]
    overlaps = torch.where(keypoints["scores"] >= limits.score, overlaps, -1.0)
    best = int(overlaps.argmax())
    if overlaps[best] < limits.overlap:
        return None
    known = keypoints["keypoints_scores"][best] > limits.keypoint
    return from_coco(keypoints["keypoints"][best, :, :2].double().numpy(), known.numpy())


def build(kind: str, min_size: int, score: float = 0.5, **changes: Any) -> Any:
    """Build the network `mask` or `keypoint` without weights.

    Crops are enlarged to a shorter side of `min_size` pixels and at most four times that for the
    longer one. Boxes below `score` are left out; `changes` are arguments of torchvision's network.
    """
    from torchvision.models import detection

    builder = getattr(detection, _KINDS[kind].builder)
    settings: dict[str, Any] = {
        "min_size": min_size,
        "max_size": 4 * min_size,
        "box_score_thresh": score,
        "rpn_post_nms_top_n_test": PROPOSALS,
        "box_detections_per_img": DETECTIONS,
        **changes,
    }
    return builder(weights=None, weights_backbone=None, **settings)


def _published(kind: str) -> Any:
    from torchvision.models import detection

    return getattr(detection, _KINDS[kind].weights).COCO_V1


def _file_name(kind: str) -> str:
    return str(_published(kind).url).rsplit("/", 1)[-1]


def _download(kind: str) -> tuple[dict[str, torch.Tensor], str]:
    name = _file_name(kind)
    try:
        with patient():
            state = torch.hub.load_state_dict_from_url(
                _published(kind).url,
                map_location="cpu",
                progress=False,
                check_hash=True,
                weights_only=True,
            )
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors
        raise UserError(
            f"weights {name} could not be downloaded ({first_line(error)}); fetch "
            f"{_published(kind).url} on another machine and give it with --detector-weights {name} "
            f"(both are taken: {', '.join(_file_name(kind) for kind in _KINDS)}), import masks "
            "that you have with --from, such as --from silhouette, or train without masks"
        ) from error
    return state, name


def _read_files(
    files: Sequence[str | os.PathLike[str]],
) -> dict[str, tuple[dict[str, torch.Tensor], str]]:
    states: dict[str, tuple[dict[str, torch.Tensor], str]] = {}
    expected = " or ".join(_file_name(kind) for kind in _KINDS) if files else ""
    for path in files:
        state = unwrapped(read_weights(path, "--detector-weights", f"expected {expected}"))
        names = list(state) if isinstance(state, dict) else []
        kinds = [
            kind
            for kind, network in _KINDS.items()
            if any(str(name).startswith(network.head) for name in names)
        ]
        if not kinds:
            raise UserError(
                f"--detector-weights {path} holds neither a Mask nor a Keypoint R-CNN of "
                f"torchvision; expected {expected}"
            )
        if kinds[0] in states:
            raise UserError(
                f"--detector-weights names two files for {_KINDS[kinds[0]].builder}; leave one out"
            )
        states[kinds[0]] = state, Path(path).name
    return states
