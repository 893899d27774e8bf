# SPDX-License-Identifier: Apache-2.0
"""The configuration file of the multi-model server: its models, its defaults, and how it is loaded.

Nothing here imports vLLM or torch; what only vLLM can tell is checked in `config_check.py`.
"""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from vllm_axion.serving.config_faults import (
    CROSS_FIELD,
    ConfigError,
    Fault,
    nearest,
    parse_json,
    plain_faults,
    read_private_file,
    show,
    text_faults,
)
from vllm_axion.serving.config_router import (
    EmbeddingCacheConfig,
    EncoderConfig,
    RouterConfig,
    has_sentence_transformers,
    router_faults,
)
from vllm_axion.serving.config_sections import (
    BUILT_IN_DOMAINS,
    ApiKeyConfig,
    CoresConfig,
    DomainConfig,
    ExpertConfig,
    LazyLoadingConfig,
    LimitsConfig,
    RagConfig,
    Section,
    ServerConfig,
)
from vllm_axion.serving.config_values import Name, parse_bytes
from vllm_axion.serving.engine_options import static_faults
from vllm_axion.serving.profiles import ProfileName

__all__ = [
    "BUILT_IN_DOMAINS",
    "PRESETS",
    "ApiKeyConfig",
    "ConfigError",
    "CoresConfig",
    "DomainConfig",
    "EmbeddingCacheConfig",
    "EncoderConfig",
    "ExpertConfig",
    "Fault",
    "LazyLoadingConfig",
    "LimitsConfig",
    "MultiModelConfig",
    "RagConfig",
    "RouterConfig",
    "ServerConfig",
    "find_config",
    "not_in_this_build",
    "parse_bytes",
    "preset_path",
    "schema",
]

PRESETS = (
    "config.five_models_all_working.json",  # the default comes first
    "config.five_models_optimized_with_aya.json",
    "config.low_latency_batching.json",
    "config.optimized_kv_cache.json",
    "config.ultra_low_latency_kv_cache.json",
    "config.demo.json",
)
SECRET_FIELDS = frozenset({"api_keys"})  # values below these are never shown in a fault


class MultiModelConfig(Section):
    """A vllm-axion multi-model server: its experts and how they share one machine."""

    experts: list[ExpertConfig] = Field(
        min_length=1,
        description="The experts. At least one.",
        examples=[
            [{"expert_id": "qwen_coder", "model_path": "Qwen/Qwen2.5-Coder-7B-Instruct", "domain": "coding"}]
        ],
    )
    profile: ProfileName = Field(
        default="default",
        description="What the server does ahead of being asked. `stable`: every load on demand. `default`: "
        "the warm pool is loaded at start. `optimized`: also the expert that is likely to be asked next, "
        "where memory is free. The flag --profile overrides it.",
        examples=["default"],
    )
    lazy_loading: LazyLoadingConfig = Field(
        default=LazyLoadingConfig(), description="When to load and unload experts.", examples=[{}]
    )
    cores: CoresConfig = Field(
        default=CoresConfig(), description="How busy engines divide the cores.", examples=[{}]
    )
    router: RouterConfig = Field(
        default=RouterConfig(),
        description="How to choose the expert for a request that names none.",
        examples=[{}],
    )
    limits: LimitsConfig = Field(
        default=LimitsConfig(), description="Queue, body size and time limits.", examples=[{}]
    )
    server: ServerConfig = Field(
        default=ServerConfig(), description="API keys, media hosts and web origins.", examples=[{}]
    )
    rag: RagConfig = Field(default=RagConfig(), description="Retrieval of documents.", examples=[{}])
    domains: dict[Name, DomainConfig] = Field(
        default={},
        description="Further domains, or more examples for the built-in ones.",
        examples=[{"legal": {"description": "Law and contracts", "examples": ["Is this clause binding?"]}}],
    )

    _base_dir: Path = PrivateAttr(default_factory=Path.cwd)

    @property
    def base_dir(self) -> Path:
        """Folder that relative paths start from: the real folder of the file the configuration came from."""
        return self._base_dir

    @model_validator(mode="before")
    @classmethod
    def _drop_schema_key(cls, data: Any) -> Any:
        # Editors find the JSON Schema through "$schema"; it means nothing to the server.
        if isinstance(data, dict) and "$schema" in data:
            return {key: value for key, value in data.items() if key != "$schema"}
        return data

    @model_validator(mode="after")
    def _fields_agree(self) -> MultiModelConfig:
        faults = cross_faults(self.model_dump())
        if faults:
            lines = "; ".join(map(str, faults))
            raise PydanticCustomError(CROSS_FIELD, "{lines}", {"lines": lines, "faults": faults})
        return self

    @classmethod
    def from_data(cls, data: object, *, base_dir: Path, source: str = "config") -> MultiModelConfig:
        """A configuration from an already parsed JSON value. Raises ConfigError with every fault found."""
        config, faults = examine(data, base_dir)
        if config is None or faults:
            raise ConfigError(source, faults)
        return config

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MultiModelConfig:
        """Read a configuration file, or a preset by its bare name. Raises ConfigError with every fault found.

        API keys are looked up too, so that a missing one is known at start and not at the first request.
        """
        data, base, faults = read_data(path)
        if data is None and faults:
            raise ConfigError(os.fspath(path), faults)
        config, more = examine(data, base)
        if every := _unique([*faults, *more]):
            raise ConfigError(os.fspath(path), every)
        assert config is not None
        return config


