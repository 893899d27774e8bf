# SPDX-License-Identifier: Apache-2.0
"""Which paths vLLM's own server has: known before any expert is loaded, so that a wrong path wakes none."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from starlette.routing import BaseRoute, Match, Mount
from starlette.types import Scope

from vllm_axion.serving.errors import MethodNotAllowedError, RouteNotFoundError


def route_path(scope: Scope) -> str:
    """The path as routes know it, without the prefix of ``--root-path``, which uvicorn puts in front."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    rest = path.removeprefix(root)
    return rest if rest.startswith("/") else path


class RouteCatalog:
    """Routes of a vLLM app that go to an expert.

    Args:
        app: a vLLM app: of one expert, or one with the routes of every task that is never served itself.
        own_paths: paths the outer server answers by itself.
        owner: whose routes they are, for error messages.
    """

    def __init__(self, app: Any, own_paths: Collection[str] = (), owner: str = "this server") -> None:
        self._app = app
        self._routes: list[BaseRoute] = [
            route
            for route in app.routes
            if not isinstance(route, Mount) and getattr(route, "path", None) not in own_paths
        ]
        self._own_paths = own_paths
        # Most paths have no parameters: one look-up instead of forty regular expressions a request.
        self._plain = {
            (method, path)
            for route in self._routes
            for method in getattr(route, "methods", None) or ()
            if "{" not in (path := getattr(route, "path", "{"))
        }
        self._owner = owner

    def match(self, scope: Scope) -> None:
        """Refuse what no expert could answer.

        Raises:
            RouteNotFoundError: there is no such path.
            MethodNotAllowedError: there is one, for another method.
        """
        if (scope.get("method"), route_path(scope)) in self._plain:
            return
        allowed: set[str] = set()
        for route in self._routes:
            match, _ = route.matches(scope)
            if match is Match.FULL:
                return
            if match is Match.PARTIAL:
                allowed |= set(getattr(route, "methods", None) or ())
        path = route_path(scope)[:200]
        if allowed:
            raise MethodNotAllowedError.on(path, scope["method"], sorted(allowed))
        raise RouteNotFoundError(f"{self._owner} has no {path}; see /docs")

    def openapi_paths(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """(paths, components) of OpenAPI for the routes that go to experts."""
        document = self._app.openapi()
        paths = {path: item for path, item in document["paths"].items() if path not in self._own_paths}
        return paths, document.get("components", {})
