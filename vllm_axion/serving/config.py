# SPDX-License-Identifier: Apache-2.0
"""The configuration file of the multi-model server: its models, its defaults, and how it is loaded.

Every field's meaning stands in its description, from which the JSON Schema (`schema()`) and the plain-language faults
are made. Nothing here imports vLLM or torch; what only vLLM can tell is checked in `config_check.py`.
"""

from __future__ import annotations

import importlib.resources
import os
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
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

__all__ = [
    "BUILT_IN_DOMAINS",
    "PRESETS",
    "ApiKeyConfig",
    "ConfigError",
    "DomainConfig",
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

BUILT_IN_DOMAINS = ("general", "technical", "coding", "multimodal_expert", "multilingual_expert")
PRESETS = (
    "config.five_models_all_working.json",  # the default comes first
    "config.five_models_optimized_with_aya.json",
    "config.low_latency_batching.json",
    "config.optimized_kv_cache.json",
    "config.ultra_low_latency_kv_cache.json",
    "config.demo.json",
)
SECRET_FIELDS = frozenset({"api_keys"})  # values below these are never shown in a fault

_MIB = 1024**2
_YEAR_S = 365 * 24 * 3600
_UNITS = {"b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) *([A-Za-z]+)")
_SIZE_PATTERN = r"^[0-9]{1,15}(\.[0-9]{1,6})? *([KkMmGgTt][Ii]?)?[Bb]$"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ID_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[?[0-9A-Fa-f:]{2,39}\]?")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEY = re.compile(r"[!-~]+")


def parse_bytes(value: object) -> object:
    """A byte size: an int is returned as it is, text such as "512MiB" or "1.5 GB" as bytes; None stays None.

    KiB, MiB, GiB, TiB count in 1024s, KB, MB, GB, TB in 1000s. Raises ValueError for other text.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError(f'{show(value)} is not a byte size such as "512MiB" or "2GiB"')
    number, unit = match.groups()
    scale = _UNITS.get(unit.lower())
    if scale is None:
        meant = f"{number}{unit[0].upper()}iB" if unit[0].lower() in "kmgt" else f"{number}MiB"
        raise ValueError(f'{show(value)} is not a byte size; did you mean "{meant}"?')
    return int(Decimal(number) * scale)


def _expert_id(value: str) -> str:
    if _ID.fullmatch(value) is None:
        raise ValueError(
            f"{show(value)} is not a usable id; use 1 to 64 of A-Z a-z 0-9 . _ - and begin with a letter or digit"
        )
    if value.casefold() == "auto":
        raise ValueError('"auto" is the name that asks the router to choose; give the expert another id')
    return value


def _model_path(value: str) -> str:
    if not value or any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise ValueError(f"{show(value)} is not a usable path or hub id")
    if not _is_path(value) and _HUB_ID.fullmatch(value) is None:
        raise ValueError(
            f'{show(value)} is neither a path (beginning with "/", "./" or "../") nor a hub id such as "owner/name"'
        )
    return value


def _is_path(value: str) -> bool:
    return value.startswith(("/", "./", "../"))


def _domain_name(value: str) -> str:
    if _ID.fullmatch(value) is None:
        raise ValueError(
            f"{show(value)} is not a usable domain name; use 1 to 64 of A-Z a-z 0-9 . _ - "
            "and begin with a letter or digit"
        )
    return value


def _web_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f'{show(value)} is not a URL such as "http://localhost:8001"')
    return value


def _media_domain(value: str) -> str:
    if _HOST.fullmatch(value) is None:
        raise ValueError(f'{show(value)} is not a host name; write it bare, such as "images.example.org"')
    return value.lower()


def _origin(value: str) -> str:
    if value == "*":
        return value
    try:
        parts = urlsplit(value)
        bare = f"{parts.scheme}://{parts.netloc}" == value and parts.scheme in ("http", "https")
        usable = bare and bool(parts.hostname) and "@" not in parts.netloc and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f'{show(value)} is not an origin such as "https://chat.example.org" (no path), or "*"')
    return value


ByteSize = Annotated[
    int,
    BeforeValidator(parse_bytes),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": _SIZE_PATTERN}]}),
]
OptionalByteSize = Annotated[
    int | None,
    BeforeValidator(parse_bytes),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": _MIB}, {"type": "string", "pattern": _SIZE_PATTERN}, {"type": "null"}]}
    ),
]
Name = Annotated[str, AfterValidator(_domain_name), Field(json_schema_extra={"pattern": _ID_PATTERN})]


class _Section(BaseModel):
    # strict: `"priority": "3"` or `true` is a slip of the pen to report, not to guess at.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )


class ExpertConfig(_Section):
    """One expert: a model, the domain it answers for, and how its engine runs."""

    expert_id: Annotated[str, AfterValidator(_expert_id)] = Field(
        description="Name of the expert, which clients send as `model`. Unique ignoring case; not `auto`.",
        examples=["qwen_coder"],
        json_schema_extra={"pattern": _ID_PATTERN},
    )
    model_path: Annotated[str, AfterValidator(_model_path)] = Field(
        description="Where the model is. Beginning with `/`, `./` or `../` it is a folder, relative to this file; "
        "anything else is a hub id.",
        examples=["Qwen/Qwen2.5-Coder-7B-Instruct", "./models/qwen"],
        min_length=1,
    )
    domain: str = Field(
        default="general",
        description="The domain this expert answers for. A built-in one (" + ", ".join(BUILT_IN_DOMAINS) + ") or one "
        "declared under `domains`.",
        examples=["coding"],
    )
    priority: int = Field(
        default=3,
        ge=1,
        le=5,
        description="1 is first to be warm and first among ties. 5 is last.",
        examples=[1],
    )
    quantization: str | None = Field(
        default=None,
        description="Name of a vLLM quantization method. `null` runs the checkpoint as it is.",
        examples=["compressed-tensors"],
        min_length=1,
    )
    enable_neon: bool = Field(
        default=True,
        description="Use this project's ARM NEON kernels where the machine has them.",
        examples=[True],
    )
    neon_optimizations: dict[str, Any] = Field(
        default={},
        description="Settings of single NEON kernels.",
        examples=[{}],
    )
    description: str = Field(
        default="",
        description="What the expert is good at, in words for people. Shown in `/v1/models`.",
        examples=["Writes and repairs code"],
    )
    max_model_len: int | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="Longest prompt plus answer, in tokens. `null` takes the model's own limit.",
        examples=[8192],
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32", "half", "float"] = Field(
        default="auto",
        description="Type the weights are computed in. `auto` follows the checkpoint.",
        examples=["bfloat16"],
    )
    kv_cache_dtype: str = Field(
        default="auto",
        description="Type of the KV cache. `auto` follows `dtype`; 8-bit types do not run on ARM.",
        examples=["auto"],
        min_length=1,
    )
    kv_cache_memory: OptionalByteSize = Field(
        default=None,
        ge=_MIB,
        le=1024**5,
        description='Memory for the KV cache, in bytes or as text such as "2GiB". `null` lets the server choose from '
        "the checkpoint.",
        examples=["2GiB", 536870912],
    )
    max_num_seqs: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="How many requests the engine answers at the same time. `null` takes vLLM's default.",
        examples=[16],
    )
    pinned: bool = Field(
        default=False,
        description="Load at start and never unload, neither when idle nor to make room.",
        examples=[False],
    )
    engine_args: dict[str, Any] = Field(
        default={},
        description="Further options of `vllm serve` for this expert, by name (`max_num_batched_tokens`) or flag "
        "(`max-num-batched-tokens`). Options that belong to the server (host, port, keys, ...) are refused.",
        examples=[{"max_num_batched_tokens": 1024, "enable_prefix_caching": True}],
    )

    @property
    def is_local(self) -> bool:
        """Whether `model_path` is a folder (else a hub id)."""
        return _is_path(self.model_path)

    def resolved_model(self, base: Path) -> str:
        """What to hand to vLLM as the model: an absolute path, or the hub id unchanged.

        `base` is the folder of the configuration file (`MultiModelConfig.base_dir`).
        """
        return os.path.normpath(base / self.model_path) if self.is_local else self.model_path


class LazyLoadingConfig(_Section):
    """When experts are loaded and unloaded."""

    enabled: bool = Field(
        default=True,
        description="Load an expert when it is first asked. `false` loads every expert at start and unloads none "
        "for being idle.",
        examples=[True],
    )
    warmup_pool_size: int = Field(
        default=2,
        ge=0,
        le=1000,
        description="How many experts are loaded at start, by priority. They are not unloaded when idle, but may be "
        "to make room.",
        examples=[2],
    )
    max_loaded_experts: int = Field(
        default=5,
        ge=1,
        le=1000,
        description="How many experts may be loaded at the same time.",
        examples=[5],
    )
    memory_threshold: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="Share of the machine's (or the container's) memory that loaded experts may fill.",
        examples=[0.8],
    )
    auto_unload_after_s: float = Field(
        default=300,
        ge=0,
        le=_YEAR_S,
        description="Seconds without a request after which an expert is unloaded. 0 means never.",
        examples=[300],
    )
    min_residency_s: float = Field(
        default=10,
        ge=0,
        le=_YEAR_S,
        description="Seconds an expert stays at least after a load, so that two of them do not chase each other out.",
        examples=[10],
    )
    drain_timeout_s: float = Field(
        default=30,
        ge=0,
        le=_YEAR_S,
        description="Seconds that running requests get to finish before an unload stops them.",
        examples=[30],
    )


class RouterConfig(_Section):
    """How the expert is chosen when a request names none."""

    threshold: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Confidence below which the router abstains and a general expert answers.",
        examples=[0.5],
    )
    encoder: str = Field(
        default="ngram",
        description="How text becomes a vector. `ngram` is hashed character n-grams, offline and multilingual.",
        examples=["ngram"],
        min_length=1,
    )
    prefer_loaded_margin: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="An expert that is already loaded wins when it is at most this much less likely.",
        examples=[0.1],
    )


class LimitsConfig(_Section):
    """Bounds that keep one client from taking the server from the others."""

    max_queue: int = Field(
        default=256,
        ge=0,
        le=1_000_000,
        description="Requests that may wait for a load, all experts together. Further ones get 429.",
        examples=[256],
    )
    max_concurrent_requests: int = Field(
        default=1024,
        ge=1,
        le=1_000_000,
        description="Requests in the server at the same time. Further ones get 429.",
        examples=[1024],
    )
    max_body_bytes: ByteSize = Field(
        default=32 * _MIB,
        ge=1024,
        le=1024**4,
        description='Largest request body, in bytes or as text such as "32MiB". Larger ones get 413.',
        examples=["32MiB"],
    )
    load_timeout_s: float = Field(
        default=600,
        gt=0,
        le=_YEAR_S,
        description="Seconds a load may take before it counts as failed.",
        examples=[600],
    )
    queue_timeout_s: float = Field(
        default=120,
        gt=0,
        le=_YEAR_S,
        description="Seconds a request waits for memory that busy experts hold. Then it gets 503.",
        examples=[120],
    )


class ApiKeyConfig(_Section):
    """One API key, given in one of three ways, and what it opens."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["key"]}, {"required": ["key_env"]}, {"required": ["key_file"]}]}
    )

    key: SecretStr | None = Field(
        default=None,
        description="The key itself. Better kept out of this file, with `key_env` or `key_file`.",
        examples=["sk-something-long-and-random"],
    )
    key_env: str | None = Field(
        default=None,
        description="Name of the environment variable that holds the key.",
        examples=["AXION_API_KEY"],
    )
    key_file: str | None = Field(
        default=None,
        description="File that holds the key, relative to this file. Others must not be able to write it.",
        examples=["/run/secrets/axion_key"],
    )
    scopes: list[Literal["inference", "admin"]] = Field(
        default=["inference"],
        min_length=1,
        description="What the key opens. `inference` is every route but `/models/*`, `admin` is those.",
        examples=[["inference"], ["inference", "admin"]],
    )

    @model_validator(mode="after")
    def _one_source(self) -> ApiKeyConfig:
        given = [name for name in ("key", "key_env", "key_file") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of key, key_env, key_file, not {' and '.join(given) or 'none'}")
        return self

    def read(self, base: Path) -> SecretStr:
        """The key, from wherever it is kept. `base` is the folder of the configuration file.

        Raises ValueError with one line that never holds the key.
        """
        if self.key is not None:
            text, what = self.key.get_secret_value(), "key"
        elif self.key_env is not None:
            if _ENV_NAME.fullmatch(self.key_env) is None:
                raise ValueError("key_env is not the name of an environment variable; a key itself belongs in key_file")
            if not os.environ.get(self.key_env):
                raise ValueError(f"environment variable {self.key_env} is not set; set it to the key")
            text, what = os.environ[self.key_env], f"environment variable {self.key_env}"
        else:
            what = f"key_file {show(self.key_file)}"
            try:
                text = read_private_file(base / (self.key_file or ""), limit=64 * 1024).decode("ascii").strip("\r\n")
            except UnicodeDecodeError:
                raise ValueError(f"{what} holds no key: it is not plain ASCII text") from None
            except ValueError as error:
                raise ValueError(f"{what}: {error}") from None
        if _KEY.fullmatch(text) is None:
            raise ValueError(f"{what} holds no usable key; a key is one word of printable ASCII")
        return SecretStr(text)


class ServerConfig(_Section):
    """Who may use the server and what it may fetch."""

    api_keys: list[ApiKeyConfig] = Field(
        default=[],
        description="Keys that clients must send. With none, the server asks for no key.",
        examples=[[{"key_env": "AXION_API_KEY", "scopes": ["inference"]}]],
    )
    allowed_media_domains: list[Annotated[str, AfterValidator(_media_domain)]] = Field(
        default=[],
        description="Hosts from which images and other media may be fetched. With none, only data URLs work.",
        examples=[["images.example.org"]],
    )
    cors_origins: list[Annotated[str, AfterValidator(_origin)]] = Field(
        default=[],
        description="Web origins whose pages may call the server. With none, CORS is off.",
        examples=[["https://chat.example.org"]],
    )


class RagConfig(_Section):
    """Retrieval of documents while a request is answered."""

    enabled: bool = Field(default=False, description="Fetch documents for requests.", examples=[False])
    bridge_url: Annotated[str, AfterValidator(_web_url)] | None = Field(
        default=None,
        description="Address of the retrieval service.",
        examples=["http://localhost:8001"],
    )


class DomainConfig(_Section):
    """A domain: words and examples from which the router learns to recognise it."""

    description: str = Field(default="", description="What belongs to the domain.", examples=["Law and contracts"])
    examples: list[str] = Field(
        default=[],
        description="Requests that belong to the domain. The more they differ, the better the router.",
        examples=[["Is this clause binding?", "Draft a non-disclosure agreement"]],
    )


class MultiModelConfig(_Section):
    """A vllm-axion multi-model server: its experts and how they share one machine."""

    experts: list[ExpertConfig] = Field(
        min_length=1,
        description="The experts. At least one.",
        examples=[[{"expert_id": "qwen_coder", "model_path": "Qwen/Qwen2.5-Coder-7B-Instruct", "domain": "coding"}]],
    )
    lazy_loading: LazyLoadingConfig = Field(
        default=LazyLoadingConfig(), description="When experts are loaded and unloaded.", examples=[{}]
    )
    router: RouterConfig = Field(
        default=RouterConfig(), description="How the expert is chosen when a request names none.", examples=[{}]
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
        """Folder that relative paths in the configuration start from: the real folder of the file it came from."""
        return self._base_dir

    @model_validator(mode="before")
    @classmethod
    def _drop_schema_key(cls, data: Any) -> Any:
        # Editors find the JSON Schema through "$schema"; it means nothing to the server.
        if isinstance(data, dict) and isinstance(data.get("$schema"), str):
            return {key: value for key, value in data.items() if key != "$schema"}
        return data

    @model_validator(mode="after")
    def _fields_agree(self) -> MultiModelConfig:
        faults = cross_faults(self.model_dump())
        if faults:
            raise PydanticCustomError(CROSS_FIELD, "{faults}", {"faults": "; ".join(map(str, faults))})
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
        config, faults = examine_file(path)
        if config is None or faults:
            raise ConfigError(os.fspath(path), faults)
        return config


def examine_file(path: str | os.PathLike[str]) -> tuple[MultiModelConfig | None, list[Fault]]:
    """As `MultiModelConfig.load`, but hands faults back instead of raising."""
    found = find_config(path)
    try:
        content = read_private_file(found)
    except ValueError as error:
        near = nearest(found.name, PRESETS) if str(error) == "no such file" else None
        return None, [Fault("", f"{error}" + (f'; did you mean the preset "{near}"?' if near else ""))]
    data, faults = parse_json(content)
    if data is None and faults:
        return None, faults
    config, more = examine(data, found.resolve().parent)
    # examine() sees broken text too; keep one of each, in order.
    return config, list(dict.fromkeys([*faults, *more]))


def examine(data: object, base_dir: Path) -> tuple[MultiModelConfig | None, list[Fault]]:
    """A configuration from a parsed JSON value, and every fault of it; None when the value has no usable shape."""
    if not isinstance(data, dict):
        return None, [Fault("", f'{show(data)} is not an object {{"experts": [...]}}')]
    if faults := text_faults(data):
        return None, faults
    try:
        config = MultiModelConfig.model_validate(data)
    except ValidationError as error:
        return None, plain_faults(error, MultiModelConfig, SECRET_FIELDS) + cross_faults(data)
    config._base_dir = base_dir
    faults = []
    for index, key in enumerate(config.server.api_keys):
        try:
            key.read(base_dir)
        except ValueError as error:
            faults.append(Fault(f"server.api_keys[{index}]", str(error)))
    return config, faults


def cross_faults(data: Mapping[str, Any]) -> list[Fault]:
    """Faults between fields. Tolerates any JSON value, so that these are found next to the faults of single fields."""
    faults: list[Fault] = []
    listed = data.get("experts")
    experts = [(i, e) for i, e in enumerate(listed if isinstance(listed, list) else []) if isinstance(e, dict)]
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
        message = f"{most} is less than the {pinned} pinned experts, which are never unloaded; use at least {pinned}"
        faults.append(Fault("lazy_loading.max_loaded_experts", message))
    elif lazy.get("enabled") is False and experts > most:
        message = f"{most} is less than the {experts} experts, all of which load at start when enabled is false"
        faults.append(Fault("lazy_loading.max_loaded_experts", message))
    return faults


def not_in_this_build(config: MultiModelConfig) -> list[str]:
    """One sentence for each field set in the file whose feature this build does not have."""
    notices = []
    for index, expert in enumerate(config.experts):
        where = f"experts[{index}]"
        if expert.enable_neon and "enable_neon" in expert.model_fields_set:
            notices.append(f"{where}.enable_neon: not in this build; the expert runs on vLLM's own CPU kernels.")
        if expert.neon_optimizations:
            notices.append(f"{where}.neon_optimizations: not in this build; the settings have no effect.")
        if (expert.quantization or "").startswith("axion"):
            notices.append(f"{where}.quantization: {show(expert.quantization)} is not in this build; use null.")
    if config.router.encoder != "ngram":
        notices.append(f'router.encoder: {show(config.router.encoder)} is not in this build; "ngram" is used.')
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
    """The file meant by `path`: the path itself, or a packaged preset when a bare preset name is not a file here."""
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
