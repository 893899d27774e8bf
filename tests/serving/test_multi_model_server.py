# SPDX-License-Identifier: Apache-2.0
"""The server as its users meet it: five experts behind one address."""

from __future__ import annotations

import pytest

from tests.serving.running_server import RunningServer

EXPERTS = ["phi4_fast", "mistral_balanced", "qwen_coder", "gemma3_multimodal", "aya_expanse_multilingual"]


@pytest.mark.parametrize("expert_id", EXPERTS)
def test_each_expert_answers_by_name(server: RunningServer, expert_id: str) -> None:
    answer = server.openai().chat.completions.create(
        model=expert_id, messages=[{"role": "user", "content": "Hola"}], max_tokens=4
    )
    assert answer.model == expert_id
    assert answer.usage is not None and answer.usage.completion_tokens == 4
