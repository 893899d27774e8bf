# SPDX-License-Identifier: Apache-2.0
"""Which expert answers a request that names none.

Signals, first that decides wins: image or file parts; follow-up to the talk so far; the content classifier
with the language signal; residency among near ties; fallback. Only the user's words count, never system
prompts or role tags.
Everything is prepared at construction and immutable after it, so one router serves all threads.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vllm_axion.serving.ngram_classifier import Floats, Judgement, NgramClassifier, sample

if TYPE_CHECKING:
    from vllm_axion.serving.config import ExpertConfig, MultiModelConfig

GENERAL, CODING = "general", "coding"
IMAGES, LANGUAGES = "multimodal_expert", "multilingual_expert"

_SEEN_PARTS = frozenset(
    {"image_url", "input_image", "image", "image_pil", "image_embeds", "file", "input_file", "video_url"}
)
TURNS_READ = 6  # of a long talk, this many last user turns
EARLIER_TURN_WEIGHT = 0.25  # of the turn before, in a message that is no follow-up but short
SHORT_MESSAGE_WORDS = 6
FOLLOW_UP_WORDS, FOLLOW_UP_CHARS = 9, 120
CLEAR_CHANGE = 0.75  # a follow-up leaves the talk's domain only for another one at least this likely
CODE_SHAPE = 0.3  # at least this much the look of code, in a message that names nothing of programming
FOREIGN_CHANCE = 0.9  # of multilingual, at full strength of the language signal and no code in sight

# A cue opens a short message that makes no sense without the one before. A joint may open something new.
_JOINTS = (
    "y, e, o, pero, vale, ok, okay, ahora, entonces, luego, también, tambien, otra, otro, más, mas, "
    "menos, por qué, por que, and, or, but, now, then, also, another, more, less, what about, how "
    "about, why, really, et, und, e se, ora, agora, maintenant, jetzt"
)
# After these nothing new can come: they speak of the answer just given.
_BACK_REFERENCES = (
    "mejor, otra vez, más corto, mas corto, más largo, mas largo, más breve, mas breve, más simple, "
    "mas simple, más sencillo, mas sencillo, sigue, continúa, continua, repite, repítelo, repitelo, "
    "resúmelo, resumelo, hazlo, hazla, ponlo, ponla, dilo, dímelo, dimelo, cámbialo, cambialo, "
    "acórtalo, acortalo, alárgalo, alargalo, explícalo, explicalo, pásalo, pasalo, mejóralo, "
    "mejoralo, amplíalo, amplialo, lo mismo, igual, again, same, shorter, longer, simpler, continue, "
    "go on, keep going, make it, make that, do it, do that, do the same, say it, say that, put it, "
    "try again, redo, rewrite it, rephrase, shorten it, expand, elaborate, explain it, explain that, "
    "in other words"
)


def _opens_with(cues: str) -> re.Pattern[str]:
    return re.compile(rf"[\s¿¡]*(?:{cues.replace(', ', '|')})\b", re.IGNORECASE)


_JOINT, _BACK_REFERENCE = _opens_with(_JOINTS), _opens_with(_BACK_REFERENCES)
# "¿y en inglés?", "now in Rust": it names only another dress for the same answer, and never changes the talk.
_SAME_IN = re.compile(
    r"[\s¿¡]*(?:(?:y|e|and|but|pero|now|ahora|entonces|then|"
    r"lo mismo|the same|same|et|und|maintenant|jetzt|agora|ora)\s+)+"
    r"(?:en|in|con|with|para|for|auf|em|sin|without)\s+\S+(?:\s+\S+){0,2}\s*$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Route:
    """Where a request goes and why.

    `confidence` is the calibrated probability of `domain` (`probabilities[domain]`); `runner_up` is the next
    likely domain; `evidence` are words and examples it rests on; `ms` is the time it took. `signal` is what
    decided: a part of the message, its words (`content`, abstentions included), or nothing to go by."""

    expert_id: str
    domain: str
    confidence: float
    probabilities: dict[str, float]
    runner_up: str | None
    evidence: tuple[str, ...]
    abstained: bool
    reason: str
    ms: float
    signal: Literal["part", "content", "nothing"] = "content"


@dataclass(frozen=True)
class _Opinion:
    """Probabilities over all the classifier's domains, and how they came about."""

    chances: Floats
    judgement: Judgement
    how: str


