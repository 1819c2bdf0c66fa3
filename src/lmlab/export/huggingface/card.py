"""The model card of an export: what the run is, what it was measured at, how to use it and make it
again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmlab.core.errors import UserError
from lmlab.data.corpus_manifest import CorpusManifest
from lmlab.export.huggingface import custom_code
from lmlab.export.huggingface.foreign import CORPUS
from lmlab.export.huggingface.verify import Agreement
from lmlab.export.run import Run


def card(run: Run, out: Path, architecture: str, agreement: Agreement) -> str:
    """README.md of the folder."""
    trusts = architecture == custom_code.MODEL
    sections = [
        _front_matter(),
        f"# {out.name}",
        _what_it_is(run, architecture),
        _use(out, trusts),
        _limits(run, agreement, trusts),
        _measured(run, agreement),
        _text(run),
        _again(run),
        _params(run),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter() -> str:
    lines = ["library_name: transformers", "pipeline_tag: text-generation", "license: other"]
    return "\n".join(["---", *lines, "tags:", "- lmlab", "---"])


def _what_it_is(run: Run, architecture: str) -> str:
    record = run.record
    read = f"{record.tokens:,} tokens ({record.bytes:,} bytes of text)"
    corpora = [earlier.corpus for earlier in record.earlier]
    if CORPUS in corpora:
        begun = "trained with lmlab from weights that were pretrained elsewhere"
    else:
        begun = "trained from scratch with lmlab"
    return (
        f"A language model of {record.parameters:,} parameters, {begun}, in {record.steps:,} steps"
        f" on {read}. It computes what `{architecture}` does; the folder"
        " `lmlab` holds the laboratory's own record of it."
    )


def _use(out: Path, trusts: bool) -> str:
    trust = ", trust_remote_code=True" if trusts else ""
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{out.name}"{trust})
model = AutoModelForCausalLM.from_pretrained("{out.name}"{trust})
print(tokenizer.decode(model.generate(**tokenizer("ROMEO:", return_tensors="pt"))[0]))
```"""


def _limits(run: Run, agreement: Agreement, trusts: bool) -> str:
    limits = [
        f"It was trained on windows of {run.model.context} tokens; `generate` ends there unless it"
        " is told otherwise, and what it does with more is not the laboratory's."
    ]
    if trusts:
        limits.append("Its code has no cache, so each token costs a pass over the text before it.")
    if agreement.unknown or hasattr(run.tokenizer, "unseen"):
        limits.append(
            "A character that is not in the vocabulary becomes the one token `<|unseen|>`;"
            " `spelling_lmlab.SpellingTokenizer` in this folder spells it out, as the laboratory"
            " does."
        )
    return " ".join(limits)


def _measured(run: Run, agreement: Agreement) -> str:
    measures = run.folders.measures
    lines = [f"- written: {agreement.line()}"]
    found = measures.get("validation", {}).get("bits_per_byte")
    if measures.get("weights_sha256") == run.record.weights_sha256 and found is not None:
        window = f"windows of {measures['window']} tokens, {measures['stride']} apart"
        lines.append(f"- validation: {found:.4f} bits per byte ({window})")
        references = measures.get("references", {}).get("validation", {})
        named = [f"{name} {bits:.4f}" for name, bits in references.items()]
        if named:
            lines.append(f"- for comparison, bits per byte of: {', '.join(named)}")
    return "## Measured\n\n" + "\n".join(lines)


def _text(run: Run) -> str:
    if run.folders.corpus is None:
        return ""
    try:
        manifest = CorpusManifest.read(run.folders.corpus)
    except UserError:  # a card is no reason to refuse an export
        return ""
    return (
        f"## Text\n\n{manifest.corpus}: {manifest.source}. Licence as the source states it:"
        f" {manifest.licence}."
    )


def _again(run: Run) -> str:
    if not run.folders.commit:
        return ""
    return (
        "## Make it again\n\nIn a clone of the laboratory's repository: `git checkout"
        f" {run.folders.commit}`, then `make`. The weights' SHA-256 is"
        f" `{run.record.weights_sha256}`."
    )


def _params(run: Run) -> str:
    made_with: Mapping[str, Any] = run.folders.made_with
    if not made_with:
        return ""
    lines = [f"{key}: {json.dumps(value)}" for key, value in sorted(made_with.items())]
    return "## Params\n\n```yaml\n" + "\n".join(lines) + "\n```"
