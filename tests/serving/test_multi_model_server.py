# SPDX-License-Identifier: Apache-2.0
"""The server as its users meet it: five experts behind one address, spoken to with the official client."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from openai.types.chat import ChatCompletion
from PIL import Image

from tests.serving.running_server import RunningServer, StartServer
from tests.serving.stalled_load import engine_pids, stalled_load

EXPERTS = ["phi4_fast", "mistral_balanced", "qwen_coder", "gemma3_multimodal", "aya_expanse_multilingual"]
HOLA: list[Any] = [{"role": "user", "content": "Hola"}]
CODE: list[Any] = [{"role": "user", "content": "Write a Python function that sorts a list of tuples"}]
BIN = Path(sys.executable).parent


# Models


def test_the_official_client_lists_and_retrieves_models(server: RunningServer) -> None:
    client = server.openai()
    listed = client.models.list().data
    assert [m.id for m in listed] == [*EXPERTS, "auto"]
    for name in (*EXPERTS, "auto"):
        assert client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("gpt-4o")
    assert refused.value.code == "model_not_found"


# Chat


@pytest.mark.parametrize("expert_id", EXPERTS)
def test_each_expert_answers_by_name(server: RunningServer, expert_id: str) -> None:
    answer = server.openai().chat.completions.create(
        model=expert_id, messages=[{"role": "user", "content": "Hola"}], max_tokens=4
    )
    assert answer.model == expert_id
    assert answer.usage is not None and answer.usage.completion_tokens == 4


@pytest.mark.parametrize("expert_id", EXPERTS)
def test_each_expert_streams(server: RunningServer, expert_id: str) -> None:
    stream = server.openai().chat.completions.create(
        model=expert_id,
        messages=HOLA,
        max_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    chunks = list(stream)
    assert {chunk.model for chunk in chunks} == {expert_id}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    usage = chunks[-1].usage
    assert usage is not None and usage.completion_tokens == 8 and not chunks[-1].choices


def test_a_stream_is_server_sent_events_that_end_with_done(server: RunningServer) -> None:
    body = {"model": "phi4_fast", "messages": HOLA, "max_tokens": 3, "stream": True}
    with server.http() as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = list(answer.iter_lines())
    assert answer.headers["content-type"].startswith("text/event-stream")
    data = [line for line in lines if line]
    assert all(line.startswith("data: ") for line in data) and data[-1] == "data: [DONE]"
    for line in data[:-1]:
        assert json.loads(line.removeprefix("data: "))["object"] == "chat.completion.chunk"


@pytest.mark.parametrize("model", ["auto", "", None, "absent"])
def test_without_a_model_the_router_chooses(server: RunningServer, model: str | None) -> None:
    body: dict[str, Any] = {"messages": CODE, "max_tokens": 2}
    if model != "absent":
        body["model"] = model
    with server.http() as client:
        answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == answer.headers["x-axion-expert"] == "qwen_coder"
    assert answer.headers["x-axion-domain"] == "coding"
    assert 0 < float(answer.headers["x-axion-confidence"]) <= 1


def test_auto_works_with_the_official_client(server: RunningServer) -> None:
    answer = server.openai().chat.completions.create(model="auto", messages=CODE, max_tokens=2)
    assert answer.model == "qwen_coder"
    streamed = list(
        server.openai().chat.completions.create(model="auto", messages=CODE, max_tokens=2, stream=True)
    )
    assert {chunk.model for chunk in streamed} == {"qwen_coder"}


def test_the_router_sends_each_kind_of_question_to_its_expert(server: RunningServer) -> None:
    asked = {
        "Corrige este error: TypeError en mi función de Python": "qwen_coder",
        "请用中文介绍一下北京的历史": "aya_expanse_multilingual",
    }
    for question, expert_id in asked.items():
        answer = server.openai().chat.completions.create(
            model="auto", messages=[{"role": "user", "content": question}], max_tokens=1
        )
        assert answer.model == expert_id, question


def test_headers_say_who_answered_and_a_named_expert_is_certain(server: RunningServer) -> None:
    with server.http() as client:
        answer = client.post(
            "/v1/chat/completions", json={"model": "phi4_fast", "messages": HOLA, "max_tokens": 1}
        )
    assert answer.headers["x-axion-expert"] == "phi4_fast"
    assert answer.headers["x-axion-domain"] == "general"
    assert answer.headers["x-axion-confidence"] == "1.000"
    assert int(answer.headers["x-axion-load-ms"]) >= 0
    assert answer.headers["x-request-id"]


def test_two_choices_with_log_probabilities(server: RunningServer) -> None:
    answer = server.openai().chat.completions.create(
        model="qwen_coder", messages=HOLA, n=2, max_tokens=3, logprobs=True, top_logprobs=4
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.logprobs is not None and choice.logprobs.content
        for token in choice.logprobs.content:
            assert token.logprob <= 0
            assert len(token.top_logprobs) in (4, 5)  # the sampled token is added if it is not among the four


def test_a_seed_repeats_an_answer(server: RunningServer) -> None:
    def ask(seed: int) -> str | None:
        answer = server.openai().chat.completions.create(
            model="mistral_balanced", messages=HOLA, max_tokens=12, seed=seed
        )
        return answer.choices[0].message.content

    assert ask(1) == ask(1) != ask(2)


def test_structured_output_follows_its_schema(server: RunningServer) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "colour": {"enum": ["red", "green"]}},
        "required": ["ok", "colour"],
        "additionalProperties": False,
    }
    answer = server.openai().chat.completions.create(
        model="qwen_coder",
        messages=HOLA,
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        extra_body={"structured_outputs": {"json": schema, "disable_any_whitespace": True}},
    )
    found = json.loads(answer.choices[0].message.content or "")
    assert isinstance(found["ok"], bool) and found["colour"] in ("red", "green")


# vLLM's other endpoints


def test_completions(server: RunningServer) -> None:
    answer = server.openai().completions.create(
        model="aya_expanse_multilingual", prompt="Érase una vez", max_tokens=3, logprobs=1, echo=True
    )
    assert answer.model == "aya_expanse_multilingual" and answer.choices[0].text.startswith("Érase una vez")
    streamed = list(
        server.openai().completions.create(
            model="", prompt="def f(x):\n    return", max_tokens=3, stream=True
        )
    )
    assert streamed and {c.object for c in streamed} == {"text_completion"}


def test_anthropic_messages(server: RunningServer) -> None:
    with server.http() as client:
        answer = client.post("/v1/messages", json={"model": "phi4_fast", "messages": HOLA, "max_tokens": 3})
        assert answer.status_code == 200 and answer.json()["type"] == "message"
        assert answer.json()["model"] == "phi4_fast" and answer.json()["usage"]["output_tokens"] == 3
        routed = client.post("/v1/messages", json={"messages": CODE, "max_tokens": 1})
        assert routed.json()["model"] == "qwen_coder"


def test_tokenize_and_back(server: RunningServer) -> None:
    with server.http() as client:
        tokens = client.post("/tokenize", json={"model": "qwen_coder", "prompt": "Hola mundo"}).json()
        assert tokens["count"] == len(tokens["tokens"]) > 0
        text = client.post("/detokenize", json={"model": "qwen_coder", "tokens": tokens["tokens"]}).json()
    assert text["prompt"] == "Hola mundo"


def test_an_endpoint_the_expert_does_not_have_is_404_and_says_whose(server: RunningServer) -> None:
    with pytest.raises(openai.NotFoundError, match="qwen_coder has no /v1/embeddings"):
        server.openai().embeddings.create(model="qwen_coder", input="x")


# Pictures


def _picture(colour: str) -> str:
    data = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _about_a_picture(url: str) -> list[Any]:
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    return [{"role": "user", "content": parts}]


def _look_at(server: RunningServer, url: str) -> tuple[ChatCompletion, list[float]]:
    answer = server.openai().chat.completions.create(
        model="", messages=_about_a_picture(url), max_tokens=4, temperature=0, logprobs=True, top_logprobs=5
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    return answer, [top.logprob for token in logprobs.content for top in token.top_logprobs]


def test_a_picture_without_model_is_looked_at_by_gemma(server: RunningServer) -> None:
    red, red_logprobs = _look_at(server, _picture("red"))
    blue, blue_logprobs = _look_at(server, _picture("blue"))
    again, again_logprobs = _look_at(server, _picture("red"))
    assert red.model == blue.model == again.model == "gemma3_multimodal"
    words_only = server.openai().chat.completions.create(
        model="gemma3_multimodal", messages=[{"role": "user", "content": "What is it?"}], max_tokens=1
    )
    assert red.usage and words_only.usage
    assert red.usage.prompt_tokens > words_only.usage.prompt_tokens + 4, (
        "the image takes tokens of the prompt"
    )
    assert red_logprobs == pytest.approx(again_logprobs, abs=1e-3)
    assert red_logprobs != pytest.approx(blue_logprobs, abs=1e-3), (
        "the answer depends on what is in the image"
    )


@pytest.mark.parametrize(
    "url", ["https://example.org/a.png", "http://127.0.0.1/a.png", "file:///etc/hostname", "/etc/hostname"]
)
def test_pictures_from_elsewhere_are_refused(server: RunningServer, url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="data: URL") as refused:
        server.openai().chat.completions.create(model="", messages=_about_a_picture(url))
    assert "hostname" not in str(refused.value)


def test_a_picture_that_is_none_is_the_clients_fault(server: RunningServer) -> None:
    with pytest.raises(openai.BadRequestError):
        server.openai().chat.completions.create(
            model="gemma3_multimodal", messages=_about_a_picture("data:image/png;base64,bm90IGFuIGltYWdl")
        )


# What clients do wrong


@pytest.mark.parametrize(
    ("content", "content_type", "says"),
    [
        (b'{"messages": [', "application/json", "not JSON"),
        (b"[]", "application/json", "must be an object"),
        (b"", "application/json", None),
        (b"messages=x", "application/x-www-form-urlencoded", "Content-Type: application/json"),
        (b'{"messages":[]}', "text/plain", "Content-Type: application/json"),
        (b'{"model":["qwen_coder"]}', "application/json", "must be a string"),
    ],
)
def test_a_bad_body_is_400_in_openai_shape(
    server: RunningServer, content: bytes, content_type: str, says: str | None
) -> None:
    with server.http() as client:
        answer = client.post("/v1/chat/completions", content=content, headers={"content-type": content_type})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert says is None or (says in error["message"] and error["code"] == "invalid_request")


@pytest.mark.parametrize(
    "name",
    [
        "gpt-4o",
        "AUTO",
        "Qwen_Coder",
        "../../etc/passwd",
        "/models/qwen_coder",
        "a" * 50_000,
        "x\r\nSet-Cookie: a=b\r\n\r\n",
        "\x00\x1b[31m",
        "\ud800",
        "模型",
    ],
    ids=["other", "AUTO", "case", "dots", "path", "long", "header", "control", "surrogate", "unicode"],
)
def test_an_unknown_model_is_404_whatever_its_name(server: RunningServer, name: str) -> None:
    with server.http() as client:
        raw = json.dumps({"model": name, "messages": HOLA}).encode()
        answer = client.post(
            "/v1/chat/completions", content=raw, headers={"content-type": "application/json"}
        )
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["code"] == "model_not_found" and error["param"] == "model"
    assert len(error["message"]) < 2000 and "qwen_coder" in error["message"]
    assert "set-cookie" not in answer.headers and not any("x-axion" in h for h in answer.headers)


def test_unknown_models_are_not_found_by_path_either(server: RunningServer) -> None:
    with server.http() as client:
        for name in ("gpt-4o", "a/b", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "%0d%0aX: y", "x" * 5000, "%00"):
            answer = client.get(f"/v1/models/{name}")
            assert answer.status_code == 404 and answer.json()["error"]["code"].endswith("not_found"), name


def test_no_answer_shows_a_path_of_the_machine(server: RunningServer, demo_models: Path) -> None:
    shown = []
    with server.http() as client:
        for path in (
            "/v1/models",
            "/stats",
            "/health",
            "/metrics",
            "/version",
            "/openapi.json",
            "/server_info",
        ):
            shown.append(client.get(path).text)
        for expert_id in EXPERTS:
            shown.append(client.get(f"/v1/models/{expert_id}").text)
            for path, body in (
                ("/v1/chat/completions", {"messages": HOLA, "max_tokens": 1}),
                ("/v1/chat/completions", {"messages": [], "max_tokens": 1}),
                ("/v1/completions", {"prompt": "x " * 5000}),
                ("/tokenize", {"prompt": "x", "return_token_strs": True}),
                ("/v1/responses", {"input": "x", "max_output_tokens": 1}),
                ("/v1/chat/completions", {"messages": HOLA, "chat_template": "{{ 1/0 }}"}),
            ):
                answer = client.post(path, json={"model": expert_id, **body})
                shown.append(f"{answer.headers} {answer.text}")
    for text in shown:
        assert str(demo_models) not in text and str(Path.home()) not in text and "site-packages" not in text


# Tools and stored responses need options; this server has them, and is started by the script.


@pytest.fixture(scope="module")
def with_options(start_server: StartServer, repository: Path) -> Iterator[RunningServer]:
    script = repository / "entrypoints" / "multi_model_server.py"
    tools = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes", "max_num_batched_tokens": 1024}
    server = start_server(
        command=(sys.executable, str(script), "--config", "{config}"),
        environment={"VLLM_ENABLE_RESPONSES_API_STORE": "1"},
        experts={"qwen_coder": {"engine_args": tools}},
        only=["qwen_coder", "phi4_fast"],
        lazy_loading={"warmup_pool_size": 0, "auto_unload_after_s": 3600},
    )
    yield server
    server.stop()


TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "paint",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"colour": {"enum": ["red", "green"]}},
                "required": ["colour"],
                "additionalProperties": False,
            },
        },
    }
]


def test_a_tool_can_be_called_by_name(with_options: RunningServer) -> None:
    answer = with_options.openai().chat.completions.create(
        model="qwen_coder",
        messages=HOLA,
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "paint"}},
        max_tokens=200,
        seed=1,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls and calls[0].type == "function" and calls[0].function.name == "paint"
    assert json.loads(calls[0].function.arguments)["colour"] in ("red", "green")


def test_tool_choice_auto_is_taken_where_the_expert_allows_it(with_options: RunningServer) -> None:
    def ask(expert_id: str) -> ChatCompletion:
        return with_options.openai().chat.completions.create(
            model=expert_id, messages=HOLA, tools=TOOLS, tool_choice="auto", max_tokens=5
        )

    assert ask("qwen_coder").model == "qwen_coder"
    with pytest.raises(openai.BadRequestError, match="tool-call-parser"):
        ask("phi4_fast")


def test_a_stored_response_is_found_and_continued_at_the_expert_that_gave_it(
    with_options: RunningServer,
) -> None:
    client = with_options.openai()
    for expert_id in ("qwen_coder", "phi4_fast"):
        given = client.responses.create(model=expert_id, input="Hola", max_output_tokens=6, store=True)
        assert given.model == expert_id and given.id.startswith("resp_")
        assert client.responses.retrieve(given.id).model == expert_id
        continued = client.responses.create(
            input="continue", previous_response_id=given.id, max_output_tokens=4
        )
        assert continued.model == expert_id
        events = client.responses.create(model=expert_id, input="Hola", max_output_tokens=4, stream=True)
        streamed = [event for event in events if event.type == "response.created"]
        assert client.responses.retrieve(streamed[0].response.id).model == expert_id
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_unknown")


# Starting and stopping


def _listening_addresses(server: RunningServer) -> list[str]:
    found = psutil.Process(server.pid).net_connections("tcp")
    return [c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN]


def _all_gone(family: list[psutil.Process]) -> None:
    """Nothing of the server's processes is left after 5 s; what the system has not reaped yet is gone."""
    _, alive = psutil.wait_procs([p for p in family if _is_alive(p)], timeout=5)
    assert not [process for process in alive if _is_alive(process)]


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _story(server: RunningServer) -> Iterator[Any]:
    """A stream that takes some seconds; the first piece is there already."""
    stream = iter(
        server.openai().chat.completions.create(
            model="qwen_coder",
            messages=HOLA,
            max_tokens=900,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
    )
    next(stream)
    return stream


def test_ctrl_c_in_a_terminal_stops_the_server_without_cutting_a_stream(with_options: RunningServer) -> None:
    server = with_options
    assert _listening_addresses(server) == ["127.0.0.1"]
    stream = _story(server)
    family = server.descendants()
    for pid in (server.pid, *(process.pid for process in family)):
        if pid == server.pid or os.getpgid(pid) == os.getpgid(server.pid):  # as a terminal does
            os.kill(pid, signal.SIGINT)
    last = list(stream)[-1]
    assert last.usage is not None and last.usage.completion_tokens == 900
    assert server.process.wait(60) == 0, server.tail()
    _all_gone(family)


@pytest.fixture(scope="module")
def short_lived(start_server: StartServer) -> Iterator[RunningServer]:
    """Experts are unloaded after two seconds; started by `vllm serve --multi-model`."""
    server = start_server(
        command=(str(BIN / "vllm"), "serve", "--multi-model", "{config}"),
        only=["qwen_coder", "phi4_fast"],
        lazy_loading={"warmup_pool_size": 0, "auto_unload_after_s": 2, "min_residency_s": 0},
    )
    yield server
    server.stop()


def test_an_idle_expert_is_unloaded_its_process_gone_and_the_next_request_reloads_it(
    short_lived: RunningServer,
) -> None:
    server = short_lived
    assert _listening_addresses(server) == ["127.0.0.1"]
    ask = server.openai().chat.completions.create
    ask(model="qwen_coder", messages=HOLA, max_tokens=1)
    pid = server.expert("qwen_coder")["pid"]
    assert psutil.pid_exists(pid) and engine_pids(server) == [pid]
    server.wait_for_state("qwen_coder", "unloaded", 15)
    server.wait_until(lambda: not psutil.pid_exists(pid), 5, "the engine's process to be gone")
    stats = server.expert("qwen_coder")
    assert stats["unloads"] == 1 and stats["pid"] is None and stats["memory"]["process_bytes"] == 0
    with server.http() as client:
        answer = client.post(
            "/v1/chat/completions", json={"model": "qwen_coder", "messages": HOLA, "max_tokens": 1}
        )
    assert answer.status_code == 200 and int(answer.headers["x-axion-load-ms"]) > 0
    assert server.expert("qwen_coder")["loads"] == 2 and server.expert("qwen_coder")["pid"] != pid


def test_an_expert_at_work_is_not_idle(short_lived: RunningServer) -> None:
    last = list(_story(short_lived))[-1]
    assert last.usage is not None and last.usage.completion_tokens == 900


def test_a_scrape_wakes_no_expert_and_does_not_keep_one_awake(short_lived: RunningServer) -> None:
    server = short_lived
    server.openai().chat.completions.create(model="phi4_fast", messages=HOLA, max_tokens=1)
    with server.http() as client:

        def scrape_until_unloaded() -> bool:
            for path in ("/metrics", "/stats", "/health", "/v1/models", "/load", "/version"):
                assert client.get(path).status_code == 200
            assert client.post("/v1/route", json={"messages": HOLA}).status_code == 200
            return bool(server.get("/health")["models_loaded"] == 0)

        server.wait_until(scrape_until_unloaded, 20, "every expert unloaded")
        loads = [e["loads"] for e in server.get("/stats")["experts"].values()]
        for _ in range(3):
            scrape_until_unloaded()
    assert [e["loads"] for e in server.get("/stats")["experts"].values()] == loads


def test_a_taken_port_is_said_in_one_line(short_lived: RunningServer, start_server: StartServer) -> None:
    second = start_server("--port", short_lived.url.rsplit(":", 1)[1], wait=False)
    assert second.process.wait(60) == 1
    lines = second.tail().splitlines()
    assert "cannot listen on 127.0.0.1:" in lines[-1] and "choose another with --host and --port" in lines[-1]
    assert "Traceback" not in second.tail() and "experts from" not in second.tail(), "it had begun to start"


def test_sigterm_drains_then_ends_with_status_0(short_lived: RunningServer) -> None:
    server = short_lived
    stream = _story(server)
    family = server.descendants()
    server.process.send_signal(signal.SIGTERM)
    server.wait_until(lambda: "stopping: requests in flight" in server.tail(), 5)
    with pytest.raises(httpx.TransportError):
        server.wait_until(lambda: httpx.get(f"{server.url}/health").status_code == 0, 5)
    last = list(stream)[-1]
    assert last.usage is not None and last.usage.completion_tokens == 900
    assert server.process.wait(60) == 0, server.tail()
    _all_gone(family)


def test_a_second_sigterm_ends_at_once_with_status_1(start_server: StartServer) -> None:
    server = start_server(only=["qwen_coder"], lazy_loading={"warmup_pool_size": 1})
    stream = _story(server)
    family = server.descendants()
    got: list[Any] = []

    def read() -> None:
        try:
            got.extend(stream)
        except (openai.APIError, httpx.HTTPError) as error:
            got.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    server.process.send_signal(signal.SIGTERM)
    server.wait_until(lambda: "stopping: requests in flight" in server.tail(), 5)
    server.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert server.process.wait(60) == 1, server.tail()
    assert time.monotonic() - began < 15, "it waited for the stream"
    reader.join(10)
    assert not any(getattr(chunk, "usage", None) for chunk in got), "the stream had ended before the signal"
    _all_gone(family)


def test_kill_9_of_the_server_leaves_no_engine_behind_ready_or_starting(start_server: StartServer) -> None:
    server = start_server(only=["qwen_coder", "phi4_fast"], lazy_loading={"warmup_pool_size": 0})
    stream = _story(server)
    with stalled_load(server) as starting:
        with server.http() as client:
            client.post("/models/load", json={"model": "phi4_fast"}).raise_for_status()
        starting.wait()
        family = server.descendants()
        assert {server.expert("qwen_coder")["pid"], starting.pid} <= {process.pid for process in family}
        server.process.kill()
        server.process.wait(10)
        _all_gone(family)
    with pytest.raises((openai.APIError, httpx.HTTPError)):
        list(stream)


def test_without_its_configuration_a_launcher_says_so_in_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "nothing.json"
    ended = subprocess.run(
        [str(BIN / "vllm-axion"), "serve", str(missing)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode != 0 and "nothing.json" in ended.stderr and "Traceback" not in ended.stderr
