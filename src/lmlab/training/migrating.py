"""Another tokenizer for a trained model: every row that stands for a token finds its new place.

A token of the new vocabulary that has the bytes of an old one keeps its rows, to the last bit. All
others get theirs from old rows, as a migration says; the optimizer's state follows by the same map.
In tables of n-grams those of tokens that the old vocabulary had keep their rows, and others begin
at zero.

Which dimensions of a tensor go by the vocabulary is seen from its shape at two vocabulary sizes:
nothing is listed by hand, so any model and any rule can be given another tokenizer.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.core.registry import Choice
from lmlab.data.shards import Shards
from lmlab.data.vocabularies import Vocabularies
from lmlab.model.models.base import LanguageModel, build
from lmlab.model.record import ModelRecord
from lmlab.training import row_maps
from lmlab.training.interventions.base import build_rule
from lmlab.training.learning_rules.base import LearningRule
from lmlab.training.migrations.base import Migration
from lmlab.training.n_gram_rows import Table, keys_of, n_gram_layers
from lmlab.training.optimizers.base import has_shape
from lmlab.training.row_maps import RowMap

MOST_TOKENS = 4_000_000
"""Of the training text, from which it is seen which tokens and n-grams it has, and how often."""

Side = Literal["input", "output"]


class TokenRows:
    """How a migration fills rows of the vocabulary, by which tokens a text has."""

    def __init__(self, migration: Migration, both: Vocabularies, text_N: Tensor) -> None:
        self.migration, self.both = migration, both
        self.new_tokens = [
            token for token in range(both.new.vocabulary_size) if token not in both.kept
        ]
        self.spellings = {
            token: spelling for token in self.new_tokens if (spelling := both.spelling(token))
        }
        self.present = set(torch.unique(text_N).tolist())
        used = {both.kept[token] for token in self.present if token in both.kept}
        used |= {
            part for token in self.present & self.spellings.keys() for part in self.spellings[token]
        }
        self.used = sorted(used)
        """The old tokens that spell the text."""

    def of(self, side: Side) -> RowMap:
        """The map of the rows at the model's input or output."""
        of_spelling = (
            self.migration.input_sources if side == "input" else self.migration.output_sources
        )
        sources = {
            token: of_spelling(spelling, self.used) for token, spelling in self.spellings.items()
        }
        if side == "output":
            sources |= self._never_predicted()
        made = {token: old for token, old in sources.items() if old}
        return row_maps.means(self.both.kept, made)

    def _never_predicted(self) -> dict[int, list[int]]:
        """For tokens that the text lacks the output of an old token that it lacks too, which has
        learned not to be predicted.
        """
        old = self.both.old
        lacked = set(range(old.vocabulary_size)) - set(self.used)
        source = min(lacked - {old.bos}, default=old.bos)
        return {token: [source] for token in self.new_tokens if token not in self.present}


class AxisMap(NamedTuple):
    """What becomes of a tensor along an axis."""

    axis: int
    rows: RowMap
    starts_at_zero: bool
    """Whether rows that nothing is said of are zero; otherwise they are as drawn."""


Maps = dict[str, list[AxisMap]]
"""By the tensor's name in a module's state; tensors that do not go by the vocabulary are absent."""


