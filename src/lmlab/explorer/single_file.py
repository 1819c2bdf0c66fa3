"""A file to send away: the explorer's page with the weights inside and the forward pass in plain
JavaScript (page/engine.js), so that whoever opens it needs no network, no server and no Python.

The page's Content-Security-Policy lets in what stands in the file, by its hash, and nothing else: a
text that was taken for a script would not run, and nothing can be sent or fetched. Weights are
rounded to 16 bits, and the file says what that costs.
"""

import base64
import copy
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.core.files import output, whole_file
from lmlab.data import pretokens
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import Tokenizer, readable
from lmlab.explorer import drawing, heads
from lmlab.explorer.held_out import whole_text
from lmlab.explorer.subject import LAST, Subject
from lmlab.model.models.base import LanguageModel
from lmlab.model.scoring import bits_per_byte, score

PAGE = Path(__file__).with_name("page")
ENGINE = "engine.js"
MOST_CHARACTERS = 50_000
"""Of held-out text by which the rounding is measured."""
COMPUTED = {
    "embedding": ("n_gram", "token"),
    "position": ("alibi", "learned", "no_position", "rotary"),
    "attention": ("grouped_query", "multi_head", "sliding_window"),
    "feed_forward": ("gelu", "relu_squared", "swiglu"),
    "normalisation": ("dynamic_tanh", "identity", "layer_norm", "rms_norm"),
    "placement": ("post", "pre", "sandwich"),
    "residual": ("plain", "value"),
}
"""The layers of a transformer that engine.js computes, by the keys of `models.transformer`."""
TOKENIZERS = ("bpe", "byte", "character", "unigram", "word")
"""Those by which it encodes."""


@dataclass(frozen=True)
class Rounding:
    """What it costs to keep weights in 16 bits, on held-out text."""

    bits_per_byte: float
    """Of the model as it was trained."""
    rounded: float
    """Of the model as it is in the file."""
    characters: int
    """How much text they were measured on."""


@dataclass(frozen=True)
class Written:
    """A file that was written."""

    path: Path
    size: int
    """Bytes."""
    roundings: dict[str, Rounding | None]
    """Of each run by its name; None where there was no text, or a loss that is no number."""

    def line(self) -> str:
        """What to tell of it."""
        costs = [
            f"{name} {found.bits_per_byte:.5f} -> {found.rounded:.5f} bits per byte"
            f" (on {found.characters:,} characters of held-out text)"
            for name, found in self.roundings.items()
            if found
        ]
        told = f"; weights rounded to 16 bits: {', '.join(costs)}" if costs else ""
        return f"{self.path}: {self.size / 1e6:.1f} MB, opens in a browser{told}"


def check_path(path: Path) -> None:
    """Raise UserError where no page can be written."""
    if path.suffix.lower() != ".html":
        raise UserError(f"{path}: the file is a page for a browser; name it .html")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is no folder; make it first, or name another")
    output(path, ".html")


def held_out_text(corpus: Path) -> str:
    """The first MOST_CHARACTERS of the validation split; empty where there is no corpus."""
    return whole_text(corpus, "validation")[:MOST_CHARACTERS]


def write(
    subjects: Sequence[Subject], held_out: Sequence[str], validation_text: str, path: Path
) -> Written:
    """Write runs as they ended into one file, which replaces what was there.

    `held_out` are pieces of text for the page to begin with; rounding is measured on the first
    MOST_CHARACTERS of `validation_text`.

    Raises UserError where nothing can be written at `path`, and for a part that the page's
    JavaScript does not compute.
    """
    check_path(path)
    for subject in subjects:
        check(subject)
        _check_numbers(subject)
    ended = [_at_its_end(subject) for subject in subjects]
    roundings = [rounding(subject, validation_text[:MOST_CHARACTERS]) for subject in ended]
    abouts = [
        {**subject.about(), "rounding": asdict(found) if found else None}
        for subject, found in zip(ended, roundings, strict=True)
    ]
    runs = [{**_packed(subject), "told": _told(subject, held_out)} for subject in ended]
    page = _page({"about": {"runs": abouts, "held_out": list(held_out)}, "runs": runs})
    with whole_file(path) as partial:
        partial.write_text(page, encoding="utf-8", newline="\n")
    names = [subject.name for subject in subjects]
    return Written(path, path.stat().st_size, dict(zip(names, roundings, strict=True)))


def _at_its_end(subject: Subject) -> Subject:
    """The run without its snapshots, which a file does not hold."""
    model, end = subject.at(LAST), subject.moments[LAST]
    return Subject(subject.name, model, subject.tokenizer, [end], parts=subject.parts)


def check(subject: Subject) -> None:
    """Raise UserError for a part that the page's JavaScript does not compute."""
    choice = subject.model.choice
    _check_part("train.model", choice.name, ("transformer",), subject)
    for key, computed in COMPUTED.items():
        _check_part(f"models.transformer.{key}", choice.inner[key].name, computed, subject)
    of_tokenizer = tokenizers.part_name(subject.tokenizer)
    _check_part("tokenizer.name", of_tokenizer, TOKENIZERS, subject)


@torch.no_grad()
def _check_numbers(subject: Subject) -> None:
    """Raise UserError where a run has diverged."""
    tokens_BT = torch.tensor([[subject.tokenizer.bos]])
    if subject.at(LAST)(tokens_BT).isnan().any():
        raise UserError(
            f"{subject.name} has nothing to show: its training diverged; look at its earlier"
            " moments with `lmlab explore`, without --out"
        )


def _check_part(key: str, name: str, computed: Sequence[str], subject: Subject) -> None:
    if name not in computed:
        raise UserError(
            f"{key}: {name}, as in {subject.name}, is not computed in a file of its own, only"
            f" {', '.join(computed)}; look at it with `lmlab explore`, without --out"
        )


