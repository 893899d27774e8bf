# SPDX-License-Identifier: Apache-2.0
"""The sections of the configuration file: experts, loading, limits, keys, domains; routing: `config_router`.

Each field's description is the one place that says what it means: the JSON Schema and the faults are made
from it, so the first sentence must make sense alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from vllm_axion.serving import config_values as values
from vllm_axion.serving.config_faults import read_private_file, show
from vllm_axion.serving.config_values import (
    ENV_NAME,
    ID_PATTERN,
    KEY,
    MIB,
    YEAR_S,
    ByteSize,
    OptionalByteSize,
)
from vllm_axion.serving.core_plan import Policy
from vllm_axion.serving.engine_options import OWN_FIELDS, canonical

BUILT_IN_DOMAINS = ("general", "technical", "coding", "multimodal_expert", "multilingual_expert")


class Section(BaseModel):
    # strict: `"priority": "3"` or `true` is a slip of the pen to report, not to guess at.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )


class ExpertConfig(Section):
    """One expert: a model, the domain it answers for, and how its engine runs."""

    expert_id: Annotated[str, AfterValidator(values.expert_id)] = Field(
        description="Name of the expert, which clients send as `model`. Unique ignoring case; not `auto`.",
        examples=["qwen_coder"],
        json_schema_extra={"pattern": ID_PATTERN},
    )
    model_path: Annotated[str, AfterValidator(values.model_path)] = Field(
        description="Where the model is. Beginning with `/`, `./` or `../` it is a folder, relative to the "
        "configuration file; anything else is a hub id.",
        examples=["Qwen/Qwen2.5-Coder-7B-Instruct", "./models/qwen"],
        min_length=1,
    )
    domain: str = Field(
        default="general",
        description="The domain this expert answers for. A built-in one ("
        + ", ".join(BUILT_IN_DOMAINS)
        + ") or one "
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
        ge=MIB,
        le=1024**5,
        description='Memory for the KV cache, in bytes or as text such as "2GiB". `null` lets the server '
        "choose from the checkpoint.",
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
        description="Further options of `vllm serve` for this expert. By name (`max_num_batched_tokens`) or "
        "flag (`max-num-batched-tokens`); those that belong to the server (host, port, keys) are refused. "
        "Paths beginning with `./` or `../` are relative to the configuration file.",
        examples=[{"max_num_batched_tokens": 1024, "enable_prefix_caching": True}],
    )

    @model_validator(mode="before")
    @classmethod
    def _move_own_options(cls, data: Any) -> Any:
        # `engine_args` may hold any option of vLLM; one with a field of its own is read from the field only.
        args = data.get("engine_args") if isinstance(data, dict) else None
        if not isinstance(args, dict):
            return data
        spellings: dict[str, list[str]] = {}
        for name in args:
            own = OWN_FIELDS.get(canonical(str(name)))
            if own is not None and data.get(own) is None:
                spellings.setdefault(own, []).append(name)
        # Two spellings of one option stay where they are, for `static_faults` to report.
        moved = {names[0]: own for own, names in spellings.items() if len(names) == 1}
        rest = {name: value for name, value in args.items() if name not in moved}
        return {**data, **{own: args[name] for name, own in moved.items()}, "engine_args": rest}

    @property
    def is_local(self) -> bool:
        """Whether `model_path` is a folder (else a hub id)."""
        return values.is_path(self.model_path)

    def resolved_model(self, base: Path) -> str:
        """What to hand to vLLM as the model: an absolute path, or the hub id unchanged.

        `base` is the folder of the configuration file (`MultiModelConfig.base_dir`).
        """
        return os.path.normpath(base / self.model_path) if self.is_local else self.model_path


class LazyLoadingConfig(Section):
    """When experts are loaded and unloaded."""

    enabled: bool = Field(
        default=True,
        description="Load an expert when it is first asked. `false` loads every expert at start and unloads "
        "none for being idle.",
        examples=[True],
    )
    warmup_pool_size: int = Field(
        default=2,
        ge=0,
        le=1000,
        description="How many experts are loaded at start, by priority. They are not unloaded when idle, but "
        "may be to make room.",
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
        le=YEAR_S,
        description="Seconds without a request after which an expert is unloaded. 0 means never.",
        examples=[300],
    )
    min_residency_s: float = Field(
        default=10,
        ge=0,
        le=YEAR_S,
        description="Seconds an expert stays at least after a load. Keeps two from chasing each other out.",
        examples=[10],
    )
    drain_timeout_s: float = Field(
        default=30,
        ge=0,
        le=YEAR_S,
        description="Seconds that running requests get to finish before an unload stops them.",
        examples=[30],
    )


class CoresConfig(Section):
    """How engines that are busy at the same time divide the cores."""

    policy: Policy = Field(
        default="auto",
        description="`shared`: every engine runs on all cores. `disjoint`: busy engines get cores of their "
        "own. `auto`: shared up to 4 cores, else disjoint.",
        examples=["auto"],
    )


class LimitsConfig(Section):
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
        default=32 * MIB,
        ge=1024,
        le=1024**4,
        description='Largest request body, in bytes or as text such as "32MiB". Larger ones get 413.',
        examples=["32MiB"],
    )
    load_timeout_s: float = Field(
        default=600,
        gt=0,
        le=YEAR_S,
        description="Seconds a load may take before it counts as failed.",
        examples=[600],
    )
    queue_timeout_s: float = Field(
        default=120,
        gt=0,
        le=YEAR_S,
        description="Seconds a request waits for memory that busy experts hold. Then it gets 503.",
        examples=[120],
    )


class ApiKeyConfig(Section):
    """One API key, given in one of three ways, and what it opens."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["key"]}, {"required": ["key_env"]}, {"required": ["key_file"]}]
        }
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
        description="File that holds the key, relative to the configuration file. Others must not be able to "
        "write it.",
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
            raise ValueError(
                f"give exactly one of key, key_env, key_file, not {' and '.join(given) or 'none'}"
            )
        return self

    def read(self, base: Path) -> SecretStr:
        """The key, from wherever it is kept. `base` is the folder of the configuration file.

        Raises ValueError with one line that never holds the key.
        """
        if self.key is not None:
            text, what = self.key.get_secret_value(), "key"
        elif self.key_env is not None:
            if ENV_NAME.fullmatch(self.key_env) is None:
                raise ValueError(
                    "key_env is not the name of an environment variable; a key itself belongs in key_file"
                )
            if not os.environ.get(self.key_env):
                raise ValueError(f"environment variable {self.key_env} is not set; set it to the key")
            text, what = os.environ[self.key_env], f"environment variable {self.key_env}"
        else:
            what = f"key_file {show(self.key_file)}"
            try:
                text = (
                    read_private_file(base / (self.key_file or ""), limit=64 * 1024)
                    .decode("ascii")
                    .strip("\r\n")
                )
            except UnicodeDecodeError:
                raise ValueError(f"{what} holds no key: it is not plain ASCII text") from None
            except ValueError as error:
                raise ValueError(f"{what}: {error}") from None
        if KEY.fullmatch(text) is None:
            raise ValueError(f"{what} holds no usable key; a key is one word of printable ASCII")
        return SecretStr(text)


