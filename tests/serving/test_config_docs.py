# SPDX-License-Identifier: Apache-2.0
"""What is written about the configuration, against the configuration: the guide and the JSON Schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tools import configuration_page
from vllm_axion.serving import config
from vllm_axion.serving.config import PRESETS, ConfigError, MultiModelConfig, schema

HOW = "run: python tools/configuration_page.py"


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "configuration.md").read_text(encoding="utf-8")


def section(page: str, name: str) -> str:
    heading = "### The file" if name == "file" else f"### `{name}`"
    return re.split(r"\n##", page.split(f"{heading}\n", 1)[1], maxsplit=1)[0]


@pytest.mark.parametrize("name", configuration_page.SECTIONS)
def test_every_field_is_documented_with_type_default_and_meaning(page: str, name: str) -> None:
    rows = dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", section(page, name), re.MULTILINE))
    model = configuration_page.SECTIONS[name]
    assert set(rows) - {"$schema"} == set(model.model_fields)
    for field, cells in rows.items():
        kind, default, meaning = cells.split(" | ")
        assert kind and default and len(meaning) > 10, field


def test_every_section_of_the_file_is_documented() -> None:
    documented = {model.__name__ for model in configuration_page.SECTIONS.values()}
    assert documented == {"MultiModelConfig", *schema()["$defs"]}


def test_guide_is_what_the_models_and_presets_say(page: str) -> None:
    assert configuration_page.renewed(page) == page, HOW


def test_guide_names_every_preset(page: str) -> None:
    assert all(f"`{name}`" in page for name in PRESETS)


def test_first_example_of_the_guide_is_a_configuration(page: str) -> None:
    example = page.split("```json\n", 1)[1].split("```", 1)[0]
    assert MultiModelConfig.from_data(json.loads(example), base_dir=Path("/")).experts


def test_output_that_the_guide_shows_is_what_check_prints(page: str) -> None:
    shown = page.split("$ vllm-axion config check config.json\n", 1)[1].split("```", 1)[0].splitlines()
    data = {
        "experts": [
            {"expert_id": "a", "model_path": "a/b", "priorty": 1},
            {"expert_id": "b", "model_path": "a/b", "domain": "codng"},
        ]
    }
    with pytest.raises(ConfigError) as caught:
        MultiModelConfig.from_data(data, base_dir=Path("/"), source="config.json")
    assert shown == [*str(caught.value).splitlines(), "config.json: cannot be used: 2 faults"]


# ---------------------------------------------------------------- JSON Schema


def test_shipped_schema_is_the_generated_one() -> None:
    shipped = Path(config.__file__).with_name("config.schema.json").read_text(encoding="utf-8")
    assert shipped == configuration_page.schema_text(), HOW


def properties(made: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for owner, model in [("file", made), *made["$defs"].items()]:
        for name, shape in model["properties"].items():
            yield f"{owner}.{name}", shape


def test_schema_is_valid_and_explains_every_field() -> None:
    made = schema()
    jsonschema.Draft202012Validator.check_schema(made)
    assert made["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for name, shape in properties(made):
        assert shape.get("description"), name
        assert shape.get("examples") is not None, name
        assert shape.get("title") or "$ref" in shape, name


def test_examples_of_the_schema_are_valid_by_it() -> None:
    made = schema()
    for name, shape in properties(made):
        validator = jsonschema.Draft202012Validator({**shape, "$defs": made["$defs"]})
        for example in shape["examples"]:
            validator.validate(example)
            assert name  # shown by pytest when validation fails


@pytest.mark.parametrize(
    "fields",
    [
        {"priority": 9},
        {"priorty": 1},
        {"kv_cache_memory": "2G"},
        {"kv_cache_memory": 5},
        {"dtype": "bf16"},
        {"expert_id": "a b"},
        {"pinned": "yes"},
    ],
)
def test_editor_sees_the_faults_that_the_server_sees(fields: dict[str, Any]) -> None:
    data = {"experts": [{"expert_id": "a", "model_path": "a/b", **fields}]}
    assert not jsonschema.Draft202012Validator(schema()).is_valid(data)
    with pytest.raises(ConfigError):
        MultiModelConfig.from_data(data, base_dir=Path("/"))


def test_editor_sees_a_key_given_twice_or_not_at_all() -> None:
    validator = jsonschema.Draft202012Validator(schema())
    expert = {"expert_id": "a", "model_path": "a/b"}
    for keys, valid in (({"key": "x"}, True), ({}, False), ({"key": "x", "key_env": "Y"}, False)):
        assert validator.is_valid({"experts": [expert], "server": {"api_keys": [keys]}}) is valid