class Migrated:
    """What a run hands on, for a new vocabulary."""

    def __init__(
        self,
        old: LanguageModel,
        new: LanguageModel,
        rule: LearningRule,
        parts: Mapping[str, Choice],
        both: Vocabularies,
        text_N: Tensor,
        migration: Migration,
    ) -> None:
        self.old, self.new, self.migration = old, new, migration
        self.drawn = {"model": new.state_dict(), "rule": rule.state_dict()}
        self.tokens = TokenRows(migration, both, text_N)
        self.outputs = self.tokens.of("output")
        self.layers = list(n_gram_layers(old, new))
        self.keys = {
            f"{layer.name}.keys": keys_of(layer, both) for layer in self.layers if layer.has_keys
        }
        new.load_state_dict(self.keys, strict=False)
        rule_axes = _axes(new, lambda model: build_rule(dict(parts), model))
        self.maps = {"model": self._maps_of_model(both, text_N), "rule": self._on_output(rule_axes)}

    def _maps_of_model(self, both: Vocabularies, text_N: Tensor) -> Maps:
        axes = _axes(self.new, lambda model: model)
        maps = self._on_output(axes)
        inputs = self.tokens.of("input")
        for name in _input_tables(self.new):
            maps[name][0] = AxisMap(0, inputs, False)
        for layer in self.layers:
            for number, order in enumerate(layer.new.orders):
                has_row_each = layer.old.is_exact(order) and layer.new.is_exact(order)
                if order > 1 or not has_row_each:
                    name = f"{layer.name}.tables.{number}.weight"
                    rows = Table(layer.old, layer.new, number, both).rows(text_N)
                    others = [each for each in maps.get(name, []) if each.axis]
                    maps[name] = [AxisMap(0, rows, True), *others]
        self._check_all_known(maps)
        return maps

    def _check_all_known(self, maps: Maps) -> None:
        """Raise UserError where it is not known how a shape goes by the vocabulary."""
        before, after = self.old.state_dict(), self.new.state_dict()
        for name, tensor in before.items():
            if tensor.shape != after[name].shape and name not in {*maps, *self.keys}:
                raise UserError(
                    f"params.yaml: start.migration: models.{self.new.choice.name} cannot be given"
                    f" another vocabulary: it is not known how the shape of {name} goes by it; give"
                    " its layer the methods of NGramTables, or train from scratch"
                )

    def _on_output(self, axes: Mapping[str, list[int]]) -> Maps:
        return {
            name: [AxisMap(axis, self.outputs, False) for axis in own] for name, own in axes.items()
        }

    def weights(self, old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's state."""
        new = {name: self._moved("model", name, tensor) for name, tensor in old.items()}
        new |= self.keys
        if self.migration.adds_inner_n_grams:
            self._add_inner_n_grams(old, new)
        return new

    def rule(self, old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The learning rule's state; where that is another rule's, as it was."""
        known = old.keys() == self.drawn["rule"].keys()
        return {
            name: self._moved("rule", name, tensor) if known else tensor
            for name, tensor in old.items()
        }

    def optimizer(
        self,
        old: Mapping[str, dict[str, Any]],
        modules: Mapping[str, Mapping[str, Tensor]],
        weights_within: Sequence[str],
    ) -> dict[str, dict[str, Any]]:
        """The optimizer's state by the parameter's name, but for what has another shape than its
        parameter.

        `modules` are the old states of the model and the rule. Entries in `weights_within` are
        weights themselves.
        """
        as_weights = {
            entry: self.weights({**modules["model"], **dict(_entries(old, entry))})
            for entry in weights_within
        }
        new = {}
        for full_name, entries in old.items():
            module, _, name = full_name.partition(".")
            if name not in self.maps[module]:
                new[full_name] = entries
            elif has_shape(entries, modules[module][name].shape):
                moved = {
                    key: self._moved(module, name, value, drawn=key in weights_within)
                    for key, value in entries.items()
                }
                if module == "model":
                    moved |= {key: whole[name] for key, whole in as_weights.items()}
                new[full_name] = moved
        return new

    def _moved(self, module: str, name: str, old: Any, drawn: bool = True) -> Any:
        """A tensor for the new vocabulary, axis by axis; a number stays."""
        if not isinstance(old, Tensor) or not old.ndim or name not in self.maps[module]:
            return old
        like = self.drawn[module][name].cpu()
        maps = self.maps[module][name]
        tensor = old
        for axis, rows, starts_at_zero in maps:
            shape = list(tensor.shape)
            shape[axis] = like.shape[axis]
            is_whole = drawn and not starts_at_zero and shape == list(like.shape)
            otherwise = like if is_whole else tensor.new_zeros(shape)
            tensor = rows.apply(tensor, otherwise, axis)
        return tensor

    def _add_inner_n_grams(self, old: Mapping[str, Tensor], new: dict[str, Tensor]) -> None:
        """Add to the input rows of new tokens what the n-grams within their spelling gave."""
        self.old.load_state_dict(dict(old))
        input_tables = _input_tables(self.new)
        for layer in self.layers:
            name = f"{layer.name}.{layer.new.token_table}.weight"
            if name not in input_tables:  # tied to the output head
                continue
            for token, spelling in self.tokens.spellings.items():
                added = layer.old.beyond_token(torch.tensor(spelling))
                if len(added) != new[name].shape[1]:  # logits, which go by the vocabulary as well
                    added = self.outputs.apply(added, added.new_zeros(new[name].shape[1]))
                new[name][token] += added


def _axes(
    model: LanguageModel, built_on: Callable[[LanguageModel], nn.Module]
) -> dict[str, list[int]]:
    """The axes, of each tensor of the module that is built on the model, that go by the vocabulary.

    Seen from two drafts without storage, one of them with a token more.
    """
    size = model.vocabulary_size
    with torch.device("meta"):
        drafts = [build(model.choice, size + more, model.context) for more in (0, 1)]
        before, after = (built_on(draft).state_dict() for draft in drafts)
    axes = {
        name: [
            axis
            for axis, sizes in enumerate(zip(tensor.shape, after[name].shape, strict=True))
            if sizes == (size, size + 1)
        ]
        for name, tensor in before.items()
    }
    return {name: own for name, own in axes.items() if own}


def _input_tables(model: LanguageModel) -> list[str]:
    """The names of tables with a row for each token, but for one that is the output head's too."""
    names = []
    for name, module in model.named_modules():
        is_tied = (
            model.readout is not None and getattr(module, "weight", None) is model.readout.weight
        )
        has_rows = (
            isinstance(module, nn.Embedding) and module.num_embeddings == model.vocabulary_size
        )
        if has_rows and not is_tied:
            names.append(f"{name}.weight")
    return names


def _entries(state: Mapping[str, dict[str, Any]], entry: str) -> Iterator[tuple[str, Tensor]]:
    """One entry of the optimizer's state by the name of the model's parameter."""
    for name, entries in state.items():
        module, _, own_name = name.partition(".")
        if module == "model" and entry in entries:
            yield own_name, entries[entry]


def text_of(shards: Shards) -> Tensor:
    """The ids of the train split, or its first MOST_TOKENS, shape (N,)."""
    read: list[Tensor] = []
    count = 0
    for group in shards.row_groups("train"):
        if count >= MOST_TOKENS:
            break
        ids = torch.from_numpy(shards.read(group).astype("int64"))
        read.append(ids)
        count += len(ids)
    return torch.cat(read)[:MOST_TOKENS]


def migrated(
    state: Mapping[str, Any],
    saved: ModelRecord,
    model: LanguageModel,
    rule: LearningRule,
    optimizer: torch.optim.Optimizer,
    parts: Mapping[str, Choice],
    migration: Migration,
    tokenizers: Vocabularies,
    shards: Shards,
) -> dict[str, Any]:
    """What a run hands on (`continuing.write`), for the vocabulary of the model that takes it over,
    which has been built as if from scratch.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        old = build(parts["model"], saved.vocabulary_size, saved.context)
        old.load_state_dict(state["model"])
        own = copy.deepcopy(model).cpu()
        new = Migrated(old, own, rule, parts, tokenizers, text_of(shards), migration)
        weights_within = getattr(optimizer, "weights_in_state", ())
        return {
            **state,
            "model": new.weights(state["model"]),
            "rule": new.rule(state["rule"]),
            "optimizer": new.optimizer(state["optimizer"], state, weights_within),
        }
