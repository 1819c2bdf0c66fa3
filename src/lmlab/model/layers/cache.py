"""What a block keeps of earlier tokens during generation: a KV cache or a recurrent state."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Cache:
    """The cache of one block: how many tokens it has read, and the tensors its layers keep."""

    seen: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """By a name that each layer chooses: keys and values, a hidden state, the last inputs."""
