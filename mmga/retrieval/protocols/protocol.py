"""Named evaluation protocols: which gallery items count for a query, and how ranks are scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmga.common.errors import UserError

ProtocolName = Literal[
    "market1501",
    "market1501-matlab",
    "no-camera",
    "other-cameras",
    "cuhk03-single-shot",
    "viper",
    "all-vs-all",
    "multi-query",
]


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
        splits: VIPeR's repeated halves.
        junk_in_graph: junk takes part in the neighbour lists of re-ranking.
    """

    name: str
    camera: Literal["same-identity", "all", "none"] = "same-identity"
    own_image: Literal["path", "index", "none"] = "none"
    precision: Literal["hits", "trapezoid"] = "hits"
    unmatched: Literal["skip", "zero"] = "skip"
    single_shot: bool = False
    pools: bool = False
    splits: bool = False
    junk_in_graph: bool = False

    @property
    def needs_cameras(self) -> bool:
        """Whether camids must be given."""
        return self.camera != "none" or self.pools or self.splits


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("market1501"),
        Protocol("market1501-matlab", precision="trapezoid", unmatched="zero", junk_in_graph=True),
        Protocol("no-camera", camera="none", own_image="path"),
        Protocol("other-cameras", camera="all"),
        Protocol("cuhk03-single-shot", single_shot=True),
        Protocol("viper", splits=True),
        Protocol("all-vs-all", camera="none", own_image="index"),
        Protocol("multi-query", pools=True),
    )
}


def protocol_named(name: str | Protocol) -> Protocol:
    """Return the protocol of a name.

    Raises:
        UserError: there is none.
    """
    if isinstance(name, Protocol):
        return name
    if name not in PROTOCOLS:
        raise UserError(f"protocol: expected {', '.join(PROTOCOLS)}; found {name!r}")
    return PROTOCOLS[name]
