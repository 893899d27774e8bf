# SPDX-License-Identifier: Apache-2.0
"""Encoders over real HTTP: what they send, what they accept, when they try again and when they give up."""

from __future__ import annotations

import asyncio
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serving.embedding_server import MODEL, EmbeddingServer, embedding_server, vector
from vllm_axion.serving import text_encoders
from vllm_axion.serving.config import MultiModelConfig
from vllm_axion.serving.embedding_cache import EncoderError
from vllm_axion.serving.text_encoders import (
    BATCH,
    RETRIES,
    OpenAIEncoder,
    SentenceTransformersEncoder,
    embeddings_url,
    encode_now,
    make_encoder,
)


@pytest.fixture
def service() -> Iterator[EmbeddingServer]:
    with embedding_server() as server:
        yield server


def config_with(encoder: dict[str, Any], base_dir: Path = Path("/srv")) -> MultiModelConfig:
    data = {"experts": [{"expert_id": "coder", "model_path": "a/b"}], "router": {"encoder": encoder}}
    return MultiModelConfig.from_data(data, base_dir=base_dir)


# ---------------------------------------------------------------- openai


@pytest.mark.parametrize(
    ("url", "posted_to"),
    [
        ("http://host:1", "http://host:1/v1/embeddings"),
        ("http://host:1/", "http://host:1/v1/embeddings"),
        ("http://host:1/v1", "http://host:1/v1/embeddings"),
        ("https://host/base/v1/", "https://host/base/v1/embeddings"),
        ("http://host/v1/embeddings", "http://host/v1/embeddings"),
        ("https://host/openai/embeddings?api-version=3", "https://host/openai/embeddings?api-version=3"),
    ],
)
def test_the_address_may_be_the_server_its_v1_or_the_route(url: str, posted_to: str) -> None:
    assert embeddings_url(url) == posted_to


def test_many_texts_go_in_batches_and_come_back_in_order(service: EmbeddingServer) -> None:
    texts = [f"texto número {n}" for n in range(2 * BATCH + 5)]
    encoder = OpenAIEncoder(service.url, MODEL)
    assert encoder.dim is None
    vectors = encode_now(encoder, texts)
    assert encoder.dim == service.dim
    assert [len(batch) for batch in service.asked] == [BATCH, BATCH, 5]
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, np.array([vector(text, service.dim) for text in texts], np.float32))


def test_an_error_that_may_pass_is_tried_again(service: EmbeddingServer) -> None:
    service.statuses.extend([503, 429])
    assert encode_now(OpenAIEncoder(service.url, MODEL), ["a"]).shape == (1, service.dim)
    assert service.calls == 3


@pytest.mark.parametrize(("status", "calls"), [(503, 1 + RETRIES), (400, 1), (401, 1), (404, 1), (307, 1)])
def test_tries_are_bounded_and_a_refusal_is_final(service: EmbeddingServer, status: int, calls: int) -> None:
    service.statuses.extend([status] * 10)
    with pytest.raises(EncoderError, match=f"status {status}"):
        encode_now(OpenAIEncoder(service.url, MODEL, key="sk-secret"), ["a"])
    assert service.calls == calls


def test_nobody_there_is_an_error_of_one_line() -> None:
    with pytest.raises(EncoderError, match=r"^the encoder cannot be reached \(ConnectError\)$"):
        encode_now(OpenAIEncoder("http://127.0.0.1:9", MODEL), ["secret words"])


def test_the_key_is_sent_and_is_no_part_of_name_or_version(service: EmbeddingServer, tmp_path: Path) -> None:
    service.key = "sk-1234567890"
    (tmp_path / "key").write_text(service.key)
    settings_ = {"type": "openai", "url": service.url, "model": MODEL}
    config = config_with({**settings_, "key_file": "key"}, tmp_path)
    encoder = make_encoder(config.router.encoder, config)
    assert encode_now(encoder, ["a"]).shape == (1, service.dim)
    assert service.key not in encoder.name + encoder.version
    with pytest.raises(EncoderError, match="status 401"):
        encode_now(OpenAIEncoder(service.url, MODEL), ["a"])