def read_data(path: str | os.PathLike[str]) -> tuple[Any, Path, list[Fault]]:
    """The JSON value in a configuration file, the folder its relative paths start from, and faults so far.

    The value is None when the file cannot be read or is not JSON.
    """
    found = find_config(path)
    try:
        content = read_private_file(found)
    except ValueError as error:
        near = nearest(found.name, PRESETS) if str(error) == "no such file" else None
        hint = f'; did you mean the preset "{near}"?' if near else ""
        return None, Path(), [Fault("", f"{error}{hint}")]
    data, faults = parse_json(content)
    return data, found.resolve().parent, faults


def examine(data: object, base_dir: Path) -> tuple[MultiModelConfig | None, list[Fault]]:
    """A configuration from a parsed JSON value (None when it has no usable shape) and every fault."""
    if not isinstance(data, dict):
        return None, [Fault("", f'{show(data)} is not an object {{"experts": [...]}}')]
    if faults := text_faults(data):
        return None, faults
    try:
        config = MultiModelConfig.model_validate(data)
    except ValidationError as error:
        return None, _unique([*plain_faults(error, MultiModelConfig, SECRET_FIELDS), *cross_faults(data)])
    config._base_dir = base_dir
    faults = cross_faults(data)  # again on what the file says, before options were moved to their own fields
    for index, key in enumerate(config.server.api_keys):
        try:
            key.read(base_dir)
        except ValueError as error:
            faults.append(Fault(f"server.api_keys[{index}]", str(error)))
    for name, encoder in config.router.encoders().items():
        try:
            encoder.read_key(base_dir)
        except ValueError as error:
            faults.append(Fault(f"router.{name}", str(error)))
    return config, faults


def _unique(faults: list[Fault]) -> list[Fault]:
    """One of each, in order: broken text and fields that disagree are seen from two sides."""
    return list(dict.fromkeys(faults))


