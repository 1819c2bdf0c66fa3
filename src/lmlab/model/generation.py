"""Text from a model, one token at a time, remembering what it has read (a key-value cache in
attention).
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from lmlab.data.tokenizers.base import Tokenizer
from lmlab.model.models.base import LanguageModel

MOST_HELD_BACK = 24
"""A character may need several tokens; text that is still not whole after this many is shown as it
is.
"""


def sample_ids(
    model: LanguageModel, prompt: list[int], count: int, temperature: float, seed: int
) -> Iterator[int]:
    """Yield `count` ids that follow the prompt, drawn with a generator of their own.

    `temperature` 0 takes the likeliest token each time. Up to the model's context the distribution
    is that of the full forward pass; beyond it the memory forgets the oldest tokens. Raises
    FloatingPointError when a logit is no number.
    """
    device = next(model.parameters()).device
    rng = torch.Generator().manual_seed(seed)
    cache = model.new_cache()
    was_training = model.training
    model.eval()
    try:
        tokens = torch.tensor([prompt[-model.context :]], device=device)
        for _ in range(count):
            with torch.no_grad():
                logits_V = model(tokens, cache)[0, -1].float().cpu()
            chosen = int(_draw(logits_V, temperature, rng))
            yield chosen
            tokens = torch.tensor([[chosen]], device=device)
    finally:
        model.train(was_training)


def sample_rows(
    model: LanguageModel, rows: int, first: int, count: int, temperature: float, seed: int
) -> Tensor:
    """Several texts at once: ids of shape (rows, count) that follow the single id `first`, drawn as
    `sample_ids` does.
    """
    device = next(model.parameters()).device
    rng = torch.Generator().manual_seed(seed)
    cache = model.new_cache()
    was_training = model.training
    model.eval()
    drawn: list[Tensor] = []
    try:
        tokens_B1 = torch.full((rows, 1), first, device=device)
        for _ in range(count):
            with torch.no_grad():
                logits_BV = model(tokens_B1, cache)[:, -1].float().cpu()
            drawn.append(_draw(logits_BV, temperature, rng))
            tokens_B1 = drawn[-1].to(device)
    finally:
        model.train(was_training)
    return torch.cat(drawn, dim=1)


def _draw(logits_V: Tensor, temperature: float, rng: torch.Generator) -> Tensor:
    """An id, shape (1,); from logits_BV one for each row, shape (B, 1)."""
    # so that no temperature, however low, makes a logit infinite
    below_V = (logits_V - logits_V.amax(dim=-1, keepdim=True)).double()
    if below_V.isnan().any():
        raise FloatingPointError("the model's logits are no numbers")
    if temperature == 0:
        return below_V.argmax(dim=-1, keepdim=True)
    return torch.multinomial(nn.functional.softmax(below_V / temperature, dim=-1), 1, generator=rng)


def sample_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    count: int,
    temperature: float,
    seed: int,
) -> Iterator[str]:
    """Yield the text that follows the prompt as it grows, whole characters at a time; it ends where
    a document does.
    """
    start = [tokenizer.bos, *tokenizer.encode(prompt).tolist()]
    held: list[int] = []
    for chosen in sample_ids(model, start, count, temperature, seed):
        if chosen == tokenizer.bos:
            break
        held.append(chosen)
        text = _text(tokenizer, held)
        if not text.endswith("\ufffd") or len(held) >= MOST_HELD_BACK:
            yield text
            held = []
    if held:
        yield _text(tokenizer, held)


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(np.array(ids, dtype=np.uint32))
