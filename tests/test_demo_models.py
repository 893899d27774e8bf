# SPDX-License-Identifier: Apache-2.0
"""The demo experts: made whole or not at all, the same each time, and true to the families they stand for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from vllm_axion import compat, demo_checkpoints, demo_models
from vllm_axion.demo_models import EXPERT_IDS, DemoModelsError, is_complete, make_demo_models

ARCHITECTURES = {
    "phi4_fast": "Phi3ForCausalLM",
    "mistral_balanced": "MistralForCausalLM",
    "qwen_coder": "Qwen2ForCausalLM",
    "gemma3_multimodal": "Gemma3ForConditionalGeneration",
    "aya_expanse_multilingual": "CohereForCausalLM",
}
MAKE = """
import pathlib, sys
from vllm_axion.demo_models import make_demo_models
make_demo_models(pathlib.Path(sys.argv[1]), progress=print)
"""
EVERYTHING = sorted([*EXPERT_IDS, "config.demo.json", ".config.demo.json.sha256"])
TEXTS = [
    "¿Dónde está el pingüino? ¡Mañana vendrá a la canción del niño!",
    "def add(a: int, b: int) -> int:\n\treturn a + b  # sum\n\n\n\nclass Empty:\n    pass\n",
    "emoji 🎉👩‍💻 中文字符 日本語 العربية Ωμέγα",
    " leading, double  spaces and trailing \n\n\n\n\n\n",
]


def read_config(model: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return config


def load_tokenizer(model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(model))


def load_model(model: Path) -> Any:
    """The Hugging Face model in float32; fails if a weight is missing or left over."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    compat.define_missing_torchvision_operators()
    auto = AutoModelForImageTextToText if "vision_config" in read_config(model) else AutoModelForCausalLM
    loaded, info = auto.from_pretrained(str(model), dtype=torch.float32, output_loading_info=True)
    assert {fault: names for fault, names in info.items() if names} == {}
    return loaded


def greedy(model: Any, tokenizer: Any, question: str, length: int = 32) -> list[int]:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]
    answer = model.generate(prompt, max_new_tokens=length, do_sample=False)
    ids: list[int] = answer[0, prompt.shape[1] :].tolist()
    return ids


# --- Making them ---


def test_makes_five_servable_directories_small_enough_to_copy(demo_models: Path) -> None:
    assert set(EXPERT_IDS) == set(ARCHITECTURES)
    total = 0
    for expert_id in EXPERT_IDS:
        assert is_complete(demo_models / expert_id)
        names = {file.name for file in (demo_models / expert_id).iterdir()}
        assert {
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
        } <= names
        total += sum(file.stat().st_size for file in (demo_models / expert_id).iterdir())
    assert total < 40e6


def test_another_process_makes_the_same_bytes(demo_models: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", MAKE, tmp_path], check=True, env={**os.environ, "PYTHONHASHSEED": "7"}
    )
    for expert_id in EXPERT_IDS:
        for file in (demo_models / expert_id).iterdir():
            assert (tmp_path / expert_id / file.name).read_bytes() == file.read_bytes(), file.name


def test_second_call_makes_nothing_and_force_makes_all(tmp_path: Path) -> None:
    lines: list[str] = []
    paths = make_demo_models(tmp_path, progress=lines.append)
    assert paths == [tmp_path / expert_id for expert_id in EXPERT_IDS]
    assert len(lines) == 5 and all(": made (" in line for line in lines)

    def changes() -> dict[Path, int]:
        return {file: file.stat().st_ctime_ns for file in tmp_path.rglob("*")}

    before = changes()
    lines.clear()
    assert make_demo_models(tmp_path, progress=lines.append) == paths
    assert changes() == before
    assert lines == [f"{expert_id}: already there" for expert_id in EXPERT_IDS]
    make_demo_models(tmp_path, force=True)
    assert all(changed > before[file] for file, changed in changes().items())


