"""What a block remembers of the tokens before, so that generation need not read them again."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Cache:
    """One block's: how many tokens it has seen, and whatever tensors its layers keep (keys and
    values, hidden states).
    """

    seen: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)
