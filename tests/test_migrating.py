"""Another tokenizer for a trained model: what keeps its rows, and where all others come from."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import small
import test_training
import torch
from test_continuing import assert_same, logged, start_from, state, train
from test_training import Corpus
from torch import Tensor, nn

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.registry import Choice
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import Ids, Tokenizer
from lmlab.data.vocabularies import Vocabularies
from lmlab.experiments.adapting import Renamed
from lmlab.model.layers.n_gram_tables import NGramTables
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel
from lmlab.training.interventions.base import build_rule
from lmlab.training.learning_rules.base import LearningRule
from lmlab.training.migrating import Migrated

corpus = test_training.corpus  # the fixture
MODELS = small.variants("models")
MIGRATIONS = registry.names("migrations")
NEW_ROWS = [name for name in MIGRATIONS if name != "identity"]
TEXT = "the cat sat on the mat. the dog ate the cat, then it sat. " * 4
EXACT = {"buckets": 2**20, "longest": 3, "order": 3}
"""Every n-gram has a row of its own."""


class Renumbered(Tokenizer):
    """A tokenizer whose ids have changed places."""

    __module__ = "renumbered.character"

    def __init__(self, other: Tokenizer, seed: int = 0) -> None:
        self.other = other
        self.numbers = np.random.default_rng(seed).permutation(other.vocabulary_size)
        self.token_bytes = [b""] * other.vocabulary_size
        for token, piece in enumerate(other.token_bytes):
            self.token_bytes[self.numbers[token]] = piece
        self.bos = int(self.numbers[other.bos])

    def encode(self, text: str) -> Ids:
        return self.numbers[self.other.encode(text)].astype(np.uint32)

    @classmethod
    def fit(cls, options: Any, texts: Iterable[str]) -> Self:
        raise NotImplementedError

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        raise NotImplementedError

    def grown(self, texts: Iterable[str], tokens: int) -> Self:
        raise NotImplementedError

    def decode(self, ids: Ids) -> str:
        return self.other.decode(np.argsort(self.numbers)[ids])

    def state(self) -> dict[str, Any]:
        raise NotImplementedError


def fitted(name: str, **changes: Any) -> Tokenizer:
    return tokenizers.fit(registry.choose(small.tree(**changes), "tokenizers", name), [TEXT])


CHARACTERS = fitted("character")
BYTES = fitted("byte")
BPE = fitted("bpe", vocabulary_size=280)


class Move:
    """A model with random weights, large enough to tell rows apart, and what it becomes."""

    def __init__(
        self,
        choice: Choice,
        old: Tokenizer,
        new: Tokenizer,
        migration: str,
        rule: str = "backprop",
        **changes: Any,
    ) -> None:
        tree = small.tree(**changes)
        self.parts = {
            "model": choice,
            "learning_rule": registry.choose(tree, "learning_rules", rule),
            "intervention": registry.choose(tree, "interventions", "identity"),
            "second_intervention": registry.choose(tree, "interventions", "identity"),
            "third_intervention": registry.choose(tree, "interventions", "identity"),
        }
        self.both = Vocabularies(old, new)
        self.old, self.old_rule = self._built(old.vocabulary_size, seed=1)
        self.new, self.new_rule = self._built(new.vocabulary_size, seed=2)
        with torch.no_grad():
            for number, parameter in enumerate(self.old.parameters()):
                generator = torch.Generator().manual_seed(number)
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        self.drawn = {name: value.clone() for name, value in self.new.state_dict().items()}
        text = torch.tensor([new.bos, *new.encode(TEXT).tolist()])
        with torch.no_grad():
            self.migrated = Migrated(
                self.old,
                self.new,
                self.new_rule,
                self.parts,
                self.both,
                text,
                registry.choose(tree, "migrations", migration).build(),
            )
            self.new.load_state_dict(self.migrated.weights(self.old.state_dict()))
        self.old.eval()
        self.new.eval()

    def _built(self, vocabulary_size: int, seed: int) -> tuple[LanguageModel, LearningRule]:
        torch.manual_seed(seed)
        model = models.build(self.parts["model"], vocabulary_size, context=8).double()
        return model, build_rule(self.parts, model)

    def logits(self, text: str) -> tuple[Tensor, Tensor]:
        """Of both models, of the kept tokens alone and in the order of the old ones, for a text in
        its old segmentation.
        """
        new_of = {old: new for new, old in self.both.kept.items()}
        old_ids = [self.both.old.bos, *(int(token) for token in self.both.old.encode(text))]
        new_ids = [new_of[token] for token in old_ids]
        with torch.no_grad():
            before = self.old(torch.tensor([old_ids]))
            after = self.new(torch.tensor([new_ids]))
        kept = sorted(new_of)
        return before[..., kept], after[..., [new_of[token] for token in kept]]


def model(name: str = "transformer", **changes: Any) -> Choice:
    return registry.choose(small.tree(**changes), "models", name)


@pytest.mark.parametrize("migration", MIGRATIONS)
@pytest.mark.parametrize("choice", MODELS, ids=small.title)
def test_with_the_same_tokenizer_nothing_changes(choice: Choice, migration: str) -> None:
    move = Move(choice, CHARACTERS, CHARACTERS, migration)
    assert_same(dict(move.new.state_dict()), dict(move.old.state_dict()))


@pytest.mark.parametrize("choice", MODELS, ids=small.title)
def test_a_permutation_of_the_vocabulary_is_exact(choice: Choice) -> None:
    move = Move(choice, CHARACTERS, Renumbered(CHARACTERS), "mean", **EXACT)
    before, after = move.logits(TEXT[:40])
    if choice.name == "n_gram_table":  # its hash goes by the ids themselves
        choice = model("n_gram_table", **EXACT)
        before, after = Move(choice, CHARACTERS, Renumbered(CHARACTERS), "mean").logits(TEXT[:40])
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
    rows = sorted(parameter.double().sum().item() for parameter in move.old.parameters())
    moved = sorted(parameter.double().sum().item() for parameter in move.new.parameters())
    if choice.name != "n_gram_table":
        assert moved == pytest.approx(rows, abs=1e-9)


@pytest.mark.parametrize("migration", NEW_ROWS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("embedding", registry.names("layers.embedding"))
def test_characters_become_bytes_and_kept_logits_stay(
    migration: str, tied: bool, embedding: str
) -> None:
    choice = model(tied=tied, embedding=embedding, **{**EXACT, "longest": 2})
    before, after = Move(choice, CHARACTERS, BYTES, migration).logits(TEXT[:40])
    assert before.shape[-1] == CHARACTERS.vocabulary_size - 1  # no byte is the unknown character
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("migration", NEW_ROWS)
@pytest.mark.parametrize("choice", MODELS, ids=small.title)
@pytest.mark.parametrize("tokenizer", [CHARACTERS, BPE], ids=["character", "bpe"])
def test_a_grown_vocabulary_reads_the_old_segmentation_as_before(
    choice: Choice, migration: str, tokenizer: Tokenizer
) -> None:
    """Also where hashes pick the rows of n-grams, but in tables of logits."""
    more = "A quick brown fox: the quick, quick fox! " * 3
    grown = tokenizer.grown([more], 9)
    assert grown.vocabulary_size > tokenizer.vocabulary_size
    if choice.name == "n_gram_table":
        choice = model("n_gram_table", **EXACT)
    move = Move(choice, tokenizer, grown, migration)
    before, after = move.logits(TEXT[:40])
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


def test_bpe_without_merges_is_the_byte_model() -> None:
    move = Move(model(), BPE, BYTES, "mean")
    before, after = move.logits("")
    assert len(move.both.kept) == 257
    for new, old in move.both.kept.items():
        assert torch.equal(move.new.readout.weight[new], move.old.readout.weight[old])
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- rows of new tokens


def rows_of(move: Move) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Old and new rows of the input embedding, and old and new ones of the output head."""
    old, new = (
        move.old.get_submodule("embedding.tokens"),
        move.new.get_submodule("embedding.tokens"),
    )
    return old.weight, new.weight, move.old.readout.weight, move.new.readout.weight


