# SPDX-License-Identifier: Apache-2.0
"""Encoders that turn text into vectors for the router, beside the built-in `ngram`, behind one protocol.

* `OpenAIEncoder`: any server with OpenAI's `/v1/embeddings`;
* `ExpertEncoder`: an expert of this server that is an embedding model, asked in process;
* `SentenceTransformersEncoder`: a local model, with the extra package sentence-transformers.

Each may fail at any time, and says so with `EncoderError`: the router then decides without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import json
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import httpx
import numpy as np

from vllm_axion.serving import config_values
from vllm_axion.serving.config_router import EncoderConfig, has_sentence_transformers
from vllm_axion.serving.embedding_cache import EncoderError, Vectors, checked
from vllm_axion.serving.errors import ServingError

if TYPE_CHECKING:
    from vllm_axion.serving.config import MultiModelConfig
    from vllm_axion.serving.lazy_expert_manager import LazyExpertManager

BATCH = 32  # texts in one request
RETRIES = 2
FIRST_RETRY_S = 0.1
ASK_FOR_LOAD_EVERY_S = 30.0
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class NotLoadedError(EncoderError):
    """The expert that encodes is not in memory."""


class TextEncoder(Protocol):
    """Turns texts into vectors. `version` names everything that decides them; `dim` is None until known.

    One encoder belongs to one event loop; `encode_now` is for callers that have none."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def dim(self) -> int | None: ...

    async def encode(self, texts: Sequence[str]) -> Vectors:
        """float32 [n, dim], one row a text, in order. Raises EncoderError."""

    async def close(self) -> None:
        """Let go of connections. Harmless twice."""


def encode_now(encoder: TextEncoder, texts: Sequence[str]) -> Vectors:
    """`encoder.encode` for callers without an event loop; closes the encoder. Raises EncoderError."""

    async def once() -> Vectors:
        try:
            return await encoder.encode(texts)
        finally:
            await encoder.close()

    return asyncio.run(once())


def make_encoder(
    encoder: EncoderConfig, config: MultiModelConfig, manager: LazyExpertManager | None = None
) -> TextEncoder:
    """The encoder that a `router.encoder` section describes; not for `ngram`, which is built in.

    Raises EncoderError: a key that cannot be read, a package that is not installed, or an expert as encoder
    where there is no server (`manager` None)."""
    if encoder.type == "openai":
        assert encoder.url is not None and encoder.model is not None
        try:
            secret = encoder.read_key(config.base_dir)
        except ValueError as error:
            raise EncoderError(str(error)) from None
        key = None if secret is None else secret.get_secret_value()
        return OpenAIEncoder(encoder.url, encoder.model, key=key)
    if encoder.type == "expert":
        if manager is None:
            raise EncoderError("an expert can only be the encoder inside a running server")
        assert encoder.expert_id is not None
        return ExpertEncoder(manager, encoder.expert_id, config.base_dir)
    if encoder.type == "sentence-transformers":
        assert encoder.model is not None
        is_local = config_values.is_path(encoder.model)
        model = os.path.normpath(config.base_dir / encoder.model) if is_local else encoder.model
        return SentenceTransformersEncoder(model)
    raise ValueError(f"{encoder.type} is built in and needs no encoder of its own")


def embeddings_url(url: str) -> str:
    """Where to post: `url` may be the server, its `/v1`, or the full address of `…/embeddings`."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    if not path.endswith("/embeddings"):
        path += "/embeddings" if path.endswith("/v1") else "/v1/embeddings"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


class OpenAIEncoder:
    """Any server with OpenAI's `/v1/embeddings`. Batches, and tries again a bounded number of times."""

    def __init__(
        self, url: str, model: str, *, key: str | None = None, client: httpx.AsyncClient | None = None
    ) -> None:
        self._url = embeddings_url(url)
        self._model = model
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client = client
        self._dim: int | None = None
        where = urlsplit(self._url)
        # Without what may stand before the host: it may be a password.
        host = where.hostname or ""
        self.version = f"openai {where.scheme}://{host}:{where.port}{where.path} {model}"
        self.name = f"openai:{model}"

    @property
    def dim(self) -> int | None:
        return self._dim

    async def encode(self, texts: Sequence[str]) -> Vectors:
        # Made at first use, in the event loop it will belong to. Redirects would take the key elsewhere.
        if self._client is None:
            limits = httpx.Limits(max_connections=8)
            self._client = httpx.AsyncClient(timeout=None, follow_redirects=False, limits=limits)
        client = self._client

        async def post(body: dict[str, Any]) -> httpx.Response:
            return await client.post(self._url, json=body, headers=self._headers)

        batches = [
            await _ask(post, self._model, texts[at : at + BATCH], {}, RETRIES)
            for at in range(0, len(texts), BATCH)
        ]
        vectors = _joined(batches, len(texts))
        self._dim = vectors.shape[1]
        return vectors

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


