"""A learning rule: how the loss on a batch becomes a gradient for every parameter.

To write one, add a module to this folder with `Options(Params)` and one final subclass of
`LearningRule`, and a block of the module's name to `learning_rules` in params.yaml. The smallest
is:

    class Backprop(LearningRule):
        backward = True

        def __init__(self, options: Options, model: LanguageModel) -> None:
            super().__init__()

        def assign_gradients(self, model, tokens_BT, targets_BT):
            loss = next_token_loss(model(tokens_BT), targets_BT)
            torch.autograd.backward(loss)
            return loss.detach()

The model offers `embed`, `blocks` and `head`, so that a rule can also run it block by block.
Helpers that several rules share are in modules whose names begin with `_`:

    _linear_maps        every call of a weight matrix in a forward pass, to be replaced
    _feedback           backprop in which linear maps send back another signal
    _detached_blocks    a forward pass whose blocks are cut apart; _local_losses: a loss for each
    _weight_noise       perturbed weights, without a backward pass; _node_noise: perturbed outputs
    _token_losses       the loss of each token
    _shapes             the shapes inside a model

The contract, which tests hold every rule in this folder to:

- *Gradients.* It adds its estimate to `p.grad` and keeps an earlier gradient. Nothing else of the
  model changes: not weights, buffers, training mode, attributes, hooks or `requires_grad`. Tokens
  and targets stay as they were. At least one gradient is not zero, and all are finite, also under
  autocast to bfloat16.
- *Loss.* It returns the mean cross-entropy of the model as it is, in nats per token: a detached
  scalar, equal to `next_token_loss(model(tokens_BT), targets_BT)`.
- *Every model.* It trains every model in models/, or its `__init__` raises a UserError that says
  `params.yaml: train.learning_rule: <name>`, what is missing and what to choose instead. The
  refusal is the same for a model on the device `meta`. Rows of a table that a batch uses all get
  gradients.
- *State.* Whatever it learns or remembers is a parameter or a contiguous buffer, so that it moves,
  is saved and resumes with the rule: a rule restored from its `state_dict` continues bit for bit.
  It keeps neither the model nor a tensor that shares storage with the model's weights.
- *Randomness.* In a step it draws from `lmlab.model.noise` at sites that it names, never from
  torch's global generator. What it draws once, in `__init__`, comes from the global generator.
- *Own parameters.* Each is in exactly one group of `own_groups`. Each is either scaled with the
  width (`follow_width`, last in `__init__`) or has a leader (`leaders`).
- *Gradient accumulation.* A rule that draws no noise gets the same gradients from a batch in
  micro-batches as from the whole batch. One that does gets the mean of what each micro-batch gives
  under its own noise key. What happens once a step (as in weight_mirror) is done in
  `accumulate_gradients`.
- *Several processes.* Two processes with half a batch each take the same step, in the same bytes,
  as one process with two micro-batches: no buffer is changed in `assign_gradients`. A rule that
  `shares_population` computes its members with `processes.in_turn` instead, and takes the same step
  with any number of processes.
- *Overfitting.* It learns one batch by heart within sixty steps, or says in `cannot_overfit` why
  not.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model import noise, processes
from lmlab.model.models.base import LanguageModel
from lmlab.training.distilling import Teacher
from lmlab.training.optimizers.base import Groups
from lmlab.training.widths import by_fans, scale_initialisation

MicroBatches = Sequence[tuple[Tensor, Tensor]]
"""A batch split for gradient accumulation into equal parts: tokens_BT and targets_BT of each."""


class LearningRule(nn.Module, ABC):
    """Estimates the gradient of the mean loss for every trainable parameter of a model.

    Final classes take `(options, model)`. They may look at the model's shapes and weights there,
    but never keep the model itself. The module's docstring has the whole contract.
    """

    backward: bool
    """Whether autograd runs one backward pass through the whole model, from the loss to the
    embedding. Interventions that act inside that pass need it, and `train.precision: auto` takes
    bfloat16 only with it, since rules that compare small changes of the loss need float32.
    """
    final_in_backward: bool = False
    """Whether each parameter's gradient is complete once autograd has accumulated it, and nothing
    changes it afterwards. `train.step_in_backward` needs it.
    """
    compiles: bool = False
    """Whether the rule only ever calls the model as a whole, so that torch may compile it.
    `train.compile` needs it.
    """
    needs_teacher: bool = False
    """Whether it learns from the model that training goes on from, and so needs a start."""
    teacher: Teacher | None = None
    """That model; None where it is not known, as to probes. It is no part of the rule's state."""
    shares_population: bool = False
    """Whether several processes share its population and exchange losses. They share the batch
    and exchange gradients otherwise (model/processes.py).
    """
    remembers: bool = False
    """Whether `accumulate_gradients` changes its buffers."""
    cannot_overfit: str = ""
    """Why the rule cannot learn one batch by heart in a few steps; empty if it can."""

    @abstractmethod
    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        """Add the estimated gradient of the mean loss to every `p.grad`; return the mean loss.

        A parameter that the rule does not train keeps its `p.grad`, None if it had none, so the
        optimizer leaves it where it is. The rule's own parameters get their gradients here as well.
        The loss is a detached scalar in nats per token.
        """

    def accumulate_gradients(self, model: LanguageModel, micro_batches: MicroBatches) -> Tensor:
        """Add the gradients of a training step whose batch comes in micro-batches; return the loss.

        The step's gradient is the mean of the micro-batches' gradients. It takes the memory of one
        micro-batch, and equals one call with the whole batch but for noise, which each micro-batch
        draws for itself. A rule that does something once a step overrides this. The loss is the
        mean over micro-batches, a detached scalar.
        """
        return mean_over_micro_batches(self.assign_gradients, [model, self], model, micro_batches)

    def own_groups(self, model: LanguageModel) -> Groups:
        """The rule's own parameters by optimizer group: embeddings, readout, matrices or vectors.

        The optimizer updates them together with the model's group of that name. Where the model's
        gradient is clipped, theirs are scaled by the same factor. Names have the suffixes of
        `by_fans`.
        """
        matrices = [parameter for parameter in self.parameters() if parameter.ndim >= 2]
        vectors = [parameter for parameter in self.parameters() if parameter.ndim < 2]
        return by_fans({"matrices": matrices, "vectors": vectors})

    def follow_width(self, options: Params, model: LanguageModel) -> None:
        """Scale the own parameters' initialisation as the parametrisation scaled the model's.

        The last call in the `__init__` of a rule that draws parameters of its own. It does nothing
        at the base width and under the standard parametrisation. Buffers are not scaled.
        """
        if model.width_ratio == 1:
            return
        rule_class = type(self)
        scale_initialisation(
            self, self.own_groups(model), model, lambda wider: rule_class(options, wider)
        )

    def leaders(self, model: LanguageModel) -> dict[str, str]:
        """Own parameters that must be updated exactly as one of the model's is: own name to leader.

        Both names are dotted. Interventions do to such a parameter's gradient and learning rate
        what they do to its leader's, so that the difference between the two changes by weight decay
        alone. A rule with leaders also calls `optimizers.base.follow` for each pair.
        """
        return {}

    def rate_factor(self, name: str) -> float:
        """The factor on the learning rate of the model's parameter with this dotted name."""
        return 1.0


