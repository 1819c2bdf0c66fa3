"""Stage `tokenizer`: fit the tokenizer to the train split alone."""

from pathlib import Path

from lmlab.documents import read_parts
from lmlab.files import whole_folder, write_json
from lmlab.tokenizers import base as tokenizers
from lmlab.tokenizers.base import TokenizerParams
from pipeline import read_params, run_stage

FEW_TOKENS = 4
"""Different ones in the training text: with no more there is hardly anything to learn."""


def tokenizer(corpus: Path = Path("data/corpus"), tokenizer: Path = Path("data/tokenizer")) -> None:
    """Fit the tokenizer that `tokenizer.name` names to CORPUS/train.parquet; write tokenizer.json and report.json."""
    _, parts = read_params("tokenizer", TokenizerParams)
    train = corpus / "train.parquet"
    fitted = tokenizers.fit(parts["name"], (text for _, _, text in read_parts(train)))
    report = tokenizers.report(fitted, (text for _, _, text in read_parts(train)), parts["name"].options)
    with whole_folder(tokenizer) as made:
        tokenizers.save(parts["name"], fitted, made / "tokenizer.json")
        write_json(made / "report.json", report)
    asked = report.get("vocabulary_asked", report["vocabulary"])
    fewer = f" (of {asked:,}: the text has no more)" if asked > report["vocabulary"] else ""
    print(f"tokenizer: vocabulary {report['vocabulary']:,}{fewer}, {report['bytes_per_token']:.3f} bytes per token")
    if report["used"] <= FEW_TOKENS:
        print(f"tokenizer: only {report['used']} different token(s) in the training text: there is next to nothing to learn")


if __name__ == "__main__":
    run_stage(tokenizer)