class ExpertEncoder:
    """An expert of this server, asked through a lease and its own app, in process.

    Never waits for a load, so a request that is being routed cannot hang on one: an expert that is not loaded
    gives a NotLoadedError at once.
    """

    def __init__(self, manager: LazyExpertManager, expert_id: str, base_dir: Path) -> None:
        """Raises EncoderError when there is no such expert."""
        self._manager = manager
        self._expert_id = expert_id
        self._asked_at = -ASK_FOR_LOAD_EVERY_S
        self._dim: int | None = None
        if expert_id not in manager.slots:
            raise EncoderError(f"the expert {expert_id} is not running; restart to add it")
        config = manager.slot(expert_id).config
        model = config.resolved_model(base_dir)
        options = [config.dtype, config.quantization, dict(config.engine_args)]
        self.name = f"expert:{expert_id}"
        self.version = f"expert {model} {_state_of_files(model)} {json.dumps(options, sort_keys=True)}"

    @property
    def dim(self) -> int | None:
        return self._dim

    async def encode(self, texts: Sequence[str]) -> Vectors:
        lease = self._manager.try_acquire(self._expert_id)
        if lease is None:
            raise NotLoadedError(f"the expert {self._expert_id} is not loaded")
        try:
            transport = httpx.ASGITransport(lease.engine.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, timeout=None) as client:

                async def post(body: dict[str, Any]) -> httpx.Response:
                    return await client.post("http://expert/v1/embeddings", json=body)

                # vLLM's own word for "cut what is longer than the model takes".
                extra = {"truncate_prompt_tokens": -1}
                batches = [
                    await _ask(post, self._expert_id, texts[at : at + BATCH], extra, 0)
                    for at in range(0, len(texts), BATCH)
                ]
        finally:
            self._manager.release(lease)
        vectors = _joined(batches, len(texts))
        self._dim = vectors.shape[1]
        return vectors

    def ask_for_load(self) -> None:
        """Have it loaded for later requests, as an operator would; waits for nothing."""
        if time.monotonic() - self._asked_at < ASK_FOR_LOAD_EVERY_S:
            return
        self._asked_at = time.monotonic()
        with contextlib.suppress(ServingError):  # no room, or the server is stopping: it stays as it is
            self._manager.request_load(self._expert_id)

    async def close(self) -> None:
        pass


class SentenceTransformersEncoder:
    """A model of the package sentence-transformers, on the CPU, in a thread of its own.

    `model` is a folder or a hub id; code that comes with a model is never run."""

    def __init__(self, model: str) -> None:
        """Raises EncoderError when the package is not installed."""
        if not has_sentence_transformers():
            raise EncoderError(
                "sentence-transformers is not installed; pip install 'vllm-axion[sentence-transformers]'"
            )
        self._model_name = model
        self._model: Any = None
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="router-encoder")
        self._dim: int | None = None
        shown = Path(model).name if Path(model).is_absolute() else model
        self.name = f"sentence-transformers:{shown}"
        self.version = f"sentence-transformers {model} {_state_of_files(model)}"

    @property
    def dim(self) -> int | None:
        return self._dim

    async def encode(self, texts: Sequence[str]) -> Vectors:
        if not texts:
            raise EncoderError("there is nothing to encode")
        made = await asyncio.get_running_loop().run_in_executor(self._thread, self._encode, list(texts))
        vectors = checked(made, len(texts))
        self._dim = vectors.shape[1]
        return vectors

    def _encode(self, texts: list[str]) -> Any:
        try:
            with self._lock:
                if self._model is None:
                    package = importlib.import_module("sentence_transformers")
                    self._model = package.SentenceTransformer(
                        self._model_name, device="cpu", trust_remote_code=False
                    )
            return self._model.encode(texts, batch_size=BATCH, convert_to_numpy=True, show_progress_bar=False)
        except Exception as error:
            # A path or the text itself may stand in the message: only its kind is told.
            raise EncoderError(f"{self.name} failed: {type(error).__name__}") from error

    async def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


async def _ask(
    post: Callable[[dict[str, Any]], Awaitable[httpx.Response]],
    model: str,
    texts: Sequence[str],
    extra: dict[str, Any],
    retries: int,
) -> Vectors:
    """One request, tried again after errors that may pass. The caller bounds the time."""
    body = {"model": model, "input": list(texts), "encoding_format": "float", **extra}
    reason = ""
    for attempt in range(retries + 1):
        if attempt:
            await asyncio.sleep(FIRST_RETRY_S * 2 ** (attempt - 1))
        try:
            response = await post(body)
        except httpx.HTTPError as error:
            reason = f"the encoder cannot be reached ({type(error).__name__})"
            continue
        if response.status_code == 200:
            return _vectors(response.content, len(texts))
        reason = f"the encoder answered with status {response.status_code}"
        if response.status_code not in _PASSING:
            break
    raise EncoderError(reason)


def _vectors(content: bytes, count: int) -> Vectors:
    """The vectors in an answer, in the order of the request. Raises EncoderError."""
    if len(content) > _MAX_ANSWER_BYTES:
        raise EncoderError("the encoder's answer is too large")
    try:
        items = json.loads(content)["data"]
        places = [int(item.get("index", at)) for at, item in enumerate(items)]
        rows = [items[at]["embedding"] for at in np.argsort(places, kind="stable").tolist()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise EncoderError("the encoder's answer is not OpenAI's list of embeddings") from None
    if sorted(places) != list(range(count)):
        raise EncoderError(f"the encoder answered {len(places)} vectors for {count} texts")
    return checked(rows, count)


def _joined(batches: Sequence[Vectors], count: int) -> Vectors:
    if not batches:
        raise EncoderError("there is nothing to encode")
    if len({batch.shape[1] for batch in batches}) != 1:
        raise EncoderError("the encoder's vectors are not of one length")
    return checked(np.concatenate(batches), count)


def _state_of_files(model: str) -> str:
    """A word that changes when the files of a local model do; "" for a hub id."""
    folder = Path(model)
    if not folder.is_dir():
        return ""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.glob("*")):
        info = path.stat()
        digest.update(f"{path.name} {info.st_size} {info.st_mtime_ns}\n".encode())
    return digest.hexdigest()
