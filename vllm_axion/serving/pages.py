# SPDX-License-Identifier: Apache-2.0
"""What the server tells about itself: health, models, statistics. Plain functions of the manager's state."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client.registry import Collector

from vllm_axion.serving.expert_slot import ExpertSlot
from vllm_axion.serving.lazy_expert_manager import LazyExpertManager
from vllm_axion.serving.residency import State

AUTO_DESCRIPTION = "Chooses the expert by what is asked."


def health(manager: LazyExpertManager) -> tuple[int, dict[str, Any]]:
    """(HTTP status, body) of ``/health``: 503 once the server can serve none of its experts."""
    slots = manager.views()
    # An expert whose checkpoint was found broken at the start is not loaded and has an error to show for it.
    able = [s for s in slots if s.state is not State.FAILED and not (s.state is State.UNLOADED and s.error)]
    healthy = bool(able) and not manager.closing
    body = {
        "status": "healthy" if healthy else "unhealthy",
        "models_loaded": len(manager.loaded_ids()),
        "models_available": len(slots),
    }
    return (200 if healthy else 503), body


def model_card(slot: ExpertSlot, created: int) -> dict[str, Any]:
    """One expert in OpenAI's list of models, with what clients of such servers look for."""
    facts = None if slot.spec is None else slot.spec.facts
    return {
        "id": slot.expert_id,
        "object": "model",
        "created": created,
        "owned_by": "vllm-axion",
        "domain": slot.config.domain,
        "description": slot.config.description,
        "max_model_len": slot.config.max_model_len or (None if facts is None else facts.max_model_len),
        "status": slot.public_status(),
    }


def auto_card(manager: LazyExpertManager, created: int) -> dict[str, Any]:
    """The model name that asks the router to choose."""
    status = "loaded" if manager.loaded_ids() else "unloaded"
    return {
        "id": "auto",
        "object": "model",
        "created": created,
        "owned_by": "vllm-axion",
        "domain": None,
        "description": AUTO_DESCRIPTION,
        "max_model_len": None,
        "status": {"value": status},
    }


def model_list(manager: LazyExpertManager, created: int) -> dict[str, Any]:
    """Body of ``/v1/models``."""
    cards = [model_card(slot, created) for slot in manager.views()]
    return {"object": "list", "data": [*cards, auto_card(manager, created)]}


def stats(manager: LazyExpertManager, router: dict[str, Any]) -> dict[str, Any]:
    """Body of ``/stats``. Sizes are bytes, times seconds."""
    slots = manager.views()
    return {
        "models_loaded": len(manager.loaded_ids()),
        "models_available": [s.expert_id for s in slots],
        "experts": {
            s.expert_id: {**_expert_stats(s), "cores": manager.cores(s.expert_id) if s.engine else []}
            for s in slots
        },
        "router": router,
        "memory": manager.memory(),
        "cores": manager.core_policy(),
    }


def _expert_stats(slot: ExpertSlot) -> dict[str, Any]:
    need = None if slot.spec is None else slot.spec.need
    resident = slot.engine is not None
    busy = slot.in_flight > 0 or not resident
    return {
        "state": slot.state.value,
        "domain": slot.config.domain,
        "priority": slot.config.priority,
        "pinned": slot.config.pinned,
        "warm": slot.warm,
        "error": slot.error,
        "loads": slot.loads,
        "unloads": slot.unloads,
        "load_seconds": {"last": _rounded(slot.load_s_last), "mean": _rounded(slot.load_s_mean)},
        "requests": slot.requests,
        "in_flight": slot.in_flight,
        "queue": len(slot.waiters),
        "tokens": {
            "in": _counter(slot.series, "vllm:prompt_tokens"),
            "out": _counter(slot.series, "vllm:generation_tokens"),
        },
        "memory": {
            "weights_bytes": 0 if need is None else need.weights + need.second_copies,
            "kv_bytes": 0 if slot.spec is None else slot.spec.kv_bytes,
            "process_bytes": slot.measured_bytes,
            "predicted_bytes": slot.need_bytes,
        },
        "idle_seconds": None if busy else round(time.monotonic() - slot.last_used, 1),
        "pid": slot.engine.pid if slot.engine is not None else None,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _counter(series: Collector, family: str) -> int:
    return int(
        sum(
            sample.value
            for metric in series.collect()
            if metric.name == family
            for sample in metric.samples
            if sample.name == f"{family}_total"
        )
    )
