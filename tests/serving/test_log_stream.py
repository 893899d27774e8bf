# SPDX-License-Identifier: Apache-2.0
"""Following the log lines of one expert."""

from __future__ import annotations

import asyncio
import logging
import logging.config

import pytest

from vllm_axion.serving.log_stream import SERVER, LogStreams


def record(message: str, expert: str | None = None, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("vllm_axion.test", logging.INFO, __file__, 1, message, (), None)
    made.expert = expert
    made.fields = fields
    return made


async def test_a_follower_gets_the_kept_lines_and_then_new_ones() -> None:
    streams = LogStreams(["coder"])
    streams.emit(record("before", "coder", request_id="r1"))
    async with streams.follow("coder") as lines:
        streams.emit(record("after", "coder"))
        first, second = await lines.get(), await lines.get()
    assert first is not None and second is not None
    assert (first["message"], first["request_id"], first["expert"]) == ("before", "r1", "coder")
    assert second["message"] == "after"


async def test_lines_of_one_expert_do_not_reach_followers_of_another() -> None:
    streams = LogStreams(["coder", "chat"])
    async with streams.follow("chat") as lines:
        streams.emit(record("secret", "coder"))
        streams.emit(record("hello", "chat"))
        line = await asyncio.wait_for(lines.get(), 5)
    assert line is not None and line["message"] == "hello"


async def test_what_belongs_to_no_expert_is_the_servers() -> None:
    streams = LogStreams(["coder"])
    streams.emit(record("started"))
    streams.emit(record("from a name nobody configured", "stranger"))
    async with streams.follow(SERVER) as lines:
        assert [(await lines.get() or {})["message"] for _ in range(2)] == [
            "started",
            "from a name nobody configured",
        ]


async def test_an_unknown_name_cannot_be_followed() -> None:
    with pytest.raises(KeyError):
        async with LogStreams(["coder"]).follow("nobody"):
            pass


async def test_the_end_reaches_every_follower_and_those_that_come_later() -> None:
    streams = LogStreams(["coder"])
    async with streams.follow("coder") as early:
        streams.end()
        assert await asyncio.wait_for(early.get(), 5) is None
    async with streams.follow("coder") as late:
        assert await asyncio.wait_for(late.get(), 5) is None


async def test_a_new_logging_configuration_ends_no_stream() -> None:
    streams = LogStreams(["coder"])
    async with streams.follow("coder") as lines:
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
        streams.emit(record("still here", "coder"))
        line = await asyncio.wait_for(lines.get(), 5)
    assert line is not None and line["message"] == "still here"


async def test_a_slow_follower_loses_the_oldest_lines_only() -> None:
    streams = LogStreams(["coder"])
    async with streams.follow("coder") as lines:
        for number in range(5000):
            streams.emit(record(f"{number}", "coder"))
        await asyncio.sleep(0.05)
        kept = [(lines.get_nowait() or {})["message"] for _ in range(lines.qsize())]
    assert kept[-1] == "4999"
    assert len(kept) <= 1000


def test_a_message_that_does_not_fit_its_arguments_is_no_error_of_whoever_logs_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    streams = LogStreams([])
    streams.handle(logging.LogRecord("uvicorn.error", logging.INFO, __file__, 1, "%d of %d", ("one",), None))
    assert "Logging error" in capsys.readouterr().err
