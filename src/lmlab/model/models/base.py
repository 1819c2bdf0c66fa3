"""What a language model is, how one is built, saved and loaded, and its next-token loss."""

from abc import ABC, abstractmethod
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.core.files import checked, sha256, whole_folder, write_json
from lmlab.core.registry import Choice, recall
from lmlab.model import record
from lmlab.model.layers.cache import Cache
from lmlab.model.layers.root_mean_square import rms_norm
from lmlab.model.noise import name_sites
from lmlab.model.record import ModelRecord, TrainingFacts

WEIGHTS = "weights.safetensors"


class LanguageModel(nn.Module, ABC):
    """logits_BTV = head(blocks(embed(tokens_BT))): at each position, logits of the next token.

    A model knows nothing of how it is trained. Final classes take `(options, vocabulary_size,
    context, **inner parts)`. What every model must keep:

    - Any batch and any number of tokens from 1 on are accepted, also more than `context`.
    - Causality: changing token t leaves the logits before t as they were, bit for bit, in float32
      and in float64, and does change those at t.
    - `receptive_field` is exact: a token changes logits that far ahead and no bit of any beyond.
    - With a cache, a text read in pieces of any length gives the logits of the text read at once,
      up to rounding, as long as it fits into the context. Beyond the context attention forgets the
      oldest tokens; models without attention agree at any length. Reading may continue for ever:
      after `context` tokens the cache no longer grows, and a recurrent state never does.
    - Everything learned is a parameter: no other tensor that the logits depend on requires a
      gradient, and the loss's gradient reaches every parameter.
    - Initial weights follow from torch's global generator. Maps and embeddings are normal with
      standard deviation 0.02 and zero bias, those named `out` smaller (see `init_weights`), unless
      the model says otherwise. A new model predicts all tokens with about the same probability.
    - Building it on the meta device draws nothing and does not load torch's compiler.
    - Under bfloat16 autocast it trains with finite gradients and without warnings of slow, mixed
      precisions. Dropout is `noise.Dropout` and acts in training only.
    - Saved and loaded again, it is the same to the last bit, and so are its files.
    - A module whose map (or bare parameter) gives several things at once, one after the other, says
      where each ends: `sections`, by the map's name, the sizes along its first dimension, and
      `input_sections` along its second. By these a model grows.
    """

    vocabulary_size: int
    context: int
    """The number of tokens it is trained to read at a time."""
    width: int
    """D, the size of the vector that stands for a token inside the model."""
    choice: Choice
    """The part and options it was built from."""
    width_ratio: float = 1.0
    """Its width divided by the width for which initialisation and learning rates are specified.

    1, unless a parametrisation scales them.
    """
    embedding_lookback: int = 0
    """How many tokens before its own the first block's input at a position depends on."""
    plain_stream: bool = True
    """Whether blocks pass on x_BTD and nothing else, so that another model's may stand between."""
    blocks: nn.ModuleList
    """Each maps (x_BTD, its cache or None) to x_BTD.

    A block with a limited receptive field has an integer attribute `lookback`: how many positions
    before the current one it reads, with a cache or without. None, or no such attribute: no limit.
    """
    readout: nn.Linear | None
    """The output head or unembedding: the last linear map, from width to vocabulary.

    None in a model whose blocks already return logits.
    """

    @abstractmethod
    def embed(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """The first block's input x_BTD.

        With the first block's cache, the tokens continue those it has seen.
        """

    @abstractmethod
    def head(self, x_BTD: Tensor) -> Tensor:
        """logits_BTV from the last block's output: the final norm and the output head."""

    def forward(self, tokens_BT: Tensor, cache: list[Cache] | None = None) -> Tensor:
        """logits_BTV; with a cache (from `new_cache`) the tokens continue those of earlier calls.

        The cache is updated in place.
        """
        x_BTD = self.embed(tokens_BT, cache[0] if cache else None)
        for number, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, cache[number] if cache else None)
        for block_cache in cache or []:
            block_cache.seen += tokens_BT.shape[1]
        return self.head(x_BTD)

    @property
    def receptive_field(self) -> int | None:
        """How many of the last tokens a logit depends on, the current one included.

        None: there is no limit.
        """
        lookbacks: list[Any] = [getattr(block, "lookback", None) for block in self.blocks]
        return None if None in lookbacks else 1 + self.embedding_lookback + sum(lookbacks)

    def new_cache(self) -> list[Cache]:
        """An empty cache for generation: one for each block, and one for a model without blocks."""
        return [Cache() for _ in range(max(1, len(self.blocks)))]