def accumulate_grad(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Add `gradient`, in the parameter's shape, to `parameter.grad`."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    parameter.grad += gradient


def mean_over_micro_batches(
    assign: Callable[[LanguageModel, Tensor, Tensor], Tensor],
    learners: Sequence[nn.Module],
    model: LanguageModel,
    micro_batches: MicroBatches,
) -> Tensor:
    """Call `assign` for each micro-batch and add the mean of the gradients to the learners'.

    Each call draws its noise under a key of its own, and begins without a gradient. Returns the
    mean of the losses. Where several processes share the batch, `micro_batches` are this one's, and
    both means are over those of all.
    """
    parameters = [parameter for learner in learners for parameter in learner.parameters()]
    if processes.share_it("batch"):
        return _mean_over_processes(assign, parameters, model, micro_batches)
    if len(micro_batches) == 1:
        with noise.within("piece", 0):
            return assign(model, *micro_batches[0])
    losses = []
    with fresh_gradients(parameters):
        for number, (tokens_BT, targets_BT) in enumerate(micro_batches):
            with fresh_gradients(parameters), noise.within("piece", number):
                losses.append(assign(model, tokens_BT, targets_BT))
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= len(micro_batches)
    return torch.stack(losses).mean()


def _mean_over_processes(
    assign: Callable[[LanguageModel, Tensor, Tensor], Tensor],
    parameters: Sequence[nn.Parameter],
    model: LanguageModel,
    micro_batches: MicroBatches,
) -> Tensor:
    """`mean_over_micro_batches` on several processes, to the same bytes as on one.

    The one place where they exchange gradients: after the rule, and before interventions edit them.
    """
    rank, count = processes.share()
    total = processes.OrderedSum(parameters)
    losses = []
    with fresh_gradients(parameters):
        for turn, (tokens_BT, targets_BT) in enumerate(micro_batches):
            with noise.within("piece", turn * count + rank), processes.sharing(None):
                losses.append(assign(model, tokens_BT, targets_BT))
            total.add()
        total.assign_mean()
    return processes.in_order(torch.stack(losses)).mean()


@contextmanager
def fresh_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside, gradients start from None; on leaving, the earlier gradients are added again."""
    earlier = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    yield
    for parameter, gradient in zip(parameters, earlier, strict=True):
        if gradient is None:
            continue
        new = parameter.grad
        parameter.grad = gradient if new is None else gradient + new
