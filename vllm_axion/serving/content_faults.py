# SPDX-License-Identifier: Apache-2.0
"""Requests whose content trips vLLM's own code are refused as what they are: bad requests.

vLLM checks part of a request by using it. A ``type`` that is a list where a string should be, in a field it
declares as "anything", ends in an AttributeError somewhere behind the endpoint. vLLM answers 400 to
ValueError, TypeError and OverflowError for that reason, and 500 to the other errors Python has for values
that are not what they should be. Here they become 400 too, as long as the engine is well: whatever goes wrong
in the engine reaches the app as an error class of vLLM's own.

One of those, GenerationError, becomes 503 with Retry-After: the engine is well, but gave up this request.
That happens when a picture that another client's refused request had in it comes again: API process and
engine then disagree about what the engine has in its cache; vLLM puts that right and counts on a second try.
"""

from __future__ import annotations

import importlib
import logging
import traceback
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from vllm_axion.serving.errors import BadRequestError, CannotLoadNowError, ServingError

logger = logging.getLogger("vllm_axion.engine")

CONTENT_FAULTS: tuple[type[Exception], ...] = (
    AttributeError,
    LookupError,
    RecursionError,
    AssertionError,
    NotImplementedError,
)


def refuse_odd_content(app: Any, expert_id: str, engine_failed: Callable[[], bool]) -> None:
    """Have an expert's app answer 400 where a request's content raised one of `CONTENT_FAULTS`, and 503 where
    the engine gave a request up.

    By Starlette's documented handlers, before the app's first request. The place in the code goes to the log,
    so that a fault that is not the client's can be found.
    """

    async def refuse(request: Request, error: Exception) -> Response:
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].name}, line {frames[-1].lineno}" if frames else "unknown"
        told = f"{type(error).__name__}: {str(error)[:200]}"
        logger.warning("%s: %s raised %s in %s", expert_id, request.url.path, told, place)
        refused: ServingError
        if engine_failed():
            refused = ServingError(f"the engine of {expert_id} has failed")
        elif isinstance(error, NotImplementedError):
            refused = BadRequestError(f"{expert_id} cannot do what the request asks for: {str(error)[:200]}")
        else:
            refused = BadRequestError(f"a field of the request is not what it should be ({told})")
        return Response(refused.body_bytes(), refused.status, refused.headers())

    async def ask_again(request: Request, error: Exception) -> Response:
        logger.warning("%s: the engine gave up a request: %s", expert_id, error)
        told = CannotLoadNowError(
            f"the engine of {expert_id} gave this request up; try again", retry_after_s=1
        )
        return Response(told.body_bytes(), told.status, told.headers())

    assert isinstance(app, Starlette)
    for kind in CONTENT_FAULTS:
        app.add_exception_handler(kind, refuse)
    app.add_exception_handler(importlib.import_module("vllm.exceptions").GenerationError, ask_again)
    if app.middleware_stack is not None:  # vLLM's metrics have it built early, without these handlers
        app.middleware_stack = app.build_middleware_stack()