def to_autocast_dtype(x_BTD: Tensor) -> Tensor:
    """x_BTD in the precision autocast uses for linear maps, so that each need not cast it again.

    Without autocast, x_BTD itself.
    """
    device = x_BTD.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return x_BTD.to(torch.get_autocast_dtype(device))
    return x_BTD


class Norm(nn.Module):
    """x / sqrt(mean(x²) + 1e-5) * weight, in the precision of x (Zhang & Sennrich 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return rms_norm(x_BTD, self.weight)


def with_past(x_BTD: Tensor, cache: Cache | None, count: int, name: str = "past") -> Tensor:
    """x_BTD preceded by the `count` positions before it, of shape (B, count + T, D).

    They come from the cache; without one, or at the start, they are zeros. The cache keeps the last
    `count` positions under `name` for the next call.
    """
    past_BCD = cache.tensors.get(name) if cache is not None else None
    if past_BCD is None:
        past_BCD = x_BTD.new_zeros(x_BTD.shape[0], count, x_BTD.shape[2])
    joined_BSD = torch.cat((past_BCD, x_BTD), dim=1)
    if cache is not None:
        cache.tensors[name] = joined_BSD[:, joined_BSD.shape[1] - count :]
    return joined_BSD


def init_weights(model: LanguageModel, sigma: float = 0.02) -> None:
    """Draw normal weights of standard deviation sigma and zero the biases (Radford et al. 2019).

    Maps named `out`, which write to the residual stream, get sigma / sqrt(2 blocks).
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d):
            writes_to_stream = name.endswith(".out")
            std = sigma / sqrt(2 * len(model.blocks)) if writes_to_stream else sigma
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear | nn.Conv1d) and module.bias is not None:
            nn.init.zeros_(module.bias)


def next_token_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token, a scalar.

    It is in float32, or in float64 if the logits are.
    """
    dtype = torch.promote_types(logits_BTV.dtype, torch.float32)
    logits_NV = logits_BTV.flatten(0, 1).to(dtype)
    return nn.functional.cross_entropy(logits_NV, targets_BT.flatten())


def build(choice: Choice, vocabulary_size: int, context: int) -> LanguageModel:
    """The chosen model, with initial weights from torch's global generator."""
    model: LanguageModel = choice.build(vocabulary_size=vocabulary_size, context=context)
    model.choice = choice
    name_sites(model)
    return model


def parameter_count(model: nn.Module) -> int:
    """How many numbers are learned; a tied weight counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def save(folder: Path, choice: Choice, model: LanguageModel, facts: TrainingFacts) -> None:
    """Write `weights.safetensors` and `model.json`: what the model is built from, and the facts
    about its training.
    """
    with whole_folder(folder) as partial:
        # copies, because safetensors refuses tensors that share memory, as tied weights do
        weights = {
            name: tensor.cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in model.state_dict().items()
        }
        save_file(weights, partial / WEIGHTS)
        shape = {
            "vocabulary_size": model.vocabulary_size,
            "context": model.context,
            "parameters": parameter_count(model),
        }
        values = {
            "model": choice.record(),
            **shape,
            **facts.model_dump(exclude_unset=True),
            "weights_sha256": sha256(partial / WEIGHTS),
        }
        write_json(partial / record.FILE, values)


def load(
    folder: Path, device: torch.device, made_by: str = "train"
) -> tuple[LanguageModel, ModelRecord]:
    """The saved model in evaluation mode, and its record. Raises UserError when either file, which
    a stage has made, is missing or damaged.
    """
    saved = record.read_record(folder, made_by)
    weights = checked(folder / WEIGHTS, made_by)
    try:
        model = build(recall("models", saved.model), saved.vocabulary_size, saved.context)
        model.load_state_dict(load_file(weights))
    except (
        SafetensorError,
        RuntimeError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        UserError,
    ) as error:
        raise record.damaged(folder, error, made_by) from None
    return model.to(device).eval(), saved
