"""Stage `tokenizer`: fit the tokenizer to the train split alone, or take one that was fitted
before.
"""

from pathlib import Path

from lmlab.core.files import whole_folder, write_json
from lmlab.data.documents import read_texts
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import TokenizerParams
from pipeline import read_params, run_stage

FEW_TOKENS = 4
"""Different ones in the training text: with no more there is hardly anything to learn."""


def tokenizer(corpus: Path = Path("data/corpus"), tokenizer: Path = Path("data/tokenizer")) -> None:
    """Fit the tokenizer that `tokenizer.name` names to CORPUS/train.parquet; write tokenizer.json
    and report.json.

    With a file in `tokenizer.from` nothing is fitted: it is the tokenizer.
    """
    params, parts = read_params("tokenizer", TokenizerParams)
    train = corpus / "train.parquet"
    fitted = tokenizers.load_or_fit(params, parts["name"], read_texts(train))
    fitted_with = parts["name"].options if params.file is None else None
    report = tokenizers.report(fitted, read_texts(train), fitted_with)
    with whole_folder(tokenizer) as partial:
        tokenizers.save(parts["name"], fitted, partial / "tokenizer.json")
        write_json(partial / "report.json", report.record())
    if params.file is not None:
        print(f"tokenizer: taken from {params.file}, nothing is fitted")
    asked = report.vocabulary_size_asked or report.vocabulary_size
    fewer = f" (of {asked:,}: the text has no more)" if asked > report.vocabulary_size else ""
    print(
        f"tokenizer: vocabulary {report.vocabulary_size:,}{fewer},"
        f" {report.bytes_per_token:.3f} bytes per token"
    )
    if report.used <= FEW_TOKENS:
        print(
            f"tokenizer: only {report.used} different token(s) in the training text: there is"
            " next to nothing to learn"
        )


if __name__ == "__main__":
    run_stage(tokenizer)