def test_a_truncated_or_outdated_model_is_made_anew(tmp_path: Path) -> None:
    make_demo_models(tmp_path)
    weights = tmp_path / "qwen_coder" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    stamp = tmp_path / "phi4_fast" / demo_models.STAMP_NAME
    stamp.write_text(stamp.read_text().replace('"format": 1', '"format": 0'), encoding="utf-8")
    lines: list[str] = []
    make_demo_models(tmp_path, progress=lines.append)
    assert [line.split(":")[0] for line in lines if ": made (" in line] == ["phi4_fast", "qwen_coder"]
    assert weights.read_bytes() == whole


def test_killed_run_leaves_nothing_half_made_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    script = """if True:
        import os, pathlib, sys
        from vllm_axion import demo_models, demo_tokenizer
        def die(tokenizer, directory):
            if directory.name == ".mistral_balanced.partial":
                os.kill(os.getpid(), 9)
            save(tokenizer, directory)
        save, demo_tokenizer.save_tokenizer = demo_tokenizer.save_tokenizer, die
        demo_models.make_demo_models(pathlib.Path(sys.argv[1]))
    """
    killed = subprocess.run([sys.executable, "-c", script, tmp_path])
    assert killed.returncode == -9
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mistral_balanced.partial", "phi4_fast"]
    assert is_complete(tmp_path / "phi4_fast")
    make_demo_models(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == EVERYTHING


def test_failed_replacement_keeps_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_demo_models(tmp_path)

    def full_disk(directory: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo_models, "_write_stamp", full_disk)
    with pytest.raises(OSError, match="No space left"):
        make_demo_models(tmp_path, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == EVERYTHING
    assert all(is_complete(tmp_path / expert_id) for expert_id in EXPERT_IDS)


def test_two_runs_at_once_wait_for_each_other(tmp_path: Path) -> None:
    runs = [
        subprocess.Popen([sys.executable, "-c", MAKE, tmp_path], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    lines = [line for run in runs for line in run.communicate()[0].splitlines()]
    assert [run.returncode for run in runs] == [0, 0]
    assert sum(": made (" in line for line in lines) == 5
    assert sum("already there" in line for line in lines) == 5


def test_somebody_elses_model_is_never_replaced(tmp_path: Path) -> None:
    theirs = tmp_path / "qwen_coder"
    theirs.mkdir()
    (theirs / "model.safetensors").write_bytes(b"theirs")
    with pytest.raises(DemoModelsError, match="qwen_coder is there but was not made by this command"):
        make_demo_models(tmp_path, force=True)
    assert [file.name for file in tmp_path.rglob("*")] == ["qwen_coder", "model.safetensors"]


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_missing_package_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        DemoModelsError, match=rf"^demo models: .*{package}.* is missing: install torch and transf"
    ):
        make_demo_models(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DemoModelsError, match=r"^demo models: cannot make the directory .*file/models: "):
        make_demo_models(tmp_path / "file" / "models")


def test_everyone_may_read_the_files(demo_models: Path) -> None:
    for expert_id in EXPERT_IDS:
        for file in (demo_models / expert_id).iterdir():
            assert file.stat().st_mode & 0o444 == 0o444, file.name


def test_config_serves_the_models_beside_it(demo_models: Path) -> None:
    from vllm_axion.serving.config import MultiModelConfig

    config = MultiModelConfig.load(demo_models / "config.demo.json")
    assert {expert.expert_id for expert in config.experts} == set(EXPERT_IDS)
    for expert in config.experts:
        assert is_complete(Path(expert.resolved_model(config.base_dir)))


def test_a_new_preset_reaches_the_config_but_the_users_changes_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_demo_models(tmp_path)
    config = tmp_path / "config.demo.json"
    shipped = json.loads(config.read_text(encoding="utf-8"))
    assert "$schema" not in shipped
    newer = json.dumps({**shipped, "router": {"threshold": 0.4}})
    monkeypatch.setattr(demo_models, "_demo_config", lambda: newer)
    make_demo_models(tmp_path)
    assert config.read_text(encoding="utf-8") == newer
    edited = newer.replace("0.4", "0.3")
    config.write_text(edited, encoding="utf-8")
    make_demo_models(tmp_path)
    assert config.read_text(encoding="utf-8") == edited
    make_demo_models(tmp_path, force=True)
    assert config.read_text(encoding="utf-8") == newer


# --- True to their families ---


def test_each_is_of_the_stated_class_in_bfloat16(demo_models: Path) -> None:
    for expert_id, architecture in ARCHITECTURES.items():
        config = read_config(demo_models / expert_id)
        assert config["architectures"] == [architecture]
        assert config["dtype"] == "bfloat16"
        assert demo_checkpoints.EXPERTS[expert_id].architecture == architecture
        with safe_open(demo_models / expert_id / "model.safetensors", "pt") as weights:
            assert {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118 (not a dict) == {"BF16"}


def test_sizes_suit_kernels_that_work_in_blocks_of_64(demo_models: Path) -> None:
    for expert_id in EXPERT_IDS:
        config = read_config(demo_models / expert_id)
        text = config.get("text_config", config)
        assert text["hidden_size"] % 64 == text["intermediate_size"] % 64 == text["vocab_size"] % 64 == 0
        assert text.get("head_dim", text["hidden_size"] // text["num_attention_heads"]) == 64
        assert 1 < text["num_key_value_heads"] < text["num_attention_heads"]


def test_heads_are_tied_as_in_the_real_models(demo_models: Path) -> None:
    tied = {"phi4_fast", "gemma3_multimodal", "aya_expanse_multilingual"}
    for expert_id in EXPERT_IDS:
        with safe_open(demo_models / expert_id / "model.safetensors", "pt") as weights:
            has_head = any(name.endswith("lm_head.weight") for name in weights.keys())  # noqa: SIM118 (not a dict)
        assert read_config(demo_models / expert_id)["tie_word_embeddings"] is (expert_id in tied)
        assert has_head is (expert_id not in tied)


def test_phi_has_both_branches_of_longrope(demo_models: Path) -> None:
    import torch

    config = read_config(demo_models / "phi4_fast")
    rope = config["rope_parameters"]
    assert rope["rope_type"] == "longrope" and rope["partial_rotary_factor"] == 0.75
    assert rope["original_max_position_embeddings"] < config["max_position_embeddings"]
    assert len(rope["short_factor"]) == len(rope["long_factor"]) == 64 * 0.75 / 2
    model = load_model(demo_models / "phi4_fast")
    ids = torch.arange(1100).remainder(1000)[None]
    with torch.no_grad():
        short, long = (model(ids[:, :length]).logits[0, :64] for length in (1024, 1100))
    assert short.isfinite().all() and long.isfinite().all()
    assert (short - long).abs().max() > 0.1


def test_gemma_alternates_windowed_and_full_attention(demo_models: Path) -> None:
    text = read_config(demo_models / "gemma3_multimodal")["text_config"]
    assert text["layer_types"] == ["sliding_attention", "full_attention"]
    assert text["sliding_window"] < text["max_position_embeddings"]


def test_aya_scales_its_logits_and_leaves_queries_unnormed(demo_models: Path) -> None:
    config = read_config(demo_models / "aya_expanse_multilingual")
    assert config["logit_scale"] == 0.125 and config["use_qk_norm"] is False


@pytest.mark.parametrize("expert_id", EXPERT_IDS)
def test_answers_are_finite_varied_and_free_of_special_tokens(demo_models: Path, expert_id: str) -> None:
    import torch

    model, tokenizer = load_model(demo_models / expert_id), load_tokenizer(demo_models / expert_id)
    special = set(tokenizer.all_special_ids) | {
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    answers = [greedy(model, tokenizer, question) for question in ("Hello!", "¿Qué hora es?", "def f(x):")]
    assert len({tuple(answer) for answer in answers}) == 3
    for answer in answers:
        assert len(answer) == 32 and not special & set(answer)
        assert "\ufffd" not in tokenizer.decode(answer)
    assert len({number for answer in answers for number in answer}) > 24
    with torch.no_grad():
        logits = model(torch.tensor([answers[0]])).logits
    assert logits.isfinite().all()
    assert 1.0 < logits.std() < 4.0


# --- Tokenizers and chat templates ---


@pytest.mark.parametrize("expert_id", EXPERT_IDS)
def test_any_text_round_trips(demo_models: Path, expert_id: str) -> None:
    tokenizer = load_tokenizer(demo_models / expert_id)
    config = read_config(demo_models / expert_id)
    assert len(tokenizer) == config.get("text_config", config)["vocab_size"]
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer.encode(TEXTS[0], add_special_tokens=False)) < 0.6 * len(TEXTS[0])


@pytest.mark.parametrize("expert_id", EXPERT_IDS)
def test_special_tokens_are_single_ids_and_leave_the_answer(demo_models: Path, expert_id: str) -> None:
    tokenizer = load_tokenizer(demo_models / expert_id)
    family = demo_checkpoints.EXPERTS[expert_id].family
    for token in family.special:
        assert tokenizer.encode(f"a{token}b", add_special_tokens=False)[1] == tokenizer.get_vocab()[token]
        assert tokenizer.decode(tokenizer.encode(f"a{token}b"), skip_special_tokens=True) == "ab"
    for token in family.plain:
        assert tokenizer.encode(token, add_special_tokens=False) == [tokenizer.get_vocab()[token]]
        assert tokenizer.decode(tokenizer.encode(f"a{token}b"), skip_special_tokens=True) == f"a{token}b"


@pytest.mark.parametrize("expert_id", EXPERT_IDS)
def test_generation_defaults_stop_short_and_at_the_end_of_a_turn(demo_models: Path, expert_id: str) -> None:
    tokenizer = load_tokenizer(demo_models / expert_id)
    defaults = json.loads((demo_models / expert_id / "generation_config.json").read_text(encoding="utf-8"))
    assert defaults["max_new_tokens"] == 64
    conversation = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    text = tokenizer.apply_chat_template(conversation, tokenize=False).rstrip("\n")
    assert tokenizer.encode(text)[-1] in defaults["eos_token_id"]


@pytest.mark.parametrize("expert_id", EXPERT_IDS)
def test_chat_template_renders_a_conversation_in_order(demo_models: Path, expert_id: str) -> None:
    tokenizer = load_tokenizer(demo_models / expert_id)
    turns = [("system", "RULES"), ("user", "FIRST"), ("assistant", "ANSWER"), ("user", "SECOND")]
    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in turns]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    places = [rendered.index(text) for _, text in turns]
    assert places == sorted(places)
    assert all(rendered.count(text) == 1 for _, text in turns)
    parts = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    assert tokenizer.apply_chat_template(parts, tokenize=False, add_generation_prompt=True) == rendered
    developer = [{**messages[0], "role": "developer"}, *messages[1:]]
    assert tokenizer.apply_chat_template(developer, tokenize=False, add_generation_prompt=True) == rendered
    without = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    assert rendered.startswith(without)
    continued = [*messages, {"role": "assistant", "content": "THIRD"}]
    assert tokenizer.apply_chat_template(continued, tokenize=False).startswith(rendered)


def test_templates_have_their_familys_shape(demo_models: Path) -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    rendered = {
        expert_id: load_tokenizer(demo_models / expert_id).apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        for expert_id in EXPERT_IDS
    }
    turn, end = "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"
    assert rendered == {
        "phi4_fast": "<|system|>S<|end|><|user|>U<|end|><|assistant|>",
        "mistral_balanced": "<s>[INST] S\n\nU[/INST]",
        "qwen_coder": (
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
        ),
        "gemma3_multimodal": "<bos><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\n",
        "aya_expanse_multilingual": (
            f"<BOS_TOKEN>{turn}<|SYSTEM_TOKEN|>S{end}{turn}<|USER_TOKEN|>U{end}{turn}<|CHATBOT_TOKEN|>"
        ),
    }


@pytest.mark.parametrize("expert_id", ["phi4_fast", "mistral_balanced", "qwen_coder"])
def test_tools_calls_and_results_reach_the_prompt(demo_models: Path, expert_id: str) -> None:
    tokenizer = load_tokenizer(demo_models / expert_id)
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    call = {
        "id": "call12345",
        "type": "function",
        "function": {"name": "get_weather", "arguments": {"city": "Málaga"}},
    }
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_call_id": "call12345"},
    ]
    rendered = tokenizer.apply_chat_template(
        messages, tools=[tool], tokenize=False, add_generation_prompt=True
    )
    definition, past, result = (
        rendered.index('"parameters"'),
        rendered.index("Málaga"),
        rendered.index("sunny"),
    )
    assert definition < past < result
    assert "None" not in rendered


def test_completions_begin_with_bos_where_the_family_has_one(demo_models: Path) -> None:
    for expert_id, bos in (("gemma3_multimodal", "<bos>"), ("mistral_balanced", "<s>")):
        tokenizer = load_tokenizer(demo_models / expert_id)
        assert tokenizer.convert_ids_to_tokens(tokenizer.encode("text"))[0] == bos
    assert load_tokenizer(demo_models / "qwen_coder").bos_token is None


# --- Gemma's images ---


def test_gemma_processor_turns_an_image_into_its_tokens_in_place(demo_models: Path) -> None:
    import torch
    from PIL import Image
    from transformers import AutoProcessor

    compat.define_missing_torchvision_operators()
    model_dir = demo_models / "gemma3_multimodal"
    processor = AutoProcessor.from_pretrained(str(model_dir))
    config = read_config(model_dir)
    content = [{"type": "text", "text": "before"}, {"type": "image"}, {"type": "text", "text": "after"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert "before<start_of_image>after" in text
    inputs = [
        processor(
            text=text, images=[Image.new("RGB", size, colour)], add_special_tokens=False, return_tensors="pt"
        )
        for colour, size in (("red", (300, 100)), ("blue", (300, 100)))
    ]
    ids = inputs[0]["input_ids"][0].tolist()
    count = config["mm_tokens_per_image"]
    start = ids.index(config["boi_token_index"])
    assert ids[start : start + count + 2] == [
        config["boi_token_index"],
        *[config["image_token_index"]] * count,
        config["eoi_token_index"],
    ]
    side = config["vision_config"]["image_size"]
    assert inputs[0]["pixel_values"].shape == (1, 3, side, side)  # one image, no pan-and-scan crops
    model = load_model(model_dir)
    with torch.no_grad():
        red, blue = (model(**given).logits[0, -1] for given in inputs)
    assert red.isfinite().all() and blue.isfinite().all()
    assert (red - blue).abs().max() > 0.5


def test_vocabularies_can_be_of_real_size(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    for path in make_demo_models(tmp_path, vocab_size=32_768):
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        assert tokenizer.get_vocab_size() == 32_768
        config = json.loads((path / "config.json").read_text())
        assert config.get("text_config", config)["vocab_size"] == 32_768
        text = "El perro de San Roque no tiene rabo: naïve 日本語 🙂 def f(x): return x"
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text and max(ids) < 32_768
        with safe_open(path / "model.safetensors", "pt") as weights:
            embedding = next(filter(lambda name: name.endswith("embed_tokens.weight"), weights.keys()))
            assert weights.get_slice(embedding).get_shape()[0] == 32_768