def test_new_rows_are_the_means_that_the_migration_names() -> None:
    assert b"the" in BPE.token_bytes
    the = BPE.token_bytes.index(b"the")
    t, h, e = CHARACTERS.encode("the").tolist()
    moves = {name: Move(model(), CHARACTERS, BPE, name) for name in NEW_ROWS}
    rows = {name: rows_of(move) for name, move in moves.items()}
    for name in ("spelled", "spelled_n_gram"):
        old_in, new_in, old_out, new_out = rows[name]
        expected = old_in[[t, h, e]].mean(0) if name == "spelled" else old_in[e]
        torch.testing.assert_close(new_in[the], expected)
        torch.testing.assert_close(new_out[the], old_out[[t, h, e]].mean(0))
    old_in, new_in, old_out, new_out = rows["mean"]
    characters = {CHARACTERS.bos, *CHARACTERS.encode(TEXT).tolist()}
    torch.testing.assert_close(new_in[the], old_in[sorted(characters)].mean(0))
    torch.testing.assert_close(new_out[the], old_out[sorted(characters)].mean(0))
    _, new_in, _, new_out = rows["random"]
    assert torch.equal(new_in[the], moves["random"].drawn["embedding.tokens.weight"][the])
    assert torch.equal(new_out[the], moves["random"].drawn["readout.weight"][the])


