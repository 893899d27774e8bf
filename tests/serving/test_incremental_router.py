# SPDX-License-Identifier: Apache-2.0
"""Routing while typing: the same as routing the whole text, however it was typed, pasted and taken back."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_axion.serving.config import MultiModelConfig, preset_path
from vllm_axion.serving.declared_examples import DeclaredExamples
from vllm_axion.serving.incremental_router import (
    MARK_EVERY,
    STABLE_FROM_CHARS,
    IncrementalRouter,
)
from vllm_axion.serving.ngram_classifier import Judgement, TextAccumulator
from vllm_axion.serving.ngram_features import HEAD_CHARS, TAIL_CHARS
from vllm_axion.serving.semantic_router import Route, SemanticRouter

PHRASES = [
    "Escribe código Python que sume una lista", "def f(x):\n    return x + 1\n", "¿cómo funciona un motor?",
    " translate this to French ", "добрый день", "今日はいい天気ですね", "מה שלומך",
    "ma\u0303nana", "e\u0301",
    "😀", "👩\u200d💻", "\ud800", "\x00", "\u202e", "   ", "\n\n", "ﬁne", "ＡＢＣ", "Straße", "İstanbul",
    "1234",
    "```", "a" * 150, "; DROP TABLE users;", "ñ", "x_y", "//", "==", "ก็", "\u0301",
]  # fmt: skip
TYPED = st.lists(
    st.sampled_from(PHRASES) | st.text(st.characters(), max_size=12), min_size=1, max_size=12
).map("".join)


def config(**changes: Any) -> MultiModelConfig:
    path = preset_path("config.demo.json")
    loaded = MultiModelConfig.load(path).model_dump(mode="json")
    loaded |= changes
    return MultiModelConfig.from_data(loaded, base_dir=Path("/"))


@pytest.fixture(scope="module")
def router() -> SemanticRouter:
    return SemanticRouter(config())


@pytest.fixture(scope="module")
def router_with_examples() -> SemanticRouter:
    examples = ["¿Es válida esta cláusula?", "draft a lease contract", "can my landlord evict me"]
    return SemanticRouter(config(domains={"legal": {"description": "Law", "examples": examples}}))


def whole(router: SemanticRouter, text: str, **options: Any) -> Route:
    return router.route([{"role": "user", "content": text}], **options)


def same(found: Route, expected: Route) -> bool:
    return (
        found.probabilities == expected.probabilities
        and (found.expert_id, found.domain, found.confidence, found.runner_up)
        == (expected.expert_id, expected.domain, expected.confidence, expected.runner_up)
        and (found.abstained, found.reason, found.signal)
        == (expected.abstained, expected.reason, expected.signal)
    )


def split(data: st.DataObject, text: str) -> list[str]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


# ---------------------------------------------------------------- equal to the whole


@settings(max_examples=200, deadline=None)
@given(data=st.data(), text=TYPED)
def test_feeding_in_any_split_is_feeding_the_whole_bit_for_bit(
    router: SemanticRouter, data: st.DataObject, text: str
) -> None:
    typed = IncrementalRouter(router)
    so_far = ""
    for piece in split(data, text):
        step = typed.feed(piece)
        so_far += piece
        assert typed.text == so_far
        assert same(step.route, whole(router, so_far))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), text=TYPED, repeats=st.integers(1, 60))
def test_long_texts_too(router: SemanticRouter, data: st.DataObject, text: str, repeats: int) -> None:
    long = (text * repeats)[: 2 * (HEAD_CHARS + TAIL_CHARS)]
    typed = IncrementalRouter(router)
    for piece in split(data, long):
        step = typed.feed(piece)
    assert same(step.route, whole(router, long))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), text=TYPED)
def test_examples_of_the_user_count_while_typing(
    router_with_examples: SemanticRouter, data: st.DataObject, text: str
) -> None:
    typed = IncrementalRouter(router_with_examples)
    typed.feed(data.draw(TYPED))
    typed.replace(typed.text[: len(typed.text) // 2])
    typed.replace("")
    for piece in split(data, text):
        step = typed.feed(piece)
    expected = whole(router_with_examples, text)
    assert step.route.expert_id == expected.expert_id
    assert step.route.probabilities == pytest.approx(expected.probabilities, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TYPED, min_size=1, max_size=5), data=st.data())
def test_after_any_edits_the_route_is_that_of_the_text(
    router: SemanticRouter, texts: list[str], data: st.DataObject
) -> None:
    typed = IncrementalRouter(router)
    for text in texts:
        change = data.draw(st.sampled_from(["another", "backspaces", "middle", "more", "reset"]))
        if change == "another":
            step = typed.replace(text)
        elif change == "backspaces":
            step = typed.replace(typed.text[: data.draw(st.integers(0, len(typed.text)))])
        elif change == "middle":
            at = data.draw(st.integers(0, len(typed.text)))
            step = typed.replace(typed.text[:at] + text + typed.text[at:])
        else:
            if change == "reset":
                typed.reset()
            step = typed.feed(text)
        assert same(step.route, whole(router, typed.text))


@pytest.mark.parametrize(
    "length", [HEAD_CHARS - 1, HEAD_CHARS, HEAD_CHARS + 5, HEAD_CHARS + TAIL_CHARS + 700]
)
def test_edits_near_the_bounds_of_what_is_read(router: SemanticRouter, length: int) -> None:
    text = ("Explica cómo funciona este código: for i in range(10): print(i). " * 100)[:length]
    typed = IncrementalRouter(router)
    typed.feed(text)
    for back in (1, 2, MARK_EVERY, TAIL_CHARS, TAIL_CHARS + 300):
        shorter = text[:-back]
        assert same(typed.replace(shorter).route, whole(router, shorter))
        assert same(typed.replace(shorter + " en francés").route, whole(router, shorter + " en francés"))
        assert same(typed.feed(", por favor").route, whole(router, shorter + " en francés, por favor"))


def test_history_and_loaded_experts_count_as_for_a_request(router: SemanticRouter) -> None:
    talk = [{"role": "user", "content": "Escribe código Python"}, {"role": "assistant", "content": "…"}]
    typed = IncrementalRouter(router, history=talk, loaded=["phi4_fast"])
    for char in "¿y en Rust?":
        step = typed.feed(char)
    expected = router.route([*talk, {"role": "user", "content": "¿y en Rust?"}], loaded=["phi4_fast"])
    assert same(step.route, expected)
    assert step.route.expert_id == "qwen_coder"


# ---------------------------------------------------------------- cost


def test_the_messages_before_are_judged_once_not_at_each_key(
    router: SemanticRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = [{"role": "user", "content": f"Escribe código Python, ejercicio {n}"} for n in range(4)]
    typed = IncrementalRouter(router, history=talk)
    judge = router.classifier.judge
    judged: list[str] = []

    def noted(text: str) -> Judgement | None:
        judged.append(text)
        return judge(text)

    monkeypatch.setattr(router.classifier, "judge", noted)
    for char in "¿y en Rust?":
        typed.feed(char)
    assert not set(judged) & {message["content"] for message in talk}


class _Counted(TextAccumulator):
    fed = 0

    def feed(self, delta: str) -> None:
        _Counted.fed += len(delta)
        super().feed(delta)


def test_each_key_reads_its_own_character_and_each_backspace_at_most_the_way_from_the_last_mark(
    router: SemanticRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router.classifier, "accumulator", lambda: _Counted(router.classifier), raising=False)
    typed = IncrementalRouter(router)
    typed.feed("palabra " * 200)
    _Counted.fed = 0
    for char in "y ahora en Rust":
        typed.feed(char)
    assert _Counted.fed == len("y ahora en Rust")
    _Counted.fed = 0
    for _ in range(20):
        typed.replace(typed.text[:-1])
    assert _Counted.fed <= 20 * MARK_EVERY
    typed.feed("x" * 100_000)
    _Counted.fed = 0
    typed.feed("y")
    assert _Counted.fed == 1
    typed.replace(typed.text[:-1] + "z")
    assert _Counted.fed <= 1 + TAIL_CHARS


def test_examples_of_the_user_are_compared_with_what_is_new_not_with_the_whole_text(
    router_with_examples: SemanticRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = IncrementalRouter(router_with_examples)
    products, compared = DeclaredExamples._products, []

    def noted(self: DeclaredExamples, columns: Any) -> Any:
        compared.append(columns.size)
        return products(self, columns)

    typed.feed("".join(f"palabra{n} distinta{n * n} " for n in range(100)))
    monkeypatch.setattr(DeclaredExamples, "_products", noted)
    for char in "otra ":
        typed.feed(char)
    assert 0 < sum(compared) < 2000


def test_marks_are_bounded_however_long_the_text(router: SemanticRouter) -> None:
    typed = IncrementalRouter(router)
    for _ in range(30):
        typed.feed("texto largo " * 50)
        typed.replace(typed.text[:-7])
    assert len(typed._marks) <= HEAD_CHARS // MARK_EVERY


# ---------------------------------------------------------------- stable


def test_a_clear_request_becomes_stable_before_its_end_and_not_in_its_first_word(
    router: SemanticRouter,
) -> None:
    text = "Escribe código Python que lea un fichero CSV y sume la segunda columna"
    typed = IncrementalRouter(router)
    stable_at = None
    for at, char in enumerate(text, start=1):
        step = typed.feed(char)
        if step.stable and stable_at is None:
            stable_at = at
            assert step.route.expert_id == "qwen_coder"
    assert stable_at is not None
    assert STABLE_FROM_CHARS <= stable_at <= len(text) / 2


def test_a_paste_is_enough_typing_to_act_on(router: SemanticRouter) -> None:
    assert IncrementalRouter(router).feed("Escribe una función en Python que ordene una lista").stable


def test_short_odd_and_abstained_texts_are_never_stable(router: SemanticRouter) -> None:
    typed = IncrementalRouter(router)
    for text in ["", "a", "Python", "12345 67890 12345", "😀😀😀😀😀😀😀😀😀😀😀😀😀", "\ud800" * 20]:
        assert not typed.replace(text).stable, text


def test_a_route_that_has_just_changed_is_not_stable(router: SemanticRouter) -> None:
    typed = IncrementalRouter(router)
    steps = [typed.feed(char) for char in "hola buenas, traduce esta frase al alemán por favor"]
    changes = [
        after
        for before, after in pairwise(steps)
        if before.route.expert_id != after.route.expert_id and not after.route.abstained
    ]
    assert changes
    assert not any(step.stable for step in changes)
    assert steps[-1].stable


def test_explain_gives_the_evidence_that_steps_leave_out(router: SemanticRouter) -> None:
    typed = IncrementalRouter(router)
    step = typed.feed("Escribe código Python que sume una lista")
    assert step.route.evidence == ()
    assert same(typed.explain(), step.route)
    assert typed.explain().evidence


def test_reset_begins_a_new_text(router: SemanticRouter) -> None:
    typed = IncrementalRouter(router)
    typed.feed("Escribe código Python que sume una lista")
    typed.reset()
    assert typed.text == ""
    assert same(typed.feed("hola").route, whole(router, "hola"))
