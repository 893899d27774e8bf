# SPDX-License-Identifier: Apache-2.0
"""The server's router: `SemanticRouter`, with other encoders in front of it or behind it, renewed in place.

Every request is first routed by the built-in router, which takes about a millisecond. It decides alone where
words do not count (an image) and wherever an encoder fails. An encoder replaces the probabilities of the
user's last message, nothing else: follow-ups, threshold, residency and fallback are the same for all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_axion.serving.config import EncoderConfig, MultiModelConfig
from vllm_axion.serving.config_router import makes_embeddings
from vllm_axion.serving.embedding_cache import FILE_NAME, EmbeddingCache, EncoderError, normalise
from vllm_axion.serving.encoder_stage import EncoderStage, Opinion, StageError, chosen_examples
from vllm_axion.serving.metrics import EncoderOutcome, ServerMetrics
from vllm_axion.serving.semantic_router import Route, SemanticRouter, built_in_examples, user_turns
from vllm_axion.serving.text_encoders import make_encoder

if TYPE_CHECKING:
    from vllm_axion.serving.lazy_expert_manager import LazyExpertManager

logger = logging.getLogger("vllm_axion.router")

BUILT_IN = "ngram"
SAVE_EVERY_S = 300.0
NEW_ENCODER_GETS_S = 10.0  # to encode its examples before a renewed router takes over without it


@dataclass(frozen=True)
class Routed:
    """A route, and how it came about beside `route.reason`.

    `encoder` is the one whose probabilities decided; `second_stage` whether a second one was asked;
    `cache_hit` whether the deciding vector was known (None: nothing was encoded); `fallback` why an encoder
    that should have been asked was not heard."""

    route: Route
    encoder: str = BUILT_IN
    second_stage: bool = False
    cache_hit: bool | None = None
    fallback: str | None = None

    def explained(self) -> dict[str, Any]:
        """All of it as one flat JSON object."""
        extra = asdict(self)
        return {**extra.pop("route"), **extra}


@dataclass(frozen=True)
class _Generation:
    """What one state of the configuration file amounts to. Swapped as a whole."""

    config: MultiModelConfig
    router: SemanticRouter
    stages: Mapping[str, EncoderStage]  # by field of the `router` section; without the built-in encoder
    broken: Mapping[str, str]  # stages that could not be made, and why
    pooling: frozenset[str]  # experts that encode and do not chat


class StagedRouter:
    """Belongs to one event loop, but for `config`, which may be read from anywhere."""

    def __init__(
        self,
        config: MultiModelConfig,
        *,
        manager: LazyExpertManager | None = None,
        metrics: ServerMetrics | None = None,
        cache_folder: Path | None = None,
    ) -> None:
        """`cache_folder` is where a persistent cache is kept; without it none is."""
        settings = config.router.embedding_cache
        path = cache_folder / FILE_NAME if cache_folder is not None and settings.persist else None
        self._manager = manager
        self._metrics = metrics
        self.cache = EmbeddingCache(settings.max_entries, path)
        self._now = self._generation(config, SemanticRouter(config), {})
        self._renewing = asyncio.Lock()
        self._saver: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._fallbacks = self._second_stages = self._renewals = 0

    @property
    def pooling_experts(self) -> frozenset[str]:
        """Experts that encode and do not chat: those set up so, and those of the router."""
        return self._now.pooling

    @property
    def config(self) -> MultiModelConfig:
        """The configuration it routes by."""
        return self._now.config

    def start(self) -> None:
        """Begin to encode the examples, and to save a persistent cache from time to time."""
        for stage in self._now.stages.values():
            stage.start()
        if self._saver is None:
            self._saver = asyncio.create_task(self._keep_saving(), name="router-cache")

    async def stop(self) -> None:
        """Let go of the encoders and save the cache."""
        if self._saver is not None:
            self._saver.cancel()
        for stage in self._now.stages.values():
            await stage.close()
        await asyncio.to_thread(self.cache.save)

    async def renew(self, config: MultiModelConfig) -> None:
        """Route by another configuration from now on; a request sees the old one or the new, whole.

        Stages of which nothing changed are kept. Raises nothing beyond what a valid configuration allows."""
        async with self._renewing:
            router = await asyncio.to_thread(SemanticRouter, config)
            old = self._now
            new = self._generation(config, router, old.stages)
            for stage in new.stages.values():
                stage.start()
            fresh = [stage for stage in new.stages.values() if stage not in old.stages.values()]
            await asyncio.gather(*(stage.wait_until_ready(NEW_ENCODER_GETS_S) for stage in fresh))
            self.cache.resize(config.router.embedding_cache.max_entries)
            self._now = new
            self._renewals += 1
            for stage in old.stages.values():
                if stage not in new.stages.values():
                    task = asyncio.create_task(_close_later(stage))
                    self._closing.add(task)
                    task.add_done_callback(self._closing.discard)

    async def route(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        loaded: Collection[str] = (),
        usable: Collection[str] | None = None,
        context: Mapping[str, int] | None = None,
        may_load: bool = True,
    ) -> Routed:
        """As `SemanticRouter.route`, with the configured encoders. Never raises on odd content.

        `may_load` False leaves an expert that encodes unloaded even where the configuration has it loaded."""
        began = time.perf_counter()
        now = self._now
        plain = now.router.route(messages, loaded=loaded, usable=usable, context=context)
        settings = now.config.router
        if not settings.encoders() or plain.signal != "content":
            return Routed(plain)
        turns = user_turns(messages)
        text = normalise(turns[-1]) if turns else ""
        if not any(map(str.isalpha, text)):
            return Routed(plain)

        async def ask(field: str, encoder: EncoderConfig) -> Routed:
            if encoder.type == BUILT_IN:
                return Routed(plain)
            try:
                stage, opinion = await self._judge(now, field, text, may_load)
            except StageError as error:
                self._fallbacks += 1
                self._count(field, error.outcome)
                stage_name = now.stages[field].encoder.name if field in now.stages else encoder.type
                return Routed(plain, fallback=f"without {stage_name}: {error}")
            self._count(field, "used")
            route = now.router.route(
                messages, loaded=loaded, usable=usable, context=context, content=opinion.probabilities
            )
            return Routed(_told(route, stage, opinion), stage.encoder.name, cache_hit=opinion.cache_hit)

        routed = await ask("encoder", settings.encoder)
        notes = [routed.fallback]
        second = settings.second_stage
        if second is not None and (routed.route.abstained or routed.fallback):
            self._second_stages += 1
            first, routed = routed, await ask("second_stage", second)
            notes.append(routed.fallback)
            if routed.fallback:
                routed = first
            elif not first.fallback:
                notes.append(f"second stage, since {first.encoder} was unsure")
            routed = replace(routed, second_stage=True, fallback="; ".join(filter(None, notes[:2])) or None)
        reason = "; ".join((routed.route.reason, *filter(None, notes)))
        ms = (time.perf_counter() - began) * 1000.0
        return replace(routed, route=replace(routed.route, reason=reason, ms=ms))

    def stats(self) -> dict[str, Any]:
        """The encoders' and the cache's part of `/stats`."""
        now = self._now
        stages: dict[str, Any] = {}
        for field in ("encoder", "second_stage"):
            settings = getattr(now.config.router, field)
            if settings is None:
                stages[field] = None
            elif settings.type == BUILT_IN:
                stages[field] = {"name": BUILT_IN, "ready": True, "problem": None}
            elif field in now.broken:
                stages[field] = {"name": settings.type, "ready": False, "problem": now.broken[field]}
            else:
                stage = now.stages[field]
                stages[field] = {
                    "name": stage.encoder.name,
                    "ready": stage.ready,
                    "problem": stage.problem,
                    "examples": sum(map(len, stage.examples.values())),
                }
        return {
            **stages,
            "second_stages": self._second_stages,
            "fallbacks": self._fallbacks,
            "renewals": self._renewals,
            "cache": asdict(self.cache.stats()),
        }

    async def _judge(
        self, now: _Generation, field: str, text: str, may_load: bool
    ) -> tuple[EncoderStage, Opinion]:
        stage = now.stages.get(field)
        if stage is None:
            raise StageError("not_ready", now.broken.get(field, "not ready"))
        before = self.cache.stats()
        try:
            return stage, await stage.judge(text, may_load=may_load)
        finally:
            if self._metrics is not None:
                after = self.cache.stats()
                self._metrics.router_cache_used(
                    hits=after.hits - before.hits,
                    misses=after.misses - before.misses,
                    entries=after.entries,
                    size=after.bytes,
                )

    def _count(self, field: str, outcome: EncoderOutcome) -> None:
        if self._metrics is not None:
            self._metrics.encoder_asked("first" if field == "encoder" else "second", outcome)

    def _generation(
        self, config: MultiModelConfig, router: SemanticRouter, old: Mapping[str, EncoderStage]
    ) -> _Generation:
        stages: dict[str, EncoderStage] = {}
        broken: dict[str, str] = {}
        own = {
            domain: declared.examples or ([declared.description] if declared.description else [])
            for domain, declared in config.domains.items()
        }
        for field, settings in config.router.encoders().items():
            examples = chosen_examples(built_in_examples(), own)
            same = [
                stage
                for stage in old.values()
                if stage.config == settings and stage.examples == {d: tuple(t) for d, t in examples.items()}
            ]
            if same:
                stages[field] = same[0]
                continue
            try:
                encoder = make_encoder(settings, config, self._manager)
            except EncoderError as error:
                logger.warning("router.%s: %s; %s is used", field, error, BUILT_IN)
                broken[field] = str(error)
            else:
                stages[field] = EncoderStage(settings, encoder, examples, self.cache)
        encoding = {settings.expert_id for settings in config.router.encoders().values()}
        pooling = {e.expert_id for e in config.experts if e.expert_id in encoding or makes_embeddings(e)}
        return _Generation(config, router, stages, broken, frozenset(pooling))

    async def _keep_saving(self) -> None:
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            await asyncio.to_thread(self.cache.save)


async def _close_later(stage: EncoderStage) -> None:
    # Requests that began with the old router may still be asking it.
    await asyncio.sleep(stage.config.timeout_s + 1.0)
    await stage.close()


def _told(route: Route, stage: EncoderStage, opinion: Opinion) -> Route:
    """The route with the encoder's own reasons: the words of the built-in classifier had no part in it."""
    example = stage.nearest(opinion, route.domain)
    evidence: tuple[str, ...] = ()
    if example is not None:
        evidence = (f"like «{example if len(example) <= 60 else example[:59] + '…'}»",)
    return replace(route, evidence=evidence, reason=f"{route.reason}, by {stage.encoder.name}")