class SemanticRouter:
    """Routes OpenAI chat messages to one of the configured experts."""

    def __init__(self, config: MultiModelConfig) -> None:
        """Raises nothing beyond what a valid `MultiModelConfig` allows."""
        self._experts: tuple[ExpertConfig, ...] = tuple(config.experts)
        self._threshold = float(config.router.threshold)
        self._margin = float(config.router.prefer_loaded_margin)
        examples = built_in_examples()
        for domain, declared in config.domains.items():
            own = list(declared.examples) or ([declared.description] if declared.description else [])
            examples[domain] = [*examples.get(domain, []), *own]
        self._classifier = NgramClassifier(examples)

    def route(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        loaded: Collection[str] = (),
        usable: Collection[str] | None = None,
        content: Mapping[str, float] | None = None,
    ) -> Route:
        """Choose an expert for chat messages (a plain prompt is one user message).

        `loaded` are the ids of experts in memory; `usable` those that may be chosen (None, or none of ours:
        all); `content` another encoder's probabilities of the last user turn, to be taken in place of the
        built-in classifier's. Never raises on odd content; what cannot be judged is abstained from."""
        began = time.perf_counter()
        experts = [e for e in self._experts if usable is None or e.expert_id in usable] or list(self._experts)
        route = self._choose(messages, experts, frozenset(loaded), content)
        return replace(route, ms=(time.perf_counter() - began) * 1000.0)

    def _choose(
        self,
        messages: Any,
        experts: list[ExpertConfig],
        loaded: frozenset[str],
        content: Mapping[str, float] | None,
    ) -> Route:
        available = tuple(dict.fromkeys(expert.domain for expert in experts))
        if IMAGES in available:
            part = _seen_part(messages)
            if part:
                chances = {domain: float(domain == IMAGES) for domain in available}
                expert = _best_of(IMAGES, experts, loaded)
                why = f"the messages hold a part of type {part}"
                evidence: tuple[str, ...] = (f"part «{part}»",)
                return Route(expert.expert_id, IMAGES, 1.0, chances, None, evidence, False, why, 0.0, "part")
        opinion = self._opinion(user_turns(messages), content)
        if opinion is None:
            even = dict.fromkeys(available, 1.0 / len(available))
            why = "the user's message has no words to judge by"
            return replace(self._fall_back(even, (), why, experts, loaded), signal="nothing")
        chances = self._over(available, opinion.chances)
        ranked = sorted(chances, key=lambda domain: -chances[domain])
        best = ranked[0]
        evidence = self._evidence(opinion.judgement, best)
        if chances[best] < self._threshold:
            why = f"unsure ({best} {chances[best]:.2f} is below the threshold {self._threshold:g})"
            return self._fall_back(chances, evidence, why, experts, loaded)
        domain, how = best, opinion.how
        expert = _best_of(best, experts, loaded)
        if expert.expert_id not in loaded:
            for other in ranked[1:]:
                if chances[best] - chances[other] > self._margin:
                    break
                warm = _best_of(other, experts, loaded)
                if warm.expert_id in loaded:
                    how = f"near tie of {best} and {other}; {warm.expert_id} is loaded"
                    expert, domain = warm, other
                    evidence = self._evidence(opinion.judgement, other)
                    break
        second = _runner_up(chances, domain)
        return Route(expert.expert_id, domain, chances[domain], chances, second, evidence, False, how, 0.0)

    def _fall_back(
        self,
        chances: dict[str, float],
        evidence: tuple[str, ...],
        why: str,
        experts: list[ExpertConfig],
        loaded: frozenset[str],
    ) -> Route:
        """Abstain: a loaded expert before a load, a general one before a specialist, then by priority."""
        expert = min(experts, key=lambda e: (e.expert_id not in loaded, e.domain != GENERAL, e.priority))
        traits = ["loaded"] if expert.expert_id in loaded else []
        traits.append("general" if expert.domain == GENERAL else f"priority {expert.priority}")
        reason = f"abstained: {why}; took {expert.expert_id} ({', '.join(traits)})"
        domain = expert.domain
        second = _runner_up(chances, domain)
        return Route(expert.expert_id, domain, chances[domain], chances, second, evidence, True, reason, 0.0)

    def _over(self, available: Sequence[str], chances: Floats) -> dict[str, float]:
        """Probabilities of the available domains only, sum 1."""
        place = {domain: index for index, domain in enumerate(self._classifier.domains)}
        # A declared domain without any example has no evidence for it, ever: it is reached by name only.
        kept = {d: float(chances[place[d]]) if d in place else 0.0 for d in available}
        total = sum(kept.values())
        if total <= 0.0:
            return dict.fromkeys(available, 1.0 / len(available))
        return {domain: chance / total for domain, chance in kept.items()}

    def _opinion(self, turns: Sequence[str], content: Mapping[str, float] | None = None) -> _Opinion | None:
        """Read the user's turns in order, so that a follow-up to a follow-up finds where the talk is.

        `content` stands for the chances of the last."""
        talk: _Opinion | None = None
        for position, turn in enumerate(turns):
            judged = self._classifier.judge(turn)
            if judged is None:
                # An emoji after a question is a follow-up; alone it says nothing.
                talk = replace(talk, how="follow-up: stays with the talk") if talk and position else talk
                continue
            chances = self._chances(judged)
            if content is not None and position == len(turns) - 1:
                chances = np.array([content.get(domain, 0.0) for domain in self._classifier.domains])
            alone = _Opinion(chances, judged, _content_reason(judged))
            talk = alone if talk is None else self._continued(talk, alone, turn)
        return talk

    def _continued(self, talk: _Opinion, alone: _Opinion, turn: str) -> _Opinion:
        size = len(alone.judgement.words)
        turn = " ".join(turn.split())
        if size <= FOLLOW_UP_WORDS and len(turn) <= FOLLOW_UP_CHARS and self._follows(talk, alone, turn):
            return replace(talk, how="follow-up: stays with the talk")
        if size <= SHORT_MESSAGE_WORDS:
            mixed = (1.0 - EARLIER_TURN_WEIGHT) * alone.chances + EARLIER_TURN_WEIGHT * talk.chances
            return replace(alone, chances=mixed)
        return alone

    def _follows(self, talk: _Opinion, alone: _Opinion, turn: str) -> bool:
        if _SAME_IN.match(turn):
            return True
        best = int(alone.chances.argmax())
        clear_change = best != int(talk.chances.argmax()) and alone.chances[best] >= CLEAR_CHANGE
        if _BACK_REFERENCE.match(turn):
            # "Make it a Python script": only a named trade takes the talk elsewhere.
            return not (clear_change and alone.judgement.concepts & {"coding", "translation"})
        return _JOINT.match(turn) is not None and not clear_change

    def _chances(self, judged: Judgement) -> Floats:
        """The classifier's probabilities; a foreign language claims what is not coding or a picture."""
        chances = self._classifier.probabilities(judged.scores)
        strength = judged.language.strength
        domains = self._classifier.domains
        if strength <= 0.0 or LANGUAGES not in domains:
            return chances
        here = domains.index(LANGUAGES)
        leader = domains[int(chances.argmax())]
        looks_like_code = "coding" in judged.concepts or judged.code_shape >= CODE_SHAPE
        if (leader == CODING and looks_like_code) or (leader == IMAGES and "picture" in judged.concepts):
            return chances
        lifted = max(float(chances[here]), FOREIGN_CHANCE * strength)
        rest = 1.0 - float(chances[here])
        shifted = chances * ((1.0 - lifted) / rest if rest > 0.0 else 0.0)
        shifted[here] = lifted
        return np.asarray(shifted)

    def _evidence(self, judged: Judgement, domain: str) -> tuple[str, ...]:
        found = [f"word «{_short(word, 24)}»" for word in self._classifier.telling_words(judged, domain)]
        if domain == LANGUAGES and judged.language.name:
            found.insert(0, f"written in {judged.language.name}")
        example = self._classifier.nearest(judged, domain)
        if example:
            found.append(f"like «{_short(example, 60)}»")
        return tuple(found)


