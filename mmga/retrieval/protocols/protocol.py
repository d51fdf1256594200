"""Named evaluation protocols: which gallery items count for a query, and how ranks are scored."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Literal

from mmga.common.errors import UserError

ProtocolName = Literal[
    "market1501",
    "market1501-matlab",
    "no-camera",
    "other-cameras",
    "cuhk03-single-shot",
    "single-shot",
    "vehicleid",
    "viper",
    "all-vs-all",
    "multi-query",
]
Precision = Literal["hits", "trapezoid"]
"""How the ranks of the matches become an average precision."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """The rules of one protocol.

    Attributes:
        name: what users type.
        camera: ``"same-identity"`` removes items of the query's identity and camera,
            ``"all"`` every item of the query's camera, ``"none"`` nothing.
        own_image: ``"path"`` removes items with the query's path, ``"index"`` the item of the
            query's own index (one set against itself), ``"none"`` nothing.
        precision: ``"hits"`` is the mean precision at the hits, ``"trapezoid"`` the mean of the
            precisions before and at each hit (Market-1501's MATLAB code).
        unmatched: queries without a match are left out (``"skip"``) or count zero (``"zero"``).
        single_shot: one gallery image per identity is drawn.
        pools: the queries of one identity and camera are pooled to one before ranking.
        splits: the mean of several evaluations: ``"halves"`` of VIPeR's persons in both directions,
            ``"directions"``, both of them of persons who are a half already, or ``"draws"`` of
            VehicleID's gallery from one set; None is one evaluation.
        junk_in_graph: junk takes part in the neighbour lists of re-ranking.
    """

    name: str
    camera: Literal["same-identity", "all", "none"] = "same-identity"
    own_image: Literal["path", "index", "none"] = "none"
    precision: Precision = "hits"
    unmatched: Literal["skip", "zero"] = "skip"
    single_shot: bool = False
    pools: bool = False
    splits: Literal["halves", "directions", "draws"] | None = None
    junk_in_graph: bool = False

    @property
    def needs_cameras(self) -> bool:
        """Whether camids must be given."""
        return self.camera != "none" or self.pools

    @property
    def one_set(self) -> bool:
        """Whether one set is ranked against itself, so that there is no gallery."""
        return self.own_image == "index" or self.splits == "draws"

    @property
    def draws(self) -> bool:
        """Whether galleries can be drawn by a seed."""
        return self.single_shot or self.splits == "draws"

    @property
    def without_cameras(self) -> str:
        """The protocol that comes nearest and needs no cameras, in words."""
        if self.single_shot:
            return "single-shot"
        return "no-camera" + (" with ap trapezoid" if self.precision == "trapezoid" else "")


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("market1501"),
        Protocol("market1501-matlab", precision="trapezoid", unmatched="zero", junk_in_graph=True),
        Protocol("no-camera", camera="none", own_image="path"),
        Protocol("other-cameras", camera="all"),
        Protocol("cuhk03-single-shot", single_shot=True),
        Protocol("single-shot", camera="none", own_image="path", single_shot=True),
        Protocol("vehicleid", camera="none", splits="draws"),
        Protocol("viper", camera="none", splits="halves"),
        Protocol("all-vs-all", camera="none", own_image="index"),
        Protocol("multi-query", pools=True),
    )
}


def protocol_named(name: str | Protocol, ap: str | None = None) -> Protocol:
    """Return the protocol of a name.

    Args:
        name: a name, or rules of one's own.
        ap: average precision to be used in place of the protocol's own, or None.

    Raises:
        UserError: there is none, or no such average precision.
    """
    if not isinstance(name, Protocol):
        if name not in PROTOCOLS:
            raise UserError(f"protocol: expected {', '.join(PROTOCOLS)}; found {name!r}")
        name = PROTOCOLS[name]
    if ap is None:
        return name
    if ap not in typing.get_args(Precision):
        raise UserError(f"ap: expected hits or trapezoid, found {ap!r}")
    return dataclasses.replace(name, precision=typing.cast(Precision, ap))


def of_test_split(name: str) -> Protocol:
    """Return the protocol of a name for the test split of a data set.

    VIPeR's test split is one half of the persons already, and is not halved again.

    Raises:
        UserError: there is none.
    """
    rules = protocol_named(name)
    return dataclasses.replace(rules, splits="directions") if rules.splits == "halves" else rules
