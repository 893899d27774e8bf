# SPDX-License-Identifier: Apache-2.0
"""The guide to encoders: its configurations are valid, its program runs, its numbers are the code's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_axion.serving import (
    config_reload,
    embedding_cache,
    encoder_stage,
    incremental_router,
    ngram_features,
)
from vllm_axion.serving.config import EncoderConfig, MultiModelConfig, preset_path


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "routing-encoders.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def test_its_configurations_are_valid(page: str) -> None:
    found = blocks(page, "json")
    assert found
    for block in found:
        data: dict[str, Any] = json.loads(block)
        data.setdefault("experts", [{"expert_id": "a", "model_path": "owner/model"}])
        MultiModelConfig.from_data(data, base_dir=Path("/srv"))


def test_its_program_runs(page: str, tmp_path: Path) -> None:
    (program,) = blocks(page, "python")
    (tmp_path / "config.demo.json").write_bytes(preset_path("config.demo.json").read_bytes())
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("qwen_coder after ")


@pytest.mark.parametrize(
    "said",
    [
        f"every {('zero', 'one', 'two', 'three')[int(config_reload.LOOK_EVERY_S)]} seconds",
        f"up to {encoder_stage.SHIPPED_PER_DOMAIN} of each built-in domain",
        f"left alone for {encoder_stage.REST_S:.0f} s",
        f"`timeout_s` ({EncoderConfig(type='ngram').timeout_s:.0f} s)",
        f"at most {embedding_cache.HEAD_CHARS + embedding_cache.TAIL_CHARS:,}",
        f"({embedding_cache.HEAD_CHARS} from its beginning, {embedding_cache.TAIL_CHARS} from its end)",
        f"{embedding_cache.DEFAULT_ENTRIES:,} of them",
        embedding_cache.FILE_NAME,
        f"first {ngram_features.HEAD_CHARS:,} and last {ngram_features.TAIL_CHARS:,} characters are read",
        f"the last multiple of {incremental_router.MARK_EVERY}",
        f"at least {incremental_router.STABLE_CONFIDENCE} sure",
        f"at least {incremental_router.STABLE_FROM_CHARS} characters",
        f"the last {incremental_router.AGREED_CHARS} of them",
    ],
)
def test_its_numbers_are_those_of_the_code(page: str, said: str) -> None:
    assert said in " ".join(page.split())
