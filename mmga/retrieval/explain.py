"""Explain, rule by rule, why two protocols give different numbers for one set of features."""

from __future__ import annotations

import dataclasses
from typing import Any

from mmga.common.errors import UserError
from mmga.retrieval.evaluate import evaluate
from mmga.retrieval.features import Features
from mmga.retrieval.protocols.protocol import Protocol, protocol_named

# Rules that can be exchanged one at a time, in this order.
_RULES = ("camera", "own_image", "unmatched", "precision")
_FIGURES = ("mAP", "mINP", "rank1")


def explain(
    query: Features | None, gallery: Features | None, one: str, other: str, **options: Any
) -> list[dict[str, Any]]:
    """Walk from one protocol to another, exchanging one rule at a time.

    Args:
        query: features of the queries; None where another process of a group has them.
        gallery: features of the gallery, likewise.
        one: name of the protocol to start from.
        other: name of the protocol to end at.
        **options: further arguments of `evaluate`.

    Returns:
        One entry for the start and one for each differing rule: ``rule``, ``from``, ``to``, the
        figures with it, and ``change``: what it contributes to each. The changes add up to the
        difference of the two protocols; with another order of rules they would be split otherwise.
        A condition of ``exclude`` holds for all and stands in the first.

    Raises:
        UserError: the protocols differ in more than these rules, or as in `evaluate`.
    """
    start, end = protocol_named(one), protocol_named(other)
    for flag in ("single_shot", "pools", "splits"):
        if getattr(start, flag) or getattr(end, flag):
            raise UserError(
                f"explain: {one} and {other} cannot be compared rule by rule; choose from "
                "market1501, market1501-matlab, no-camera and other-cameras"
            )
    if "index" in (start.own_image, end.own_image):
        raise UserError("explain: all-vs-all ranks one set; the others rank two")
    now = start
    steps = [{"rule": None, "from": None, "to": one, **_figures(query, gallery, now, options)}]
    if options.get("exclude"):
        steps[0]["exclude"] = options["exclude"]
    for rule in _RULES:
        before, after = getattr(now, rule), getattr(end, rule)
        if before == after:
            continue
        now = dataclasses.replace(now, **{rule: after})
        found = _figures(query, gallery, now, options)
        change = {name: found[name] - steps[-1][name] for name in _FIGURES}
        steps.append({"rule": rule, "from": before, "to": after, **found, "change": change})
    return steps


def table(steps: list[dict[str, Any]]) -> str:
    """Return the steps as text for a terminal."""
    lines = [f"{'':<44}{'mAP':>9}{'mINP':>9}{'rank-1':>9}"]
    for step in steps:
        if step["rule"] is None:
            name, values = str(step["to"]), [f"{step[figure]:.2%}" for figure in _FIGURES]
        else:
            name = f"{step['rule']}: {step['from']} -> {step['to']}"
            values = [f"{100 * step['change'][figure]:+.2f} " for figure in _FIGURES]
        lines.append(f"{name:<44}" + "".join(f"{value:>9}" for value in values))
    if steps[0].get("exclude"):
        lines.append(f"(of all, pairs left out where {steps[0]['exclude']})")
    total = "".join(f"{steps[-1][figure]:>9.2%}" for figure in _FIGURES)
    units = "(changes are in percentage points)"
    return "\n".join([*lines, f"{'together':<44}{total}", units])


def _figures(
    query: Features | None, gallery: Features | None, rules: Protocol, options: dict[str, Any]
) -> dict[str, Any]:
    report = evaluate(query, gallery, protocol=rules, **options)
    return {name: getattr(report, name) for name in _FIGURES}