@pytest.mark.parametrize("row_width", [0, 4])
def test_spelled_n_gram_gives_what_the_old_embedding_gave_at_the_end_of_the_spelling(
    row_width: int,
) -> None:
    choice = model(embedding="n_gram", row_width=row_width, buckets=64, longest=3)
    move = Move(choice, CHARACTERS, BPE, "spelled_n_gram")
    long = [
        (token, spelling)
        for token, spelling in move.migrated.tokens.spellings.items()
        if len(spelling) >= 3
    ]
    assert long
    with torch.no_grad():
        for token, spelling in long:
            at_end = move.old.get_submodule("embedding")(torch.tensor([spelling]))[0, -1]
            row = move.new.get_submodule("embedding.tokens").weight[token]
            torch.testing.assert_close(row, at_end)


def test_spelled_n_gram_gives_a_table_of_logits_those_of_the_spelling() -> None:
    move = Move(model("n_gram_table", order=4, buckets=300), CHARACTERS, BPE, "spelled_n_gram")
    spelling = CHARACTERS.encode("the").tolist()
    the = BPE.token_bytes.index(b"the")
    with torch.no_grad():
        before = move.old(torch.tensor([spelling]))[0, -1]
        table = move.new.get_submodule("blocks.0.tables.0").weight
        unigram = move.new.get_submodule("blocks.0.unigram").weight[0]
    for new, old in move.both.kept.items():
        torch.testing.assert_close(table[the, new] + unigram[new], before[old])


def test_with_mean_rows_the_old_tokens_lose_no_more_than_the_bound() -> None:
    """log(1 + m/n) nats (Hewitt 2021)."""
    grown = CHARACTERS.grown(["ÄÖÜßéèêàâ"], 9)
    move = Move(model(), CHARACTERS, grown, "mean")
    text = torch.tensor([grown.bos, *grown.encode(TEXT[:40]).tolist()])
    new = Migrated(
        *(move.old, move.new, move.new_rule, move.parts, move.both),
        torch.cat((text, torch.arange(grown.vocabulary_size))),  # all of them occur
        registry.choose(small.tree(), "migrations", "mean").build(),
    )
    with torch.no_grad():
        move.new.load_state_dict(new.weights(move.old.state_dict()))
    before, after = move.logits(TEXT[:40])
    with torch.no_grad():
        whole = move.new(torch.tensor([[grown.bos, *grown.encode(TEXT[:40]).tolist()]]))
    lost = whole.logsumexp(-1) - after.logsumexp(-1)
    n, m = len(new.tokens.used), grown.vocabulary_size - CHARACTERS.vocabulary_size
    assert 0 < lost.max() <= np.log(1 + m / n)
    torch.testing.assert_close(after, before)


