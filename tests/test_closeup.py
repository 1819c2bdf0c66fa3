"""A close-up shows what the model does: its own attention, its own guesses."""

from pathlib import Path

import pytest
import small
import test_training
import torch
from test_training import Corpus

from lmlab.core import registry
from lmlab.core.files import read_json
from lmlab.core.params import section
from lmlab.evaluation import probe as probing
from lmlab.evaluation.closeup import MOST_TOKENS, close_up, shown
from lmlab.evaluation.probe import ProbeParams

corpus = test_training.corpus  # a fixture


def test_guesses_behind_the_last_block_are_the_models_own_and_attention_sums_to_one(
    corpus: Corpus,
) -> None:
    shards, tokenizer = corpus
    model = small.model(
        registry.choose(small.tree(), "models", "transformer"),
        vocabulary_size=tokenizer.vocabulary_size,
    ).eval()
    seen = close_up(model, tokenizer, shards.bos, "the")
    ids = [shards.bos, *tokenizer.encode("the").tolist()][: model.context]
    assert seen.tokens[0] == "start"
    assert len(seen.tokens) == len(ids)
    best = model(torch.tensor([ids]))[0].softmax(-1).max(-1)
    names = [
        "start" if id_ == shards.bos else shown(tokenizer.token_bytes[id_])
        for id_ in best.indices.tolist()
    ]
    last_names, last_probabilities = seen.lens[-1]
    assert last_names == names
    assert last_probabilities == pytest.approx(best.values.tolist(), abs=1e-4)
    assert len(seen.attention) == len(seen.lens) == len(model.blocks)
    for heads in seen.attention:
        assert heads
        for weights in heads:
            assert [sum(row) for row in weights] == pytest.approx([1.0] * len(ids), abs=0.01)
            assert all(
                weight == 0 for place, row in enumerate(weights) for weight in row[place + 1 :]
            )


def test_long_texts_are_cut_and_signs_can_be_seen(corpus: Corpus) -> None:
    shards, tokenizer = corpus
    model = small.model(
        registry.choose(small.tree(), "models", "lstm"), vocabulary_size=tokenizer.vocabulary_size
    ).eval()
    seen = close_up(model, tokenizer, shards.bos, "the " * 100)
    assert len(seen.tokens) == min(model.context, MOST_TOKENS)
    assert seen.attention == [[] for _ in model.blocks]  # it has none
    assert shown(b" a\n") == "␣a⏎"
    assert shown(b"\xff\x00") == "�▯"
    assert shown(b"") == "▯"


def test_the_stage_writes_one_for_its_text_and_none_without(corpus: Corpus) -> None:
    test_training.train(corpus, "run")
    for text, is_written in (("the", True), ("", False)):
        tree = {
            **small.tree(),
            "probe": {
                **small.tree()["probe"],
                "probes": [],
                "windows": 2,
                "threads": 1,
                "processes": 1,
                "text": text,
            },
        }
        probing.look(
            section(tree, "probe", ProbeParams),
            {},
            *corpus,
            Path("run/snapshots"),
            Path("run/probes"),
        )
        assert Path("run/probes/close_up.json").exists() == is_written
        assert read_json(Path("run/probes/about.json"), "probe") == {}  # as no probe looked
        if is_written:
            assert read_json(Path("run/probes/close_up.json"), "probe")["tokens"][0] == "start"
