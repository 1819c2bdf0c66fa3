"""What llama.cpp computes of an exported model, and what the lab does."""

import itertools
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import exported
import hostile
import numpy as np
import pytest
import small
import torch
from gguf import GGUFReader
from small import PROJECT

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.files import sha256
from lmlab.core.registry import Choice
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.export import anatomy, extras
from lmlab.export.architecture import KEYS, Architecture, table
from lmlab.export.gguf import check, vocabulary, write
from lmlab.export.gguf.architectures import ARCHITECTURES
from lmlab.export.gguf.engine import Engine, engine
from lmlab.export.run import Run
from lmlab.export.scored import scored
from lmlab.model.generation import sample_ids

MOST = 5
"""Combinations that are drawn of each architecture."""
WIDTH = 32
"""That of a block of quantised weights."""
CORPUS = [path.read_text(encoding="utf-8") for path in sorted(PROJECT.glob("docs/**/*.md"))]
TEXTS = [
    "",
    "To be, or not to be: that is the question.\n",
    "  two spaces,\tand\ttabs \r\n\r\n\n ",
    "'sun don't 12345 --a (b) \u2581 \u2581\u2581",
    "<|document|> <|unseen|> <s></s><|endoftext|><|im_end|>",
    *(piece * 3 for piece in (*hostile.blanks, *hostile.words, *hostile.others)),
    " ".join([*hostile.blanks, *hostile.words, *hostile.others]),
]


def transformer(**options: Any) -> Choice:
    given = {"width": WIDTH, "heads": 2, "groups": 1, **options}
    return registry.choose(small.tree(**given), "models", "transformer")


def parts(each: Architecture) -> dict[str, str]:
    """Some parts that an architecture carries: the first of every key."""
    return chosen_parts(each, [each.carries[key][0] for key in KEYS])


def chosen_parts(each: Architecture, names: Any) -> dict[str, str]:
    by_key = dict(zip(KEYS, names, strict=True))
    if each.experts:
        by_key |= {"expert": by_key["feed_forward"], "feed_forward": "mixture_of_experts"}
    return by_key


def combinations() -> list[tuple[str, dict[str, Any]]]:
    """For each architecture some of the transformers that it carries, drawn by small.DRAW."""
    found = []
    for each in ARCHITECTURES:
        axes = [each.carries[key] for key in KEYS]
        drawn = list(itertools.product(*axes, each.qk_norm, (False, True), (1, 2)))
        random.Random(small.DRAW).shuffle(drawn)
        for *names, qk_norm, tied, active in drawn[:MOST]:
            options = {"qk_norm": qk_norm, "tied": tied, "active": active}
            found.append((each.name, {**chosen_parts(each, names), **options}))
    return found


@contextmanager
def loaded(run: Run, folder: Path, type: str = "f32", nearest: bool = False) -> Iterator[Engine]:
    """llama.cpp with a run's file."""
    content = write._content(run, nearest)
    file = folder / f"{type}.gguf"
    write._write_file(content, type, write._stored(content, type), file)
    with engine(file, run.model.context, run.tokenizer.bos) as opened:
        yield opened


@torch.no_grad()
def difference(run: Run, folder: Path) -> float:
    """The largest in log-probability between the lab's model and llama.cpp's, for random ids.

    Weights are made smaller first, so that rounding errors do not grow on the way.
    """
    for parameter in run.model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(0.6)
    size = run.model.vocabulary_size
    [ids] = small.tokens(1, run.model.context - 1, vocabulary_size=size).tolist()
    with loaded(run, folder) as opened:
        theirs_TV = opened.log_probabilities(ids, size)
    return float(np.abs(theirs_TV - check._log_probabilities(run.model, ids)).max())


def default(tmp_path: Path, **options: Any) -> Run:
    return exported.run(tmp_path / "run", transformer(qk_norm=True, **options))


# ---------------------------------------------------------------- architectures


