# SPDX-License-Identifier: Apache-2.0
"""What the server tells about itself has the documented shape: every key, on a running server."""

from __future__ import annotations

from typing import Any

import psutil
import pytest

from tests.serving.running_server import RunningServer

EXPERTS = ["phi4_fast", "mistral_balanced", "qwen_coder", "gemma3_multimodal", "aya_expanse_multilingual"]
Shape = dict[str, Any]

EXPERT_STATS: Shape = {
    "state": str,
    "domain": str,
    "priority": int,
    "pinned": bool,
    "warm": bool,
    "error": (str, type(None)),
    "loads": int,
    "unloads": int,
    "load_seconds": {"last": (float, type(None)), "mean": (float, type(None))},
    "requests": int,
    "in_flight": int,
    "queue": int,
    "tokens": {"in": int, "out": int},
    "memory": {"weights_bytes": int, "kv_bytes": int, "process_bytes": int, "predicted_bytes": int},
    "idle_seconds": (float, type(None)),
    "pid": (int, type(None)),
}
STATS: Shape = {
    "models_loaded": int,
    "models_available": list,
    "experts": dict.fromkeys(EXPERTS, EXPERT_STATS),
    "router": {
        "routes": int,
        "abstentions": int,
        "mean_ms": (float, type(None)),
        "encoder": {"name": str, "ready": bool, "problem": (str, type(None))},
        "second_stage": (dict, type(None)),
        "second_stages": int,
        "fallbacks": int,
        "renewals": int,
        "cache": {
            "entries": int,
            "max_entries": int,
            "bytes": int,
            "hits": int,
            "misses": int,
            "evictions": int,
            "persistent": bool,
        },
    },
    "memory": {
        "limit_bytes": int,
        "limit_source": str,
        "allowed_bytes": int,
        "reserved_bytes": int,
        "others_bytes": int,
    },
}


def _has_shape(found: Any, shape: Any, at: str = "") -> None:
    if isinstance(shape, dict):
        missing = shape.keys() - found.keys()
        assert not missing, f"{at} lacks {missing}"
        for name, inner in shape.items():
            _has_shape(found[name], inner, f"{at}.{name}")
    else:
        assert isinstance(found, shape), f"{at} is {found!r}"


def _chat(server: RunningServer, expert_id: str, tokens: int) -> Any:
    return server.openai().chat.completions.create(
        model=expert_id,
        messages=[{"role": "user", "content": "Hola"}],
        max_tokens=tokens,
        extra_body={"ignore_eos": True},
    )


def test_health_is_the_documented_object_and_nothing_more(server: RunningServer) -> None:
    with server.http() as client:
        answer = client.get("/health")
        ping = client.post("/ping")
    assert answer.status_code == ping.status_code == 200
    body = answer.json()
    assert set(body) == {"status", "models_loaded", "models_available"}
    assert body["status"] == "healthy" and body["models_available"] == 5
    assert 0 <= body["models_loaded"] <= 5


def test_every_model_has_domain_description_and_status(server: RunningServer) -> None:
    listed = server.get("/v1/models")
    assert listed["object"] == "list" and listed == server.get("/models")
    assert [card["id"] for card in listed["data"]] == [*EXPERTS, "auto"]
    for card in listed["data"]:
        assert set(card) == {
            "id",
            "object",
            "created",
            "owned_by",
            "domain",
            "description",
            "max_model_len",
            "status",
        }
        assert card["object"] == "model" and card["description"] and "root" not in card
        assert card["status"]["value"] in ("unloaded", "loading", "loaded", "failed")
        assert server.get(f"/v1/models/{card['id']}")["id"] == card["id"]
    domains = {card["id"]: card["domain"] for card in listed["data"]}
    assert domains["qwen_coder"] == "coding" and domains["auto"] is None


def test_stats_have_every_documented_key(server: RunningServer) -> None:
    _has_shape(server.get("/stats"), STATS)


def test_stats_count_requests_tokens_and_memory_of_a_loaded_expert(server: RunningServer) -> None:
    _chat(server, "phi4_fast", 1)
    before = server.expert("phi4_fast")
    usage = _chat(server, "phi4_fast", 7).usage
    after = server.expert("phi4_fast")
    assert after["requests"] == before["requests"] + 1
    assert after["tokens"]["out"] == before["tokens"]["out"] + 7
    assert after["tokens"]["in"] == before["tokens"]["in"] + usage.prompt_tokens
    assert after["state"] == "loaded" and after["in_flight"] == after["queue"] == 0
    assert after["loads"] >= 1 and after["load_seconds"]["last"] > 0 and after["load_seconds"]["mean"] > 0
    assert 0 <= after["idle_seconds"] < 60
    assert psutil.Process(after["pid"]).is_running()
    memory = after["memory"]
    assert memory["weights_bytes"] > 1_000_000 and memory["kv_bytes"] == 64 << 20
    assert memory["predicted_bytes"] >= memory["weights_bytes"] + memory["kv_bytes"]
    server.wait_until(
        lambda: server.expert("phi4_fast")["memory"]["process_bytes"] > memory["weights_bytes"],
        20,
        "a measurement",
    )


def test_stats_and_health_agree_on_what_is_loaded(server: RunningServer) -> None:
    _chat(server, "phi4_fast", 1)
    stats = server.get("/stats")
    loaded = [e for e, s in stats["experts"].items() if s["state"] == "loaded"]
    assert "phi4_fast" in loaded and stats["models_loaded"] == len(loaded)
    assert stats["models_available"] == EXPERTS
    assert stats["memory"]["reserved_bytes"] >= sum(stats["experts"][e]["memory"]["kv_bytes"] for e in loaded)
    assert stats["memory"]["allowed_bytes"] == pytest.approx(0.8 * stats["memory"]["limit_bytes"], rel=1e-3)


def test_router_statistics_count_routes(server: RunningServer) -> None:
    before = server.get("/stats")["router"]
    with server.http() as client:
        client.post("/v1/route", json={"prompt": "Hola"}).raise_for_status()
    after = server.get("/stats")["router"]
    assert after["routes"] == before["routes"] + 1 and after["mean_ms"] > 0
