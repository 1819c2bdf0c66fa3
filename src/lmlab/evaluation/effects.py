"""What a change at one place does to the logits: in all, and by itself (Pearl 2001).

The total effect lets every later layer respond to the change. The direct effect is what remains
where each of them adds to the residual stream what it added before (so the change reaches the
output head through the stream alone); the rest is indirect, through later layers. (Vig et al. 2020
tell the two apart in language models; Wang et al. 2022 look for circuits by them.)
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.model.models.base import LanguageModel
from lmlab.model.places import Change, changed, names, record


@dataclass(frozen=True)
class Effects:
    """The differences that a change makes to the logits of a batch, each of shape (B, T, V)."""

    total: Tensor
    """logits with the change - logits without."""
    direct: Tensor
    """head(last stream + what the change adds to the stream) - logits without."""

    @property
    def indirect(self) -> Tensor:
        """What comes through later layers: total - direct."""
        return self.total - self.direct


def effects(model: LanguageModel, tokens_BT: Tensor, changes: Mapping[str, Change]) -> Effects:
    """The effects of changes at one or more places of a single block, or at `embedding`.

    The model should be in evaluation mode. Raises UserError for a place that does not exist, for
    places of several blocks, for `logits`, and for a model whose blocks do more than add to one
    stream of its width (a table of n-grams, hyper-connections, value residual).
    """
    if model.readout is None or not model.plain_stream:
        raise UserError(
            "direct effects need a model whose blocks add to one residual stream and that ends in"
            " an output head; this one has none"
        )
    stream = _stream_behind(model, changes)
    last = f"blocks.{len(model.blocks) - 1}.output"
    with record(model, [stream, last]) as plain:
        logits_BTV = model(tokens_BT)
    with changed(model, changes), record(model, [stream]) as states:
        changed_BTV = model(tokens_BT)
    added_BTD = states[stream] - plain[stream]
    return Effects(
        total=changed_BTV - logits_BTV,
        direct=model.head(plain[last] + added_BTD) - logits_BTV,
    )


def _stream_behind(model: LanguageModel, changes: Mapping[str, Change]) -> str:
    """The first place of the stream at or behind the changed ones."""
    with changed(model, changes):
        pass  # refuses unknown names
    every_place = names(model)
    positions = [every_place.index(name) for name in changes]
    blocks = {name.split(".")[1] if "." in name else name for name in changes}
    blocks = {"0" if block == "embedding" else block for block in blocks}
    if len(blocks) != 1 or "logits" in blocks:
        raise UserError(
            f"direct effects are those of places in one block, not of {', '.join(changes)}"
        )
    ahead = every_place[max(positions) :]
    return next(name for name in ahead if _is_stream(name))


def _is_stream(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last in ("input", "output", "embedding") or last.startswith("after_")
