"""Random numbers by key instead of from a stream: each draw depends on its key and site alone.

A *site* is where something is drawn: a dropout layer or a parameter by its name, or a word that a
learning rule chooses. The *key* is set around the code that takes a training step (`keyed`, for the
run's seed and the step; `within`, for the piece of a batch or the member of a population). So a run
can be resumed without saving the state of a generator, one more draw at one site changes none at
another, and two processes with half of a batch each draw what one process draws for two accumulated
halves. (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3", use counters instead of
states; here the key seeds an ordinary generator.)

Outside any key, as in a notebook, draws follow from torch's global generator and differ each time.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Word = int | str

_key: tuple[Word, ...] | None = None
"""Global to the process, not to the thread: on a GPU autograd runs the backward pass in threads of
its own, where blocks may be recomputed.
"""


@contextmanager
def keyed(*key: Word) -> Iterator[None]:
    """Inside, this is the key of all noise, such as a seed and a step."""
    global _key
    outer, _key = _key, key
    try:
        yield
    finally:
        _key = outer


@contextmanager
def within(*words: Word) -> Iterator[None]:
    """Inside, the key is extended by these words. Without a key this does nothing."""
    if _key is None:
        yield
        return
    with keyed(*_key, *words):
        yield


@contextmanager
def repeatable() -> Iterator[None]:
    """Inside, drawing at a site again gives the same numbers.

    Without a key, a random one from torch's global generator is set.
    """
    key = (_random_key(),) if _key is None else _key
    with keyed(*key):
        yield


def _random_key() -> int:
    return int(torch.randint(2**62, (), device="cpu"))


@contextmanager
def forked(seed: int | None = None) -> Iterator[None]:
    """Inside, torch's global generator may be used, seeded anew if asked; then it is restored.

    For code that draws from the global generator but must not change what is drawn after it.
    """
    with torch.random.fork_rng():
        if seed is not None:
            torch.manual_seed(seed)
        yield


def seed(*site: Word) -> int:
    """A seed below 2**63: a hash of the current key and the site."""
    key = (_random_key(),) if _key is None else _key
    text = repr((*key, *site))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(device: torch.device | str, *site: Word) -> torch.Generator:
    """A new generator for a site under the current key, which starts from its seed."""
    return torch.Generator(device).manual_seed(seed(*site))


def normal(like: Tensor, *site: Word) -> Tensor:
    """Standard normal numbers in a tensor's shape, dtype and device."""
    return torch.randn(
        like.shape, generator=generator(like.device, *site), dtype=like.dtype, device=like.device
    )


def uniform(like: Tensor, *site: Word) -> Tensor:
    """Uniform numbers from [0, 1) in a tensor's shape, dtype and device."""
    return torch.rand(
        like.shape, generator=generator(like.device, *site), dtype=like.dtype, device=like.device
    )


def dropout_mask(like: Tensor, keep_probability: float, *site: Word) -> Tensor:
    """1 / keep_probability with that probability, otherwise 0; the mean is 1.

    In a tensor's shape, dtype and device; on the meta device nothing is drawn.
    """
    mask = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    if mask.is_meta:
        return mask
    rng = generator(like.device, *site)
    return mask.bernoulli_(keep_probability, generator=rng).div_(keep_probability)


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014): in training, x times a mask of 0s and 1 / (1 - p)s.

    The mask is 0 with probability p.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.site = ""
        """Its name in the model (set by `name_sites`), so that each layer draws other masks."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.p and self.training):
            return x
        if torch.compiler.is_compiling():
            return x * torch.ops.lmlab.mask(x.detach(), 1 - self.p, self.site)
        return x * dropout_mask(x, 1 - self.p, self.site)


def name_sites(model: nn.Module) -> None:
    """Set the site of every dropout layer to its name in the model."""
    for name, module in model.named_modules():
        if isinstance(module, Dropout):
            module.site = name