@pytest.mark.parametrize(("name", "options"), combinations(), ids=str)
def test_llama_cpp_computes_what_the_lab_does(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    run = exported.run(tmp_path, transformer(**options))
    assert write._content(run, False).architecture.name == name
    assert difference(run, tmp_path) < 1e-5


@pytest.mark.parametrize("epsilons", [(1e-2, 1e-7), (1e-7, 1e-2)])
@pytest.mark.parametrize("name", ["apertus", "qwen3", "plamo3"])
def test_an_epsilon_of_its_own_is_folded_into_queries_and_keys(
    name: str, epsilons: tuple[float, float], tmp_path: Path
) -> None:
    each = next(each for each in ARCHITECTURES if each.name == name)
    tree = small.tree(width=WIDTH, heads=2, qk_norm=True, **parts(each))
    of_norm, of_attention = epsilons
    tree["layers"]["normalisation"]["rms_norm"]["epsilon"] = of_norm
    tree["layers"]["attention"]["multi_head"]["epsilon"] = of_attention
    run = exported.run(tmp_path, registry.choose(tree, "models", "transformer"))
    assert difference(run, tmp_path) < 1e-5


def test_other_sizes_of_heads_groups_and_bases(tmp_path: Path) -> None:
    for number, options in enumerate(
        (
            {"width": 24, "heads": 6, "groups": 3, "base": 17.0},
            {"width": 16, "heads": 1, "groups": 1, "expansion": 0.3},
            {"width": 12, "heads": 6, "groups": 2, "qk_norm": True, "depth": 1},
        )
    ):
        folder = tmp_path / str(number)
        run = exported.run(folder, transformer(attention="grouped_query", **options))
        assert difference(run, folder) < 1e-5


REFUSED = [
    (key, name)
    for key in KEYS
    for name in registry.names(f"layers.{key}")
    if name != "mixture_of_experts" and not any(name in each.carries[key] for each in ARCHITECTURES)
]


@pytest.mark.parametrize(("key", "name"), REFUSED)
def test_a_part_that_llama_cpp_has_not_is_refused_by_name(
    key: str, name: str, tmp_path: Path
) -> None:
    run = exported.run(tmp_path, transformer(**{key: name}))
    with pytest.raises(UserError, match=f"models.transformer.{key}: {name}") as refused:
        write.write(run, tmp_path / "out")
    assert "lmlab export onnx" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"logit_soft_cap": 5.0}, "models.transformer.logit_soft_cap: 5"),
        ({"normalisation": "layer_norm", "qk_norm": True}, "normalisation: layer_norm"),
        ({"position": "alibi", "qk_norm": False}, "models.transformer.position: alibi"),
        ({"attention": "sliding_window"}, "models.transformer.attention: sliding_window"),
        (
            {"feed_forward": "mixture_of_experts", "expert": "gelu"},
            "models.transformer.feed_forward: gelu",
        ),
        (
            {"position": "alibi", "qk_norm": False, "feed_forward": "swiglu", "heads": 3},
            "models.transformer.position: alibi",
        ),
    ],
)
def test_what_no_architecture_combines_is_refused(
    options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    width = 24 if "heads" in options else WIDTH
    run = exported.run(tmp_path, transformer(**{"width": width, **options}))
    with pytest.raises(UserError) as refused:
        write.write(run, tmp_path / "out")
    assert words in str(refused.value)


@pytest.mark.parametrize("name", ["min_gru", "n_gram_table"])
def test_a_model_that_is_no_transformer_is_refused(name: str, tmp_path: Path) -> None:
    run = exported.run(tmp_path, registry.choose(small.tree(), "models", name))
    with pytest.raises(UserError, match=rf"train\.model: {name} has no counterpart"):
        write.write(run, tmp_path / "out")


def test_a_window_that_holds_the_context_is_none(tmp_path: Path) -> None:
    options = {"attention": "sliding_window", "window": exported.CONTEXT}
    run = exported.run(tmp_path, transformer(**options))
    assert difference(run, tmp_path) < 1e-5


# ---------------------------------------------------------------- files


def test_a_folder_holds_a_file_of_each_type_and_says_what_it_is_worth(tmp_path: Path) -> None:
    run, out = default(tmp_path), tmp_path / "out"
    lines = write.write(run, out, list(write.TYPES))
    files = [out / f"model-{each}.gguf" for each in write.TYPES]
    page = (out / "README.md").read_text(encoding="utf-8")
    for file, line in zip(files, lines, strict=False):
        assert line.startswith(f"{file.name}  {file.stat().st_size / 1e6:.2f} MB")
        assert "bits per byte" in line
        assert file.name in page
    assert files[0].stat().st_size > files[1].stat().st_size > files[-1].stat().st_size
    said = "\n".join(lines)
    assert "log-probabilities differ from the lab's by at most" in said
    assert f"{exported.CONTEXT - 1} likeliest tokens in a row are the same" in said
    assert "not in the vocabulary" in said
    sums = (out / "SHA256SUMS").read_text(encoding="utf-8")
    assert all(f"{sha256(file)}  {file.name}\n" in sums for file in files)
    assert json.loads((out / "lmlab.json").read_text())["architecture"] == "apertus"


def test_bits_per_byte_are_the_labs_and_those_of_the_whole_way_through_llama_cpp(
    tmp_path: Path,
) -> None:
    run = default(tmp_path)
    windows = scored(run)
    ours = check.labs_bits(run.model, windows)
    content = write._content(run, False)
    for kind, most in (("f32", 1e-5), ("f16", 1e-2), ("q8_0", 0.05)):
        row = write._written(run, windows, content, kind, tmp_path)
        assert row.bits_per_byte == pytest.approx(ours, abs=most)
        with loaded(run, tmp_path, kind) as opened:
            nats = 0.0
            for ids, targets in zip(windows.inputs, windows.targets, strict=True):
                l_TV = opened.log_probabilities(ids[:-1].tolist(), run.model.vocabulary_size)
                nats += windows.nats(torch.from_numpy(l_TV)[None], targets[None, :-1])
            partial = replace(windows, inputs=windows.inputs[:, :-1])
            with torch.no_grad():
                of_lab = sum(
                    windows.nats(run.model(inputs_BT), targets_BT[:, :-1])
                    for (inputs_BT, _), (_, targets_BT) in zip(
                        partial.batches(), windows.batches(), strict=True
                    )
                )
        assert nats == pytest.approx(of_lab, rel=most)


def test_a_context_of_one_token_is_refused(tmp_path: Path) -> None:
    run = exported.run(tmp_path / "run", transformer(qk_norm=True), context=1)
    with pytest.raises(UserError, match=r"train\.context: 1"):
        write.write(run, tmp_path / "out")


@pytest.mark.parametrize("context", [2, 3, 300])
def test_any_context(context: int, tmp_path: Path) -> None:
    run = exported.run(tmp_path / "run", transformer(qk_norm=True), context=context)
    lines = write.write(run, tmp_path / "out", ["f32", "q4_0"])
    assert "bits per byte" in lines[0]


def test_rows_that_a_type_cannot_divide_stay_in_float16(tmp_path: Path) -> None:
    run = default(tmp_path, width=24, heads=2)
    lines = write.write(run, tmp_path / "out", ["q4_0"])
    assert re.search(r"\d+ matrices in f16, since q4_0 cannot hold them", lines[0])
    types = {
        tensor.name: tensor.tensor_type.name
        for tensor in GGUFReader(tmp_path / "out" / "model-q4_0.gguf").tensors
    }
    assert types["token_embd.weight"] == "F16"
    assert types["blk.0.ffn_down.weight"] == "Q4_0"  # 96 units
    assert types["output_norm.weight"] == "F32"


def test_what_float16_cannot_hold_stays_in_float32(tmp_path: Path) -> None:
    run = default(tmp_path)
    with torch.no_grad():
        run.model.state_dict()["embedding.tokens.weight"][0, 0] = 1e5
    lines = write.write(run, tmp_path / "out", ["f16"])
    assert "1 matrices in f32" in lines[0]
    assert "nan" not in lines[0]


def test_experts_are_quantised_and_their_router_is_not(tmp_path: Path) -> None:
    options = {"feed_forward": "mixture_of_experts", "expert": "swiglu", "qk_norm": False}
    run = exported.run(tmp_path / "run", transformer(**options))
    write.write(run, tmp_path / "out", ["q8_0"])
    types = {
        tensor.name: tensor.tensor_type.name
        for tensor in GGUFReader(tmp_path / "out" / "model-q8_0.gguf").tensors
    }
    assert types["blk.0.ffn_gate_inp.weight"] == "F32"
    assert types["blk.0.ffn_up_exps.weight"] == "Q8_0"


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = default(tmp_path)
    for name in ("one", "two"):
        write.write(run, tmp_path / name, ["f32", "q8_0"])
    one, two = (
        {file.name: sha256(file) for file in (tmp_path / name).iterdir()} for name in ("one", "two")
    )
    assert one == two


def test_without_text_it_is_compared_by_random_ids(tmp_path: Path) -> None:
    run = default(tmp_path)
    bare = replace(run, folders=replace(run.folders, corpus=None))
    lines = write.write(bare, tmp_path / "out", ["f32"])
    assert "bits per byte: not measured, since the validation split is not to be had" in lines
    page = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| not measured |" in page


def test_what_llama_cpp_computes_otherwise_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = default(tmp_path), tmp_path / "out"
    write.write(run, out, ["f32"])
    before = sha256(out / "model-f32.gguf")
    of = anatomy.of
    monkeypatch.setattr(anatomy, "of", lambda model: replace(of(model), rope_base=20_000.0))
    with pytest.raises(UserError, match=r"not written: in llama\.cpp log-probabilities differ"):
        write.write(run, out, ["f32"])
    assert sha256(out / "model-f32.gguf") == before
    assert not list(tmp_path.glob(".*partial"))


def test_likeliest_tokens_that_differ_are_not_written(tmp_path: Path) -> None:
    run = default(tmp_path)
    other = exported.run(tmp_path / "other", transformer(qk_norm=True), seed=5)
    with loaded(other, tmp_path) as opened, pytest.raises(UserError, match="generates is another"):
        check._generated(run, opened)


def test_generation_is_the_labs(tmp_path: Path) -> None:
    run = default(tmp_path)
    bos, count = run.tokenizer.bos, exported.CONTEXT - 1
    with loaded(run, tmp_path) as opened:
        theirs = opened.likeliest([bos], count)
    ours = list(sample_ids(run.model, [bos], count, temperature=0.0, seed=0))
    assert theirs == ours[: len(theirs)]
    assert len(theirs) == count or theirs[-1] == bos


# ---------------------------------------------------------------- tokenizers


def with_tokenizer(folder: Path, name: str, fitted: Tokenizer) -> Run:
    model = small.model(transformer(qk_norm=True), 0, fitted.vocabulary_size, exported.CONTEXT)
    return exported.saved(folder / name, model.eval(), fitted, name)


def fitted(name: str, texts: list[str], **options: Any) -> Tokenizer:
    return tokenizers.fit(registry.choose(small.tree(**options), "tokenizers", name), texts)


def test_bytes_are_the_labs_on_any_text(tmp_path: Path) -> None:
    tokenizer = fitted("byte", [])
    run = with_tokenizer(tmp_path, "byte", tokenizer)
    with loaded(run, tmp_path) as opened:
        for text in [*TEXTS, *hostile.LONG.values(), *CORPUS]:
            expected = [tokenizer.bos, *tokenizer.encode(text).tolist()]
            assert opened.tokenise(text) == expected


def test_known_characters_are_the_labs_on_any_text(tmp_path: Path) -> None:
    for number, grown in enumerate(("Ωж", f"Ωж{vocabulary.SPACE}")):
        known = set("".join(TEXTS + CORPUS)) - {"\0", "Ω", "ж", vocabulary.SPACE}
        tokenizer = fitted("character", ["".join(known)]).grown([grown], 3)
        run = with_tokenizer(tmp_path / str(number), "character", tokenizer)
        known |= set(grown)
        with loaded(run, tmp_path) as opened:
            for whole in [*TEXTS, *hostile.LONG.values(), *CORPUS, f"Ωж{vocabulary.SPACE} Ω"]:
                text = "".join(character for character in whole[:10_000] if character in known)
                expected = [tokenizer.bos, *tokenizer.encode(text).tolist()]
                assert opened.tokenise(text) == expected


def test_unknown_characters_become_one_token(tmp_path: Path) -> None:
    run = default(tmp_path)
    content = vocabulary.carried(run.tokenizer, False)
    assert content.expected is not None
    with loaded(run, tmp_path) as opened:
        for text in [*TEXTS, *hostile.LONG.values(), *CORPUS]:
            assert opened.tokenise(text)[1:] == content.expected(text)
    assert content.expected("aZZb Z") == [
        *run.tokenizer.encode("a").tolist(),
        run.tokenizer.unseen,  # type: ignore[attr-defined]
        *run.tokenizer.encode("b ").tolist(),
        run.tokenizer.unseen,  # type: ignore[attr-defined]
    ]


def test_unknown_characters_of_the_text_are_counted_and_said(tmp_path: Path) -> None:
    run = exported.run(tmp_path / "run", transformer(qk_norm=True))
    exported.saved(tmp_path / "other", run.model, run.tokenizer, "character", "a bad Z " * 40)
    folders = replace(run.folders, corpus=tmp_path / "other" / "corpus")
    lines = write.write(replace(run, folders=folders), tmp_path / "out", ["f32"])
    digits = run.tokenizer.digits  # type: ignore[attr-defined]
    spelled = 40 * (1 + digits)
    words = f"other tokens than the lab's for {spelled:,} of the {spelled + 40 * 7:,}"
    assert any(words in line for line in lines)


def test_a_zero_byte_in_the_vocabulary_is_said(tmp_path: Path) -> None:
    tokenizer = fitted("character", ["a\0b"])
    run = with_tokenizer(tmp_path, "character", tokenizer)
    lines = write.write(run, tmp_path / "out", ["f32"])
    assert any("U+0000" in line for line in lines)


@pytest.mark.parametrize("name", ["bpe", "unigram", "word"])
def test_pre_tokens_are_refused_unless_the_nearest_will_do(name: str, tmp_path: Path) -> None:
    tokenizer = fitted(name, CORPUS, vocabulary_size=600)
    run = with_tokenizer(tmp_path, name, tokenizer)
    text = "\n\n".join(CORPUS)[:60_000]
    exported.saved(tmp_path / name, run.model, tokenizer, name, text)
    with pytest.raises(UserError, match=rf"tokenizer\.name: {name} has no exact") as refused:
        write.write(run, tmp_path / "out")
    assert "lmlab export huggingface" in str(refused.value)
    assert not (tmp_path / "out").exists()
    lines = write.write(run, tmp_path / "out", ["f32"], nearest_tokenizer=True)
    [line] = [line for line in lines if "llama.cpp's tokenizer gives other tokens" in line]
    assert float(line.split("(")[1].split("%")[0]) < 5
    assert vocabulary.ONLY_NEAR in lines
    assert line in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    with loaded(run, tmp_path, nearest=True) as opened:
        for each in [*TEXTS, "\xff \udcff".encode("utf-8", "replace").decode()]:
            first, *ids = opened.tokenise(each)
            assert first == tokenizer.bos
            assert tokenizer.bos not in ids


def test_text_that_spells_a_special_token_is_text(tmp_path: Path) -> None:
    run = default(tmp_path)
    with loaded(run, tmp_path) as opened:
        ids = opened.tokenise(f"a{vocabulary.BOS}b")
        assert ids.count(run.tokenizer.bos) == 1


# ---------------------------------------------------------------- before any work


@pytest.mark.parametrize("types", [[], ["f32", "q9"], [""]])
def test_an_unknown_type_is_refused(types: list[str], tmp_path: Path) -> None:
    run = default(tmp_path)
    with pytest.raises(UserError, match=r"--types: .*name some of f32, f16"):
        write.write(run, tmp_path / "out", types)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["gguf", "xllamacpp"])
