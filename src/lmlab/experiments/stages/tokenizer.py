"""Stage `tokenizer`: fit the tokenizer to the train split alone, or take one fitted before."""

from collections.abc import Iterator

from lmlab.core import params, registry
from lmlab.core.files import whole_folder, write_json
from lmlab.core.params import Tree
from lmlab.data import start as starting
from lmlab.data.documents import read_texts
from lmlab.data.start import StartParams
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import TokenizerParams, TokenizerReport
from lmlab.experiments.stages.layout import Layout

FEW_TOKENS = 4
"""Different ones in the training text: with no more there is hardly anything to learn."""


def tokenizer(tree: Tree, layout: Layout) -> None:
    """Write tokenizer.json and report.json into `layout.tokenizer`.

    With a file in `tokenizer.from`, or a run to go on from without a migration, nothing is fitted:
    there is the tokenizer.
    """
    section = params.section(tree, "tokenizer", TokenizerParams)
    choice = registry.choices(tree, "tokenizer", section)["name"]
    train = layout.corpus / "train.parquet"
    of_start = params.section(tree, "start", StartParams)
    start = starting.read(layout.start, of_start.commit)
    if start and not of_start.has_another_tokenizer:
        tokenizers.load(start.tokenizer_file, start.made_by)  # refused here, if it is damaged
        section = section.taken_from(start.tokenizer_file)
    fitted = tokenizers.load_or_fit(section, choice, read_texts(train))
    fitted_with = choice.options if section.file is None else None
    report = tokenizers.report(fitted, read_texts(train), fitted_with)
    with whole_folder(layout.tokenizer) as folder:
        tokenizers.save(choice, fitted, folder / "tokenizer.json")
        write_json(folder / "report.json", report.record())
    for line in _lines(report, section):
        print(f"tokenizer: {line}", flush=True)


def _lines(report: TokenizerReport, section: TokenizerParams) -> Iterator[str]:
    """What came out, for the screen."""
    if section.file is not None:
        yield f"taken from {section.file}, nothing is fitted"
    size, asked = report.vocabulary_size, report.vocabulary_size_asked or report.vocabulary_size
    fewer = f" (of {asked:,}: the text has no more)" if asked > size else ""
    yield f"vocabulary {size:,}{fewer}, {report.bytes_per_token:.3f} bytes per token"
    if report.used <= FEW_TOKENS:
        yield (
            f"only {report.used} different token(s) in the training text: there is next to"
            " nothing to learn"
        )
