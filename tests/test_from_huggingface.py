"""Folders for transformers as runs to go on from: the lab's own, and those from elsewhere."""

import json
from pathlib import Path
from typing import Any

import exported
import numpy as np
import pytest
import small
import torch
from safetensors.torch import load_file, save_file
from test_huggingface import CARRIED, named, transformer
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.core.registry import Choice
from lmlab.data.tokenizers import base as tokenizers
from lmlab.export.architecture import Architecture
from lmlab.export.huggingface import architectures, read, write
from lmlab.model.models import base

TREE = params.read(small.PROJECT / "params.yaml")
TEXT = "It was a bad cab, said the ace. Don't dab! 1234 and 99 bad cabs\n\n" * 20
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "SHA256SUMS"}


# ---------------------------------------------------------------- the lab's own


@pytest.mark.parametrize(("each", "choice"), CARRIED[::3], ids=named)
def test_what_the_lab_wrote_comes_back_in_the_same_bytes(
    each: Architecture, choice: Choice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(architectures, "ARCHITECTURES", (each,))
    comes_back(choice, tmp_path)


@pytest.mark.parametrize(
    "choice",
    [
        transformer({"residual": "value"}),
        transformer({"embedding": "n_gram"}),
        registry.choose(small.tree(), "models", "lstm"),
    ],
    ids=small.title,
)
def test_code_of_its_own_comes_back_in_the_same_bytes(choice: Choice, tmp_path: Path) -> None:
    comes_back(choice, tmp_path)


def comes_back(choice: Choice, tmp_path: Path) -> None:
    run = exported.run(tmp_path, choice)
    write.write(run, tmp_path / "out")
    brought = read.bring(tmp_path / "out", tmp_path / "into", TREE)
    for name in ("model", "tokenizer"):
        assert files_of(tmp_path / "into" / name) == files_of(tmp_path / name)
    assert brought.choice["train.model"] == choice.name
    changed = params.changed(TREE, brought.choice)
    assert registry.choose(changed, "models", choice.name).record() == choice.record()


def test_a_changed_number_is_refused(tmp_path: Path) -> None:
    write.write(exported.run(tmp_path, transformer({})), tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][0] += 1.0
    save_file(tensors, file)
    with pytest.raises(UserError, match="damaged or missing; export the run again"):
        read.bring(tmp_path / "out", tmp_path / "into", TREE)


# ---------------------------------------------------------------- from elsewhere


def elsewhere(folder: Path, kind: str, **config: Any) -> Path:
    """A model that transformers drew, with a tokenizer that merges bytes as GPT-2's does."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator([TEXT], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=library, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    sizes = {"bos_token_id": 0, "eos_token_id": 1, "vocab_size": library.get_vocab_size()}
    made = AutoConfig.for_model(kind, **{**SIZES, **sizes, **config})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(made).save_pretrained(folder)
    return folder


KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen3": {"head_dim": 8, "num_key_value_heads": 2},
    "arcee": {},
    "starcoder2": {"use_bias": False, "hidden_act": "gelu"},
    "stablelm": {"partial_rotary_factor": 1.0, "rope_parameters": None},
    "gpt2": {"n_positions": 64, "n_inner": 48, "activation_function": "gelu"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_from_elsewhere_says_the_same(kind: str, tmp_path: Path) -> None:
    folder = elsewhere(tmp_path / "theirs", kind, **KINDS[kind])
    brought = read.bring(folder, tmp_path / "into", TREE)
    assert "trained elsewhere" in brought.lines[0]
    assert "not from scratch" in brought.lines[0]
    own, _ = base.load(tmp_path / "into" / "model", torch.device("cpu"))
    tokenizer = tokenizers.load(tmp_path / "into" / "tokenizer" / "tokenizer.json")
    changed = params.changed(TREE, brought.choice)
    assert registry.choose(changed, "models", "transformer").record() == own.choice.record()
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    auto = AutoTokenizer.from_pretrained(folder)
    word = "cab"
    ids = [tokenizer.bos, *tokenizer.encode(word).tolist()]
    their_ids = [0, *auto(word, add_special_tokens=False)["input_ids"]]
    assert len(ids) == len(their_ids)
    with torch.no_grad():
        own_V = own(torch.tensor([ids]))[0, -1]
        their_V = theirs(torch.tensor([their_ids])).logits[0, -1]
    for token, name in enumerate(auto.convert_ids_to_tokens(range(len(auto)))):
        if name.startswith("<") and name.endswith(">") and len(name) > 2:
            continue
        piece = auto.backend_tokenizer.decoder.decode([name])
        own_ids = tokenizer.encode(piece)
        if "\ufffd" not in piece and len(own_ids) == 1:
            assert abs(float(own_V[int(own_ids[0])] - their_V[token])) < 1e-4
    assert tokenizer.decode(np.array(ids)) == word


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a kind": ("bloom", {"n_layer": 1, "n_head": 2}, "model_type: bloom is none"),
    "a bias": ("llama", {"attention_bias": True}, "attention_bias: True is something"),
    "an activation": ("llama", {"hidden_act": "gelu"}, "hidden_act: gelu is a function"),
    "xielu": ("apertus", {"head_dim": 8}, "hidden_act: xielu is a function"),
    "a rotation": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
        "rope_parameters",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_lab_has_not_is_named(case: str, tmp_path: Path) -> None:
    kind, config, message = REFUSED[case]
    folder = elsewhere(tmp_path / "theirs", kind, **config)
    with pytest.raises(UserError, match=message):
        read.bring(folder, tmp_path / "into", TREE)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("qwen3", "self_attn.q_norm.weight", "was learned, where the lab has a constant"),
        ("gpt2", "attn.c_attn.bias", "was learned, where the lab has a constant"),
    ],
)
def test_what_was_learned_and_is_a_constant_here_is_named(
    kind: str, name: str, message: str, tmp_path: Path
) -> None:
    folder = elsewhere(tmp_path / "theirs", kind, **KINDS[kind])
    tensors = load_file(folder / "model.safetensors")
    key = next(each for each in tensors if each.endswith(name))
    tensors[key][0] += 0.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{name} {message}"):
        read.bring(folder, tmp_path / "into", TREE)


def test_a_tokenizer_that_merges_no_bytes_is_refused(tmp_path: Path) -> None:
    folder = elsewhere(tmp_path / "theirs", "llama")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"type": "Whitespace"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="does not merge bytes"):
        read.bring(folder, tmp_path / "into", TREE)


def test_a_tokenizer_that_changes_text_is_refused(tmp_path: Path) -> None:
    folder = elsewhere(tmp_path / "theirs", "llama")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"its normalizer \(Lowercase\)"):
        read.bring(folder, tmp_path / "into", TREE)


def test_weights_in_several_files_are_refused_with_what_helps(tmp_path: Path) -> None:
    folder = elsewhere(tmp_path / "theirs", "llama")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(UserError, match="max_shard_size"):
        read.bring(folder, tmp_path / "into", TREE)


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    folder = elsewhere(tmp_path / "theirs", "llama")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lm_head\.weight holds numbers that are not finite"):
        read.bring(folder, tmp_path / "into", TREE)


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": None},
        {"hidden_size": "32"},
        {"max_position_embeddings": 0},
        {"num_attention_heads": 0},
        {"bos_token_id": "first"},
    ],
    ids=str,
)
def test_a_config_that_nobody_writes_is_one_line(change: dict[str, Any], tmp_path: Path) -> None:
    folder = elsewhere(tmp_path / "theirs", "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError):
        read.bring(folder, tmp_path / "into", TREE)


def test_a_window_as_long_as_the_context_is_none(tmp_path: Path) -> None:
    settings = {"sliding_window": 64, "num_key_value_heads": 2}
    folder = elsewhere(tmp_path / "theirs", "mistral", **settings)
    brought = read.bring(folder, tmp_path / "into", TREE)
    assert brought.choice["models.transformer.attention"] == "grouped_query"


def test_an_export_for_another_tool_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lmlab.json").write_text('{"format": "onnx", "run": "", "weights_sha256": ""}')
    with pytest.raises(UserError, match=r"an export for another tool \(onnx\)"):
        read.bring(tmp_path, tmp_path / "into", TREE)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_one_line(file: str, tmp_path: Path) -> None:
    folder = elsewhere(tmp_path / "theirs", "llama")
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=file):
        read.bring(folder, tmp_path / "into", TREE)