def built_in_examples() -> dict[str, list[str]]:
    """The labelled examples that ship with the package: domain -> texts."""
    return {domain: list(texts) for domain, texts in _shipped().items()}


@lru_cache(maxsize=1)
def _shipped() -> dict[str, list[str]]:
    text = files("vllm_axion.serving").joinpath("router_examples.json").read_text(encoding="utf-8")
    parsed: dict[str, list[str]] = json.loads(text)
    return parsed


def _messages(messages: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(messages, Sequence) and not isinstance(messages, (str, bytes)):
        yield from (message for message in messages if isinstance(message, Mapping))


def _parts(message: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    content = message.get("content")
    if isinstance(content, Mapping):
        yield content
    elif isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
        yield from (part for part in content if isinstance(part, Mapping))


def _seen_part(messages: Any) -> str | None:
    """The kind of the first part that only an expert with eyes can take, in any message: all are sent."""
    for message in _messages(messages):
        for part in _parts(message):
            kind = part.get("type")
            if isinstance(kind, str) and kind in _SEEN_PARTS:
                return kind
            if kind is None:  # vLLM takes parts without a type, told by their key
                for key in ("image_url", "input_image", "file", "video_url"):
                    if part.get(key) is not None:
                        return key
    return None


def user_turns(messages: Any) -> list[str]:
    """The words of the last user turns, oldest first; of a long text head and tail."""
    turns: list[str] = []
    for message in reversed(list(_messages(messages))):
        if message.get("role") != "user":
            continue
        content = message.get("content")
        if isinstance(content, str):
            turns.append(sample(content))
        else:
            texts = [
                part["text"]
                for part in _parts(message)
                if part.get("type", "text") in ("text", "input_text") and isinstance(part.get("text"), str)
            ]
            if isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
                texts.extend(part for part in content if isinstance(part, str))
            turns.append(sample("\n".join(texts)))
        if len(turns) == TURNS_READ:
            break
    return turns[::-1]


def _best_of(domain: str, experts: Sequence[ExpertConfig], loaded: Collection[str]) -> ExpertConfig:
    """Loaded first, then by priority, then in the file's order."""
    of_domain = [expert for expert in experts if expert.domain == domain]
    return min(of_domain, key=lambda expert: (expert.expert_id not in loaded, expert.priority))


def _runner_up(chances: Mapping[str, float], domain: str) -> str | None:
    others = [other for other in chances if other != domain]
    return max(others, key=lambda other: chances[other]) if others else None


def _content_reason(judged: Judgement) -> str:
    return f"content, in {judged.language.name}" if judged.language.name else "content of the user's message"


def _short(text: str, most: int) -> str:
    """One printable line: lone surrogates and control characters would break a header or a log."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= most else line[: most - 1] + "…"
