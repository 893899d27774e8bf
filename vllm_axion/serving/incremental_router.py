# SPDX-License-Identifier: Apache-2.0
"""Routing while the user is still typing: after each key the route so far, and whether it will hold.

The text is judged by the built-in classifier, whose sums are of whole numbers: however a text was split on
its way here, the probabilities are those of the whole text, bit for bit. A step costs what its new characters
cost. Taking characters back costs what follows the last of the marks set every MARK_EVERY characters.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm_axion.serving.declared_examples import Shared
from vllm_axion.serving.ngram_classifier import TextAccumulator
from vllm_axion.serving.ngram_features import HEAD_CHARS, TAIL_CHARS
from vllm_axion.serving.semantic_router import Known, Route, SemanticRouter, user_turns

MARK_EVERY = 128
STABLE_CONFIDENCE = 0.8
STABLE_FROM_CHARS = 12  # before that many, a next word may change everything
AGREED_CHARS = 8  # typed under one route before it is believed: a single step may be a key or a paste


@dataclass(frozen=True)
class Step:
    """The route of the text so far, and whether to act on it.

    `stable`: at least STABLE_FROM_CHARS characters, a route that is no abstention and at least
    STABLE_CONFIDENCE sure, and the same expert while the last AGREED_CHARS were typed."""

    route: Route
    stable: bool


class IncrementalRouter:
    """One text that is being typed. Not thread-safe; the router it uses may be shared.

    Routes carry no evidence, which costs as much as the whole text is long: `explain` gives it."""

    def __init__(
        self,
        router: SemanticRouter,
        *,
        history: Sequence[Mapping[str, Any]] = (),
        loaded: Collection[str] = (),
        usable: Collection[str] | None = None,
    ) -> None:
        """`history`: the messages before the one being typed. `loaded` and `usable` as for `route`."""
        self.loaded = loaded
        self.usable = usable
        self._router = router
        self._history = list(history)
        self._earlier = {turn: router.classifier.judge(turn) for turn in user_turns(self._history)}
        self.reset()

    @property
    def text(self) -> str:
        """What has been typed."""
        return self._text

    def reset(self) -> None:
        """Begin a new text after the same history."""
        self._text = ""
        self._so_far = self._router.classifier.accumulator()
        self._shared = Shared()
        self._marks: list[tuple[int, TextAccumulator]] = []
        self._expert: str | None = None
        self._agrees_from = 0

    def feed(self, delta: str) -> Step:
        """Characters were typed at the end."""
        before = len(self._text)
        self._text += delta
        self._read(before)
        return self._step(before)

    def replace(self, text: str) -> Step:
        """The text is another now: characters were taken back, or changed anywhere."""
        kept = _common_prefix(self._text, text)
        if kept < len(self._text):
            while self._marks and self._marks[-1][0] > kept:
                self._marks.pop()
            at, mark = self._marks[-1] if self._marks else (0, self._router.classifier.accumulator())
            self._so_far = mark.copy()
            self._agrees_from = min(self._agrees_from, kept)
        else:
            at = kept
        self._text = text
        self._read(at)
        return self._step(kept)

    def explain(self) -> Route:
        """The current route with its evidence."""
        return self._router.route(self._messages(), loaded=self.loaded, usable=self.usable)

    def _read(self, at: int) -> None:
        """Bring the sums from the first `at` characters to all of the text."""
        while at < min(len(self._text), HEAD_CHARS):
            end = min(at - at % MARK_EVERY + MARK_EVERY, HEAD_CHARS, len(self._text))
            self._so_far.feed(self._text[at:end])
            at = end
            if at % MARK_EVERY == 0 and (not self._marks or self._marks[-1][0] < at):
                self._marks.append((at, self._so_far.copy()))
        if at < len(self._text):
            self._so_far.feed(self._text[max(at, len(self._text) - TAIL_CHARS) :])

    def _step(self, before: int) -> Step:
        judgement = self._so_far.judge()
        if judgement is not None and not self._router.declares_examples:
            judgement = replace(judgement, read=())
        route = self._router.route(
            self._messages(),
            loaded=self.loaded,
            usable=self.usable,
            known=Known(judgement, self._shared, self._earlier),
        )
        if route.expert_id != self._expert or route.abstained:
            self._expert, self._agrees_from = route.expert_id, before
        stable = (
            not route.abstained
            and route.confidence >= STABLE_CONFIDENCE
            and len(self._text) >= STABLE_FROM_CHARS
            and len(self._text) - self._agrees_from >= AGREED_CHARS
        )
        return Step(route, stable)

    def _messages(self) -> list[Mapping[str, Any]]:
        return [*self._history, {"role": "user", "content": self._text}]


def _common_prefix(left: str, right: str) -> int:
    """Length of what both begin with, by comparing slices: text is compared at memory speed."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
