# SPDX-License-Identifier: Apache-2.0
"""The configuration file: what it accepts, what it refuses, and that refusing never takes another form."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_axion.serving import config as config_module
from vllm_axion.serving.config import (
    BUILT_IN_DOMAINS,
    ApiKeyConfig,
    ConfigError,
    ExpertConfig,
    MultiModelConfig,
    not_in_this_build,
    parse_bytes,
    schema,
)


def expert(**fields: Any) -> dict[str, Any]:
    return {"expert_id": "coder", "model_path": "owner/model", **fields}


def read(data: object) -> MultiModelConfig:
    return MultiModelConfig.from_data(data, base_dir=Path("/srv"), source="config.json")


def refusal(data: object) -> str:
    with pytest.raises(ConfigError) as caught:
        read(data)
    return str(caught.value)


def write(folder: Path, content: object, name: str = "config.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


# ---------------------------------------------------------------- what a file may leave out


def test_one_expert_with_a_model_is_a_configuration() -> None:
    config = read({"experts": [expert()]})
    only = config.experts[0]
    assert (only.domain, only.priority, only.dtype, only.pinned, only.kv_cache_memory) == (
        "general",
        3,
        "auto",
        False,
        None,
    )
    assert config.lazy_loading.warmup_pool_size == 2
    assert config.limits.max_body_bytes == 32 * 1024**2
    assert config.server.api_keys == []


def test_every_documented_field_is_accepted() -> None:
    config = read(
        {
            "experts": [
                expert(
                    domain="coding",
                    priority=3,
                    quantization=None,
                    enable_neon=True,
                    neon_optimizations={},
                    description="writes code",
                    max_model_len=8192,
                    dtype="bfloat16",
                    kv_cache_dtype="auto",
                    max_num_seqs=64,
                )
            ],
            "lazy_loading": {
                "enabled": True,
                "warmup_pool_size": 2,
                "max_loaded_experts": 5,
                "memory_threshold": 0.8,
                "auto_unload_after_s": 300,
            },
            "rag": {"enabled": True, "bridge_url": "http://localhost:8001"},
        }
    )
    assert config.rag.bridge_url == "http://localhost:8001"


def test_schema_key_for_editors_is_ignored_and_must_be_text() -> None:
    assert read({"$schema": "./config.schema.json", "experts": [expert()]}).experts
    assert refusal({"$schema": 3, "experts": [expert()]}) == (
        "config.json: $schema: 3 is not text in double quotes"
    )


def test_configuration_cannot_be_changed_and_survives_pickling_to_another_process() -> None:
    config = read({"experts": [expert()]})
    with pytest.raises(pydantic.ValidationError):
        config.experts[0].priority = 1
    copy = pickle.loads(pickle.dumps(config))  # noqa: S301
    assert copy == config
    assert copy.base_dir == Path("/srv")


# ---------------------------------------------------------------- what is refused, and in which words


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"priorty": 1}, '.priorty: unknown field; did you mean "priority"?'),
        ({"priority": 9}, ".priority: 9 is not within 1..5 (1 is first to be warm and first among ties)"),
        ({"priority": "3"}, '.priority: "3" is not a whole number'),
        ({"priority": True}, ".priority: true is not a whole number"),
        ({"pinned": "yes"}, '.pinned: "yes" is not true or false'),
        ({"dtype": "bf16"}, 'did you mean "bfloat16"?'),
        ({"domain": "codng"}, '.domain: "codng" is not declared; did you mean "coding"?'),
        ({"domain": "law"}, '.domain: "law" is not declared; use one of general, technical, coding'),
        ({"expert_id": "Auto"}, '.expert_id: "auto" is the name that asks the router'),
        ({"expert_id": "a b"}, '.expert_id: "a b" is not a usable id'),
        ({"expert_id": "a" * 65}, "is not a usable id"),
        ({"expert_id": "coder\n"}, "is not a usable id"),
        ({"model_path": "~/m"}, 'is neither a path (beginning with "/", "./" or "../") nor a hub id'),
        ({"model_path": ""}, ".model_path: must not be empty"),
        ({"model_path": "./a\nb"}, ".model_path: "),
        ({"kv_cache_memory": "2G"}, '.kv_cache_memory: "2G" is not a byte size; did you mean "2GiB"?'),
        ({"kv_cache_memory": 512}, ".kv_cache_memory: 512 is not within 1MiB..1024TiB"),
        (
            {"engine_args": {"port": 1}},
            ".engine_args.port: an expert cannot set it: it belongs to the server",
        ),
    ],
)
def test_fault_of_an_expert_names_the_place_and_what_would_be_right(
    fields: dict[str, Any], line: str
) -> None:
    message = refusal({"experts": [expert(**fields)]})
    assert line in message
    assert message.startswith("config.json: experts[0].")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("rest", "line"),
    [
        ({"lazy_laoding": {}}, 'lazy_laoding: unknown field; did you mean "lazy_loading"?'),
        ({"limits": {"max_que": 1}}, 'limits.max_que: unknown field; did you mean "max_queue"?'),
        ({"rag": {"zzz": 1}}, "rag.zzz: unknown field; valid here: enabled, bridge_url"),
        ({"experts": [expert(), expert(expert_id="CODER")]}, '"CODER" is already the id of experts[0]'),
        ({"experts": [{"expert_id": "a"}]}, "experts[0].model_path: is missing (Where the model is)"),
        ({"experts": []}, "experts: is empty; it needs at least 1 entry"),
        ({"experts": {}}, "experts: {} is not a list [...]"),
        ({"lazy_loading": {"memory_threshold": 0}}, "0 is not in the range above 0 up to 1"),
        ({"lazy_loading": {"auto_unload_after_s": float("inf")}}, "Infinity is not a finite number"),
        ({"limits": None}, "limits: null is not an object {...}"),
        ({"server": {"allowed_media_domains": ["https://a.b/c"]}}, "is not a host name"),
        ({"server": {"cors_origins": ["http://a/b"]}}, "is not an origin"),
        ({"rag": {"bridge_url": "localhost:1"}}, 'rag.bridge_url: "localhost:1" is not a URL'),
        ({"domains": {"a b": {}}}, 'domains["a b"]: "a b" is not a usable domain name'),
    ],
)
def test_fault_of_a_section_names_the_place_and_what_would_be_right(rest: dict[str, Any], line: str) -> None:
    message = refusal({"experts": [expert()], **rest})
    assert line in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("data", [[], None, 3, "experts", {}])
def test_value_without_experts_is_refused(data: object) -> None:
    assert "experts" in refusal(data)


def test_all_faults_are_reported_at_once_those_between_fields_too() -> None:
    message = refusal(
        {
            "experts": [expert(priority=0), expert(domain="law", nmae="x"), "not an object"],
            "lazy_loading": {"warmup_pool_size": 9},
        }
    )
    places = [line.split(": ")[1] for line in message.splitlines()]
    assert sorted(places) == [
        "experts[0].priority",
        "experts[1].domain",
        "experts[1].expert_id",
        "experts[1].nmae",
        "experts[2]",
        "lazy_loading.warmup_pool_size",
    ]


def test_no_fault_speaks_pydantic() -> None:
    message = refusal(
        {"experts": [expert(priority=[], engine_args=3, dtype={}, description=1, max_model_len=1.5)]}
    )
    assert len(message.splitlines()) == 5
    for jargon in ("Input should", "pydantic", "type=", "http", "ValidationError", "Value error"):
        assert jargon not in message


@pytest.mark.parametrize(
    ("lazy", "fields", "line"),
    [
        ({"warmup_pool_size": 3, "max_loaded_experts": 2}, {}, "3 is more than max_loaded_experts, 2"),
        (
            {"max_loaded_experts": 1, "warmup_pool_size": 0},
            {"pinned": True},
            "1 is less than the 2 pinned experts",
        ),
        (
            {"enabled": False, "max_loaded_experts": 1, "warmup_pool_size": 0},
            {},
            "1 is less than the 2 experts, all of which load at start",
        ),
    ],
)
def test_pool_that_cannot_hold_what_it_must_is_refused(
    lazy: dict[str, Any], fields: dict[str, Any], line: str
) -> None:
    data = {"experts": [expert(**fields), expert(expert_id="b", **fields)], "lazy_loading": lazy}
    assert line in refusal(data)


def test_models_made_in_python_check_their_fields_against_each_other_too() -> None:
    with pytest.raises(pydantic.ValidationError, match="is already the id of"):
        MultiModelConfig(experts=[ExpertConfig(**expert()), ExpertConfig(**expert(expert_id="Coder"))])


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 * 1024**2),
        ("2GiB", 2 * 1024**3),
        ("1.5 GiB", 3 * 1024**3 // 2),
        ("2GB", 2 * 10**9),
        ("7b", 7),
        (12345, 12345),
        (None, None),
    ],
)
def test_byte_size_in_units_of_1024_or_1000(text: object, size: int | None) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1GiB", "1e3MiB", "2 Gi B", "٣GiB", "9" * 400 + "GiB", True, 1.5, []]
)
def test_anything_else_is_no_byte_size(text: object) -> None:
    with pytest.raises(ValueError, match="is not a byte size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("model_path", "resolved"),
    [
        ("owner/model", "owner/model"),
        ("gpt2", "gpt2"),
        ("models/qwen", "models/qwen"),
        ("./qwen", "/srv/configs/qwen"),
        ("../models/qwen", "/srv/models/qwen"),
        ("/data/qwen", "/data/qwen"),
    ],
)
def test_model_path_is_a_folder_relative_to_the_file_or_a_hub_id(model_path: str, resolved: str) -> None:
    assert ExpertConfig(**expert(model_path=model_path)).resolved_model(Path("/srv/configs")) == resolved


def test_declared_domain_may_be_used() -> None:
    config = read({"experts": [expert(domain="law")], "domains": {"law": {"description": "contracts"}}})
    assert config.experts[0].domain == "law"
    assert "law" not in BUILT_IN_DOMAINS


def test_engine_option_with_a_field_of_its_own_is_moved_there() -> None:
    args = {"max-model-len": 4096, "kv_cache_memory_bytes": 2**30, "block-size": 64}
    only = read({"experts": [expert(engine_args=args)]}).experts[0]
    assert only.max_model_len == 4096
    assert only.kv_cache_memory == 2**30
    assert only.engine_args == {"block-size": 64}


# ---------------------------------------------------------------- files


def test_relative_paths_start_from_the_real_file_behind_a_link(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    write(real, {"experts": [expert(model_path="./m")]}, "preset.json")
    link = tmp_path / "config.json"
    link.symlink_to("real/preset.json")
    config = MultiModelConfig.load(link)
    assert config.base_dir == real.resolve()
    assert config.experts[0].resolved_model(config.base_dir) == str(real.resolve() / "m")


def test_file_that_anyone_may_write_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"experts": [expert()]})
    path.chmod(0o646)
    with pytest.raises(ConfigError, match=r"anyone on this machine may write .*config.json; .*chmod o-w"):
        MultiModelConfig.load(path)


def test_file_in_a_folder_where_anyone_may_replace_it_is_refused_unless_sticky(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    path = write(folder, {"experts": [expert()]})
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="anyone on this machine may replace files in"):
        MultiModelConfig.load(path)
    folder.chmod(0o1777)
    assert MultiModelConfig.load(path).experts


def test_link_in_a_folder_where_anyone_may_turn_it_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    (folder / "config.json").symlink_to(write(tmp_path, {"experts": [expert()]}))
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match=r"anyone on this machine may replace files in .*open"):
        MultiModelConfig.load(folder / "config.json")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            '{"experts": [\n  {"expert_id": "a",}\n]}',
            ": not valid JSON: a comma before a closing bracket; take it away",
        ),
        ("\n\n {'experts': []}", "line 3, column 3: not valid JSON: text stands in double quotes"),
        ("// five experts\n{}", "line 1, column 1: not valid JSON: JSON has no comments"),
        ("", "line 1, column 1: not valid JSON: the file is empty"),
        ('{"experts": [NaN]}', "NaN is not JSON"),
        ('{"experts": [' + "1" * 5000 + "]}", "a number in it is far too long"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"experts": [], "experts": []}', "experts: stands in this object twice; keep one"),
        (
            '{"experts": [{"expert_id": "\\ud800", "model_path": "a"}]}',
            "expert_id: holds half a surrogate pair",
        ),
        ('{"experts": [{"\\ud800": 1}]}', "the name holds half a surrogate pair"),
    ],
)
def test_bad_json_is_refused_with_its_place(tmp_path: Path, content: str, line: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        MultiModelConfig.load(path)
    assert line in str(caught.value)
    assert all(text.startswith(f"{path}: ") for text in str(caught.value).splitlines())


def test_key_given_twice_deep_inside_is_refused_with_its_path(tmp_path: Path) -> None:
    text = '{"experts": [{"expert_id": "a", "model_path": "a/b", "priority": 1, "priority": 2}]}'
    with pytest.raises(ConfigError) as caught:
        MultiModelConfig.load(write(tmp_path, text))
    assert str(caught.value).endswith("experts[0].priority: stands in this object twice; keep one")


def test_file_that_is_not_there_not_text_or_not_a_file_is_one_clear_line(tmp_path: Path) -> None:
    binary = tmp_path / "binary.json"
    binary.write_bytes(b'{"experts": "\xff"}')
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    big = tmp_path / "big.json"
    big.write_bytes(b" " * (5 * 1024**2))
    for path, line in (
        (tmp_path / "none.json", "no such file"),
        (tmp_path, "is a folder, not a file"),
        (binary, "byte 13 is not UTF-8 text"),
        (pipe, "is not a regular file"),
        (big, "is larger than 4096 KiB"),
        (tmp_path / "a\0b", "cannot be opened"),
    ):
        with pytest.raises(ConfigError) as caught:
            MultiModelConfig.load(path)
        assert line in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_byte_order_mark_of_windows_editors_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"experts": [expert()]}).encode())
    assert MultiModelConfig.load(path).experts


# ---------------------------------------------------------------- keys

SECRET = "sk-SECRET-0123456789"


def keyed(*keys: object) -> dict[str, Any]:
    return {"experts": [expert()], "server": {"api_keys": list(keys)}}


def test_key_comes_from_the_file_the_environment_or_a_key_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AXION_TEST_KEY", SECRET)
    (tmp_path / "key").write_text(SECRET + "\n")
    config = MultiModelConfig.load(
        write(tmp_path, keyed({"key": SECRET}, {"key_env": "AXION_TEST_KEY"}, {"key_file": "key"}))
    )
    assert [key.read(config.base_dir).get_secret_value() for key in config.server.api_keys] == [SECRET] * 3
    assert config.server.api_keys[0].scopes == ["inference"]


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ({}, "give exactly one of key, key_env, key_file, not none"),
        ({"key": SECRET, "key_env": "X"}, "give exactly one of key, key_env, key_file, not key and key_env"),
        (
            {"key_env": "AXION_TEST_NO_SUCH"},
            "environment variable AXION_TEST_NO_SUCH is not set; set it to the key",
        ),
        ({"key_env": SECRET}, "key_env is not the name of an environment variable"),
        ({"key_file": "no-such-file"}, 'key_file "no-such-file": no such file'),
        ({"key_file": "open"}, "anyone on this machine may write"),
        ({"key_file": "words"}, "holds no usable key; a key is one word"),
        ({"key_file": "latin"}, "it is not plain ASCII text"),
        ({"key": ""}, "holds no usable key"),
        ({"key": SECRET, "scopes": []}, "scopes: is empty"),
        ({"key": SECRET, "scopes": ["root"]}, "is not one of inference, admin"),
        ({"kee": SECRET}, 'unknown field; did you mean "key"?'),
    ],
)
def test_key_that_cannot_be_had_is_a_clear_fault(tmp_path: Path, key: object, line: str) -> None:
    (tmp_path / "open").write_text(SECRET)
    (tmp_path / "open").chmod(0o666)
    (tmp_path / "words").write_text(f"{SECRET} {SECRET}")
    (tmp_path / "latin").write_bytes(b"\xe9" + SECRET.encode())
    with pytest.raises(ConfigError) as caught:
        MultiModelConfig.load(write(tmp_path, keyed(key)))
    assert line in str(caught.value)
    assert SECRET not in str(caught.value)


def test_key_is_never_shown(tmp_path: Path) -> None:
    config = read(keyed({"key": SECRET}))
    assert SECRET not in repr(config)
    assert SECRET not in str(config.model_dump())
    assert SECRET not in config.model_dump_json()
    assert SECRET not in repr(config.server.api_keys[0].read(tmp_path))
    for bad in (
        keyed(SECRET),
        keyed({"key": [SECRET]}),
        keyed({"key": SECRET, "scopes": SECRET}),
        keyed({"key": f"{SECRET} x"}),
        keyed({"key": SECRET, "scopes": [SECRET]}),
        {**keyed(), "server": {"api_keys": SECRET}},
    ):
        assert SECRET not in refusal(bad)
    with pytest.raises(pydantic.ValidationError) as caught:
        ApiKeyConfig(key=SECRET, key_env="X")  # type: ignore[arg-type]
    assert SECRET not in str(caught.value)


# ---------------------------------------------------------------- not in this build


def test_field_without_its_feature_is_named_only_when_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_module, "has_sentence_transformers", lambda: False)
    assert not_in_this_build(read({"experts": [expert()]})) == []
    notices = not_in_this_build(
        read(
            {
                "experts": [expert(enable_neon=True, neon_optimizations={"x": 1}, quantization="axion_w8a8")],
                "router": {"encoder": {"type": "sentence-transformers", "model": "owner/minilm"}},
                "rag": {"enabled": True, "bridge_url": "http://localhost:8001"},
            }
        )
    )
    assert [notice.split(": ")[0] for notice in notices] == [
        "experts[0].enable_neon",
        "experts[0].neon_optimizations",
        "experts[0].quantization",
        "router.encoder",
        "rag.enabled",
    ]
    assert all("not in this build" in notice for notice in notices)


def test_switching_an_absent_feature_off_is_no_news() -> None:
    data = {"experts": [expert(enable_neon=False)], "rag": {"enabled": False}}
    assert not_in_this_build(read(data)) == []


# ---------------------------------------------------------------- whatever the file holds

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)
FIELDS = {name: sorted(model["properties"]) for name, model in schema()["$defs"].items()}


def near_section(name: str) -> st.SearchStrategy[Any]:
    """Objects with the section's real fields and any values: they reach the checks that noise does not."""
    return values | st.dictionaries(st.sampled_from(FIELDS[name]) | st.text(max_size=4), values, max_size=6)