def test_tokens_that_the_text_lacks_get_the_output_of_one_that_it_lacked() -> None:
    move = Move(model(), CHARACTERS, BYTES, "spelled")
    _, _, old_out, new_out = rows_of(move)
    assert CHARACTERS.unseen not in CHARACTERS.encode(TEXT)  # type: ignore[attr-defined]
    assert torch.equal(new_out[200], old_out[CHARACTERS.unseen])  # type: ignore[attr-defined]


def test_rows_that_n_grams_share_are_means_by_how_often_they_occur() -> None:
    """The plain sum over the text, for hashes by keys and for those by ids."""
    few_merges = fitted("bpe", vocabulary_size=260)
    for choice, name in (
        (model(embedding="n_gram", row_width=0, buckets=30, longest=2), "embedding"),
        (model("n_gram_table", order=3, buckets=30), "blocks.0"),
    ):
        move = Move(choice, CHARACTERS, few_merges, "random")
        old, new = move.old.get_submodule(name), move.new.get_submodule(name)
        assert isinstance(old, NGramTables)
        assert isinstance(new, NGramTables)
        number, order = len(new.orders) - 1, new.orders[-1]
        assert not new.is_exact(order)
        text = [few_merges.bos, *few_merges.encode(TEXT).tolist()]
        sums: dict[int, Tensor] = {}
        counts: dict[int, int] = {}
        old_table, new_table = old.tables[number], new.tables[number]
        assert isinstance(old_table, nn.Embedding)
        assert isinstance(new_table, nn.Embedding)
        for end in range(order, len(text) + 1):
            ids = text[end - order : end]
            row = int(new.rows_of(torch.tensor([ids])))
            counts[row] = counts.get(row, 0) + 1
            if all(token in move.both.kept for token in ids):
                kept = torch.tensor([[move.both.kept[token] for token in ids]])
                vector = old_table.weight[int(old.rows_of(kept))]
                sums[row] = sums.get(row, 0) + vector
        assert len(sums) > 3
        columns = list(range(new_table.embedding_dim))
        old_columns = columns
        if name == "blocks.0":
            columns, old_columns = (
                list(side) for side in zip(*move.both.kept.items(), strict=True)
            )
        for row, count in counts.items():
            expected = sums.get(row, torch.zeros(old_table.embedding_dim).double()) / count
            torch.testing.assert_close(new_table.weight[row, columns], expected[old_columns])


