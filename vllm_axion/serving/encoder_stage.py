# SPDX-License-Identifier: Apache-2.0
"""One encoder at work in the router: its probe on the examples, its timeout, and its rests after failures."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_axion.serving.config_router import EncoderConfig
from vllm_axion.serving.embedding_cache import EmbeddingCache, EncoderError, Vectors, normalise
from vllm_axion.serving.embedding_probe import EmbeddingProbe
from vllm_axion.serving.metrics import EncoderOutcome
from vllm_axion.serving.text_encoders import BATCH, ExpertEncoder, NotLoadedError, TextEncoder

logger = logging.getLogger("vllm_axion.router")

SHIPPED_PER_DOMAIN = 150  # examples of the package that are encoded
USER_PER_DOMAIN = 500
FAILURES_BEFORE_REST = 3
REST_S = 10.0
_BATCH_TAKES_S = 120.0  # at most, while the examples are encoded: nobody waits for that
_LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True)
class Opinion:
    """Probabilities of the domains (sum 1), and the vector [dim] they come from."""

    probabilities: dict[str, float]
    vector: Vectors
    cache_hit: bool


class StageError(RuntimeError):
    """The stage has no opinion. The message is one line that holds nothing of the text."""

    def __init__(self, outcome: EncoderOutcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


class EncoderStage:
    """Belongs to one event loop."""

    def __init__(
        self,
        config: EncoderConfig,
        encoder: TextEncoder,
        examples: Mapping[str, Sequence[str]],
        cache: EmbeddingCache,
    ) -> None:
        """`examples`: domain -> texts, as `chosen_examples` gives them."""
        self.config = config
        self.encoder = encoder
        self.examples = {domain: tuple(texts) for domain, texts in examples.items()}
        self._cache = cache
        self._probe: EmbeddingProbe | None = None
        self._texts: tuple[str, ...] = ()
        self._task: asyncio.Task[None] | None = None
        self._failures = 0
        self._rest_until = 0.0
        self.problem: str | None = "the examples are not encoded yet"

    @property
    def ready(self) -> bool:
        """Whether the examples are encoded."""
        return self._probe is not None

    def start(self) -> None:
        """Begin to encode the examples, unless that is under way."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._keep_preparing(), name="router-encoder")

    async def wait_until_ready(self, seconds: float) -> bool:
        """Whether the examples are encoded, at the latest after so long."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=seconds)
        return self.ready

    async def prepare(self) -> None:
        """Encode the examples and fit the probe. Raises EncoderError."""
        labelled = [
            (domain, text)
            for domain, texts in self.examples.items()
            for text in dict.fromkeys(map(normalise, texts))
            if text
        ]
        texts = [text for _, text in labelled]
        for at in range(0, len(texts), BATCH):
            try:
                async with asyncio.timeout(_BATCH_TAKES_S):
                    await self._cache.encode(self.encoder, texts[at : at + BATCH])
            except TimeoutError:
                raise EncoderError(f"encoding {BATCH} examples took over {_BATCH_TAKES_S:.0f} s") from None
        # All at once for one width; what a small cache has dropped meanwhile is encoded again.
        if not texts:
            raise EncoderError("there are no examples")
        vectors = (await self._cache.encode(self.encoder, texts)).vectors
        try:
            probe = await asyncio.to_thread(EmbeddingProbe, [domain for domain, _ in labelled], vectors)
        except ValueError as error:
            raise EncoderError(str(error)) from None
        self._texts, self._probe, self.problem = tuple(texts), probe, None

    async def _keep_preparing(self) -> None:
        """`prepare`, tried until it succeeds; each new reason for a failure is one line in the log."""
        pause = 1.0
        while True:
            try:
                await self.prepare()
            except EncoderError as error:
                self._ask_for_load(error)
                if str(error) != self.problem:
                    logger.warning("%s is not used for routing yet: %s", self.encoder.name, error)
                self.problem = str(error)
            else:
                logger.info("%s is used for routing", self.encoder.name)
                return
            await asyncio.sleep(pause)
            # An expert tells at once, and for nothing, that it is not loaded.
            pause = 2.0 if self.config.type == "expert" else min(2 * pause, _LONGEST_PAUSE_S)

    async def judge(self, text: str, *, may_load: bool = True) -> Opinion:
        """What the encoder makes of a normalised text, within the configured time. Raises StageError.

        With `may_load` False an expert that is not loaded is left so whatever the configuration says."""
        if self._probe is None:
            raise StageError("not_ready", self.problem or "not ready")
        if time.monotonic() < self._rest_until:
            raise StageError("not_ready", "it rests after failures")
        try:
            async with asyncio.timeout(self.config.timeout_s):
                encoded = await self._cache.encode(self.encoder, [text])
        except TimeoutError:
            self._note_failure()
            raise StageError("timeout", f"no answer within {self.config.timeout_s:g} s") from None
        except NotLoadedError as error:
            if may_load:
                self._ask_for_load(error)
            raise StageError("not_ready", str(error)) from None
        except EncoderError as error:
            self._note_failure()
            raise StageError("failed", str(error)) from None
        vector = encoded.vectors[0]
        if vector.size != self._probe.dim:
            # Another model answers under the old name: begin anew, with nothing that is left of the old one.
            self._probe, self.problem = None, "the encoder's model has changed"
            self._cache.clear()
            self.start()
            raise StageError("failed", self.problem)
        self._failures = 0
        return Opinion(self._probe.probabilities(vector), vector, encoded.hits[0])

    def nearest(self, opinion: Opinion, domain: str) -> str | None:
        """The example of `domain` most like the text; None when the domain has none."""
        place = None if self._probe is None else self._probe.nearest(opinion.vector, domain)
        return None if place is None else self._texts[place]

    def _ask_for_load(self, error: EncoderError) -> None:
        if self.config.load and isinstance(error, NotLoadedError) and isinstance(self.encoder, ExpertEncoder):
            self.encoder.ask_for_load()

    def _note_failure(self) -> None:
        # A service that hangs must not cost every request its timeout.
        self._failures += 1
        if self._failures >= FAILURES_BEFORE_REST:
            self._rest_until = time.monotonic() + REST_S

    async def close(self) -> None:
        """Stop preparing and let go of the encoder."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await self.encoder.close()


def chosen_examples(
    shipped: Mapping[str, Sequence[str]], own: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """The examples an encoder learns from: the user's, and an even choice of the package's."""
    chosen = {}
    for domain in dict.fromkeys((*shipped, *own)):
        texts = list(shipped.get(domain, ()))
        step = max(1.0, len(texts) / SHIPPED_PER_DOMAIN)
        even = [texts[int(at * step)] for at in range(min(len(texts), SHIPPED_PER_DOMAIN))]
        mine = list(own.get(domain, ()))[:USER_PER_DOMAIN]
        if even or mine:
            chosen[domain] = [*mine, *even]
    return chosen
