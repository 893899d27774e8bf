# SPDX-License-Identifier: Apache-2.0
"""The router with encoders over real HTTP: who decides, what a failing encoder costs, renewal in place."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serving.embedding_server import MODEL, EmbeddingServer, embedding_server
from vllm_axion.serving import encoder_stage, staged_router
from vllm_axion.serving.config import MultiModelConfig
from vllm_axion.serving.embedding_cache import FILE_NAME
from vllm_axion.serving.encoder_stage import FAILURES_BEFORE_REST, chosen_examples
from vllm_axion.serving.metrics import ServerMetrics
from vllm_axion.serving.semantic_router import SemanticRouter
from vllm_axion.serving.staged_router import Routed, StagedRouter

DOMAINS = ("general", "technical", "coding", "multimodal_expert", "multilingual_expert")
LEGAL = {
    "legal": {
        "description": "Law",
        "examples": [
            "¿Es válida esta cláusula del contrato de alquiler?",
            "My landlord wants to evict me, what does the lease say?",
            "Draft a non-disclosure agreement for a contractor",
            "¿Puedo recurrir una multa fuera de plazo?",
            "What is the difference between a lease and a licence in law?",
        ],
    }
}
UNSURE = "mmm esto de aquello, lo de siempre"


@pytest.fixture
def service() -> Iterator[EmbeddingServer]:
    with embedding_server() as server:
        yield server


@pytest.fixture(autouse=True)
def fewer_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_stage, "SHIPPED_PER_DOMAIN", 40)


def config(**router: Any) -> MultiModelConfig:
    domains = router.pop("domains", {})
    experts = [
        {"expert_id": f"{domain}_1", "model_path": "a/b", "domain": domain} for domain in (*DOMAINS, *domains)
    ]
    data = {"experts": experts, "router": router, "domains": domains}
    return MultiModelConfig.from_data(data, base_dir=Path("/srv"))


def openai(service: EmbeddingServer, **fields: Any) -> dict[str, Any]:
    return {"type": "openai", "url": service.url, "model": MODEL, "timeout_s": 20, **fields}


def said(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def metrics() -> ServerMetrics:
    return ServerMetrics({f"{domain}_1": domain for domain in DOMAINS})


class Running:
    """A started router whose stages are ready, as a context."""

    def __init__(self, config: MultiModelConfig, *, wait: bool = True, **options: Any) -> None:
        self._router = StagedRouter(config, **options)
        self._wait = wait

    async def __aenter__(self) -> StagedRouter:
        self._router.start()
        if self._wait:
            for stage in self._router._now.stages.values():
                assert await stage.wait_until_ready(60), stage.problem
        return self._router

    async def __aexit__(self, *_: object) -> None:
        await self._router.stop()


async def ask(router: StagedRouter, text: str, **options: Any) -> Routed:
    return await router.route(said(text), **options)


# ---------------------------------------------------------------- who decides


async def test_without_other_encoders_it_is_the_built_in_router() -> None:
    plain = SemanticRouter(config())
    async with Running(config()) as router:
        for text in ["Escribe código Python", "hola", "", "¿cómo funciona un motor?"]:
            routed = await ask(router, text)
            expected = plain.route(said(text))
            assert routed.route.probabilities == expected.probabilities
            assert (routed.encoder, routed.second_stage, routed.cache_hit) == ("ngram", False, None)


async def test_an_encoder_over_http_decides_and_explains_itself(service: EmbeddingServer) -> None:
    async with Running(config(encoder=openai(service), domains=LEGAL)) as router:
        service.asked.clear()
        first = await ask(router, "¿Es válida esta cláusula del contrato?")
        again = await ask(router, "  ¿Es válida   esta cláusula del contrato? ")
    assert first.route.domain == "legal"
    assert first.encoder == f"openai:{MODEL}" and f"by openai:{MODEL}" in first.route.reason
    assert [first.cache_hit, again.cache_hit] == [False, True]
    assert service.texts == ["¿Es válida esta cláusula del contrato?"]
    assert first.route.evidence[0].startswith("like «")
    assert sum(first.route.probabilities.values()) == pytest.approx(1.0)
    told = first.explained()
    assert {"expert_id", "confidence", "encoder", "second_stage", "cache_hit", "fallback"} <= set(told)


async def test_the_second_stage_is_asked_only_where_the_first_is_unsure(service: EmbeddingServer) -> None:
    async with Running(config(threshold=0.9, second_stage=openai(service))) as router:
        service.asked.clear()
        sure = await ask(router, "Escribe código Python que sume una lista")
        assert service.texts == []
        assert (sure.encoder, sure.second_stage) == ("ngram", False)
        router_alone = SemanticRouter(config(threshold=0.9))
        assert router_alone.route(said(UNSURE)).abstained, (
            "the test needs a text the first stage is unsure of"
        )
        unsure = await ask(router, UNSURE)
        assert service.texts == [UNSURE]
        assert (unsure.encoder, unsure.second_stage, unsure.cache_hit) == (f"openai:{MODEL}", True, False)
        assert "second stage, since ngram was unsure" in unsure.route.reason
        assert router.stats()["second_stages"] == 1


async def test_the_built_in_encoder_may_be_the_second_stage(service: EmbeddingServer) -> None:
    async with Running(config(threshold=1.0, encoder=openai(service), second_stage="ngram")) as router:
        routed = await ask(router, "Escribe código Python")
    assert (routed.encoder, routed.second_stage) == ("ngram", True)
    assert (
        routed.route.probabilities
        == SemanticRouter(config()).route(said("Escribe código Python")).probabilities
    )


async def test_images_and_texts_without_a_letter_are_not_encoded(service: EmbeddingServer) -> None:
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    async with Running(config(encoder=openai(service))) as router:
        service.asked.clear()
        assert (await router.route(image)).route.domain == "multimodal_expert"
        for text in ["", "   ", "12345", "😀😀", "\ud800", "\x00\u202e"]:
            assert (await ask(router, text)).encoder == "ngram"
        assert service.texts == []


async def test_a_follow_up_stays_with_the_talk_whatever_the_encoder_says(service: EmbeddingServer) -> None:
    talk = [*said("Escribe código Python"), {"role": "assistant", "content": "…"}, *said("¿y en Rust?")]
    async with Running(config(encoder=openai(service))) as router:
        assert (await router.route(talk)).route.domain == "coding"


async def test_a_domain_of_the_user_is_found_by_the_encoder_without_training(
    service: EmbeddingServer,
) -> None:
    async with Running(config(encoder=openai(service), domains=LEGAL)) as router:
        for text in [
            "¿Es legal esta cláusula de mi contrato?",
            "my landlord will not return the lease deposit",
        ]:
            routed = await ask(router, text)
            assert routed.route.domain == "legal", routed
            assert routed.route.expert_id == "legal_1"


def test_every_example_of_the_user_counts_and_those_of_the_package_are_thinned() -> None:
    shipped = {"a": [f"text {n}" for n in range(1000)], "b": ["one"]}
    chosen = chosen_examples(shipped, {"b": ["mine"], "c": ["new"] * 3, "d": []})
    assert len(chosen["a"]) == len(set(chosen["a"])) == encoder_stage.SHIPPED_PER_DOMAIN
    assert chosen["b"] == ["mine", "one"]
    assert set(chosen) == {"a", "b", "c"}


# ---------------------------------------------------------------- failures


async def test_until_the_examples_are_encoded_the_built_in_encoder_decides(service: EmbeddingServer) -> None:
    service.delay_s = 0.3
    async with Running(config(encoder=openai(service)), wait=False) as router:
        routed = await ask(router, "Escribe código Python")
        assert routed.encoder == "ngram" and routed.route.domain == "coding"
        assert routed.fallback is not None and "examples are not encoded yet" in routed.fallback
        assert routed.fallback in routed.route.reason
        assert not router.stats()["encoder"]["ready"]


async def test_a_slow_encoder_costs_its_timeout_and_after_some_failures_nothing(
    service: EmbeddingServer,
) -> None:
    counted = metrics()
    settings_ = config(encoder=openai(service, timeout_s=0.2))
    async with Running(settings_, metrics=counted) as router:
        service.delay_s = 1.0
        for n in range(FAILURES_BEFORE_REST):
            routed = await ask(router, f"Escribe código Python, número {n}")
            assert routed.encoder == "ngram" and routed.route.domain == "coding"
            assert "no answer within 0.2 s" in routed.route.reason
        began = time.monotonic()
        rested = await ask(router, "Escribe código Python, otra vez")
        assert time.monotonic() - began < 0.2
        assert "it rests after failures" in rested.route.reason
        assert router.stats()["fallbacks"] == FAILURES_BEFORE_REST + 1

    def sample(outcome: str) -> float | None:
        labels = {"stage": "first", "outcome": outcome}
        return counted.registry.get_sample_value("vllm_axion:router_encoder_total", labels)

    assert sample("timeout") == FAILURES_BEFORE_REST
    assert sample("not_ready") == 1


async def test_an_encoder_that_comes_back_is_used_again(
    service: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_stage, "REST_S", 0.2)
    async with Running(config(encoder=openai(service))) as router:
        service.statuses.extend([400] * FAILURES_BEFORE_REST)
        for n in range(FAILURES_BEFORE_REST):
            assert "status 400" in (await ask(router, f"hola, qué tal {n}")).route.reason
        await asyncio.sleep(0.3)
        assert (await ask(router, "hola, qué tal estás")).encoder == f"openai:{MODEL}"


async def test_a_failing_first_stage_gives_way_to_the_second(service: EmbeddingServer) -> None:
    dead = {"type": "openai", "url": "http://127.0.0.1:9", "model": "gone"}
    async with Running(config(encoder=dead, second_stage=openai(service)), wait=False) as router:
        assert await router._now.stages["second_stage"].wait_until_ready(60)
        routed = await ask(router, "Escribe código Python")
    assert (routed.encoder, routed.second_stage) == (f"openai:{MODEL}", True)
    assert routed.fallback is not None and "openai:gone" in routed.fallback


async def test_an_encoder_that_starts_later_is_found(
    service: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.statuses.extend([404, 404])
    async with Running(config(encoder=openai(service))) as router:
        assert router.stats()["encoder"]["ready"]
        assert (await ask(router, "Escribe código Python")).encoder == f"openai:{MODEL}"


async def test_another_model_behind_the_same_name_is_learnt_anew(service: EmbeddingServer) -> None:
    async with Running(config(encoder=openai(service))) as router:
        service.dim = 256
        changed = await ask(router, "Escribe código Python")
        assert "the encoder's model has changed" in changed.route.reason
        assert await router._now.stages["encoder"].wait_until_ready(60)
        assert (await ask(router, "Escribe código Python")).encoder == f"openai:{MODEL}"


async def test_a_key_that_went_away_is_told_and_routing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AXION_TEST_KEY", "sk-1234567890")
    encoder = {"type": "openai", "url": "http://127.0.0.1:9", "model": "m", "key_env": "AXION_TEST_KEY"}
    settings_ = config(encoder=encoder)
    monkeypatch.delenv("AXION_TEST_KEY")
    async with Running(settings_) as router:
        routed = await ask(router, "Escribe código Python")
        assert routed.route.domain == "coding" and "AXION_TEST_KEY is not set" in routed.route.reason
        assert router.stats()["encoder"]["problem"] is not None


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["user", "text", "image_url", "\ud800\x00", "Escribe código Python"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "image_url"]), inner, max_size=4
        )
    ),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=ODD)
def test_no_message_makes_it_raise(messages: Any) -> None:
    async def scenario() -> None:
        dead = {"type": "openai", "url": "http://127.0.0.1:9", "model": "gone"}
        router = StagedRouter(config(encoder=dead, second_stage=dead))
        routed = await router.route(messages)
        assert routed.route.expert_id

    asyncio.run(scenario())


# ---------------------------------------------------------------- renewal and the cache


async def test_a_renewed_router_knows_the_new_domain_and_keeps_what_did_not_change(
    service: EmbeddingServer,
) -> None:
    async with Running(config(encoder=openai(service), domains=LEGAL)) as router:
        stage = router._now.stages["encoder"]
        await router.renew(config(encoder=openai(service), domains=LEGAL, threshold=0.25))
        assert router._now.stages["encoder"] is stage
        assert router.config.router.threshold == 0.25
        service.asked.clear()
        cooking = {"cooking": {"examples": ["cómo hago una tortilla de patatas", "roast chicken recipe"]}}
        await router.renew(config(encoder=openai(service), domains={**LEGAL, **cooking}))
        assert len(service.texts) == 2, "known examples are in the cache"
        routed = await ask(router, "cómo hago tortilla de patatas con cebolla")
        assert routed.route.domain == "cooking"
        await router.renew(config())
        assert (await ask(router, "Escribe código Python")).encoder == "ngram"
        assert router.stats()["renewals"] == 3


async def test_requests_during_a_renewal_see_the_old_router_or_the_new_one(service: EmbeddingServer) -> None:
    async with Running(config(encoder=openai(service))) as router:
        service.delay_s = 0.05
        renewal = asyncio.create_task(router.renew(config(encoder=openai(service), domains=LEGAL)))
        seen = set()
        while not renewal.done():
            routed = await ask(router, "Escribe código Python")
            seen.add("legal" in routed.route.probabilities)
            assert routed.encoder == f"openai:{MODEL}"
            await asyncio.sleep(0.01)
        await renewal
        seen.add("legal" in (await ask(router, "Escribe código Python")).route.probabilities)
        assert seen == {False, True}


async def test_examples_are_not_encoded_again_after_a_restart_with_a_persistent_cache(
    service: EmbeddingServer, tmp_path: Path
) -> None:
    settings_ = config(encoder=openai(service), embedding_cache={"persist": True})
    async with Running(settings_, cache_folder=tmp_path):
        assert service.texts
    assert (tmp_path / FILE_NAME).exists()
    service.asked.clear()
    async with Running(settings_, cache_folder=tmp_path) as router:
        assert service.texts == []
        assert router.stats()["cache"]["persistent"]


async def test_nothing_is_written_unless_asked(service: EmbeddingServer, tmp_path: Path) -> None:
    async with Running(config(encoder=openai(service)), cache_folder=tmp_path) as router:
        assert not router.stats()["cache"]["persistent"]
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - in a coroutine


async def test_the_cache_is_saved_from_time_to_time(
    service: EmbeddingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staged_router, "SAVE_EVERY_S", 0.05)
    settings_ = config(encoder=openai(service), embedding_cache={"persist": True})
    async with Running(settings_, cache_folder=tmp_path):
        for _ in range(1000):
            if (tmp_path / FILE_NAME).exists():
                break
            await asyncio.sleep(0.02)
        assert (tmp_path / FILE_NAME).exists()
