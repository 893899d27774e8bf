# SPDX-License-Identifier: Apache-2.0
"""Which expert answers a request that names none.

Signals, first that decides wins: image or file parts; a prompt longer than an expert's context; follow-up to
the talk so far; the content classifier; residency among near ties; fallback. Only the user's words count,
never system prompts or role tags.
Everything is prepared at construction and immutable after it, so one router serves all threads.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vllm_axion.serving.declared_examples import DeclaredExamples, Shared
from vllm_axion.serving.ngram_classifier import Floats, Judgement, NgramClassifier
from vllm_axion.serving.ngram_features import HEAD_CHARS, TAIL_CHARS
from vllm_axion.serving.router_model import shipped_model

if TYPE_CHECKING:
    from vllm_axion.serving.config import ExpertConfig, MultiModelConfig

GENERAL, IMAGES, LANGUAGES = "general", "multimodal_expert", "multilingual_expert"

_SEEN_PARTS = frozenset(
    {"image_url", "input_image", "image", "image_pil", "image_embeds", "file", "input_file", "video_url"}
)
TURNS_READ = 6  # of a long talk, this many last user turns
EARLIER_TURN_WEIGHT = 0.25  # of the turn before, in a message that is no follow-up but short
SHORT_MESSAGE_WORDS = 6
FOLLOW_UP_WORDS, FOLLOW_UP_CHARS = 9, 120
CLEAR_CHANGE = 0.75  # a follow-up leaves the talk's domain only for another one at least this likely
BYTES_PER_TOKEN = 4.0  # of UTF-8: a rough mean over languages and tokenizers

FOLLOW_UP = "follow-up: stays with the talk"

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
    likely domain; `evidence` are words and facts it rests on; `ms` is the time it took. `signal` is what
    decided: a part of the message, its length against an expert's `context`, the words (`content`, follow-ups
    and abstentions included), or nothing to go by."""

    expert_id: str
    domain: str
    confidence: float
    probabilities: dict[str, float]
    runner_up: str | None
    evidence: tuple[str, ...]
    abstained: bool
    reason: str
    ms: float
    signal: Literal["part", "context", "content", "nothing"] = "content"


@dataclass(frozen=True)
class Known:
    """What a caller who reads a text as it comes has judged already: the last user turn (`judgement`), what
    it has in common with declared examples (`shared`), and turns before it, by their text (`earlier`)."""

    judgement: Judgement | None = None
    shared: Shared | None = None
    earlier: Mapping[str, Judgement | None] = field(default_factory=dict)


