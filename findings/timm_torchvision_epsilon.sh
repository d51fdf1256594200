#!/bin/sh
# Networks of one name in timm 1.0.31 and torchvision 0.29.1, or in timm under two names, whose
# tensors fit one another in number, order and shape, and which compute something else: the epsilon
# of their batch normalisations and the padding of their strided convolutions are in no state dict.
# - torchvision's MobileNetV3, EfficientNet b5 to b7 and EfficientNetV2 have an epsilon of 1e-3,
#   timm's of those names 1e-5. Its EfficientNet b0 to b4 have 1e-5 as timm's.
# - timm's tf_ networks have 1e-3 and TensorFlow's padding; load_state_dict takes the weights of the
#   network without tf_, all names matched.
# Depthwise convolutions have channels of small variance, for which 1e-3 is no small number: where
# statistics come from passes of a network of random weights over pictures, logits have cosines below
# 0.9 to the original's. timm.create_model(..., bn_eps=1e-3) makes those of equal padding equal.
#
# Fails if one of this changes. Needs python3 with venv, and 6 GB of disk where torch has CUDA.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 timm==1.0.31 numpy==2.4.6
cat > "$folder/look.py" <<'PYTHON'
import timm
import torch
import torchvision
from torch import nn
from torch.nn.functional import cosine_similarity, interpolate
from torchvision.models import get_model


def build(name, **options):
    library, _, own = name.partition(":")
    if library == "timm":
        return timm.create_model(own, **options)
    return get_model(own, weights=None)


def norms(network):
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def epsilon(network):
    (one,) = {norm.eps for norm in norms(network)}
    return one


def loaded(network, state):
    """Load tensors in their order: kinds and shapes must agree, apart from axes of 1."""
    own = network.state_dict()
    pairs = list(zip(own.items(), state.items(), strict=True))
    for (name, tensor), (other, value) in pairs:
        assert name.rpartition(".")[2] == other.rpartition(".")[2]
        assert [n for n in tensor.shape if n > 1] == [n for n in value.shape if n > 1]
    network.load_state_dict(
        {name: value.reshape(tensor.shape) for (name, tensor), (_, value) in pairs}, strict=True
    )
    return network.eval()


def compared(expected, found):
    if torch.allclose(expected, found, rtol=1e-3, atol=1e-3 * expected.abs().max()):
        return "equal logits"
    cosine = cosine_similarity(expected, found).min()
    return f"other logits, cosine {'below' if cosine < 0.9 else 'above'} 0.9"


torch.manual_seed(0)
versions = torch.__version__.split("+")[0], torchvision.__version__.split("+")[0]
print(f"timm {timm.__version__}, torch {versions[0]}, torchvision {versions[1]}")
images = 2 * interpolate(torch.rand(8, 3, 14, 14), 224, mode="bilinear") - 1
for source, target in (
    ("torchvision:mobilenet_v2", "timm:mobilenetv2_100"),
    ("torchvision:mobilenet_v3_small", "timm:mobilenetv3_small_100"),
    ("torchvision:mobilenet_v3_large", "timm:mobilenetv3_large_100"),
    ("torchvision:efficientnet_b0", "timm:efficientnet_b0"),
    ("torchvision:efficientnet_b4", "timm:efficientnet_b4"),
    ("torchvision:efficientnet_b5", "timm:efficientnet_b5"),
    ("torchvision:efficientnet_v2_s", "timm:efficientnetv2_s"),
    ("torchvision:efficientnet_v2_s", "timm:tf_efficientnetv2_s"),
    ("timm:efficientnet_b0", "timm:tf_efficientnet_b0"),
):
    original = build(source)
    for norm in norms(original):
        norm.momentum = None  # the mean of all passes
    with torch.inference_mode():
        for _ in range(3):
            original.train()(images)
    original.eval()
    state = original.state_dict()
    given = loaded(build(target), state)
    repaired = loaded(build(target, bn_eps=epsilon(original)), state)
    names = "same names" if list(state) == list(given.state_dict()) else "same order"
    with torch.inference_mode():
        expected = original(images)
        seen = compared(expected, given(images)), compared(expected, repaired(images))
    print(
        f"{source} in {target}, {names}: epsilon {epsilon(original):g} and {epsilon(given):g}, "
        f"{seen[0]}; with the original's epsilon {seen[1]}"
    )
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/look.py" | tee "$folder/seen"
cat > "$folder/expected" <<'TEXT'
timm 1.0.31, torch 2.14.1, torchvision 0.29.1
torchvision:mobilenet_v2 in timm:mobilenetv2_100, same order: epsilon 1e-05 and 1e-05, equal logits; with the original's epsilon equal logits
torchvision:mobilenet_v3_small in timm:mobilenetv3_small_100, same order: epsilon 0.001 and 1e-05, other logits, cosine below 0.9; with the original's epsilon equal logits
torchvision:mobilenet_v3_large in timm:mobilenetv3_large_100, same order: epsilon 0.001 and 1e-05, other logits, cosine below 0.9; with the original's epsilon equal logits
torchvision:efficientnet_b0 in timm:efficientnet_b0, same order: epsilon 1e-05 and 1e-05, equal logits; with the original's epsilon equal logits
torchvision:efficientnet_b4 in timm:efficientnet_b4, same order: epsilon 1e-05 and 1e-05, equal logits; with the original's epsilon equal logits
torchvision:efficientnet_b5 in timm:efficientnet_b5, same order: epsilon 0.001 and 1e-05, other logits, cosine below 0.9; with the original's epsilon equal logits
torchvision:efficientnet_v2_s in timm:efficientnetv2_s, same order: epsilon 0.001 and 1e-05, other logits, cosine below 0.9; with the original's epsilon equal logits
torchvision:efficientnet_v2_s in timm:tf_efficientnetv2_s, same order: epsilon 0.001 and 0.001, other logits, cosine below 0.9; with the original's epsilon other logits, cosine below 0.9
timm:efficientnet_b0 in timm:tf_efficientnet_b0, same names: epsilon 1e-05 and 0.001, other logits, cosine below 0.9; with the original's epsilon other logits, cosine below 0.9
TEXT
diff "$folder/expected" "$folder/seen"
