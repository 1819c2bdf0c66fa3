"""A run as a folder that Hugging Face's transformers load."""

import json
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch
from safetensors.torch import save_file

from lmlab.core.files import write_json, write_sums
from lmlab.data.tokenizers.character import Character
from lmlab.export import anatomy, place
from lmlab.export.anatomy import Weights
from lmlab.export.architecture import Architecture, fitting
from lmlab.export.extras import needed
from lmlab.export.huggingface import architectures, card, custom_code, own_record
from lmlab.export.huggingface.tokenizer import (
    SPELLING,
    SPELLING_CODE,
    tokenizer_config,
    tokenizer_json,
)
from lmlab.export.huggingface.verify import verify
from lmlab.export.run import Run
from lmlab.model.models.transformer import Transformer

FORMAT = "huggingface"
TEMPERATURE = 0.8
"""At which `generate` draws unless it is told otherwise."""


def write(run: Run, out: Path) -> list[str]:
    """Write a run as the folder `out`; what to tell of it.

    Raises UserError where a package is missing, where `out` is no place for it, and where what was
    written does not agree with the lab's model.
    """
    needed(FORMAT, "tokenizers", "transformers")
    place.check(out)
    tokenizer = tokenizer_json(run.tokenizer)
    architecture = architecture_of(run)
    record = {
        "format": FORMAT,
        "run": run.name,
        "architecture": architecture.name if architecture else custom_code.MODEL,
        "weights_sha256": run.record.weights_sha256,
    }
    with place.export_folder(out, record) as folder:
        _write_tokenizer(folder, run, tokenizer, "right" if architecture is None else "left")
        if architecture is None:
            tensors = _write_custom(folder, run)
        else:
            tensors = _write_known(folder, run, architecture)
        own_record.write(folder / own_record.FOLDER, run, architecture, tensors)
        agreement = verify(folder, run, custom=architecture is None)
        text = card.card(run, out, record["architecture"], agreement)
        (folder / "README.md").write_text(text, encoding="utf-8")
        write_sums(folder / own_record.FOLDER)
        size = (folder / "model.safetensors").stat().st_size
    lines = [f"{out}: {record['architecture']}, {size / 1e6:.1f} MB; {agreement.line()}"]
    if architecture is None:
        lines.append(_why_custom(run))
    if agreement.unknown:
        lines.append(
            f"{agreement.unknown:,} characters of the corpus are not in the vocabulary:"
            f" tokenizer.json gives each the id `unseen`; {SPELLING} beside it spells them out, as"
            " the lab does"
        )
    return lines


def architecture_of(run: Run) -> Architecture | None:
    """The architecture that computes what a run's model does; None where none does."""
    if not isinstance(run.model, Transformer):
        return None
    return fitting(anatomy.of(run.model), architectures.ARCHITECTURES)


def _why_custom(run: Run) -> str:
    if not isinstance(run.model, Transformer):
        reason = f"train.model: {run.model.choice.name} is none of their architectures"
    else:
        reason = architectures.refusal_of(anatomy.of(run.model))
    return f"{reason}, so the folder has code of its own: load it with trust_remote_code=True"


def _write_tokenizer(folder: Path, run: Run, tokenizer: dict[str, Any], padding_side: str) -> None:
    content = json.dumps(tokenizer, ensure_ascii=False, indent=1)
    (folder / "tokenizer.json").write_text(content, encoding="utf-8", newline="\n")
    config = tokenizer_config(run.tokenizer, run.model.context, padding_side)
    write_json(folder / "tokenizer_config.json", config)
    if isinstance(run.tokenizer, Character):
        copyfile(SPELLING_CODE, folder / SPELLING)
    token = run.tokenizer.bos
    generation = {
        "bos_token_id": token,
        "eos_token_id": token,
        "pad_token_id": token,
        "do_sample": True,
        "temperature": TEMPERATURE,
        "top_k": 0,
        "max_length": run.model.context,
    }
    write_json(folder / "generation_config.json", generation)


def _write_known(folder: Path, run: Run, architecture: Architecture) -> Weights:
    parts = anatomy.of(run.model)
    config = {
        **architecture.config(parts),
        "architectures": [architectures.class_name(architecture)],
        "model_type": architectures.model_type(architecture),
    }
    tensors = architecture.tensors(parts, anatomy.weights(run.model))
    _write_model(folder, run, config, tensors)
    return tensors


def _write_custom(folder: Path, run: Run) -> Weights:
    code = custom_code.custom_code(run.model)
    file = folder / f"{custom_code.MODULE}.py"
    file.write_text(code, encoding="utf-8", newline="\n")
    config = {
        "architectures": [custom_code.MODEL],
        "model_type": "lmlab",
        "auto_map": {
            "AutoConfig": f"{custom_code.MODULE}.{custom_code.CONFIG}",
            "AutoModelForCausalLM": f"{custom_code.MODULE}.{custom_code.MODEL}",
        },
        "vocab_size": run.model.vocabulary_size,
        "max_position_embeddings": run.model.context,
        "tie_word_embeddings": False,
        "use_cache": False,
    }
    state = run.model.state_dict()
    tensors = {f"model.{name}": value.detach().clone() for name, value in state.items()}
    _write_model(folder, run, config, tensors)
    return tensors


def _write_model(folder: Path, run: Run, config: dict[str, Any], tensors: Weights) -> None:
    token = run.tokenizer.bos
    ids = {"bos_token_id": token, "eos_token_id": token, "pad_token_id": token}
    write_json(folder / "config.json", {**config, **ids, "dtype": "float32"})
    contiguous = {
        name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
    }
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
