"""What is logged and shown after a step: training loss, validation and a sample, each when due."""

import math
import time
from dataclasses import dataclass
from functools import cached_property

from lmlab.core.progress import ProgressBar
from lmlab.data.shards import Shards
from lmlab.data.tokenizers.base import Ids, Tokenizer
from lmlab.model import generation, processes
from lmlab.model.scoring import bits_per_byte, score, zero_loss_remark
from lmlab.training.checkpoint import Lines, digest
from lmlab.training.optimizers.base import evaluation_weights
from lmlab.training.step import Diverged, Run, StepResult

SAMPLE_TOKENS = 200
SAMPLE_TEMPERATURE = 0.8
SHOWN_LINES = 6
"""Of a sample, on the screen; the log has all of it."""


@dataclass
class Monitor:
    """Writes a run's log, and shows the progress. Every line has the steps and tokens so far."""

    run: Run
    shards: Shards
    tokenizer: Tokenizer
    log: Lines
    times: Lines
    """For each step with a loss in the log: (step, seconds in training steps until then)."""

    def after_step(self, result: StepResult, bar: ProgressBar) -> None:
        """Log what is due after the step that was just taken.

        Raises Diverged where the validation loss or the logits for a sample are not finite.
        """
        run, params = self.run, self.run.params
        run.loss_sum += result.loss
        run.loss_count += 1
        last = run.step == run.last_step
        logs = last or _is_multiple(run.step, params.log_every)
        validates = last or _is_multiple(run.step, params.validate_every)
        samples = params.sample_every > 0 and (last or _is_multiple(run.step, params.sample_every))
        if logs or validates:
            self.times.add([run.step, run.seconds])
        if logs:
            self._log_training(result, bar)
        try:
            if validates:
                self._validate(bar)
            if samples:
                self._sample(bar)
        except FloatingPointError as error:
            raise Diverged(str(error)) from None

    def before_first_step(self, bar: ProgressBar) -> None:
        """Log what the weights that a run begins with are worth, where they are not initial ones.

        Raises Diverged where the validation loss is not finite.
        """
        try:
            self._validate(bar)
        except FloatingPointError as error:
            raise Diverged(str(error)) from None

    def log_remaining_losses(self) -> None:
        """Log the losses since the last line, where a run ends between two lines."""
        run = self.run
        if run.loss_count:
            self.log.add({**self._position(), "train_nats": run.loss_sum / run.loss_count})
            self.times.add([run.step, run.seconds])

    def _position(self) -> dict[str, int]:
        return {"step": self.run.step, "tokens": self.run.tokens}

    def _log_training(self, result: StepResult, bar: ProgressBar) -> None:
        """The mean loss since the last such line; learning rate and gradient norm of this step."""
        run = self.run
        mean = run.loss_sum / run.loss_count
        run.loss_sum, run.loss_count = 0.0, 0
        values = {
            "train_nats": mean,
            "learning_rate": result.learning_rate,
            "gradient_norm": result.gradient_norm,
        }
        self.log.add({**self._position(), **values})
        bar.advance(0, f"loss {mean:.3f}, {run.own_tokens / run.seconds:,.0f} tokens/s")

    @cached_property
    def _validation(self) -> Ids:
        return self.shards.stream("validation")

    def _validate(self, bar: ProgressBar) -> None:
        """Score the validation split in windows of the context's length that do not overlap."""
        run, context = self.run, self.run.params.context
        started = time.perf_counter()
        self._check_same_everywhere()
        with evaluation_weights(run.optimizer):
            scored = score(
                run.model,
                self._validation,
                self.shards.bos,
                context,
                context,
                keeps_targets=False,
            )
        if not math.isfinite(scored.nats):
            raise Diverged(f"the loss on validation is {scored.nats}")
        nats = scored.nats_per_token
        bits = bits_per_byte(scored.nats, self.shards.count("validation", "bytes"))
        values = {"validation_nats": nats, "validation_bits_per_byte": bits}
        self.log.add({**self._position(), **values})
        run.note_validation(nats)
        run.validation_seconds += time.perf_counter() - started
        loss = f"{nats:.4f} nats/token, {bits:.4f} bits/byte{zero_loss_remark(bits)}"
        bar.say(f"train: step {run.step:,}: validation {loss}")

    def _check_same_everywhere(self) -> None:
        """Raise UserError where the processes of the run no longer hold the same numbers."""
        if processes.share().total > 1:
            processes.check_same(
                {f"what was learned in {self.run.step:,} steps": digest(self.run.learned())},
                "their processors compute differently: use machines of one kind",
            )

    def _sample(self, bar: ProgressBar) -> None:
        """Generate a text from the beginning of a document."""
        model, seed = self.run.model, self.run.params.seed
        with evaluation_weights(self.run.optimizer):
            pieces = generation.sample_text(
                model, self.tokenizer, "", SAMPLE_TOKENS, SAMPLE_TEMPERATURE, seed
            )
            text = "".join(pieces)
        self.log.add({**self._position(), "sample": text})
        shown = text.strip().splitlines()[:SHOWN_LINES]
        bar.say("\n".join(f"    {line}" for line in shown))


def _is_multiple(step: int, every: int) -> bool:
    """Whether something is due that is done every so many steps; 0 means never."""
    return every > 0 and step % every == 0
