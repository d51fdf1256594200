"""Options of an evaluation, checked one by one and against each other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from mmga.common.errors import UserError, real_number, whole_number
from mmga.ops import distance
from mmga.retrieval.bounds.approximation import EXACT
from mmga.retrieval.features import Features
from mmga.retrieval.protocols.protocol import Protocol as Rules
from mmga.retrieval.reranking.settings import KReciprocal, check_rule
from mmga.retrieval.tiles.problem import RankingProblem
from mmga.retrieval.tiles.sources import Source

POOLS = ("mean", "max")


class Labelled(Protocol):
    """An object with one pid for each row; camids, paths and columns as far as it has them."""

    pids: np.ndarray


class Reranker(Protocol):
    """A re-ranking of one's own, passed as ``rerank=``."""

    def source(self, problem: RankingProblem) -> Source:
        """Return tiles of the re-ranked distances of `problem.selection`."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """Return the parameters as the report shows them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOptions:
    """Options of `mmga.evaluate`, which describes each; `protocol` is looked up."""

    metric: str
    protocol: Rules
    rerank: KReciprocal | Reranker | None = None
    exact: str | None = None
    max_rank: int = 50
    trials: int = 0
    seed: int = 0
    pool: str = "mean"
    memory: int | None = None
    verification: bool = False
    cross_camera: bool = False
    fpr: float | None = None
    strangers: float | None = None
    exclude: str | None = None
    query_shares: int = 1

    def __post_init__(self) -> None:
        """Take numbers of any kind as Python's."""
        for name, number in (
            ("max_rank", whole_number),
            ("trials", whole_number),
            ("seed", whole_number),
            ("query_shares", whole_number),
            ("fpr", real_number),
            ("strangers", real_number),
        ):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, number(name, value))

    def of_a_part(self) -> dict[str, Any]:
        """Return what holds for each repeated evaluation, as arguments of `mmga.evaluate`."""
        names = ("metric", "exact", "max_rank", "memory", "exclude")
        return {name: getattr(self, name) for name in names}

    def check_group(self) -> None:
        """Raise a `UserError` for what one process must do alone."""
        if self.rerank is not None:
            kind = "" if isinstance(self.rerank, KReciprocal) else "by other rules than KReciprocal"
            if refused := kind or ("with exact='float32'" if self.exact == "float32" else ""):
                raise UserError(
                    "rerank: several processes re-rank by KReciprocal and certified neighbours, "
                    f"not {refused}; start one process without torchrun, or leave it out"
                )

    def check(self, query: Features, gallery: Features, device: torch.device) -> None:
        """Raise a `UserError` where options do not fit each other, the features or the device."""
        check_choice("metric", self.metric, distance.METRICS)
        if self.exact is not None:
            check_choice("exact", self.exact, EXACT)
        check_choice("pool", self.pool, POOLS)
        check_max_rank(self.max_rank)
        check_draws(self.protocol, self.trials, self.seed)
        for refused, why in self._refusals(query, gallery, device):
            if refused:
                raise UserError(why)

    def _refusals(
        self, query: Features, gallery: Features, device: torch.device
    ) -> list[tuple[bool, str]]:
        """Return what is refused, each with whether it is the case here."""
        parts, rules, reranked = (
            query.visibility is not None,
            self.protocol,
            self.rerank is not None,
        )
        of_verification = self.cross_camera or self.fpr is not None or self.strangers is not None
        return [
            (
                parts != (gallery.visibility is not None),
                f"query has {'parts' if parts else 'features'}, gallery the other; both must come "
                "from one network",
            ),
            (
                parts and reranked,
                "rerank: part features have no neighbour graph; evaluate them plainly",
            ),
            (
                parts and device.type != "cpu",
                "device: part features are ranked on the CPU; move them there",
            ),
            (
                reranked and (rules.splits is not None or rules.single_shot),
                f"rerank: protocol {rules.name} reports plain figures only",
            ),
            (
                reranked and self.query_shares > 1,
                "rerank: one graph of all queries and items is made, whose queries are not dealt "
                "out; leave out query_shares",
            ),
            (
                self.verification and rules.splits is not None,
                f"verification: protocol {rules.name} has no single gallery",
            ),
            (
                not self.verification and of_verification,
                "cross_camera, fpr and strangers belong to verification, which is off",
            ),
            (
                self.fpr is not None and not 0 < self.fpr < 1,
                f"fpr: expected a rate between 0 and 1, found {self.fpr}",
            ),
            (
                not rules.splits and query.rows.shape[1:] != gallery.rows.shape[1:],
                f"query has rows of {query.rows.shape[1:]} values, gallery of "
                f"{gallery.rows.shape[1:]}; both must come from one network",
            ),
        ]


def check_kinds(query: Any, gallery: Any, rerank: Any) -> None:
    """Raise a `UserError` where an argument of `mmga.evaluate` is of another kind than it takes."""
    for name, side in (("query", query), ("gallery", gallery)):
        if side is not None and not isinstance(side, Features):
            remedy = "wrap it as mmga.Features(features, pids, camids)"
            if isinstance(side, str | os.PathLike):
                remedy = f"read the file by mmga.load_features({os.fspath(side)!r})"
            raise UserError(
                f"{name}: expected mmga.Features, found {type(side).__name__}; {remedy}"
            )
    if not hasattr(rerank, "source"):
        check_rule(rerank)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a `UserError` unless a value is one of the choices."""
    if value not in choices:
        raise UserError(f"{name}: expected {' or '.join(choices)}, found {value!r}")


def check_draws(rules: Rules, trials: int, seed: int) -> None:
    """Raise a `UserError` where a protocol draws nothing, or not so."""
    if trials < 0 or (trials > 0 and not rules.draws):
        raise UserError(
            f"trials: expected {'a number of draws' if rules.draws else 0} under protocol "
            f"{rules.name}, found {trials}; cuhk03-single-shot, single-shot and vehicleid draw "
            "galleries"
        )
    if seed < 0:
        raise UserError(f"seed: expected at least 0, found {seed}")


def check_max_rank(max_rank: int) -> None:
    """Raise a `UserError` unless CMC has a length."""
    if not 1 <= max_rank <= 10**6:
        raise UserError(f"max_rank: expected from 1 to 1000000, found {max_rank}")
