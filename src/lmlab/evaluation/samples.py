"""The page of generated text that `evaluate` writes."""

from collections.abc import Sequence

from lmlab.data.tokenizers.base import Tokenizer
from lmlab.evaluation.measured import Divergence
from lmlab.model import generation
from lmlab.model.models.base import LanguageModel

FENCE = "~~~~~~"


def page(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    tokens: int,
    temperature: float,
    first_seed: int,
) -> str:
    """One sample for each prompt, in Markdown; the seeds count up from `first_seed`.

    With a single seed, two samples that reach the same context would continue alike.
    """
    sections = [f"# Samples\n\nTemperature {temperature}, {tokens} tokens each.\n"]
    for number, prompt in enumerate(prompts):
        seed = (first_seed + number) % 2**63
        pieces = generation.sample_text(model, tokenizer, prompt, tokens, temperature, seed)
        text = "".join(pieces).rstrip()
        title = f"After `{prompt}`" if prompt else "From nothing"
        sections.append(f"## {title}, seed {seed}\n\n{FENCE}text\n{prompt}{text}\n{FENCE}\n")
    return "\n".join(sections)


def page_without_samples(divergence: Divergence) -> str:
    """The page of a run that diverged."""
    where = f"step {divergence.step:,} ({divergence.reason})"
    return f"# Samples\n\nNone: the run diverged at {where}.\n"
