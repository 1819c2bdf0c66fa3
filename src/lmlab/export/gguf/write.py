"""A run as GGUF files, one for each precision of its weights, each measured through llama.cpp.

Nothing is written unless the file in float32 gives, in llama.cpp, the log-probabilities, the
likeliest tokens and the ids of the lab's own model and tokenizer.
"""

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.core.errors import UserError
from lmlab.export import anatomy as anatomies
from lmlab.export import place
from lmlab.export.anatomy import Anatomy
from lmlab.export.architecture import Architecture, chosen
from lmlab.export.extras import needed
from lmlab.export.gguf import check, readme
from lmlab.export.gguf.architectures import candidates
from lmlab.export.gguf.check import Proof
from lmlab.export.gguf.engine import Floats, engine
from lmlab.export.gguf.readme import Row
from lmlab.export.gguf.vocabulary import Vocabulary, carried
from lmlab.export.run import Run
from lmlab.export.scored import MOST_TOKENS, Scored, scored
from lmlab.model.models.transformer import Transformer

TYPES = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q5_1": "MOSTLY_Q5_1",
    "q5_0": "MOSTLY_Q5_0",
    "q4_1": "MOSTLY_Q4_1",
    "q4_0": "MOSTLY_Q4_0",
}
"""What weights can be stored as, with llama.cpp's name for a file of such weights."""
FORMAT = "gguf"
DEFAULT_TYPES = ("f32", "f16", "q8_0", "q4_0")
MEASURED_PRODUCTS = 5 * 10**10
"""Weights times tokens by which a file is measured, so that an export ends within a minute."""
FEWEST_TOKENS = 2_000
"""By which it is measured however large it is."""
LARGEST_F16 = 65504.0
ROUTER = "ffn_gate_inp.weight"
INSTEAD = "`lmlab export onnx` carries it"


@dataclass(frozen=True)
class Tensor:
    """A tensor as it is stored."""

    stored: NDArray[Any]
    type: Any
    """A `gguf.GGMLQuantizationType`."""


@dataclass(frozen=True)
class Content:
    """What all files of a run share."""

    name: str
    architecture: Architecture
    anatomy: Anatomy
    vocabulary: Vocabulary
    weights: Mapping[str, Floats]
    """By their names in llama.cpp."""


def write(
    run: Run,
    out: Path,
    types: Sequence[str] = DEFAULT_TYPES,
    nearest_tokenizer: bool = False,
) -> list[str]:
    """Write a folder with a file for each type and a README.md; return what to print of it.

    Raises UserError where llama.cpp has no counterpart for a part of the model or, unless the
    nearest will do, for the tokenizer; where it computes something else; and where a type or a
    package is missing.
    """
    needed(FORMAT, "gguf", "xllamacpp")
    _check_types(types)
    place.check(out)
    content = _content(run, nearest_tokenizer)
    affordable = MEASURED_PRODUCTS // run.record.parameters
    windows = scored(run, min(MOST_TOKENS, max(FEWEST_TOKENS, affordable)))
    record = {
        "format": FORMAT,
        "run": run.name,
        "architecture": content.architecture.name,
        "weights_sha256": run.record.weights_sha256,
    }
    with place.export_folder(out, record) as folder:
        proof = _proof(run, windows, content)
        rows = [_written(run, windows, content, each, folder) for each in dict.fromkeys(types)]
        ours = check.labs_bits(run.model, windows) if windows.is_text else None
        lines = readme.lines(rows, ours, proof, windows, content.vocabulary.remarks)
        page = readme.page(run, content.architecture.name, rows, lines)
        (folder / "README.md").write_text(page, encoding="utf-8")
    return lines


def named(types: str) -> list[str]:
    """The types in a list with commas. Raises UserError for one that there is not."""
    found = [each.strip().lower() for each in types.split(",")]
    _check_types(found)
    return found


def _check_types(types: Sequence[str]) -> None:
    unknown = [each for each in types if each not in TYPES]
    if unknown or not types:
        wrong = f"there is no type {unknown[0]!r}" if unknown else "no type is named"
        raise UserError(f"--types: {wrong}; name some of {', '.join(TYPES)}")


