# SPDX-License-Identifier: Apache-2.0
"""Architectures and random weights of the demo experts, written in the Hugging Face layout.

Each configuration keeps what makes its real model special (Phi-4-mini's LongRoPE and partial rotary,
Gemma 3's vision tower and sliding window, Aya's parallel blocks and logit scale) and shrinks the rest.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import demo_tokenizer
from .demo_tokenizer import VOCAB_SIZE, TokenizerFamily

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

HIDDEN = 256
HEAD_DIM = 64
MAX_NEW_TOKENS = 64
"""Default answer length: random weights hardly ever end a turn by themselves."""

IMAGE_SIZE, PATCH_SIZE, TOKENS_PER_IMAGE = 112, 14, 16

_DECODER: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": HIDDEN // HEAD_DIM,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}


@dataclass(frozen=True)
class DemoExpert:
    """One expert: how to build its config from its tokenizer's ids, and the scales of its random weights.

    `norm_one` is the stored value that makes a norm do nothing (Gemma stores its norms less one).
    `embedding_std` and `final_norm` are chosen together: the first keeps the residual stream from being the
    last token's embedding, which a tied head would repeat for ever; the second brings the logits to a
    standard deviation of about 2.3.
    """

    architecture: str
    family: TokenizerFamily
    config: Callable[[dict[str, int]], PreTrainedConfig]
    stop: tuple[str, ...]
    embedding_std: float = 0.05
    final_norm: float = 3.0
    norm_one: float = 1.0


def _phi(ids: dict[str, int]) -> PreTrainedConfig:
    from transformers import Phi3Config

    pairs = int(HEAD_DIM * 0.75) // 2
    return Phi3Config(
        **_DECODER,
        vocab_size=len(ids),
        **_token_ids(ids, demo_tokenizer.PHI),
        original_max_position_embeddings=1024,
        partial_rotary_factor=0.75,
        rope_theta=10000.0,
        rope_scaling={
            "type": "longrope",
            "factor": 4.0,
            "short_factor": [round(1.0 + 0.01 * pair, 4) for pair in range(pairs)],
            "long_factor": [round(1.0 + 3.0 * pair / (pairs - 1), 4) for pair in range(pairs)],
        },
        tie_word_embeddings=True,
        sliding_window=None,
    )


def _mistral(ids: dict[str, int]) -> PreTrainedConfig:
    from transformers import MistralConfig

    return MistralConfig(
        **_DECODER,
        vocab_size=len(ids),
        **_token_ids(ids, demo_tokenizer.MISTRAL),
        head_dim=HEAD_DIM,
        sliding_window=None,
        rope_theta=1000000.0,
        tie_word_embeddings=False,
    )


def _qwen(ids: dict[str, int]) -> PreTrainedConfig:
    from transformers import Qwen2Config

    return Qwen2Config(
        **_DECODER,
        vocab_size=len(ids),
        **_token_ids(ids, demo_tokenizer.QWEN),
        use_sliding_window=False,
        rope_theta=1000000.0,
        tie_word_embeddings=False,
    )


def _gemma(ids: dict[str, int]) -> PreTrainedConfig:
    from transformers import Gemma3Config

    token_ids = _token_ids(ids, demo_tokenizer.GEMMA)
    return Gemma3Config(
        text_config={
            **_DECODER,
            "vocab_size": len(ids),
            **token_ids,
            "head_dim": HEAD_DIM,
            "query_pre_attn_scalar": HEAD_DIM,
            "sliding_window": 512,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "vision_use_head": False,
        },
        mm_tokens_per_image=TOKENS_PER_IMAGE,
        boi_token_index=ids["<start_of_image>"],
        eoi_token_index=ids["<end_of_image>"],
        image_token_index=ids["<image_soft_token>"],
        **token_ids,
        tie_word_embeddings=True,
    )


def _aya(ids: dict[str, int]) -> PreTrainedConfig:
    from transformers import CohereConfig

    return CohereConfig(
        **_DECODER,
        vocab_size=len(ids),
        **_token_ids(ids, demo_tokenizer.COHERE),
        logit_scale=0.125,
        rope_theta=10000.0,
        use_qk_norm=False,
        tie_word_embeddings=True,
    )


EXPERTS = {
    "phi4_fast": DemoExpert("Phi3ForCausalLM", demo_tokenizer.PHI, _phi, stop=("<|endoftext|>", "<|end|>")),
    "mistral_balanced": DemoExpert("MistralForCausalLM", demo_tokenizer.MISTRAL, _mistral, stop=("</s>",)),
    "qwen_coder": DemoExpert(
        "Qwen2ForCausalLM", demo_tokenizer.QWEN, _qwen, stop=("<|im_end|>", "<|endoftext|>")
    ),
    "gemma3_multimodal": DemoExpert(
        "Gemma3ForConditionalGeneration",
        demo_tokenizer.GEMMA,
        _gemma,
        stop=("<eos>", "<end_of_turn>"),
        embedding_std=0.02,
        final_norm=7.5,
        norm_one=0.0,
    ),
    "aya_expanse_multilingual": DemoExpert(
        "CohereForCausalLM",
        demo_tokenizer.COHERE,
        _aya,
        stop=("<|END_OF_TURN_TOKEN|>",),
        embedding_std=0.15,
        final_norm=8.0,
    ),
}


class CheckpointWriter:
    """Writes demo checkpoints of one size of vocabulary; the BPE merges are trained once for all of them."""

    def __init__(self, vocab_size: int = VOCAB_SIZE) -> None:
        self._vocab_size = vocab_size
        self._merges = demo_tokenizer.widened(demo_tokenizer.train_merges(), vocab_size)

    def write(self, expert_id: str, directory: Path) -> str:
        """Write every file of `expert_id` into `directory`; returns the architecture's class name."""
        from safetensors.torch import save_file
        from transformers import GenerationConfig

        expert = EXPERTS[expert_id]
        tokenizer = demo_tokenizer.build_tokenizer(expert.family, self._merges, self._vocab_size)
        ids = tokenizer.get_vocab()
        config = expert.config(ids)
        config.architectures = [expert.architecture]
        config.dtype = "bfloat16"
        config.save_pretrained(str(directory))
        save_file(
            _random_weights(expert_id, config, expert, demo_tokenizer.quiet_ids(tokenizer, expert.family)),
            directory / "model.safetensors",
            metadata={"format": "pt"},
        )
        demo_tokenizer.save_tokenizer(tokenizer, directory)
        GenerationConfig(
            bos_token_id=ids.get(expert.family.bos or ""),
            eos_token_id=[ids[token] for token in expert.stop],
            pad_token_id=ids[expert.family.pad],
            max_new_tokens=MAX_NEW_TOKENS,
        ).save_pretrained(str(directory))
        if hasattr(config, "vision_config"):
            _write_processor(directory)
        return expert.architecture


