"""Which published architecture has a counterpart for every part of a transformer.

A format lists its architectures in a table. The table is what the export reads, what docs/export.md
shows, and what the tests draw combinations from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmlab.core.errors import UserError
from lmlab.export.anatomy import Anatomy, Weights

KEYS = (
    "embedding",
    "position",
    "attention",
    "feed_forward",
    "normalisation",
    "placement",
    "residual",
)
"""Of the parts of a transformer, as in params.yaml."""


@dataclass(frozen=True)
class Architecture:
    """One architecture of another tool, and how a transformer of the lab is written in it."""

    name: str
    """As the tool calls it."""
    carries: Mapping[str, Sequence[str]]
    """By each of KEYS: the parts that have a counterpart."""
    qk_norm: Sequence[bool]
    """With QK-norm, without, or either."""
    config: Callable[[Anatomy], dict[str, Any]]
    """The tool's own description of the model."""
    tensors: Callable[[Anatomy, Weights], Weights]
    """Weights (`anatomy.weights`) under the tool's names, in its layout."""
    soft_cap: bool = False
    """Whether logits may be capped."""
    experts: bool = False
    """Whether feed-forward layers are mixtures of experts; others are not taken then."""

    def lacks(self, anatomy: Anatomy) -> list[str]:
        """What of a transformer has no counterpart, by key of params.yaml; empty: it fits."""
        names = anatomy.parts
        lacking = [
            f"models.transformer.{key}: {names[key]}"
            for key in KEYS
            if names[key] not in self.carries[key]
        ]
        if anatomy.qk_norm not in self.qk_norm:
            state = "true" if anatomy.qk_norm else "false"
            lacking.append(f"layers.attention.{names['attention']}.qk_norm: {state}")
        if anatomy.soft_cap and not self.soft_cap:
            lacking.append(f"models.transformer.logit_soft_cap: {anatomy.soft_cap:g}")
        if anatomy.window == 1:  # a KV cache that keeps no token is none in other tools
            lacking.append(f"layers.attention.{names['attention']}.window: 1")
        if bool(anatomy.experts) != self.experts:
            kind = "mixture_of_experts" if anatomy.experts else names["feed_forward"]
            lacking.append(f"models.transformer.feed_forward: {kind}")
        return lacking


def fitting(anatomy: Anatomy, architectures: Sequence[Architecture]) -> Architecture | None:
    """The first architecture that has all the parts; None where none has."""
    return next((each for each in architectures if not each.lacks(anatomy)), None)


def refusal(anatomy: Anatomy, architectures: Sequence[Architecture], tool: str) -> str:
    """Why none fits: the parts that no architecture has, or, where each has a home, what the
    nearest one lacks.
    """
    lacking = [each.lacks(anatomy) for each in architectures]
    nowhere = [what for what in lacking[0] if all(what in each for each in lacking)]
    if nowhere:
        return f"{', '.join(nowhere)} has no counterpart in {tool}"
    nearest = min(zip(architectures, lacking, strict=True), key=lambda pair: len(pair[1]))
    return (
        f"no architecture of {tool} has all its parts together: the nearest, {nearest[0].name},"
        f" lacks {', '.join(nearest[1])}"
    )


def chosen(
    anatomy: Anatomy, architectures: Sequence[Architecture], tool: str, instead: str
) -> Architecture:
    """The architecture to write. Raises UserError where none fits, with the format to take
    `instead`.
    """
    architecture = fitting(anatomy, architectures)
    if architecture is None:
        raise UserError(f"{refusal(anatomy, architectures, tool)}; {instead}")
    return architecture


def table(architectures: Sequence[Architecture]) -> str:
    """What each carries, as a table in Markdown."""
    heads = ("architecture", *KEYS, "QK-norm", "soft-cap")
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for each in architectures:
        cells = [", ".join(each.carries[key]) for key in KEYS]
        if each.experts:
            cells[KEYS.index("feed_forward")] = f"mixture_of_experts of {cells[3]}"
        norms = "either" if len(each.qk_norm) > 1 else "yes" if each.qk_norm[0] else "no"
        row = (each.name, *cells, norms, "either" if each.soft_cap else "no")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"
