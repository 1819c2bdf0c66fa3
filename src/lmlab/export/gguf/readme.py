"""What is said of GGUF files: the lines that are printed, and the README.md beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lmlab.export.gguf.check import Proof
from lmlab.export.run import Run
from lmlab.export.scored import Scored


@dataclass(frozen=True)
class Row:
    """A file, and what it is worth."""

    file: str
    type: str
    size: int
    """Bytes."""
    bits_per_byte: float | None
    """Of held-out text; None where there is none."""
    kept: Mapping[str, str]
    """The type of each matrix that could not be stored in the file's."""

    @property
    def megabytes(self) -> str:
        return f"{self.size / 1e6:.2f} MB"

    @property
    def bits(self) -> str:
        return "not measured" if self.bits_per_byte is None else f"{self.bits_per_byte:.4f}"


def lines(
    rows: Sequence[Row],
    ours: float | None,
    proof: Proof,
    scored: Scored,
    remarks: Sequence[str],
) -> list[str]:
    """A line for each file, and what was found out about them all."""
    said = [f"{row.file}  {row.megabytes}  {_measure(row)}{_kept(row)}" for row in rows]
    if ours is None:
        said.append("bits per byte: not measured, since the validation split is not to be had")
    else:
        said.append(
            f"the lab's own model: {ours:.4f} bits per byte, on the same {scored.tokens:,} tokens"
            " of the validation split, in windows that do not overlap"
        )
    said.append(
        f"in float32, log-probabilities differ from the lab's by at most {proof.difference:.1e}"
        f" (after {proof.tokens} tokens); {proof.generated} likeliest tokens in a row are the same"
    )
    if proof.text_tokens:
        said.append(_tokenizer(proof))
    return [*said, *remarks]


def _measure(row: Row) -> str:
    return "" if row.bits_per_byte is None else f"{row.bits} bits per byte"


def _kept(row: Row) -> str:
    """Which matrices are stored in another type than the file's, and why."""
    if not row.kept:
        return ""
    types = " and ".join(sorted(set(row.kept.values())))
    return f"; {len(row.kept)} matrices in {types}, since {row.type} cannot hold them"


def _tokenizer(proof: Proof) -> str:
    if not proof.retokenised:
        return f"llama.cpp's ids of the validation split are the lab's, all {proof.text_tokens:,}"
    share = proof.retokenised / proof.text_tokens
    return (
        f"llama.cpp's tokenizer gives other tokens than the lab's for {proof.retokenised:,} of the"
        f" {proof.text_tokens:,} in the validation split ({share:.2%}); the bits per byte are for"
        " the lab's"
    )


def page(run: Run, architecture: str, rows: Sequence[Row], said: Sequence[str]) -> str:
    """The README.md."""
    table = [f"| {row.file} | {row.megabytes} | {row.bits} |" for row in rows]
    notes = [f"- {line}" for line in said[len(rows) :]]
    kept = [f"- {row.file}{_kept(row)}" for row in rows if row.kept]
    return "\n".join(
        [
            f"# {run.name} for llama.cpp",
            "",
            "| file | size | bits per byte |",
            "|---|---|---|",
            *table,
            "",
            *kept,
            *notes,
            f"- the architecture is `{architecture}`, the context {run.model.context} tokens",
            "",
            _USE.format(file=rows[0].file),
        ]
    )


_USE = """\
A document begins with a beginning-of-document token (BOS), which llama.cpp adds before a prompt;
generated, it ends the text. No text of a prompt is read as that token.

```console
$ llama-completion -m {file} -p "Once" -n 200 --temp 0.8 --top-k 0 --top-p 1 --min-p 0
```

The last three options turn off what llama.cpp does to the distribution by default. Its KV cache
is in float16 unless told otherwise: `-ctk f32 -ctv f32 -fa off` is as exact as the file.
"""
