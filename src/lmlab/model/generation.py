"""Autoregressive generation: text from a model, one token at a time, with its KV cache or state.

The next id is drawn from softmax(logits / temperature), of which a `Truncation` may keep a part.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from lmlab.data.tokenizers.base import Tokenizer
from lmlab.model.layers.cache import Cache
from lmlab.model.models.base import LanguageModel
from lmlab.model.truncation import Truncation

MAX_HELD_TOKENS = 24
"""A character may need several tokens; after this many, text is shown even if it is incomplete."""


def sample_ids(
    model: LanguageModel,
    prompt: list[int],
    count: int,
    temperature: float,
    seed: int,
    truncation: Truncation | None = None,
) -> Iterator[int]:
    """Yield `count` ids that continue the prompt: id ~ softmax(logits / temperature), truncated.

    They are drawn with a generator seeded for this call. Temperature 0 takes the most likely token
    each time. Up to the model's context the distribution is that of the full forward pass; beyond
    it the cache forgets the oldest tokens. Only the last `context` ids of the prompt are read.
    Raises FloatingPointError when a logit is NaN.
    """
    device = next(model.parameters()).device
    rng = torch.Generator().manual_seed(seed)
    cache = model.new_cache()
    was_training = model.training
    model.eval()
    try:
        tokens_BT = torch.tensor([prompt[-model.context :]], device=device)
        for _ in range(count):
            sampled = int(_next_tokens(model, tokens_BT, cache, temperature, rng, truncation))
            yield sampled
            tokens_BT = torch.tensor([[sampled]], device=device)
    finally:
        model.train(was_training)


def sample_rows(
    model: LanguageModel, rows: int, first: int, count: int, temperature: float, seed: int
) -> Tensor:
    """Several texts at once: ids of shape (rows, count) that continue the single id `first`.

    Each row is drawn as by `sample_ids`.
    """
    device = next(model.parameters()).device
    rng = torch.Generator().manual_seed(seed)
    cache = model.new_cache()
    was_training = model.training
    model.eval()
    sampled: list[Tensor] = []
    try:
        tokens_B1 = torch.full((rows, 1), first, device=device)
        for _ in range(count):
            sampled_B1 = _next_tokens(model, tokens_B1, cache, temperature, rng)
            sampled.append(sampled_B1)
            tokens_B1 = sampled_B1.to(device)
    finally:
        model.train(was_training)
    return torch.cat(sampled, dim=1)


def _next_tokens(
    model: LanguageModel,
    tokens_BT: Tensor,
    cache: list[Cache],
    temperature: float,
    rng: torch.Generator,
    truncation: Truncation | None = None,
) -> Tensor:
    """One sampled id for each row, of shape (B, 1), on the CPU; the cache advances by T tokens."""
    with torch.no_grad():
        logits_BV = model(tokens_BT, cache)[:, -1].float().cpu()
    # at most 0, so that no temperature, however low, makes a logit infinite
    shifted_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)).double()
    if shifted_BV.isnan().any():
        raise FloatingPointError("the model's logits are NaN")
    if temperature == 0:
        return shifted_BV.argmax(dim=-1, keepdim=True)
    probabilities_BV = nn.functional.softmax(shifted_BV / temperature, dim=-1)
    if truncation:
        probabilities_BV = truncation.of(probabilities_BV)
    return torch.multinomial(probabilities_BV, 1, generator=rng)


def sample_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    count: int,
    temperature: float,
    seed: int,
    truncation: Truncation | None = None,
) -> Iterator[str]:
    """Yield the text that continues the prompt as it grows, whole characters at a time.

    The prompt begins a document. The text ends after `count` tokens or at the next BOS token.
    """
    prompt_ids = [tokenizer.bos, *tokenizer.encode(prompt).tolist()]
    held: list[int] = []
    for sampled in sample_ids(model, prompt_ids, count, temperature, seed, truncation):
        if sampled == tokenizer.bos:
            break
        held.append(sampled)
        text = _decode(tokenizer, held)
        is_whole = not text.endswith("\ufffd")
        if is_whole or len(held) >= MAX_HELD_TOKENS:
            yield text
            held = []
    if held:
        yield _decode(tokenizer, held)


def up_to(pieces: Iterable[str], end: str) -> Iterator[str]:
    """A growing text up to where `end` occurs, without it; nothing more is asked for then."""
    held = ""
    for piece in pieces:
        held += piece
        before, found, _ = held.partition(end)
        if found:
            yield before
            return
        begun = next(size for size in range(len(end), -1, -1) if held.endswith(end[:size]))
        yield held[: len(held) - begun]
        held = held[len(held) - begun :]
    yield held


def _decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(np.array(ids, dtype=np.uint32))
