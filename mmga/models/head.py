"""Heads on the pooled features: reduction, neck and classifier."""

import torch
from torch import nn


def make_reduction(channels: int, embed_dim: int, neck: str) -> nn.Module:
    """Make the reduction of pooled features to an embedding.

    It is the 1x1 convolution of the published networks, written as a matrix because the input has
    no extent. With a bnneck the batch normalisation and ReLU are left to the neck.
    """
    linear = nn.Linear(channels, embed_dim, bias=False)
    nn.init.kaiming_normal_(linear.weight, mode="fan_in")
    if neck == "bnneck":
        return nn.Sequential(linear)
    norm = nn.BatchNorm1d(embed_dim)
    nn.init.normal_(norm.weight, 1.0, 0.02)
    return nn.Sequential(linear, norm, nn.ReLU(inplace=True))


class Head(nn.Module):
    """Neck and classifier of one embedding.

    Args:
        embed_dim: D.
        num_classes: training identities; 0 for a network without classifiers.
        neck: `none` classifies and tests the embedding itself; `bnneck` (Bag of Tricks, section
            3.6) gives the embedding to the triplet loss and its batch normalisation, whose bias
            stays 0, to the classifier and the test.
        classifier: `kaiming` (fan_out, with bias 0) or `normal` (N(0, .001), no bias).
    """

    def __init__(self, embed_dim: int, num_classes: int, neck: str, classifier: str) -> None:
        super().__init__()
        self.neck: nn.Module = nn.Identity()
        if neck == "bnneck":
            norm = nn.BatchNorm1d(embed_dim)
            norm.bias.requires_grad_(False)
            self.neck = norm
        self.classifier = None
        if num_classes:
            self.classifier = nn.Linear(embed_dim, num_classes, bias=classifier == "kaiming")
            if classifier == "kaiming":
                nn.init.kaiming_normal_(self.classifier.weight, mode="fan_out")
                nn.init.zeros_(self.classifier.bias)
            else:
                nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, embedding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the test feature [B, D] and the logits [B, N], None without a classifier."""
        feature = self.neck(embedding)
        return feature, None if self.classifier is None else self.classifier(feature)
