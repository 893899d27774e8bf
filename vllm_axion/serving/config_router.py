# SPDX-License-Identifier: Apache-2.0
"""The `router` section of the configuration file: its encoders and their cache."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, model_validator

from vllm_axion.serving import config_values as values
from vllm_axion.serving.config_faults import Fault, nearest, show
from vllm_axion.serving.config_sections import ApiKeyConfig, ExpertConfig, Section
from vllm_axion.serving.engine_options import canonical

EncoderType = Literal["ngram", "openai", "expert", "sentence-transformers"]

# Fields besides `type` and `timeout_s`: (those an encoder of the type needs, those it may have).
_FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ngram": ((), ()),
    "openai": (("url", "model"), ("key_env", "key_file")),
    "expert": (("expert_id",), ("load",)),
    "sentence-transformers": (("model",), ()),
}


def _or_its_name(schema: dict[str, Any]) -> None:
    """JSON Schema: where an encoder stands, `"ngram"` may stand for `{"type": "ngram"}`."""
    objects = schema.pop("anyOf", None) or [{"$ref": schema.pop("$ref")}]
    schema["anyOf"] = [{"const": "ngram", "type": "string"}, *objects]
    schema.setdefault("title", "Encoder")
    if schema.get("default") is not None:
        schema["default"] = "ngram"


class EncoderConfig(Section):
    """How text becomes a vector: an object for one encoder. `"ngram"` is short for `{"type": "ngram"}`."""

    type: EncoderType = Field(
        description="`ngram` is built in: offline, any language. `openai` is any server with "
        "`/v1/embeddings`, `expert` an embedding model of this server, `sentence-transformers` a local model "
        "(with the extra package of that name).",
        examples=["openai"],
    )
    url: Annotated[str, AfterValidator(values.web_url)] | None = Field(
        default=None,
        description="Address of the embedding server, for `openai`. With or without `/v1/embeddings`.",
        examples=["http://localhost:8001/v1"],
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        description="Name of the model, for `openai` and `sentence-transformers`. For the latter a hub id, "
        "or a folder that begins with `/`, `./` or `../`.",
        examples=["BAAI/bge-m3"],
    )
    expert_id: str | None = Field(
        default=None,
        description="The expert that encodes, for `expert`. Its model must be one that makes embeddings.",
        examples=["embedder"],
    )
    load: bool = Field(
        default=False,
        description="For `expert`, whether routing may have it loaded. Requests never wait for that: until "
        "it is loaded, and with `false` whenever it is not, `ngram` decides.",
        examples=[True],
    )
    key_env: str | None = Field(
        default=None,
        description="Name of the environment variable that holds the key for `openai`.",
        examples=["EMBEDDINGS_KEY"],
    )
    key_file: str | None = Field(
        default=None,
        description="File that holds the key for `openai`, relative to the configuration file.",
        examples=["/run/secrets/embeddings_key"],
    )
    timeout_s: float = Field(
        default=2.0,
        gt=0,
        le=60,
        description="Seconds a request waits for the encoder. Then `ngram` decides.",
        examples=[0.5],
    )

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, data: Any) -> Any:
        if isinstance(data, str):
            if data != "ngram":
                right = 'write "ngram", or an object such as {"type": "openai", "url": "…", "model": "…"}'
                raise ValueError(f"{show(data)} is not an encoder; {right}")
            return {"type": data}
        return data

    @model_validator(mode="after")
    def _fields_of_its_type(self) -> EncoderConfig:
        needed, allowed = _FIELDS[self.type]
        fields = type(self).model_fields.items()
        given = {name for name, field in fields if getattr(self, name) != field.default}
        given -= {"type", "timeout_s"}
        if missing := [name for name in needed if name not in given]:
            raise ValueError(f'an encoder of type "{self.type}" needs {" and ".join(missing)}')
        if stray := sorted(given - {*needed, *allowed}):
            raise ValueError(f'an encoder of type "{self.type}" has no {" and no ".join(stray)}')
        if self.key_env is not None and self.key_file is not None:
            raise ValueError("give key_env or key_file, not both")
        return self

    def read_key(self, base: Path) -> SecretStr | None:
        """The key for an `openai` encoder, if it has one. Raises ValueError with one line without the key."""
        if self.key_env is None and self.key_file is None:
            return None
        return ApiKeyConfig(key_env=self.key_env, key_file=self.key_file).read(base)


class EmbeddingCacheConfig(Section):
    """Vectors of texts that were encoded before, so that they need not be encoded again."""

    max_entries: int = Field(
        default=20_000,
        ge=0,
        le=10_000_000,
        description="How many vectors are kept, the least recently used ones going first. 0 keeps none.",
        examples=[20_000],
    )
    persist: bool = Field(
        default=False,
        description="Keep them in the user's cache folder over restarts. Texts are kept as digests only.",
        examples=[True],
    )


class RouterConfig(Section):
    """How the expert is chosen when a request names none."""

    threshold: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Confidence below which the router abstains and a general expert answers.",
        examples=[0.5],
    )
    encoder: EncoderConfig = Field(
        default=EncoderConfig(type="ngram"),
        description='How text becomes a vector. `"ngram"` is built in: n-grams, offline, any language. '
        "An object describes another encoder.",
        examples=["ngram"],
        json_schema_extra=_or_its_name,
    )
    second_stage: EncoderConfig | None = Field(
        default=None,
        description="Encoder that is asked when the first one is unsure. `null` asks no other.",
        examples=[{"type": "openai", "url": "http://localhost:8001/v1", "model": "bge-m3"}],
        json_schema_extra=_or_its_name,
    )
    embedding_cache: EmbeddingCacheConfig = Field(
        default=EmbeddingCacheConfig(),
        description="What is kept of texts that were encoded. Not used by `ngram`.",
        examples=[{}],
    )
    prefer_loaded_margin: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="An expert that is already loaded wins when it is at most this much less likely.",
        examples=[0.1],
    )

    def encoders(self) -> dict[str, EncoderConfig]:
        """The stages that are not built in, by the name of their field."""
        stages = {"encoder": self.encoder, "second_stage": self.second_stage}
        return {name: stage for name, stage in stages.items() if stage is not None and stage.type != "ngram"}


def router_faults(router: Mapping[str, Any], expert_ids: Iterable[str]) -> list[Fault]:
    """Faults between the router's section, as it stands in the file, and the experts."""
    faults = []
    ids = list(expert_ids)
    for name in ("encoder", "second_stage"):
        stage = router.get(name)
        expert = stage.get("expert_id") if isinstance(stage, Mapping) else None
        if isinstance(expert, str) and expert not in ids:
            near = nearest(expert, ids)
            right = f'did you mean "{near}"?' if near else f"it is one of {', '.join(ids)}"
            faults.append(Fault(f"router.{name}.expert_id", f"{show(expert)} is not an expert; {right}"))
    return faults


def makes_embeddings(expert: ExpertConfig) -> bool:
    """Whether the file sets the expert up as an embedding (or other pooling) model, which cannot chat."""
    options = {canonical(name): value for name, value in expert.engine_args.items()}
    return options.get("runner") == "pooling" or options.get("convert") in ("embed", "classify")


def has_sentence_transformers() -> bool:
    """Whether the extra package is installed."""
    return importlib.util.find_spec("sentence_transformers") is not None