near_configurations = st.fixed_dictionaries(
    {
        "experts": values
        | st.lists(
            near_section("ExpertConfig")
            | st.fixed_dictionaries(
                {"expert_id": st.sampled_from(["a", "A", "b", "auto"]), "model_path": st.just("./m")},
                optional={
                    "domain": values,
                    "engine_args": values,
                    "pinned": st.booleans(),
                    "priority": values,
                },
            ),
            max_size=4,
        )
    },
    optional={
        "$schema": values,
        "lazy_loading": near_section("LazyLoadingConfig"),
        "router": near_section("RouterConfig"),
        "limits": near_section("LimitsConfig"),
        "server": near_section("ServerConfig")
        | st.fixed_dictionaries({"api_keys": st.lists(near_section("ApiKeyConfig"), max_size=2)}),
        "rag": near_section("RagConfig"),
        "domains": values | st.dictionaries(st.text(max_size=4), near_section("DomainConfig"), max_size=2),
    },
)


@settings(max_examples=400, deadline=None)
@given(values | near_configurations)
def test_any_json_value_gives_a_configuration_or_a_config_error(data: Any) -> None:
    try:
        config = read(data)
    except ConfigError as error:
        assert error.faults
        for line in str(error).splitlines():
            assert line.isprintable()
            assert line.startswith("config.json: ")
        assert len(str(error).splitlines()) == len(error.faults)
    else:
        assert config.experts


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | values.map(lambda data: json.dumps(data).encode("utf-8", "surrogatepass")))
def test_any_bytes_give_a_configuration_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_bytes(content)
    try:
        MultiModelConfig.load(path)
    except ConfigError as error:
        assert error.faults


def test_reading_a_configuration_imports_neither_vllm_nor_torch() -> None:
    script = (
        "import sys; from vllm_axion.serving.config import MultiModelConfig; "
        "MultiModelConfig.load('config.demo.json'); "
        "print([name for name in ('vllm', 'torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