def cross_faults(data: Mapping[str, Any]) -> list[Fault]:
    """Faults between fields.

    Takes any JSON object, so that these are found next to the faults of single fields.
    """
    faults: list[Fault] = []
    if not isinstance(data.get("$schema", ""), str):
        faults.append(Fault("$schema", f"{show(data['$schema'])} is not text in double quotes"))
    listed = data.get("experts")
    experts = [
        (i, e) for i, e in enumerate(listed if isinstance(listed, list) else []) if isinstance(e, dict)
    ]
    declared = data.get("domains")
    domains = [*BUILT_IN_DOMAINS, *(map(str, declared) if isinstance(declared, dict) else ())]
    first: dict[str, int] = {}
    for index, expert in experts:
        name = expert.get("expert_id")
        if isinstance(name, str):
            seen = first.setdefault(name.casefold(), index)
            if seen != index:
                message = f"{show(name)} is already the id of experts[{seen}]; ids differ by more than case"
                faults.append(Fault(f"experts[{index}].expert_id", message))
        domain = expert.get("domain")
        if isinstance(domain, str) and domain not in domains:
            near = nearest(domain, domains)
            right = f'did you mean "{near}"?' if near else f"use one of {', '.join(domains)}"
            message = f"{show(domain)} is not declared; {right} (or declare it under domains)"
            faults.append(Fault(f"experts[{index}].domain", message))
        args = expert.get("engine_args")
        if isinstance(args, dict):
            faults += static_faults(args, expert, ("experts", index, "engine_args"))
    if isinstance(router := data.get("router"), dict):
        faults += router_faults(router, [str(expert.get("expert_id")) for _, expert in experts])
    lazy = data.get("lazy_loading")
    if lazy is None:
        lazy = {}
    if isinstance(lazy, dict):
        faults += _lazy_faults(lazy, len(experts), sum(expert.get("pinned") is True for _, expert in experts))
    return faults


def _lazy_faults(lazy: Mapping[str, Any], experts: int, pinned: int) -> list[Fault]:
    faults = []
    warm, most = lazy.get("warmup_pool_size", 2), lazy.get("max_loaded_experts", 5)
    if type(most) is not int or most < 1:
        return []
    if type(warm) is int and warm > most:
        message = f"{warm} is more than max_loaded_experts, {most}; at most {most} can be warm"
        faults.append(Fault("lazy_loading.warmup_pool_size", message))
    if pinned > most:
        message = f"{most} is less than the {pinned} pinned experts, which stay loaded; use at least {pinned}"
        faults.append(Fault("lazy_loading.max_loaded_experts", message))
    elif lazy.get("enabled") is False and experts > most:
        message = (
            f"{most} is less than the {experts} experts, all of which load at start when enabled is false"
        )
        faults.append(Fault("lazy_loading.max_loaded_experts", message))
    return faults


def not_in_this_build(config: MultiModelConfig) -> list[str]:
    """One sentence for each field set in the file whose feature this build does not have."""
    notices = []
    for index, expert in enumerate(config.experts):
        where = f"experts[{index}]"
        if expert.enable_neon and "enable_neon" in expert.model_fields_set:
            notices.append(
                f"{where}.enable_neon: not in this build; the expert runs on vLLM's own CPU kernels."
            )
        if expert.neon_optimizations:
            notices.append(f"{where}.neon_optimizations: not in this build; the settings have no effect.")
        if (expert.quantization or "").startswith("axion"):
            notices.append(
                f"{where}.quantization: {show(expert.quantization)} is not in this build; use null."
            )
    for name, encoder in config.router.encoders().items():
        if encoder.type == "sentence-transformers" and not has_sentence_transformers():
            notices.append(
                f"router.{name}: the package sentence-transformers is not in this build "
                "(pip install 'vllm-axion[sentence-transformers]'); \"ngram\" is used."
            )
    if config.rag.enabled:
        notices.append("rag.enabled: not in this build; requests are answered without retrieved documents.")
    elif config.rag.bridge_url is not None:
        notices.append("rag.bridge_url: not in this build; the address is not used.")
    return notices


def preset_path(name: str) -> Path:
    """Where the packaged preset `name` (one of `PRESETS`) is. Raises KeyError for another name."""
    if name not in PRESETS:
        raise KeyError(name)
    return Path(str(importlib.resources.files("vllm_axion").joinpath("configs", name)))


def find_config(path: str | os.PathLike[str]) -> Path:
    """The file meant by `path`: itself, or the packaged preset of that name when no such file is here."""
    found = Path(path)
    if os.fspath(path) in PRESETS and not found.exists():
        return preset_path(os.fspath(path))
    return found


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the configuration file."""
    made = MultiModelConfig.model_json_schema()
    made["properties"] = {
        "$schema": {
            "title": "JSON Schema",
            "description": "Address of this schema, for editors. The server ignores it.",
            "type": "string",
            "examples": ["config.schema.json"],
        },
        **made["properties"],
    }
    made["title"] = "vllm-axion multi-model server"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}
