"""Stage `tokenizer`: fit the tokenizer to the train split alone, or take one that was fitted
before.
"""

from pathlib import Path

from lmlab.core.files import whole_folder, write_json
from lmlab.data.documents import read_parts
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
    fitted = tokenizers.made(params, parts["name"], (text for _, _, text in read_parts(train)))
    asked_of = parts["name"].options if params.given is None else None
    report = tokenizers.report(fitted, (text for _, _, text in read_parts(train)), asked_of)
    with whole_folder(tokenizer) as made:
        tokenizers.save(parts["name"], fitted, made / "tokenizer.json")
        write_json(made / "report.json", report)
    if params.given is not None:
        print(f"tokenizer: taken from {params.given}, nothing is fitted")
    asked = report.get("vocabulary_size_asked", report["vocabulary_size"])
    fewer = f" (of {asked:,}: the text has no more)" if asked > report["vocabulary_size"] else ""
    print(
        f"tokenizer: vocabulary {report['vocabulary_size']:,}{fewer},"
        f" {report['bytes_per_token']:.3f} bytes per token"
    )
    if report["used"] <= FEW_TOKENS:
        print(
            f"tokenizer: only {report['used']} different token(s) in the training text: there is"
            " next to nothing to learn"
        )


if __name__ == "__main__":
    run_stage(tokenizer)
