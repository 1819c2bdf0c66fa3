"""What a language model is, how one is saved and loaded, and the loss of predicting the next
token.
"""

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
    """Tokens in, logits of the next token out. It knows nothing of how it is trained.

    Final classes take `(options, vocabulary_size, context, **inner parts)`. Changing token t leaves
    the logits before t as they were, bit for bit.
    """

    vocabulary_size: int
    context: int
    """The number of tokens it is trained to see at a time."""
    width: int
    """How many numbers stand for a token inside the model."""
    choice: Choice
    """What it was built from."""
    width_ratio: float = 1.0
    """How many times as wide it is as the width for which its initialisation and learning rates are
    given: 1, but where a parametrisation has scaled them.
    """
    plain_stream: bool = True
    """Whether blocks hand on x_BTD and nothing else, so that those of another model can stand
    between them.
    """
    blocks: nn.ModuleList
    """Each maps (x_BTD, memory) to x_BTD. One that cannot see all of the past has an integer
    `lookback`: how many positions before the present one it sees.
    """
    readout: nn.Linear | None
    """The last linear map, width to vocabulary; None in a model whose blocks end in logits."""

    @abstractmethod
    def embed(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """Token ids as vectors x_BTD; with the first block's memory, as those that follow on what
        it has seen.
        """

    @abstractmethod
    def head(self, x_BTD: Tensor) -> Tensor:
        """The last block's output as logits_BTV."""

    def forward(self, tokens_BT: Tensor, cache: list[Cache] | None = None) -> Tensor:
        """logits_BTV; with a memory (from `new_cache`) the tokens go on where the last call
        ended.
        """
        x_BTD = self.embed(tokens_BT, cache[0] if cache else None)
        for number, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, cache[number] if cache else None)
        for of_block in cache or []:
            of_block.seen += tokens_BT.shape[1]
        return self.head(x_BTD)

    @property
    def receptive_field(self) -> int | None:
        """How many of the last tokens the next one's logits depend on, the present one included;
        None: no limit is set.
        """
        lookbacks: list[Any] = [getattr(block, "lookback", None) for block in self.blocks]
        return None if None in lookbacks else 1 + sum(lookbacks)

    def new_cache(self) -> list[Cache]:
        """An empty memory for generation, one for each block (or a single one for a model without
        blocks).
        """
        return [Cache() for _ in range(max(1, len(self.blocks)))]


def working(x_BTD: Tensor) -> Tensor:
    """The same in the precision that autocast gives linear maps, lest each of them cast it; without
    autocast as it is.
    """
    device = x_BTD.device.type
    lower = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return x_BTD.to(torch.get_autocast_dtype(device)) if lower else x_BTD


class Norm(nn.Module):
    """x / sqrt(mean(x²) + 1e-5) * weight, in the precision that x_BTD is in (Zhang & Sennrich
    2019).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return rms_norm(x_BTD, self.weight)


def with_past(x_BTD: Tensor, cache: Cache | None, count: int, name: str = "past") -> Tensor:
    """x_BTD with the `count` positions before it in front, so T + count long: from the memory,
    zeros where there is none.

    The last `count` positions are remembered under `name` for the next call.
    """
    past_BCD = cache.tensors.get(name) if cache is not None else None
    if past_BCD is None:
        past_BCD = x_BTD.new_zeros(x_BTD.shape[0], count, x_BTD.shape[2])
    joined = torch.cat((past_BCD, x_BTD), dim=1)
    if cache is not None:
        cache.tensors[name] = joined[:, joined.shape[1] - count :]
    return joined


def init_weights(model: LanguageModel, sigma: float = 0.02) -> None:
    """Normal initial weights for every matrix and zero biases (Radford et al. 2019).

    Linear maps named `out`, which write to the stream that runs through the blocks, get smaller
    ones.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d):
            writes = name.endswith(".out")
            nn.init.normal_(
                module.weight, std=sigma / sqrt(2 * len(model.blocks)) if writes else sigma
            )
        if isinstance(module, nn.Linear | nn.Conv1d) and module.bias is not None:
            nn.init.zeros_(module.bias)


def next_token_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token, a scalar in float32, or in float64 where the model
    is.
    """
    precise = torch.promote_types(logits_BTV.dtype, torch.float32)
    return nn.functional.cross_entropy(logits_BTV.flatten(0, 1).to(precise), targets_BT.flatten())


def build(choice: Choice, vocabulary_size: int, context: int) -> LanguageModel:
    """The chosen model, its weights drawn from torch's global generator."""
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


def load(folder: Path, device: torch.device) -> tuple[LanguageModel, ModelRecord]:
    """The saved model in evaluation mode, and its record. Raises UserError when either file is
    missing or damaged.
    """
    saved = record.read_record(folder)
    weights = checked(folder / WEIGHTS, made_by="train")
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
        raise record.damaged(folder, error) from None
    return model.to(device).eval(), saved
