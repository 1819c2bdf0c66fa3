"""Architectures of transformers that compute exactly what a transformer of the lab does.

A table: what each carries, its config (`configs`) and its weights (`tensors`).
"""

from lmlab.export.anatomy import Anatomy
from lmlab.export.architecture import Architecture, refusal
from lmlab.export.huggingface import configs, tensors

ROTARY = ("rotary", "no_position")
HEADS = ("multi_head", "grouped_query")
SEEING = (*HEADS, "sliding_window")
UNGATED = ("relu_squared", "gelu")
GATES = ("swiglu", "relu_squared")
LLAMAS = ("input_layernorm", "post_attention_layernorm")


def _carries(
    feed_forward: tuple[str, ...],
    normalisation: str = "rms_norm",
    position: tuple[str, ...] = ROTARY,
    attention: tuple[str, ...] = HEADS,
    placement: str = "pre",
) -> dict[str, tuple[str, ...]]:
    return {
        "embedding": ("token",),
        "position": position,
        "attention": attention,
        "feed_forward": feed_forward,
        "normalisation": (normalisation,),
        "placement": (placement,),
        "residual": ("plain",),
    }


ARCHITECTURES = (
    Architecture(
        "Apertus",
        _carries(UNGATED),
        qk_norm=(True,),
        config=configs.apertus,
        tensors=tensors.llama_names(
            ("attention_layernorm", "feedforward_layernorm"),
            tensors.attention,
            tensors.qk_gains,
            tensors.plain("up_proj", "down_proj"),
        ),
    ),
    Architecture(
        "Arcee",
        _carries(UNGATED),
        qk_norm=(False,),
        config=configs.apertus,
        tensors=tensors.llama_names(
            LLAMAS, tensors.attention, tensors.plain("up_proj", "down_proj")
        ),
    ),
    Architecture(
        "Llama",
        _carries(("swiglu",)),
        qk_norm=(False,),
        config=configs.llama,
        tensors=tensors.llama_names(LLAMAS, tensors.attention, tensors.gated),
    ),
    Architecture(
        "Qwen3",
        _carries(GATES, attention=SEEING),
        qk_norm=(True,),
        config=configs.qwen3,
        tensors=tensors.llama_names(LLAMAS, tensors.attention, tensors.qk_gains, tensors.gated),
    ),
    Architecture(
        "Mistral",
        _carries(GATES, attention=SEEING),
        qk_norm=(False,),
        config=configs.mistral,
        tensors=tensors.llama_names(LLAMAS, tensors.attention, tensors.gated),
    ),
    Architecture(
        "GPT2",
        _carries(
            UNGATED, "layer_norm", position=("learned", "no_position"), attention=("multi_head",)
        ),
        qk_norm=(False,),
        config=configs.gpt2,
        tensors=tensors.gpt2,
    ),
    Architecture(
        "Starcoder2",
        _carries(UNGATED, "layer_norm", attention=SEEING),
        qk_norm=(False,),
        config=configs.starcoder2,
        tensors=tensors.llama_names(LLAMAS, tensors.attention, tensors.plain("c_fc", "c_proj")),
    ),
    Architecture(
        "StableLm",
        _carries(GATES, "layer_norm"),
        qk_norm=(False,),
        config=configs.stablelm,
        tensors=tensors.llama_names(LLAMAS, tensors.attention, tensors.gated),
    ),
    Architecture(
        "Gemma2",
        _carries(GATES, attention=SEEING, placement="sandwich"),
        qk_norm=(False,),
        soft_cap=True,
        config=configs.gemma2,
        tensors=tensors.gemma_names(tensors.attention, tensors.gated),
    ),
    Architecture(
        "Gemma3",
        _carries(GATES, attention=SEEING, placement="sandwich"),
        qk_norm=(True,),
        soft_cap=True,
        config=configs.gemma3,
        tensors=tensors.gemma_names(tensors.attention, tensors.qk_gains, tensors.gated),
    ),
    Architecture(
        "DeepseekV3",
        _carries(GATES, attention=("latent",)),
        qk_norm=(False,),
        config=configs.deepseek_v3,
        tensors=tensors.llama_names(LLAMAS, tensors.latent_attention, tensors.gated),
    ),
    Architecture(
        "Qwen3Moe",
        _carries(GATES, attention=SEEING),
        qk_norm=(True,),
        experts=True,
        config=configs.qwen3_moe,
        tensors=tensors.llama_names(LLAMAS, tensors.attention, tensors.qk_gains, tensors.experts),
    ),
)
"""In the order in which they are tried."""
MODEL_TYPES = {
    "Gemma3": "gemma3_text",
    "StableLm": "stablelm",
    "Qwen3Moe": "qwen3_moe",
    "DeepseekV3": "deepseek_v3",
}
"""What config.json calls an architecture, where that is not its name in small letters."""


def model_type(architecture: Architecture) -> str:
    """The architecture's name in config.json."""
    return MODEL_TYPES.get(architecture.name, architecture.name.lower())


def class_name(architecture: Architecture) -> str:
    """The class of transformers that is built."""
    return "GPT2LMHeadModel" if architecture.name == "GPT2" else f"{architecture.name}ForCausalLM"


def refusal_of(anatomy: Anatomy) -> str:
    """Why none of them fits."""
    return refusal(anatomy, ARCHITECTURES, "transformers")
