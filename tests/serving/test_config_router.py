# SPDX-License-Identifier: Apache-2.0
"""The `router` section: which encoders it takes, and what it says of those it does not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from vllm_axion.serving.config import ConfigError, ExpertConfig, MultiModelConfig, not_in_this_build, schema
from vllm_axion.serving.config_router import EncoderConfig, has_sentence_transformers, makes_embeddings

EXPERTS = [{"expert_id": "coder", "model_path": "owner/model"}]
OPENAI = {"type": "openai", "url": "http://localhost:8001/v1", "model": "bge-m3"}
USABLE = [
    "ngram",
    {"type": "ngram"},
    OPENAI,
    {**OPENAI, "timeout_s": 0.25},
    {"type": "expert", "expert_id": "coder", "load": True},
    {"type": "sentence-transformers", "model": "owner/minilm"},
]


def read(router: dict[str, Any], base_dir: Path = Path("/srv")) -> MultiModelConfig:
    return MultiModelConfig.from_data({"experts": EXPERTS, "router": router}, base_dir=base_dir)


def refusal(router: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        read(router)
    return str(caught.value)


@pytest.mark.parametrize("stage", ["encoder", "second_stage"])
@pytest.mark.parametrize("encoder", USABLE, ids=json.dumps)
def test_every_kind_of_encoder_may_stand_in_either_stage(stage: str, encoder: Any) -> None:
    data = {"experts": EXPERTS, "router": {stage: encoder}}
    jsonschema.validate(data, schema())
    found = getattr(read({stage: encoder}).router, stage)
    assert found.type == (encoder if isinstance(encoder, str) else encoder["type"])


def test_the_built_in_encoder_is_the_default_and_no_other_is_asked() -> None:
    router = read({}).router
    assert router.encoder == EncoderConfig(type="ngram")
    assert router.second_stage is None
    assert router.encoders() == {}
    assert (router.embedding_cache.max_entries, router.embedding_cache.persist) == (20_000, False)


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        ("minilm", 'router.encoder: "minilm" is not an encoder; write "ngram", or an object'),
        (3, "router.encoder: 3 is not an object"),
        ({}, "router.encoder.type: is missing"),
        ({"type": "opena1"}, 'router.encoder.type: "opena1" is not one of ngram, openai,'),
        ({"type": "openai", "url": "http://x"}, 'router.encoder: an encoder of type "openai" needs model'),
        ({"type": "openai"}, 'router.encoder: an encoder of type "openai" needs url and model'),
        ({**OPENAI, "url": "localhost"}, 'router.encoder.url: "localhost" is not a URL'),
        ({**OPENAI, "load": True}, 'router.encoder: an encoder of type "openai" has no load'),
        ({**OPENAI, "key_env": "A", "key_file": "b"}, "router.encoder: give key_env or key_file, not both"),
        ({**OPENAI, "key_env": "AXION_NO_SUCH"}, "environment variable AXION_NO_SUCH is not set"),
        ({**OPENAI, "timeout_s": 0}, "router.encoder.timeout_s: 0 is not "),
        ({**OPENAI, "dimension": 3}, "router.encoder.dimension: unknown field"),
        ({"type": "expert", "expert_id": "codr"}, '"codr" is not an expert; did you mean "coder"?'),
    ],
    ids=str,
)
def test_an_encoder_that_cannot_be_used_is_refused_with_its_place(encoder: Any, said: str) -> None:
    assert said in refusal({"encoder": encoder})


@pytest.mark.parametrize("encoder", USABLE, ids=json.dumps)
def test_a_configuration_that_is_written_out_can_be_read_again(encoder: Any) -> None:
    config = read({"encoder": encoder, "second_stage": encoder})
    assert MultiModelConfig.from_data(config.model_dump(mode="json"), base_dir=Path("/srv")) == config


def test_a_key_pasted_where_its_variable_belongs_is_not_repeated() -> None:
    key = "sk-not-a-name-of-a-variable"
    assert key not in refusal({"encoder": {**OPENAI, "key_env": key}})


def test_the_key_is_read_from_a_file_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-1234\n")
    encoder = read({"encoder": {**OPENAI, "key_file": "key"}}, tmp_path).router.encoder
    found = encoder.read_key(tmp_path)
    assert found is not None
    assert found.get_secret_value() == "sk-1234"


def test_a_package_that_is_not_installed_is_named_with_what_installs_it() -> None:
    notices = not_in_this_build(read({"second_stage": {"type": "sentence-transformers", "model": "a/b"}}))
    assert has_sentence_transformers() == (importlib.util.find_spec("sentence_transformers") is not None)
    assert bool(notices) != has_sentence_transformers()
    assert all("vllm-axion[sentence-transformers]" in notice for notice in notices)


def test_an_expert_set_up_for_embeddings_is_told_from_one_that_chats() -> None:
    def expert(**engine_args: Any) -> ExpertConfig:
        return ExpertConfig(expert_id="e", model_path="owner/model", engine_args=engine_args)

    assert makes_embeddings(expert(runner="pooling", convert="embed"))
    assert makes_embeddings(expert(**{"--runner": "pooling"}))
    assert not makes_embeddings(expert())
    assert not makes_embeddings(expert(runner="generate"))
