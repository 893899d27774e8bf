# SPDX-License-Identifier: Apache-2.0
"""Facts of checkpoints as they are published, and of broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from vllm_axion.compat import define_missing_torchvision_operators
from vllm_axion.serving.checkpoint import CLASS_DEFAULTS, find_local_checkpoint, inspect_checkpoint
from vllm_axion.serving.safetensors_header import CheckpointError

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}
# The published config.json of google/gemma-3-4b-it, less what has no bearing here: most sizes are left out.
GEMMA3_4B: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}


def checkpoint(
    directory: Path, config: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(LLAMA if config is None else config))
    save_file(
        tensors or {"model.embed_tokens.weight": np.zeros((10, 4), np.float16)},
        str(directory / "model.safetensors"),
    )
    return directory


def shards(directory: Path, files: dict[str, dict[str, Any]], index: str | None) -> None:
    for name, tensors in files.items():
        save_file(tensors, str(directory / name))
    if index is not None:
        weight_map = {tensor: name for name, tensors in files.items() for tensor in tensors}
        (directory / index).write_text(json.dumps({"weight_map": weight_map}))


def refused(directory: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        inspect_checkpoint(directory)
    message = str(error.value)
    assert "\n" not in message and str(directory.parent) not in message
    return message


def test_plain_checkpoint(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": np.zeros((320, 64), np.float16), "norm": np.zeros(64, np.float32)}
    facts = inspect_checkpoint(checkpoint(tmp_path, tensors=tensors))
    assert facts.weights_by_dtype == {"F16": 320 * 64 * 2, "F32": 256}
    assert facts.weights_bytes == 320 * 64 * 2 + 256
    assert (facts.architecture, facts.model_type, facts.dtype) == ("LlamaForCausalLM", "llama", "bfloat16")
    assert (facts.num_layers, facts.kv_heads, facts.head_dim, facts.kv_parts) == (2, 2, 16, 2)
    assert (facts.sliding_layers, facts.sliding_window, facts.recurrent_layers) == (0, None, 0)
    assert (facts.max_model_len, facts.tie_word_embeddings, facts.head_stored) == (4096, False, False)
    assert (facts.largest_tensor, facts.vision_tower, facts.quantization) == (320 * 64, False, None)


def test_demo_models_are_counted_to_the_byte(demo_models: Path) -> None:
    safetensors_numpy = pytest.importorskip("safetensors.torch")
    expected = {
        "phi4_fast": ("Phi3ForCausalLM", True, False),
        "mistral_balanced": ("MistralForCausalLM", False, False),
        "qwen_coder": ("Qwen2ForCausalLM", False, False),
        "gemma3_multimodal": ("Gemma3ForConditionalGeneration", True, True),
        "aya_expanse_multilingual": ("CohereForCausalLM", True, False),
    }
    for name, (architecture, tied, vision) in expected.items():
        facts = inspect_checkpoint(demo_models / name)
        stored = 0
        for file in (demo_models / name).glob("*.safetensors"):
            stored += sum(t.nbytes for t in safetensors_numpy.load_file(file).values())
        assert facts.weights_bytes == stored > 0
        assert (facts.architecture, facts.tie_word_embeddings, facts.vision_tower) == (
            architecture,
            tied,
            vision,
        )
        assert facts.head_stored is not tied


# --- which files count ---


def test_shards_are_summed_and_stray_files_are_not(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path)
    (directory / "model.safetensors").rename(directory / "stray.safetensors")
    files: dict[str, dict[str, Any]] = {
        "model-00001.safetensors": {"a": np.zeros(8, np.float32)},
        "model-00002.safetensors": {"b": np.zeros(4, np.float16)},
    }
    shards(directory, files, "model.safetensors.index.json")
    facts = inspect_checkpoint(directory)
    assert facts.weights_by_dtype == {"F32": 32, "F16": 8}
    assert facts.files == ("model-00001.safetensors", "model-00002.safetensors")


def test_shards_without_an_index_are_summed(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path, tensors={"a": np.zeros(8, np.float32)})
    shards(directory, {"extra.safetensors": {"b": np.zeros(4, np.float16)}}, None)
    assert inspect_checkpoint(directory).weights_bytes == 40


def test_mistrals_consolidated_duplicate_is_counted_once(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path, tensors={"tok_embeddings.weight": np.zeros(64, np.float16)})
    (directory / "model.safetensors").rename(directory / "consolidated.safetensors")
    files: dict[str, dict[str, Any]] = {
        "model-00001.safetensors": {"a": np.zeros(32, np.float16)},
        "model-00002.safetensors": {"b": np.zeros(32, np.float16)},
    }
    shards(directory, files, "model.safetensors.index.json")
    assert inspect_checkpoint(directory).weights_bytes == 128


def test_consolidated_file_is_the_one_that_counts_where_no_index_tells(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path, tensors={"a": np.zeros(64, np.float16)})
    save_file(
        {"tok_embeddings.weight": np.zeros(64, np.float16)}, str(directory / "consolidated.safetensors")
    )
    facts = inspect_checkpoint(directory)
    assert (facts.weights_bytes, facts.files) == (128, ("consolidated.safetensors",))


def test_tensor_stored_in_two_shards_is_counted_once(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path)
    files: dict[str, dict[str, Any]] = {
        "model-1.safetensors": {"a": np.zeros(8)},
        "model-2.safetensors": {"b": np.zeros(8)},
    }
    shards(directory, files, "model.safetensors.index.json")
    save_file({"a": np.zeros(8), "b": np.zeros(8)}, str(directory / "model-1.safetensors"))
    assert inspect_checkpoint(directory).weights_bytes == 128


def test_missing_shard_is_named(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path)
    shards(
        directory,
        {"model-1.safetensors": {"a": np.zeros(8)}, "model-2.safetensors": {"b": np.zeros(8)}},
        "model.safetensors.index.json",
    )
    (directory / "model-2.safetensors").unlink()
    assert refused(directory).startswith(
        "model-2.safetensors: missing, though model.safetensors.index.json names it"
    )


def test_tensor_missing_from_its_shard_is_named(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path)
    shards(
        directory,
        {"model-1.safetensors": {"a": np.zeros(8), "b": np.zeros(8)}},
        "model.safetensors.index.json",
    )
    save_file({"a": np.zeros(8)}, str(directory / "model-1.safetensors"))
    assert refused(directory).startswith("model-1.safetensors: tensor 'b' is missing")


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", "", "evil.bin", 7, None])
def test_index_cannot_name_files_elsewhere(tmp_path: Path, name: Any) -> None:
    directory = checkpoint(tmp_path)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert "not a safetensors file beside it" in refused(directory)


def test_one_truncated_shard_refuses_the_checkpoint(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path)
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert refused(directory).startswith("model.safetensors: truncated")


def test_pytorch_files_count_by_their_size_and_are_not_opened(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path)
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model-00001.bin").write_bytes(b"not a pickle" * 10)
    (directory / "pytorch_model-00002.bin").write_bytes(b"not a pickle")
    (directory / "training_args.bin").write_bytes(bytes(1000))
    facts = inspect_checkpoint(directory)
    assert (facts.storage, facts.weights_by_dtype, facts.largest_file) == ("pytorch", {"BF16": 132}, 120)


def test_gguf_is_refused_with_what_would_be_right(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path)
    (directory / "model.safetensors").rename(directory / "model.gguf")
    assert "GGUF" in refused(directory) and "safetensors" in refused(directory)
    assert "GGUF" in refused(directory / "model.gguf")


def test_directory_without_weights_or_config_is_refused(tmp_path: Path) -> None:
    assert "no weights" in refused(tmp_path)
    checkpoint(tmp_path)
    (tmp_path / "config.json").unlink()
    assert refused(tmp_path) == "config.json: missing in the model's directory"
    assert "not a directory" in refused(tmp_path / "nowhere")


# --- config.json ---


def test_gemma3_takes_left_out_sizes_from_its_class(tmp_path: Path) -> None:
    facts = inspect_checkpoint(checkpoint(tmp_path, GEMMA3_4B))
    assert (facts.num_layers, facts.num_heads, facts.kv_heads, facts.head_dim) == (34, 8, 4, 256)
    assert (facts.vocab_size, facts.hidden_size, facts.max_model_len) == (262208, 2560, 131072)
    # every sixth layer sees everything: 5, 11, 17, 23, 29
    assert (facts.sliding_layers, facts.sliding_window) == (29, 1024)
    assert facts.tie_word_embeddings and facts.vision_tower


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ({"model_type": "cohere"}, True),
        ({"model_type": "gemma3_text"}, True),
        ({"model_type": "qwen2"}, False),
        ({"model_type": "qwen2", "tie_word_embeddings": True}, True),
        ({"model_type": "cohere", "tie_word_embeddings": False}, False),
        ({"model_type": "gemma3", "tie_word_embeddings": False, "text_config": dict(LLAMA)}, False),
        ({"model_type": "unheard_of"}, False),
        ({"model_type": "unheard_of", "text_config": {**LLAMA, "tie_word_embeddings": True}}, True),
    ],
)
def test_tied_head_is_the_files_word_or_else_the_classes(tmp_path: Path, config: Any, tied: bool) -> None:
    assert inspect_checkpoint(checkpoint(tmp_path, {**LLAMA, **config})).tie_word_embeddings is tied


def test_head_of_its_own_is_seen_in_the_files(tmp_path: Path) -> None:
    tensors = {"language_model.lm_head.weight": np.zeros((4, 4), np.float16)}
    assert inspect_checkpoint(checkpoint(tmp_path, tensors=tensors)).head_stored


@pytest.mark.parametrize(
    ("changes", "layers", "window"),
    [
        ({}, 0, None),
        ({"sliding_window": None}, 0, None),
        ({"sliding_window": 128}, 2, 128),  # no layer types: all layers
        ({"model_type": "mistral"}, 2, 4096),  # left out: the class's window
        ({"model_type": "mistral", "sliding_window": None}, 0, None),  # v0.2 and later
        ({"model_type": "qwen2", "sliding_window": 128}, 0, None),  # there, but off
        ({"model_type": "qwen2", "sliding_window": 128, "use_sliding_window": True}, 2, 128),
        ({"sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"]}, 1, 128),
        ({"sliding_window": 128, "sliding_window_pattern": 2}, 1, 128),
        ({"model_type": "cohere2", "num_hidden_layers": 32}, 24, 4096),
        ({"attention_chunk_size": 64, "layer_types": ["chunked_attention", "full_attention"]}, 1, 64),
    ],
)
def test_sliding_layers(tmp_path: Path, changes: Any, layers: int, window: int | None) -> None:
    facts = inspect_checkpoint(checkpoint(tmp_path, {**LLAMA, **changes}))
    assert (facts.sliding_layers, facts.sliding_window) == (layers, window)


def test_recurrent_layers_are_told_apart(tmp_path: Path) -> None:
    kinds = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
    facts = inspect_checkpoint(checkpoint(tmp_path, {**LLAMA, "num_hidden_layers": 4, "layer_types": kinds}))
    assert facts.recurrent_layers == 3


def test_latent_attention_keeps_one_vector(tmp_path: Path) -> None:
    facts = inspect_checkpoint(checkpoint(tmp_path, {**LLAMA, "kv_lora_rank": 512, "qk_rope_head_dim": 64}))
    assert (facts.kv_heads, facts.head_dim, facts.kv_parts) == (1, 576, 1)


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 1024}, 1024),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 16384),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 4096),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 4096),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2}}}, 8192),
        ({"max_position_embeddings": None}, None),
    ],
)
def test_default_length_is_vllms(tmp_path: Path, changes: Any, length: int | None) -> None:
    assert inspect_checkpoint(checkpoint(tmp_path, {**LLAMA, **changes})).max_model_len == length


def test_quantized_checkpoint_says_how(tmp_path: Path) -> None:
    facts = inspect_checkpoint(
        checkpoint(tmp_path, {**LLAMA, "quantization_config": {"quant_method": "awq"}})
    )
    assert facts.quantization == "awq"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": None}, "config.json: no num_hidden_layers"),
        ({"hidden_size": "big"}, "config.json: hidden_size is 'big', not a whole number"),
        ({"hidden_size": True}, "config.json: hidden_size is 'True', not a whole number"),
        ({"num_key_value_heads": -1}, "config.json: num_key_value_heads is '-1', not a whole number"),
        ({"vocab_size": 1e99}, "config.json: vocab_size is '1e+99', not a whole number"),
    ],
)
def test_faulty_config_is_named(tmp_path: Path, changes: Any, message: str) -> None:
    assert refused(checkpoint(tmp_path, {**LLAMA, **changes})) == message


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", '"config"', "[" * 100_000])
def test_config_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(text)
    assert refused(tmp_path).startswith("config.json is not")


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*LLAMA, "rope_type", "factor"]), inner, max_size=3)
    ),
    max_leaves=6,
)
NESTED = [
    "text_config",
    "layer_types",
    "rope_scaling",
    "rope_parameters",
    "quantization_config",
    "vision_config",
]
PLAIN = [
    "sliding_window",
    "head_dim",
    "tie_word_embeddings",
    "kv_lora_rank",
    "sliding_window_pattern",
    "dtype",
]
KEYS = st.sampled_from([*LLAMA, *NESTED, *PLAIN])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(KEYS, ANY, max_size=4))
def test_any_config_is_understood_or_refused_with_a_checkpoint_error(tmp_path: Path, changes: Any) -> None:
    directory = checkpoint(tmp_path, {**LLAMA, **changes})
    try:
        facts = inspect_checkpoint(directory)
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        assert facts.num_layers > 0 and facts.hidden_size > 0
        assert facts.sliding_layers >= 0


@pytest.fixture(scope="module")
def transformers() -> Any:
    define_missing_torchvision_operators()
    return pytest.importorskip("transformers")


def test_class_defaults_are_those_of_the_installed_transformers(transformers: Any) -> None:
    for model_type, defaults in CLASS_DEFAULTS.items():
        config = transformers.CONFIG_MAPPING[model_type]()
        for key, value in defaults.items():
            if model_type == "qwen2" and key == "sliding_window":
                config = transformers.CONFIG_MAPPING[model_type](use_sliding_window=True)
            assert getattr(config, key) == value, (model_type, key)


def test_layer_kinds_are_those_of_the_installed_transformers(tmp_path: Path, transformers: Any) -> None:
    for model_type in ("gemma2", "gemma3_text", "cohere2"):
        kinds = transformers.CONFIG_MAPPING[model_type](num_hidden_layers=26).layer_types
        facts = inspect_checkpoint(
            checkpoint(tmp_path, {**LLAMA, "model_type": model_type, "num_hidden_layers": 26})
        )
        assert facts.sliding_layers == kinds.count("sliding_attention"), model_type


# --- finding ---


def test_hub_id_is_found_in_the_local_cache_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("looked on the network"))
    assert find_local_checkpoint("org/model") is None
    repository = tmp_path / "hub" / "models--org--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = checkpoint(repository / "snapshots" / ("0" * 40))
    assert find_local_checkpoint("org/model") == snapshot
    assert find_local_checkpoint("org/model", revision="v2") is None
    assert find_local_checkpoint("org/model", cache_dir=tmp_path / "elsewhere") is None
    assert find_local_checkpoint("org/other") is None
    assert find_local_checkpoint("not a/valid/id") is None


def test_path_is_found_as_it_is(tmp_path: Path) -> None:
    assert find_local_checkpoint(str(tmp_path)) == tmp_path
    assert find_local_checkpoint(str(tmp_path / "missing")) is None
    assert find_local_checkpoint("./missing") is None
