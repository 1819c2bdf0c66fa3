"""A run written as ONNX, in a folder with all that a program needs to generate text by it."""

import inspect
import shutil
from pathlib import Path
from typing import Any

from lmlab.core.errors import UserError
from lmlab.core.files import write_json
from lmlab.data import pretokens
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import readable
from lmlab.export import place
from lmlab.export.extras import needed
from lmlab.export.onnx.graph import LOGITS, TIME, TOKENS, Graph, graph_of
from lmlab.export.onnx.program import spelling
from lmlab.export.onnx.states import BATCH, find_states
from lmlab.export.onnx.verify import Agreement, bits_per_byte, verify
from lmlab.export.run import Run

FORMAT = "onnx"
MODEL, RECORD, TOKENIZER = "model.onnx", "model.json", "tokenizer.json"
PROGRAM, PAGE = "generate.py", "generate.html"
PROGRAMS = Path(__file__).with_name("program")
SPELLINGS = {
    "bpe": spelling.BPE,
    "byte": spelling.Byte,
    "character": spelling.Character,
    "unigram": spelling.Unigram,
    "word": spelling.Word,
}
"""The tokenizers by which the programs encode."""
STAND_IN = spelling.Byte
"""The one that is imported where they are kept in the lab."""


def write(run: Run, out: Path) -> list[str]:
    """Write a run as the folder `out`; what to tell of it.

    It holds the graph, which reads a text and continues it (model.onnx), what a program has to know
    to call it (model.json), the tokenizer, and two programs that generate text: one in Python, and
    a page for a browser. Those are left out for a tokenizer that they do not know, and the page
    where the weights are too large for one file.

    Raises UserError where a package is missing, where `out` is no place for it, where the model
    cannot be computed as a graph, and where the graph's logits are not those of the lab's model.
    """
    needed(FORMAT, "onnx", "onnxscript", "onnxruntime")
    place.check(out)
    about = {"format": FORMAT, "run": run.name, "weights_sha256": run.record.weights_sha256}
    graph = graph_of(run.model, find_states(run.model))
    with place.export_folder(out, about) as folder:
        in_two = graph.save(folder / MODEL)
        size = sum(file.stat().st_size for file in folder.iterdir())
        agreement = verify(run.model, folder / MODEL, graph)
        _check(agreement, run, out)
        bits = bits_per_byte(run, folder / MODEL, graph)
        shutil.copyfile(run.folders.tokenizer_file, folder / TOKENIZER)
        write_json(folder / RECORD, record(run, graph))
        programs = _programs(tokenizers.part_name(run.tokenizer), with_page=not in_two)
        for name, text in programs.items():
            (folder / name).write_text(text, encoding="utf-8")
    names = ", ".join((MODEL, RECORD, TOKENIZER, *programs))
    lines = [f"{out}: {names}; {size / 1e6:.1f} MB; {agreement.line()}"]
    if bits:
        lines.append(f"{bits[1]:.5f} bits per byte of validation text (the lab: {bits[0]:.5f})")
    return lines


def record(run: Run, graph: Graph) -> dict[str, Any]:
    """What a program has to know to call the graph."""
    return {
        "name": run.name,
        "context": run.model.context,
        "vocabulary_size": run.model.vocabulary_size,
        "bos": run.tokenizer.bos,
        "tokenizer": tokenizers.part_name(run.tokenizer),
        "pretokens": pretokens.PATTERN,
        "pieces": [readable(piece) for piece in run.tokenizer.token_bytes],
        "inputs": [{"name": TOKENS, "dtype": "int64", "shape": [BATCH, TIME]}],
        "outputs": [
            {
                "name": LOGITS,
                "dtype": "float32",
                "shape": [BATCH, TIME, run.model.vocabulary_size],
            }
        ],
        "states": [
            {
                "name": port.name,
                "next": port.next,
                "dtype": port.dtype,
                "shape": list(port.shape),
                "initial": port.initial,
            }
            for port in graph.ports
        ],
    }


def _check(agreement: Agreement, run: Run, out: Path) -> None:
    """Raises UserError unless the graph computes what the model does."""
    if not agreement.holds:
        raise UserError(
            f"{out} is not written: as ONNX, {run.model.choice.name} computes other logits than"
            f" in the lab ({agreement.line()})"
        )


def _programs(tokenizer: str, with_page: bool) -> dict[str, str]:
    """The programs by their files' names."""
    if tokenizer not in SPELLINGS:
        return {}
    programs = {PROGRAM: program(SPELLINGS[tokenizer])}
    if with_page:
        programs[PAGE] = (PROGRAMS / PAGE).read_text(encoding="utf-8")
    return programs


def program(spells: type[Any]) -> str:
    """The program in Python, with the class that encodes in place of its import."""
    text = (PROGRAMS / PROGRAM).read_text(encoding="utf-8")
    classes = [cls for cls in reversed(spells.__mro__) if cls is not object]
    sources = "\n\n\n".join(inspect.getsource(cls).rstrip() for cls in classes)
    if "re." in sources:
        text = text.replace("import json\n", "import json\nimport re\n")
    before, after = text.split(f"\nfrom {spelling.__name__} import {STAND_IN.__name__}\n")
    after = after.replace(f"{STAND_IN.__name__}(", f"{spells.__name__}(")
    after = after.replace("\n\n\ndef generate(", f"\n\n\n{sources}\n\n\ndef generate(")
    return before + after