# ------------------------------------------------------------------ the weights


def rounded(model: LanguageModel) -> dict[str, Tensor]:
    """The weights by name as the file has them: in float16, or in float32 where a tensor has a
    number too large for that; whole numbers (the keys of n-grams) in int32.
    """
    return {name: _rounded(value) for name, value in model.state_dict().items()}


def _rounded(value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value.to(torch.int32)
    half = value.to(torch.float16)
    return value.float() if half.isinf().any() else half


@torch.no_grad()
def rounding(subject: Subject, text: str) -> Rounding | None:
    """What rounding costs a run's last weights, in windows that overlap by half, as the page reads
    a text; None for no text, or where a loss is not finite.
    """
    model = subject.at(LAST)
    other = copy.deepcopy(model)
    other.load_state_dict(rounded(model))
    try:
        found = [_bits(subject, each, text) for each in (model, other)] if text else []
    except FloatingPointError:  # a logit is NaN
        return None
    if not found or not all(map(math.isfinite, found)):
        return None
    return Rounding(found[0], found[1], len(text))


def _bits(subject: Subject, model: LanguageModel, text: str) -> float:
    ids = np.array(subject.ids(text), dtype=np.uint32)
    stride = max(1, model.context // 2)
    scored = score(model, ids, subject.tokenizer.bos, model.context, stride)
    return bits_per_byte(scored.nats, len(text.encode("utf-8", "surrogatepass")))


def _told(subject: Subject, held_out: Sequence[str]) -> dict[str, Any]:
    """By their addresses, the server's answers that no text, choice or change makes others."""
    text = "\n".join(held_out)
    return {
        "drawing": drawing.structure(subject),
        "weights": drawing.weights(subject, LAST),
        "heads": heads.roles(subject, LAST, text) if text else {},
    }


def _packed(subject: Subject) -> dict[str, Any]:
    """A run for engine.js: what it cannot read in `about`, and all weights as one piece.

    Of each tensor: where its bytes begin and end, little-endian; a tied one stands there once.
    """
    model = subject.at(LAST)
    weights, tensors = bytearray(), []
    same, first = {}, dict[int, str]()
    pointers = {name: value.data_ptr() for name, value in model.state_dict().items()}
    for name, value in rounded(model).items():
        known = first.setdefault(pointers[name], name)
        if known != name:
            same[name] = known
            continue
        begin = len(weights)
        weights += value.numpy().astype(value.numpy().dtype.newbyteorder("<")).tobytes()
        kind = str(value.dtype).removeprefix("torch.")
        place = {"begin": begin, "end": len(weights)}
        tensors.append({"name": name, "shape": list(value.shape), "type": kind, **place})
    attention: Any = model.blocks[0].attention
    return {
        "width": model.width,
        "heads": attention.heads,
        "tokenizer": _tokenizer(subject.tokenizer),
        "tensors": tensors,
        "same": same,
        "weights": base64.b64encode(weights).decode("ascii"),
    }


def _tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """What engine.js encodes by; bytes are the characters of their numbers (Latin-1)."""
    name, state = tokenizers.part_name(tokenizer), tokenizer.state()
    pieces = [readable(piece) for piece in tokenizer.token_bytes]
    saved = {"name": name, "bos": tokenizer.bos, "bytes": pieces}
    if name == "character":
        characters = [*state["characters"], "", "", *state["later"]]
        return {**saved, "characters": characters, "unseen": state["unseen"]}
    if name == "unigram":
        scores = state["log_probabilities"]
        saved["scores"] = [scores.get(piece) for piece in pieces]
    return {**saved, "pattern": pretokens.PATTERN}


# ------------------------------------------------------------------ the page


def _page(file: Mapping[str, Any]) -> str:
    """The page with all that it loads, and what `file` holds, inside it."""
    page = (PAGE / "page.html").read_text(encoding="utf-8")
    first = '<script src="/'
    page = page.replace(first, f'{first}{ENGINE}"></script>\n{first}', 1)
    loaded = _LOADED.findall(page)
    assert ENGINE in [script for script, _ in loaded], "the page has no script"
    assert not re.search(r'(src|href)="[^#]', _LOADED.sub("", page)), "the page would load more"
    policy = (
        f"default-src 'none'; script-src {_hashes(script for script, _ in loaded)};"
        f" style-src {_hashes(style for _, style in loaded)}; base-uri 'none'; form-action 'none'"
    )
    charset = '<meta charset="utf-8">'
    assert charset in page, "the policy has no place"
    meta = f'{charset}\n<meta http-equiv="Content-Security-Policy" content="{policy}">'
    data = f'<script type="application/json" id="file">{_json(file)}</script>\n'

    def inside(found: re.Match[str]) -> str:
        script, style = found.groups()
        if style:
            return f"<style>{_content(style)}</style>"
        before = data if script == ENGINE else ""
        return f"{before}<script>{_content(script)}</script>"

    return _LOADED.sub(inside, page.replace(charset, meta, 1))


_LOADED = re.compile(r'<script src="/([\w.]+)"></script>|<link rel="stylesheet" href="/([\w.]+)">')


def _hashes(names: Iterable[str]) -> str:
    """The sources of a policy that let in these files of the page."""
    digests = [hashlib.sha256(_content(name).encode()).digest() for name in names if name]
    return " ".join(f"'sha256-{base64.b64encode(digest).decode('ascii')}'" for digest in digests)


def _content(name: str) -> str:
    content = (PAGE / name).read_text(encoding="utf-8")
    assert not re.search("</|<!--", content), f"{name} might end its element"
    return content


def _json(value: Any) -> str:
    """JSON that ends no element of a page, whatever text is in it."""
    text = json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    """The value with null for each number that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