def _content(run: Run, nearest_tokenizer: bool) -> Content:
    if not isinstance(run.model, Transformer):
        raise UserError(
            f"train.model: {run.model.choice.name} has no counterpart in llama.cpp; {INSTEAD}"
        )
    if run.model.context == 1:
        raise UserError(f"train.context: 1 leaves llama.cpp no room for a next token; {INSTEAD}")
    anatomy = anatomies.of(run.model)
    if anatomy.window is not None and anatomy.window >= anatomy.context:
        anatomy = replace(anatomy, parts={**anatomy.parts, "attention": "multi_head"})
    architecture = chosen(anatomy, candidates(anatomy), "llama.cpp", INSTEAD)
    vocabulary = carried(run.tokenizer, nearest_tokenizer)
    tensors = architecture.tensors(anatomy, anatomies.weights(run.model))
    weights = {name: value.float().numpy() for name, value in tensors.items()}
    return Content(run.name, architecture, anatomy, vocabulary, weights)


# ------------------------------------------------------------------ files


def _proof(run: Run, windows: Scored, content: Content) -> Proof:
    """Compare a file in float32 with the model. Raises UserError where they differ."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model-f32.gguf"
        _write_file(content, "f32", _stored(content, "f32"), file)
        with engine(file, run.model.context, run.tokenizer.bos) as loaded:
            return check.proof(run, windows, content.vocabulary, loaded)


def _written(run: Run, windows: Scored, content: Content, type: str, folder: Path) -> Row:
    """Write the file of a type into a folder, and measure it."""
    file = folder / f"model-{type}.gguf"
    tensors = _stored(content, type)
    _write_file(content, type, tensors, file)
    bits = None
    if windows.is_text:
        head_VD = _read_back(tensors.get("output.weight", tensors["token_embd.weight"]))
        with engine(file, run.model.context, run.tokenizer.bos) as loaded:
            bits = check.file_bits(windows, head_VD, loaded)
    return Row(file.name, type, file.stat().st_size, bits, _kept(tensors, type))


def _kept(tensors: Mapping[str, Tensor], type: str) -> dict[str, str]:
    """The types of the matrices that are stored in another than the file's."""
    matrices = {
        name: tensor.type.name.lower()
        for name, tensor in tensors.items()
        if tensor.stored.ndim > 1 and not name.endswith(ROUTER)
    }
    return {name: kind for name, kind in matrices.items() if kind != type}


def _stored(content: Content, type: str) -> dict[str, Tensor]:
    """The tensors of a file: matrices in its type; vectors, and the routers of experts, in float32.

    A matrix whose rows the type's blocks do not divide is kept in float16, and in float32 where
    float16 would overflow.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    wanted = GGMLQuantizationType[type.upper()]
    stored = {}
    for name, values in content.weights.items():
        kind = wanted
        if values.ndim == 1 or name.endswith(ROUTER):
            kind = GGMLQuantizationType.F32
        elif values.shape[-1] % GGML_QUANT_SIZES[wanted][0]:
            kind = GGMLQuantizationType.F16
        if kind == GGMLQuantizationType.F16 and np.abs(values).max() > LARGEST_F16:
            kind = GGMLQuantizationType.F32
        stored[name] = Tensor(quants.quantize(values, kind), kind)
    return stored


def _read_back(tensor: Tensor) -> Floats:
    from gguf import quants

    values: Floats = quants.dequantize(tensor.stored, tensor.type)
    return values


def _write_file(content: Content, type: str, tensors: Mapping[str, Tensor], file: Path) -> None:
    from gguf import GGML_QUANT_VERSION, GGUFWriter, LlamaFileType

    writer = GGUFWriter(file, content.architecture.name)
    metadata = {
        "general.name": content.name,
        "general.file_type": int(LlamaFileType[TYPES[type]]),
        "general.quantization_version": GGML_QUANT_VERSION,
        **content.architecture.config(content.anatomy),
        **{f"tokenizer.ggml.{key}": value for key, value in content.vocabulary.metadata.items()},
    }
    for key, value in metadata.items():
        _add(writer, key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.stored, raw_dtype=tensor.type)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    except OSError as error:
        if error.errno is None:  # NumPy's own, which says how much could be written
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file)) from None
        raise


def _add(writer: Any, key: str, value: Any) -> None:
    """Add a key with the type that llama.cpp reads such values as."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
