"""What an optimizer is given: the parameters in named groups, since the field treats them differently."""

from torch import nn

from lmlab.models.base import LanguageModel

Groups = dict[str, list[nn.Parameter]]


def parameter_groups(model: LanguageModel) -> Groups:
    """Every parameter once: `embeddings` (a tied readout too), `readout`, `matrices` and `vectors` (gains, biases).

    The weights of a convolution are among the matrices, though they have three dimensions.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    readout = {id(parameter) for parameter in (model.readout.parameters() if model.readout else ())} - embeddings
    groups: Groups = {"embeddings": [], "readout": [], "matrices": [], "vectors": []}
    for parameter in model.parameters():
        if id(parameter) in embeddings:
            groups["embeddings"].append(parameter)
        elif id(parameter) in readout:
            groups["readout"].append(parameter)
        else:
            groups["matrices" if parameter.ndim >= 2 else "vectors"].append(parameter)
    return {name: parameters for name, parameters in groups.items() if parameters}
