# SPDX-License-Identifier: Apache-2.0
"""Errors that reach a client: HTTP status, OpenAI's error shape and, where waiting helps, Retry-After.

Everything the server refuses is one of these. The message is one line for the person who sent the request:
what is wrong, and what would be right. It never holds a path of the machine or a traceback.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, ClassVar


class ServingError(Exception):
    """A refusal with an HTTP answer.

    Args:
        message: one line for the client.
        param: the field of the request that is at fault, if one is.
        retry_after_s: seconds after which the same request may succeed; sent as ``Retry-After``.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def body_bytes(self) -> bytes:
        """The error object as UTF-8 JSON."""
        return json.dumps(self.body(), ensure_ascii=False).encode("utf-8", "replace")

    def headers(self) -> dict[str, str]:
        """Headers that go with the answer; Retry-After is whole seconds, at least 1."""
        headers = {"content-type": "application/json"}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        return headers


class BadRequestError(ServingError):
    """The request cannot be understood."""

    status, type, code = 400, "invalid_request_error", "invalid_request"


class NeverFitsError(ServingError):
    """The expert needs more memory than this server may ever use: waiting does not help."""

    status, type, code = 400, "invalid_request_error", "model_too_large"


class UnauthorizedError(ServingError):
    """No key, or a wrong one."""

    status, type, code = 401, "authentication_error", "invalid_api_key"


class ForbiddenError(ServingError):
    """A right key without the scope this route needs."""

    status, type, code = 403, "permission_error", "insufficient_scope"


class ModelNotFoundError(ServingError):
    """No expert of that name."""

    status, type, code = 404, "invalid_request_error", "model_not_found"


class RouteNotFoundError(ServingError):
    """No such path on this server."""

    status, type, code = 404, "invalid_request_error", "not_found"


class MethodNotAllowedError(ServingError):
    """The path exists, the method does not. ``allowed`` are those it has; they are sent as ``Allow``."""

    status, type, code = 405, "invalid_request_error", "method_not_allowed"
    allowed: Sequence[str] = ()

    @classmethod
    def on(cls, path: str, method: str, allowed: Sequence[str]) -> MethodNotAllowedError:
        """The error for ``method`` on a path that takes ``allowed``."""
        error = cls(f"{path} takes {', '.join(allowed)}, not {method[:40]}")
        error.allowed = allowed
        return error

    def headers(self) -> dict[str, str]:
        return {**super().headers(), "allow": ", ".join(self.allowed)}


class BodyTooLargeError(ServingError):
    """The request body is over ``limits.max_body_bytes``."""

    status, type, code = 413, "invalid_request_error", "request_too_large"


class QueueFullError(ServingError):
    """Too many requests wait already."""

    status, type, code = 429, "rate_limit_error", "queue_full"


class CannotLoadNowError(ServingError):
    """The expert is not loaded and cannot be loaded at the moment; a later try may succeed."""

    status, type, code = 503, "service_unavailable", "model_unavailable"


class ShuttingDownError(ServingError):
    """The server is draining."""

    status, type, code = 503, "service_unavailable", "shutting_down"