def test_a_password_in_the_address_is_no_part_of_the_version() -> None:
    assert "secret" not in OpenAIEncoder("http://me:secret@host/v1", MODEL).version


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"{}", b"not json", b'{"data": null}', b'{"data": 3}', b'{"data": []}',
        b'{"data": [{"embedding": [1, 2]}, {"embedding": [1, 2]}]}', b'{"data": [{"embedding": "AAAA"}]}',
        b'{"data": [{"embedding": []}]}', b'{"data": [{"embedding": [1e999]}]}', b'{"data": [[1, 2]]}',
        b'{"data": [{"embedding": [NaN]}]}', b'{"data": [{"index": 7, "embedding": [1]}]}',
        b'{"data": [{"index": "x", "embedding": [1]}]}', b'{"data": [{"index": [], "embedding": [1]}]}',
        b'{"data": {"0": {"embedding": [1]}}}', b"[" * 100_000,
        b'{"data": [{"index": 99999999999999999999999, "embedding": [1]}]}',
    ],
    ids=lambda body: body[:40],
)  # fmt: skip
def test_an_answer_in_another_shape_is_an_error(service: EmbeddingServer, body: bytes) -> None:
    service.body = body
    with pytest.raises(EncoderError):
        encode_now(OpenAIEncoder(service.url, MODEL), ["a"])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["data", "embedding", "index"]), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_any_json_is_vectors_or_an_encoder_error(value: Any) -> None:
    try:
        found = text_encoders._vectors(json.dumps(value).encode(), 1)
    except EncoderError:
        return
    assert found.shape[0] == 1 and np.isfinite(found).all()


def test_nothing_to_encode_asks_nobody(service: EmbeddingServer) -> None:
    with pytest.raises(EncoderError):
        encode_now(OpenAIEncoder(service.url, MODEL), [])
    assert service.calls == 0


def test_a_cancelled_request_leaves_an_encoder_that_works(service: EmbeddingServer) -> None:
    async def scenario() -> None:
        encoder = OpenAIEncoder(service.url, MODEL)
        service.delay_s = 0.5
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await encoder.encode(["a"])
        service.delay_s = 0.0
        assert (await encoder.encode(["a"])).shape == (1, service.dim)
        await encoder.close()
        await encoder.close()

    asyncio.run(scenario())


# ---------------------------------------------------------------- sentence-transformers and experts


def test_a_package_that_is_not_there_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_encoders, "has_sentence_transformers", lambda: False)
    with pytest.raises(EncoderError, match=r"pip install 'vllm-axion\[sentence-transformers\]'"):
        SentenceTransformersEncoder("owner/minilm")


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stand-in for the package, with the part of its interface that is used."""

    class SentenceTransformer:
        loads = 0

        def __init__(self, model: str, *, device: str, trust_remote_code: bool) -> None:
            assert device == "cpu" and trust_remote_code is False
            if "missing" in model:
                raise OSError(f"no such model: {model}")
            SentenceTransformer.loads += 1

        def encode(self, texts: list[str], **options: Any) -> Any:
            assert options == {"batch_size": BATCH, "convert_to_numpy": True, "show_progress_bar": False}
            return np.array([vector(text, 8) for text in texts], np.float32)

    made = types.ModuleType("sentence_transformers")
    made.SentenceTransformer = SentenceTransformer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", made)
    monkeypatch.setattr(text_encoders, "has_sentence_transformers", lambda: True)
    return made


def test_a_local_model_is_loaded_once_when_first_asked(package: types.ModuleType, tmp_path: Path) -> None:
    config = config_with({"type": "sentence-transformers", "model": "./minilm"}, tmp_path)
    encoder = make_encoder(config.router.encoder, config)
    assert package.SentenceTransformer.loads == 0
    assert encoder.name == "sentence-transformers:minilm"

    async def twice() -> None:
        for _ in range(2):
            assert (await encoder.encode(["a", "b"])).shape == (2, 8)

    asyncio.run(twice())
    assert package.SentenceTransformer.loads == 1


def test_a_local_model_that_fails_tells_no_path(package: types.ModuleType) -> None:
    encoder = SentenceTransformersEncoder("/home/me/missing")
    with pytest.raises(EncoderError) as caught:
        encode_now(encoder, ["a"])
    assert str(caught.value) == "sentence-transformers:missing failed: OSError"


def test_a_version_changes_with_the_files_of_a_local_model(package: types.ModuleType, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = SentenceTransformersEncoder(str(tmp_path)).version
    assert SentenceTransformersEncoder(str(tmp_path)).version == before
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert SentenceTransformersEncoder(str(tmp_path)).version != before


def test_an_expert_encodes_only_inside_a_server() -> None:
    config = config_with({"type": "expert", "expert_id": "coder"})
    with pytest.raises(EncoderError, match="inside a running server"):
        make_encoder(config.router.encoder, config)


def test_the_package_itself_encodes_with_a_local_model(demo_models: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="an extra, not installed")
    encoder = SentenceTransformersEncoder(str(demo_models / "qwen_coder"))
    first, other, same = encode_now(encoder, ["hola", "adiós a todos", "hola"])
    assert np.allclose(first, same, atol=1e-2) and not np.allclose(first, other, atol=1e-2)