def parameter_shapes(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of every weight of a demo model's checkpoint, as the published checkpoints name them.

    Written out instead of read off the class: its module imports torchvision, which may be broken or missing,
    and takes longer to import than all five models take to write.
    """
    if hasattr(config, "vision_config"):
        return {
            **_decoder_shapes(config.text_config, "language_model.model."),
            **_vision_shapes(config.vision_config),
            "multi_modal_projector.mm_input_projection_weight": (config.vision_config.hidden_size, HIDDEN),
            "multi_modal_projector.mm_soft_emb_norm.weight": (config.vision_config.hidden_size,),
        }
    shapes = _decoder_shapes(config, "model.")
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    return shapes


def _decoder_shapes(config: Any, prefix: str) -> dict[str, tuple[int, ...]]:
    kind, hidden, middle = config.model_type, config.hidden_size, config.intermediate_size
    q, kv = config.num_attention_heads * HEAD_DIM, config.num_key_value_heads * HEAD_DIM
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.o_proj.weight": (hidden, q),
        "mlp.down_proj.weight": (hidden, middle),
        "input_layernorm.weight": (hidden,),
    }
    if kind == "phi3":
        layer["self_attn.qkv_proj.weight"] = (q + 2 * kv, hidden)
        layer["mlp.gate_up_proj.weight"] = (2 * middle, hidden)
    else:
        for part, width in (("q", q), ("k", kv), ("v", kv)):
            layer[f"self_attn.{part}_proj.weight"] = (width, hidden)
            if kind == "qwen2":
                layer[f"self_attn.{part}_proj.bias"] = (width,)
        layer["mlp.gate_proj.weight"] = layer["mlp.up_proj.weight"] = (middle, hidden)
    norms: tuple[str, ...] = () if kind == "cohere" else ("post_attention_layernorm",)
    if kind == "gemma3_text":
        norms += ("pre_feedforward_layernorm", "post_feedforward_layernorm")
        layer["self_attn.q_norm.weight"] = layer["self_attn.k_norm.weight"] = (HEAD_DIM,)
    layer.update({f"{norm}.weight": (hidden,) for norm in norms})
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}embed_tokens.weight": (config.vocab_size, hidden),
        f"{prefix}norm.weight": (hidden,),
    }
    for number in range(config.num_hidden_layers):
        shapes.update({f"{prefix}layers.{number}.{name}": shape for name, shape in layer.items()})
    return shapes


def _vision_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    hidden, middle, patch = config.hidden_size, config.intermediate_size, config.patch_size
    prefix = "vision_tower.vision_model."
    linears = {f"self_attn.{part}": (hidden, hidden) for part in ("q_proj", "k_proj", "v_proj", "out_proj")}
    linears |= {"mlp.fc1": (middle, hidden), "mlp.fc2": (hidden, middle)}
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}embeddings.patch_embedding.weight": (hidden, config.num_channels, patch, patch),
        f"{prefix}embeddings.patch_embedding.bias": (hidden,),
        f"{prefix}embeddings.position_embedding.weight": ((config.image_size // patch) ** 2, hidden),
        f"{prefix}post_layernorm.weight": (hidden,),
        f"{prefix}post_layernorm.bias": (hidden,),
    }
    for number in range(config.num_hidden_layers):
        layer = f"{prefix}encoder.layers.{number}."
        for name, shape in linears.items():
            shapes[f"{layer}{name}.weight"] = shape
            shapes[f"{layer}{name}.bias"] = shape[:1]
        for norm in ("layer_norm1", "layer_norm2"):
            shapes[f"{layer}{norm}.weight"] = shapes[f"{layer}{norm}.bias"] = (hidden,)
    return shapes


def _random_weights(
    expert_id: str, config: PreTrainedConfig, expert: DemoExpert, quiet: list[int]
) -> dict[str, torch.Tensor]:
    """bfloat16 weights for every name of the checkpoint, each drawn from a seed of its own name."""
    import torch

    weights: dict[str, torch.Tensor] = {}
    for name, shape in parameter_shapes(config).items():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{expert_id}/{name}".encode()))
        noise = torch.randn(shape, generator=generator)
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            value = noise * expert.embedding_std
            value[quiet] *= 0.25
        elif name.endswith("model.norm.weight"):
            value = expert.final_norm - 1.0 + expert.norm_one + 0.1 * noise
        elif len(shape) == 1:
            value = _vector_centre(name, expert) + 0.1 * noise
        elif name.endswith("position_embedding.weight"):
            value = 0.1 * noise
        else:
            fan_in = shape[0] if name.endswith("projection_weight") else math.prod(shape[1:])
            value = noise * _gain(name) / fan_in**0.5
        weights[name] = value.to(torch.bfloat16)
    return weights


def _vector_centre(name: str, expert: DemoExpert) -> float:
    """The value a one-dimensional parameter varies about."""
    if name.endswith("bias"):
        return 0.0
    if name.startswith("vision_tower."):
        return 1.0
    if expert.norm_one == 0.0:  # Gemma also norms what a block adds to the residual stream
        if name.endswith("post_attention_layernorm.weight"):
            return -0.7  # the past weighs as much as the last token, or answers would stay on one word
        if name.endswith("post_feedforward_layernorm.weight"):
            return 2.0  # the network outweighs the embedding
    return expert.norm_one


def _gain(name: str) -> float:
    """Standard deviation of a projection's outputs for inputs of unit variance."""
    if name.endswith(("q_proj.weight", "k_proj.weight", "qkv_proj.weight")):
        return 1.5  # attention that prefers some positions
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return 3.0  # blocks that outweigh the embedding
    return 1.0


def _token_ids(ids: dict[str, int], family: TokenizerFamily) -> dict[str, int | None]:
    return {
        "bos_token_id": ids.get(family.bos or ""),
        "eos_token_id": ids[family.eos],
        "pad_token_id": ids[family.pad],
    }


def _write_processor(directory: Path) -> None:
    """Gemma3Processor's files, written directly: making them through its class would need torchvision."""
    half = [0.5, 0.5, 0.5]
    image = {
        "image_processor_type": "Gemma3ImageProcessor",
        "processor_class": "Gemma3Processor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": half,
        "image_std": half,
        "do_pan_and_scan": False,
    }
    processor = {"processor_class": "Gemma3Processor", "image_seq_length": TOKENS_PER_IMAGE}
    for name, content in (("preprocessor_config.json", image), ("processor_config.json", processor)):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