@dataclass(frozen=True)
class _Asked:
    """What `SemanticRouter.route` was asked about."""

    messages: Any
    loaded: frozenset[str]
    content: Mapping[str, float] | None
    known: Known


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
        self.classifier = NgramClassifier()
        declared: dict[str, Sequence[str]] = {}
        for domain, section in config.domains.items():
            declared[domain] = section.examples or ([section.description] if section.description else [])
        self._declared = DeclaredExamples(self.classifier, declared) if any(declared.values()) else None
        self.domains = self._declared.domains if self._declared else self.classifier.domains

    @property
    def declares_examples(self) -> bool:
        """Whether the configuration has examples of its own; else a judgement's sums say all there is."""
        return self._declared is not None

    def route(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        loaded: Collection[str] = (),
        usable: Collection[str] | None = None,
        context: Mapping[str, int] | None = None,
        content: Mapping[str, float] | None = None,
        known: Known | None = None,
    ) -> Route:
        """Choose an expert for chat messages (a plain prompt is one user message).

        `loaded` are the ids of experts in memory; `usable` those that may be chosen (None, or none of ours:
        all); `context` the tokens an expert takes, where that is not its `max_model_len`; `content` another
        encoder's probabilities of the last user turn, to be taken in place of the built-in classifier's;
        `known` what the caller has judged already. Never raises on odd content; what cannot be judged is
        abstained from."""
        began = time.perf_counter()
        experts = [e for e in self._experts if usable is None or e.expert_id in usable] or list(self._experts)
        asked = _Asked(messages, frozenset(loaded), content, known or Known())
        route = self._choose(asked, experts, context or {})
        return replace(route, ms=(time.perf_counter() - began) * 1000.0)

    def _choose(self, asked: _Asked, experts: list[ExpertConfig], context: Mapping[str, int]) -> Route:
        if any(expert.domain == IMAGES for expert in experts):
            part = _seen_part(asked.messages)
            if part:
                why = f"the messages hold a part of type {part}"
                return _certain(IMAGES, experts, asked.loaded, f"part «{part}»", why, "part")
        wish = self._by_content(asked, experts)
        limits = {e.expert_id: context.get(e.expert_id) or e.max_model_len for e in experts}
        limit = limits[wish.expert_id]
        tokens = _tokens_of(asked.messages, limit) if limit else 0
        if not limit or tokens < limit:
            return wish
        # Long prompts belong to the expert for documents where the one for their subject cannot take them.
        fitting = [e for e in experts if tokens < (limits[e.expert_id] or tokens + 1)]
        if not fitting:
            widest = max(limit or 0 for limit in limits.values())
            fitting = [e for e in experts if limits[e.expert_id] == widest]
        if any(e.expert_id == wish.expert_id for e in fitting):
            return wish
        why = f"the prompt (about {tokens} tokens) is beyond the context of {wish.expert_id} ({limit})"
        if any(e.domain == IMAGES for e in fitting):
            return _certain(IMAGES, fitting, asked.loaded, f"about {tokens} tokens", why, "context")
        found = self._by_content(asked, fitting)
        return replace(found, reason=f"{found.reason}; {why}", signal="context")

    def _by_content(self, asked: _Asked, experts: list[ExpertConfig]) -> Route:
        loaded = asked.loaded
        available = tuple(dict.fromkeys(expert.domain for expert in experts))
        opinion = self._opinion(asked)
        if opinion is None:
            even = dict.fromkeys(available, 1.0 / len(available))
            why = "the user's message has no words to judge by"
            return replace(self._fall_back(even, (), why, experts, loaded), signal="nothing")
        chances = self._over(available, opinion.chances)
        ranked = sorted(chances, key=lambda domain: -chances[domain])
        best = ranked[0]
        if chances[best] < self._threshold:
            why = f"unsure ({best} {chances[best]:.2f} is below the threshold {self._threshold:g})"
            evidence = self._evidence(opinion.judgement, best)
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
                    break
        evidence, second = self._evidence(opinion.judgement, domain), _runner_up(chances, domain)
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
        place = {domain: index for index, domain in enumerate(self.domains)}
        # A declared domain without any example has no evidence for it, ever: it is reached by name only.
        kept = {d: float(chances[place[d]]) if d in place else 0.0 for d in available}
        total = sum(kept.values())
        if total <= 0.0:
            return dict.fromkeys(available, 1.0 / len(available))
        return {domain: chance / total for domain, chance in kept.items()}

    def _opinion(self, asked: _Asked) -> _Opinion | None:
        """Read the user's turns in order, so that a follow-up to a follow-up finds where the talk is."""
        talk: _Opinion | None = None
        turns = user_turns(asked.messages)
        for position, turn in enumerate(turns):
            is_last = position == len(turns) - 1
            known = asked.known
            if is_last and known.judgement:
                judged: Judgement | None = known.judgement
            elif turn in known.earlier and not is_last:
                judged = known.earlier[turn]
            else:
                judged = self.classifier.judge(turn)
            if judged is None:
                # An emoji after a question is a follow-up; alone it says nothing.
                talk = replace(talk, how=FOLLOW_UP) if talk and position else talk
                continue
            chances = judged.chances
            if self._declared is not None:
                chances = self._declared.chances(judged, known.shared if is_last else None)
            if is_last and asked.content is not None:
                chances = np.array([asked.content.get(domain, 0.0) for domain in self.domains])
            alone = _Opinion(chances, judged, "content of the user's message")
            talk = alone if talk is None else self._continued(talk, alone, turn)
        return talk

    def _continued(self, talk: _Opinion, alone: _Opinion, turn: str) -> _Opinion:
        size = alone.judgement.words
        turn = " ".join(turn.split())
        if size <= FOLLOW_UP_WORDS and len(turn) <= FOLLOW_UP_CHARS and self._follows(talk, alone, turn):
            return replace(talk, how=FOLLOW_UP)
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

    def _evidence(self, judged: Judgement, domain: str) -> tuple[str, ...]:
        found = [f"word «{_short(word, 24)}»" for word in self.classifier.telling_words(judged, domain)]
        language = judged.language().name if domain == LANGUAGES else ""
        return (f"written in {language}", *found) if language else tuple(found)


def built_in_examples() -> dict[str, list[str]]:
    """Labelled examples that ship with the package, some of those trained on: domain -> texts."""
    return {domain: list(texts) for domain, texts in shipped_model().prototypes.items()}


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
        turns.append(_ends("\n".join(_texts_of(message))))
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


def _certain(
    domain: str,
    experts: Sequence[ExpertConfig],
    loaded: Collection[str],
    evidence: str,
    why: str,
    signal: Literal["part", "context"],
) -> Route:
    chances = {other: float(other == domain) for other in dict.fromkeys(e.domain for e in experts)}
    expert = _best_of(domain, experts, loaded)
    return Route(expert.expert_id, domain, 1.0, chances, None, (evidence,), False, why, 0.0, signal)


def _ends(text: str) -> str:
    """As much of a long text as the classifier reads."""
    return text if len(text) <= HEAD_CHARS + TAIL_CHARS else text[:HEAD_CHARS] + text[-TAIL_CHARS:]


def _texts_of(message: Mapping[str, Any]) -> list[str]:
    """The text of a message, or of its parts; other parts say nothing here."""
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    texts = [
        part["text"]
        for part in _parts(message)
        if part.get("type", "text") in ("text", "input_text") and isinstance(part.get("text"), str)
    ]
    if isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
        texts.extend(part for part in content if isinstance(part, str))
    return texts


def _tokens_of(messages: Any, least: int) -> int:
    """About how many tokens all messages have together; 0 when they cannot reach `least`."""
    texts = [text for message in _messages(messages) for text in _texts_of(message)]
    if sum(map(len, texts)) * 4 < least * BYTES_PER_TOKEN:
        return 0
    return int(sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) / BYTES_PER_TOKEN)


def _short(text: str, most: int) -> str:
    """One printable line: lone surrogates and control characters would break a header or a log."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= most else line[: most - 1] + "…"
