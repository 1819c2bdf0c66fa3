"""Random numbers by key instead of from a stream: what is drawn depends on the run's seed, the
step, the piece and the site.

A *site* is where something is drawn: a dropout layer or a parameter by its name, or a word that a
learning rule chooses. Whoever takes a step sets the rest of the key around it (`keyed`, and
`within` for the pieces of a batch or the members of a population). So nothing has to be saved for a
run to be resumed, one more draw at one site changes none at another, and two processes with half of
a batch each draw what one process draws for two accumulated halves. (The idea of counters instead
of states: Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"; here the key seeds an
ordinary generator.)

Outside of any key, as in a notebook, what is drawn follows from torch's global generator, and is
new each time.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Word = int | str

_key: tuple[Word, ...] | None = None
"""Of the process, not of the thread: autograd has threads of its own on a GPU, in which blocks may
compute again.
"""


@contextmanager
def keyed(*key: Word) -> Iterator[None]:
    """Inside, all noise is that of this key, such as a seed and a step."""
    global _key
    outer, _key = _key, key
    try:
        yield
    finally:
        _key = outer


@contextmanager
def within(*words: Word) -> Iterator[None]:
    """Inside, the key has these words too. Outside of any key this does nothing."""
    if _key is None:
        yield
        return
    with keyed(*_key, *words):
        yield


@contextmanager
def repeatable() -> Iterator[None]:
    """Inside, what is drawn twice at a site is the same: where there is no key, torch's global
    generator begins one.
    """
    with keyed(*((_drawn(),) if _key is None else _key)):
        yield


def _drawn() -> int:
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
    """A seed below 2**63 for a site under the present key."""
    whole = (_drawn(),) if _key is None else _key
    digest = hashlib.blake2b(repr((*whole, *site)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(device: torch.device | str, *site: Word) -> torch.Generator:
    """A generator for a site under the present key. Each call gives a new one, at its beginning."""
    return torch.Generator(device).manual_seed(seed(*site))


def normal(like: Tensor, *site: Word) -> Tensor:
    """Standard normal numbers in a tensor's shape, precision and place."""
    return torch.randn(
        like.shape, generator=generator(like.device, *site), dtype=like.dtype, device=like.device
    )


def uniform(like: Tensor, *site: Word) -> Tensor:
    """Numbers from [0, 1) in a tensor's shape, precision and place."""
    return torch.rand(
        like.shape, generator=generator(like.device, *site), dtype=like.dtype, device=like.device
    )


def kept(like: Tensor, share: float, *site: Word) -> Tensor:
    """1 / share with probability `share`, otherwise 0, in a tensor's shape, precision and place;
    the mean is 1.
    """
    chosen = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    if chosen.is_meta:
        return chosen
    return chosen.bernoulli_(share, generator=generator(like.device, *site)).div_(share)


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014): in training, x times a mask of zeros, with probability p,
    and 1 / (1 - p).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.site = ""
        """Its name in the model (`name_sites`): what makes its masks other than those of other
        layers.
        """

    def forward(self, x: Tensor) -> Tensor:
        if not (self.p and self.training):
            return x
        if torch.compiler.is_compiling():
            return x * torch.ops.lmlab.mask(x.detach(), 1 - self.p, self.site)
        return x * kept(x, 1 - self.p, self.site)


def name_sites(model: nn.Module) -> None:
    """Give every dropout layer of a model its own name as its site."""
    for name, module in model.named_modules():
        if isinstance(module, Dropout):
            module.site = name
