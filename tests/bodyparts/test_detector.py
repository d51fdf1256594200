"""Who is chosen of what torchvision's detectors find; no pretrained weights are exercised here."""

import numpy as np
import pytest
import torch
from persons import SIZE, STANDING

from mmga.bodyparts import detector
from mmga.bodyparts.detector import Thresholds, TorchvisionDetector, choose
from mmga.common.errors import UserError

LIMITS = Thresholds()
ORDER = [0, 0, 0, 0, 0, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]  # COCO's joints among ours


def _masks(*found):
    """Boxes (left, top, right, bottom) with label and score; the mask fills its box."""
    masks = torch.zeros(len(found), 1, *SIZE)
    for i, (box, _, _) in enumerate(found):
        masks[i, 0, box[1] : box[3], box[0] : box[2]] = 0.9
    return {
        "boxes": torch.tensor([box for box, _, _ in found]).float().reshape(-1, 4),
        "labels": torch.tensor([label for _, label, _ in found], dtype=torch.int64),
        "scores": torch.tensor([score for _, _, score in found]),
        "masks": masks,
    }


def _keypoints(*found):
    points = torch.from_numpy(STANDING[ORDER]).float()
    return {
        "boxes": torch.tensor([box for box, _, _ in found]).float().reshape(-1, 4),
        "scores": torch.tensor([score for _, score, _ in found]),
        "keypoints": torch.cat([points, torch.ones(17, 1)], 1).expand(len(found), 17, 3),
        "keypoints_scores": torch.tensor([[logit] * 17 for _, _, logit in found]).reshape(-1, 17),
    }


CENTRE, LEFT = (16, 10, 48, 120), (0, 10, 20, 120)


def test_the_person_nearest_the_centre():
    found = _masks((LEFT, 1, 0.99), (CENTRE, 1, 0.6), ((20, 20, 44, 110), 27, 0.99))
    person = choose(found, _keypoints((LEFT, 0.9, 5.0), (CENTRE, 0.9, 5.0)), LIMITS)
    assert person.body[60, 32]
    assert not person.body[60, 5]
    assert person.skeleton.known.all()
    np.testing.assert_allclose(person.skeleton.points[2:], STANDING[2:])


def test_a_low_crop_is_measured_in_its_own_units():
    # 15 pixels to the side are further from the centre of a narrow crop than 25 up.
    aside, above = (30, 24, 64, 104), (15, 0, 49, 78)
    person = choose(_masks((aside, 1, 0.9), (above, 1, 0.9)), _keypoints(), LIMITS)
    assert person.body[5, 32]
    assert person.skeleton is None


@pytest.mark.parametrize("found", [(), ((CENTRE, 27, 0.9),), ((CENTRE, 1, 0.4),)])
def test_nobody(found):
    assert choose(_masks(*found), _keypoints(), LIMITS) is None


@pytest.mark.parametrize("skeletons", [(), ((LEFT, 0.9, 5.0),), ((CENTRE, 0.1, 5.0),)])
def test_a_body_without_a_skeleton_of_its_own(skeletons):
    person = choose(_masks((CENTRE, 1, 0.9)), _keypoints(*skeletons), LIMITS)
    assert person.skeleton is None


def test_joints_below_the_threshold_are_not_known():
    person = choose(_masks((CENTRE, 1, 0.9)), _keypoints((CENTRE, 0.9, -1.0)), LIMITS)
    assert not person.skeleton.known.any()


def test_torchvisions_networks_give_what_is_read(monkeypatch):
    """Both networks with random weights: whatever they find has the form that `choose` reads."""
    torch.manual_seed(0)

    build = detector.build
    small = {"box_detections_per_img": 2, "rpn_post_nms_top_n_test": 10}
    networks = {kind: build(kind, 64, 0.0, **small) for kind in ("mask", "keypoint")}
    monkeypatch.setattr(detector, "build", lambda kind, size, score: networks[kind])
    monkeypatch.setattr(detector, "_download", lambda kind: (networks[kind].state_dict(), "random"))
    finder = TorchvisionDetector(min_size=64, thresholds=Thresholds(score=0.0, mask=-1.0))
    images = [torch.randint(0, 256, (3, 128, width), dtype=torch.uint8) for width in (64, 48)]
    persons = finder(images)
    assert len(persons) == 2
    for person, image in zip(persons, images, strict=True):
        if person is not None:
            assert person.body.shape == image.shape[1:]
            assert person.body.dtype == bool


def test_weights_that_cannot_be_downloaded(monkeypatch):
    def offline(*arguments, **names):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(
        UserError, match=r"--detector-weights maskrcnn_resnet50_fpn_v2_coco-\w+\.pth"
    ) as said:
        TorchvisionDetector()
    assert "keypointrcnn_resnet50_fpn_coco" in str(said.value)
    assert "https://download.pytorch.org/models/maskrcnn_resnet50_fpn_v2" in str(said.value)
    assert "--from silhouette" in str(said.value)
    assert "train without masks" in str(said.value)
    assert "\n" not in str(said.value)


def test_weights_files(tmp_path):
    with pytest.raises(UserError, match=r"gone\.pth does not exist; expected maskrcnn"):
        TorchvisionDetector([tmp_path / "gone.pth"])
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(UserError, match="holds neither a Mask nor a Keypoint R-CNN"):
        TorchvisionDetector([tmp_path / "resnet.pth"])
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"broken\.pth cannot be read"):
        TorchvisionDetector([tmp_path / "broken.pth"])
    half = {"roi_heads.mask_predictor.x": torch.zeros(1)}
    for name in ("a.pth", "b.pth"):
        torch.save(half, tmp_path / name)
    with pytest.raises(UserError, match="two files for maskrcnn_resnet50_fpn_v2"):
        TorchvisionDetector([tmp_path / "a.pth", tmp_path / "b.pth"])


def test_weights_that_do_not_fit(tmp_path, monkeypatch):
    class Network(torch.nn.Linear):
        pass

    monkeypatch.setattr(detector, "build", lambda *arguments: Network(2, 2))
    torch.save({"roi_heads.mask_predictor.x": torch.zeros(1)}, tmp_path / "a.pth")
    torch.save({"roi_heads.keypoint_predictor.x": torch.zeros(1)}, tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"weights a\.pth do not fit torchvision's maskrcnn"):
        TorchvisionDetector([tmp_path / "b.pth", tmp_path / "a.pth"])
