"""What a file computes in llama.cpp, beside what the lab's model computes: the proof before a file
is published, and bits per byte.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lmlab.core.errors import UserError
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.export.gguf.engine import Engine, Floats
from lmlab.export.gguf.vocabulary import Vocabulary
from lmlab.export.run import Run
from lmlab.export.scored import Scored
from lmlab.model.generation import sample_ids
from lmlab.model.models.base import LanguageModel

TOLERANCE = 1e-3
"""The largest difference in log-probability between the lab's model and the same in llama.cpp."""
TIE = 1e-4
"""By how much less likely than the likeliest a token may be that llama.cpp takes instead."""
CHECKED_TOKENS = 256
CHECKED_NUMBERS = 1 << 18
"""So many tokens, or fewer where each has so many log-probabilities, are compared."""
GENERATED_TOKENS = 200
PIECE_CHARACTERS = 8_000
"""Of a text that llama.cpp splits at once."""
TOKENISED_CHARACTERS = 1_000_000
"""Of the validation split, at most, on which the tokenizers are compared."""
FLOOR = -80.0
"""Log-probabilities below it are not compared: in float32 their probabilities lose their digits."""


@dataclass(frozen=True)
class Proof:
    """How the model in llama.cpp differs from the lab's, both in float32."""

    difference: float
    """The largest in log-probability."""
    tokens: int
    """After how many tokens they were compared."""
    generated: int
    """How many likeliest tokens in a row were the same."""
    retokenised: int
    """How many tokens of the text llama.cpp's tokenizer does not give."""
    text_tokens: int
    """How many the lab's gives."""


# ------------------------------------------------------------------ proof


def proof(run: Run, scored: Scored, vocabulary: Vocabulary, engine: Engine) -> Proof:
    """Compare the model with its file in float32.

    Raises UserError where log-probabilities, likeliest tokens or ids differ more than rounding
    explains.
    """
    difference, tokens = _difference(run.model, scored, engine)
    if not difference <= TOLERANCE:
        raise UserError(
            f"not written: in llama.cpp log-probabilities differ by up to {difference:.2g} from the"
            f" lab's, which is more than {TOLERANCE:g}"
        )
    generated = _generated(run, engine)
    retokenised, text_tokens = _retokenised(run, vocabulary, engine)
    return Proof(difference, tokens, generated, retokenised, text_tokens)


def _difference(model: LanguageModel, scored: Scored, engine: Engine) -> tuple[float, int]:
    """The largest difference in log-probability, and after how many tokens there was one."""
    size = model.vocabulary_size
    most = min(CHECKED_TOKENS, max(8, CHECKED_NUMBERS // size))
    width = max(1, model.context - 1)  # llama.cpp wants room for the next token
    largest, tokens = 0.0, 0
    for window in scored.inputs.tolist():
        ids = window[: min(width, most - tokens)]
        if not ids:
            break
        ours_TV = _log_probabilities(model, ids)
        differences_TV = np.abs(engine.log_probabilities(ids, size) - ours_TV)
        # not `max`, which drops a NaN
        largest = float(np.maximum(largest, differences_TV[~(ours_TV < FLOOR)].max()))
        tokens += len(ids)
    return largest, tokens


@torch.no_grad()
def _log_probabilities(model: LanguageModel, ids: list[int]) -> Floats:
    logits_BTV = model(torch.tensor([ids]))
    l_TV: Floats = logits_BTV[0].float().log_softmax(-1).numpy()
    return l_TV


def _generated(run: Run, engine: Engine) -> int:
    """How many likeliest tokens are the same from BOS on, up to a tie or the end of a document.

    Raises UserError where they differ without a tie.
    """
    bos = run.tokenizer.bos
    count = min(GENERATED_TOKENS, run.model.context - 1)
    theirs = engine.likeliest([bos], count)
    ours = list(sample_ids(run.model, [bos], count, temperature=0.0, seed=0))
    for place, (their, our) in enumerate(zip(theirs, ours, strict=False)):
        if their != our:
            l_V = _log_probabilities(run.model, [bos, *ours[:place]])[-1]
            if l_V[our] - l_V[their] > TIE:
                raise UserError(
                    f"not written: the token {place + 1} that llama.cpp generates is another than"
                    " the lab's; this is a bug of the export"
                )
            return place
    return min(len(theirs), len(ours))


def _retokenised(run: Run, vocabulary: Vocabulary, engine: Engine) -> tuple[int, int]:
    """How many of the lab's tokens of the validation text llama.cpp does not give, and how many
    there are.

    Raises UserError where the ids of an exact tokenizer are others than expected.
    """
    different = total = 0
    for text in _pieces(_beginning(run.text("validation"))):
        ours = run.tokenizer.encode(text).tolist()
        first, *theirs = engine.tokenise(text)
        if first != run.tokenizer.bos:
            raise UserError("not written: llama.cpp does not begin a text with the BOS token")
        total += len(ours)
        if vocabulary.expected is None:
            in_text = _places(run.tokenizer, ours, text)
            different += len(in_text - _places(run.tokenizer, theirs, text))
        elif theirs != vocabulary.expected(text):
            raise UserError("not written: llama.cpp tokenises the validation text otherwise")
        elif theirs != ours:
            different += vocabulary.spelled_out(ours)
    return different, total


def _beginning(texts: Sequence[str]) -> list[str]:
    """The first TOKENISED_CHARACTERS of some texts."""
    beginning, left = [], TOKENISED_CHARACTERS
    for text in texts:
        if left > 0:
            beginning.append(text[:left])
            left -= len(text)
    return beginning


def _pieces(texts: Sequence[str]) -> Iterator[str]:
    """The texts in pieces, cut behind a line where there is one: llama.cpp's patterns fail in a
    stack overflow on tens of thousands of characters of one kind.
    """
    for text in texts:
        while len(text) > PIECE_CHARACTERS:
            end = text.rfind("\n", 1, PIECE_CHARACTERS) + 1 or PIECE_CHARACTERS
            yield text[:end]
            text = text[end:]
        yield text


def _places(tokenizer: Tokenizer, ids: Iterable[int], text: str) -> set[tuple[int, int]]:
    """Each token with the byte of the text at which it begins; what stands for something that is no
    token is passed over.
    """
    whole, begin = text.encode("utf-8", "replace"), 0
    places = set()
    for i in ids:
        piece = tokenizer.token_bytes[i]
        found = whole.find(piece, begin)
        if found >= 0:
            places.add((found, i))
            begin = found + len(piece)
    return places


# ------------------------------------------------------------------ bits per byte


@torch.no_grad()
def labs_bits(model: LanguageModel, scored: Scored) -> float:
    """Bits per byte of the lab's own model."""
    nats = sum(
        scored.nats(model(inputs_BT), targets_BT) for inputs_BT, targets_BT in scored.batches()
    )
    return scored.bits_per_byte(nats)


def file_bits(scored: Scored, head_VD: Floats, engine: Engine) -> float:
    """Bits per byte of a file, for the same ids in the same windows.

    llama.cpp computes everything up to what the output head reads; the head's product is torch's,
    with the file's own matrix. llama.cpp rounds what it multiplies by quantised rows as well, which
    changes the last digits.
    """
    head_DV = torch.from_numpy(head_VD).T
    nats = 0.0
    for inputs_BT, targets_BT in scored.batches():
        x_BTD = torch.from_numpy(np.stack(engine.final_norms(inputs_BT.tolist())))
        nats += scored.nats(x_BTD @ head_DV, targets_BT)
    return scored.bits_per_byte(nats)