def test_a_layer_whose_shape_goes_by_the_vocabulary_otherwise_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as a table of pairs that says nothing of its rows."""
    from lmlab.model.layers.embedding.token import Token

    real = Token.__init__

    def with_pairs(self: Any, options: Any, vocabulary_size: int, width: int) -> None:
        real(self, options, vocabulary_size, width)
        self.pairs = nn.Embedding(vocabulary_size**2, width)

    monkeypatch.setattr(Token, "__init__", with_pairs)
    with pytest.raises(UserError, match=r"known how the shape of embedding\.pairs\.weight goes"):
        Move(model(embedding="token"), CHARACTERS, BPE, "mean")


# ---------------------------------------------------------------- states


@pytest.mark.parametrize("rule", registry.names("learning_rules"))
def test_a_rule_s_state_follows(rule: str) -> None:
    try:
        move = Move(model(), CHARACTERS, Renumbered(CHARACTERS), "mean", rule=rule)
    except UserError:
        pytest.skip("the rule refuses this model")
    before = dict(move.old_rule.state_dict())
    after = move.migrated.rule(before)
    move.new_rule.load_state_dict(after)
    assert after.keys() == before.keys()
    assert {name: value.shape for name, value in after.items()} == {
        name: value.shape for name, value in before.items()
    }
    numbers = move.both.new.numbers  # type: ignore[attr-defined]
    size = CHARACTERS.vocabulary_size
    for name, value in before.items():
        axes = [axis for axis, length in enumerate(value.shape) if length == size]
        moved = after[name]
        for axis in axes:
            moved = moved.index_select(axis, torch.tensor(numbers))
        assert torch.equal(moved, value), name


@pytest.mark.parametrize("optimizer", registry.names("optimizers"))
@pytest.mark.parametrize("rule", ["backprop", "kolen_pollack"])
def test_a_run_goes_on_as_if_its_ids_had_always_been_others(
    optimizer: str, rule: str, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of the run that goes on with the ids permuted is the step with the ids as they were:
    weights and the optimizer's state went by one map.
    """
    changes = {"optimizer": optimizer, "learning_rule": rule, "learning_rate": 0.01}
    train(corpus, "first", **changes)
    shards, tokenizer = corpus
    renumbered = Renumbered(tokenizer)
    as_they_were = np.arange(tokenizer.vocabulary_size, dtype=shards.ids_type)
    same, other = (
        Renamed(shards.folder, shards.manifest, shards.ids_type, numbers)
        for numbers in (as_they_were, renumbered.numbers.astype(shards.ids_type))
    )
    manifest = shards.manifest.model_copy(update={"tokenizer_sha256": "another"})
    other = replace(other, manifest=manifest)
    train((same, tokenizer), "plain", start_from("first"), **{**changes, "steps": 2})
    monkeypatch.setattr(tokenizers, "load", lambda *_: tokenizer)
    start = replace(
        start_from("first"), migration=registry.choose(small.tree(), "migrations", "mean")
    )
    train((other, renumbered), "renumbered", start, **{**changes, "steps": 2})
    before, after = state("plain")["model"], state("renumbered")["model"]
    numbers = torch.tensor(renumbered.numbers)
    for name, value in before.items():
        moved = after[name]
        if len(moved) == len(numbers):
            moved = moved[numbers]
        torch.testing.assert_close(moved, value, rtol=1e-4, atol=1e-6, msg=name)


def test_a_state_of_another_shape_than_its_parameter_begins_anew() -> None:
    move = Move(model(), CHARACTERS, BPE, "spelled")
    modules = {"model": dict(move.old.state_dict()), "rule": {}}
    readout, matrix = "model.readout.weight", "model.blocks.0.attention.out.weight"
    square = torch.eye(CHARACTERS.vocabulary_size)
    both = {readout: {"bases": [square]}, matrix: {"bases": [torch.eye(16)]}}
    assert move.migrated.optimizer(both, modules, ()).keys() == {matrix}
    moments = {readout: {"mean": torch.ones_like(move.old.readout.weight), "step": 3}}
    after = move.migrated.optimizer(moments, modules, ())[readout]
    assert after["step"] == 3
    assert torch.equal(after["mean"], torch.ones(BPE.vocabulary_size, 16))


def write_tokenizer(corpus: Corpus) -> None:
    """As the run in the folder `first` had it."""
    folder = Path("first/tokenizer")
    folder.mkdir()
    tokenizers.write("character", corpus[1], folder / "tokenizer.json")


def goes_on(shards_of: small.ShardsOf, folder: str, migration: str, **changes: Any) -> Any:
    """A run that goes on with BPE from the one in the folder `first`."""
    made = shards_of(test_training.TEXT, "12 times 12 is 144.\n", tokenizer="bpe")
    choice = registry.choose(small.tree(), "migrations", migration)
    return train(made, folder, replace(start_from("first"), migration=choice), **changes)


@pytest.mark.parametrize("migration", NEW_ROWS)
def test_a_run_goes_on_with_another_tokenizer(
    migration: str, corpus: Corpus, shards_of: small.ShardsOf, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(corpus, "first", validate_every=1)
    write_tokenizer(corpus)
    second = goes_on(shards_of, "second", migration, validate_every=1)
    said = capsys.readouterr().out
    assert "train: another tokenizer: " in said
    assert f" are new ({migration})" in said
    assert second.tokenizer_sha256 != first.tokenizer_sha256
    assert (second.steps, second.tokens) == (2 * first.steps, 2 * first.tokens)
    steps = [step for step, _ in logged("second", "validation_bits_per_byte")]
    assert steps[0] == first.steps  # before the first step
    again = goes_on(shards_of, "third", migration, validate_every=1)
    assert again.weights_sha256 == second.weights_sha256