def test_a_missing_package_is_said_before_any_work(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = default(tmp_path)
    find = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(UserError, match="lmlab export gguf needs gguf and xllamacpp"):
        write.write(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_stays(tmp_path: Path) -> None:
    run = default(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("mine")
    with pytest.raises(UserError, match="--out"):
        write.write(run, tmp_path / "out")
    assert (tmp_path / "out" / "diary.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["weights.safetensors", "model.json"])
def test_a_damaged_model_is_refused(name: str, tmp_path: Path) -> None:
    run = default(tmp_path)
    file = run.folders.model / name
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="damaged"):
        Run.open("made_up", run.folders)


def test_a_file_that_llama_cpp_cannot_load_is_said(tmp_path: Path) -> None:
    file = tmp_path / "no.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UserError, match="cannot load the file"), engine(file, 8, 0):
        pass


def test_nothing_else_is_printed_and_the_process_ends(tmp_path: Path) -> None:
    default(tmp_path)
    code = f"""
from pathlib import Path
from lmlab.export.gguf.write import write
from lmlab.export.run import Folders, Run
folder = Path({str(tmp_path / "run")!r})
folders = Folders(folder / "model", folder / "tokenizer" / "tokenizer.json", folder / "corpus")
print(len(write(Run.open("made_up", folders), folder / "out", ["f32", "q8_0"])))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert (ran.returncode, ran.stdout.strip(), ran.stderr) == (0, "7", "")


def test_engines_may_be_closed_at_once(tmp_path: Path) -> None:
    run = default(tmp_path)
    for _ in range(5):
        with loaded(run, tmp_path):
            pass


def test_the_page_shows_the_table_that_the_code_reads() -> None:
    page = (PROJECT / "docs" / "export.md").read_text()
    assert table(ARCHITECTURES) in page
