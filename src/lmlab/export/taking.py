"""`lmlab export`: a run in the format of another tool. Each format's packages are loaded only where
it is asked for.
"""

from pathlib import Path

from lmlab.export.run import Folders as Folders
from lmlab.export.run import Run as Run

OUTS = ("data/model", "data/tokenizer")
"""What an export needs of a run."""
WHERE_KEPT = ("data/corpus",)
"""What it measures by, where it is to be had."""


def huggingface(run: Run, out: Path) -> list[str]:
    """Write a folder for transformers; what to tell of it. Raises UserError where that cannot be
    done.
    """
    from lmlab.export.huggingface.write import write

    return write(run, out)


def gguf(run: Run, out: Path, types: str, nearest_tokenizer: bool) -> list[str]:
    """Write a folder with a file of each type, in a list with commas, for llama.cpp, as
    `huggingface`.
    """
    from lmlab.export.gguf.write import named, write

    return write(run, out, named(types), nearest_tokenizer=nearest_tokenizer)


def onnx(run: Run, out: Path) -> list[str]:
    """Write a folder for ONNX Runtime, as `huggingface`."""
    from lmlab.export.onnx.write import write

    return write(run, out)