class ServerConfig(Section):
    """Who may use the server and what it may fetch."""

    api_keys: list[ApiKeyConfig] = Field(
        default=[],
        description="Keys that clients must send. With none, the server asks for no key.",
        examples=[[{"key_env": "AXION_API_KEY", "scopes": ["inference"]}]],
    )
    allowed_media_domains: list[Annotated[str, AfterValidator(values.media_domain)]] = Field(
        default=[],
        description="Hosts from which images and other media may be fetched. With none, only data URLs work.",
        examples=[["images.example.org"]],
    )
    log_prompts: bool = Field(
        default=False,
        description="Write what users send into the log lines of their requests. Off, only its length is.",
        examples=[False],
    )
    cors_origins: list[Annotated[str, AfterValidator(values.origin)]] = Field(
        default=[],
        description="Web origins whose pages may call the server. With none, CORS is off.",
        examples=[["https://chat.example.org"]],
    )


class RagConfig(Section):
    """Retrieval of documents while a request is answered."""

    enabled: bool = Field(default=False, description="Fetch documents for requests.", examples=[False])
    bridge_url: Annotated[str, AfterValidator(values.web_url)] | None = Field(
        default=None,
        description="Address of the retrieval service.",
        examples=["http://localhost:8001"],
    )


class DomainConfig(Section):
    """A domain: words and examples from which the router learns to recognise it."""

    description: str = Field(
        default="", description="What belongs to the domain.", examples=["Law and contracts"]
    )
    examples: list[str] = Field(
        default=[],
        description="Requests that belong to the domain. The more they differ, the better the router.",
        examples=[["Is this clause binding?", "Draft a non-disclosure agreement"]],
    )
