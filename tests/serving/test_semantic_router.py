# SPDX-License-Identifier: Apache-2.0
"""The router: where messages go, why, and that nothing a client sends makes it fall over."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_axion.serving.config import BUILT_IN_DOMAINS, MultiModelConfig
from vllm_axion.serving.route_eval import ask, figures, read_labelled
from vllm_axion.serving.router_lexicon import strip_accents
from vllm_axion.serving.semantic_router import Route, SemanticRouter, built_in_examples
from vllm_axion.serving.train_router import DATA, read_examples

FIVE = (
    ("phi4_fast", "general", 2),
    ("mistral_balanced", "technical", 2),
    ("qwen_coder", "coding", 3),
    ("gemma3_multimodal", "multimodal_expert", 3),
    ("aya_expanse", "multilingual_expert", 4),
)
EXPERT_OF = {domain: expert for expert, domain, _ in FIVE}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}

# Written before the examples and before the classifier was first run; unchanged since. That run got 64 of 65.
# The examples grew afterwards, by the hand that wrote this list: a set by somebody else is the better judge.
HELD_OUT: tuple[tuple[str, str], ...] = (
    ("general", "Buenas noches, ¿qué tal te ha ido el día?"),
    ("general", "¿Qué puedo cocinar con garbanzos y espinacas?"),
    ("general", "Recomiéndame una película para ver con mis abuelos"),
    ("general", "¿Cuál es la capital de Mongolia?"),
    ("general", "Mi compañera de piso no friega nunca, ¿qué le digo?"),
    ("general", "cuentame algo gracioso"),
    ("general", "¿Cuándo se celebra el día de la madre?"),
    ("general", "Invéntate un nombre para mi gatito gris"),
    ("general", "hey there, how's it going?"),
    ("general", "What should I wear to an outdoor wedding in October?"),
    ("general", "Give me ideas for a cheap weekend with two kids"),
    ("general", "Who painted the ceiling of the Sistine Chapel?"),
    ("general", "I can't fall asleep, any tips?"),
    ("technical", "¿Cómo funciona el protocolo DHCP?"),
    ("technical", "Explícame por qué los puentes colgantes aguantan el viento"),
    ("technical", "¿Qué diferencia hay entre un motor diésel y uno de gasolina?"),
    ("technical", "¿Por qué el acero inoxidable no se oxida?"),
    ("technical", "Explica la segunda ley de la termodinámica"),
    ("technical", "como funciona una placa solar"),
    ("technical", "¿Qué es la consistencia eventual en sistemas distribuidos?"),
    ("technical", "How does a heat pump move heat from cold to hot?"),
    ("technical", "Explain how virtual memory and page tables work"),
    ("technical", "What is the difference between symmetric and asymmetric encryption?"),
    ("technical", "Why do lithium batteries lose capacity over time?"),
    ("technical", "How do vaccines based on mRNA work?"),
    ("technical", "Describe how a transistor amplifies a signal"),
    ("coding", "Escribe código Python"),
    ("coding", "Hazme un script en bash que renombre todas las fotos de una carpeta"),
    ("coding", "¿Por qué me sale KeyError: 'precio' en este diccionario?"),
    ("coding", "Necesito una consulta SQL que agrupe las ventas por mes"),
    ("coding", "Pasa esta clase de Java a Kotlin"),
    ("coding", "una expresion regular para validar matriculas"),
    ("coding", "Añade tests unitarios a la función calcular_iva"),
    ("coding", "Write a binary search in Go"),
    ("coding", "My React component re-renders forever, what is wrong with this useEffect?"),
    ("coding", "Refactor this function so that it uses list comprehensions"),
    ("coding", '#include <stdio.h>\nint main(void) { int *p = 0; printf("%d", *p); }'),
    ("coding", "Schreib mir eine Funktion in C++, die einen Vektor sortiert"),
    ("coding", "Écris un script Python qui télécharge une page web"),
    ("coding", "Напиши функцию на Python для проверки палиндрома"),
    ("multilingual_expert", "translate this to French"),
    ("multilingual_expert", "Traduce al alemán: mañana llego tarde"),
    ("multilingual_expert", "¿Cómo se dice «cuchara» en japonés?"),
    ("multilingual_expert", "Conjuga el verbo ser en portugués"),
    ("multilingual_expert", "Corrígeme esta carta en inglés, por favor"),
    ("multilingual_expert", "pasa este correo al italiano"),
    ("multilingual_expert", "How would a native say 'see you soon' in Korean?"),
    ("multilingual_expert", "Quel temps fera-t-il demain à Lyon ?"),
    ("multilingual_expert", "Kannst du mir ein gutes Restaurant in Hamburg empfehlen?"),
    ("multilingual_expert", "Você pode me ajudar a escolher um presente?"),
    ("multilingual_expert", "Как приготовить борщ?"),
    ("multilingual_expert", "今日の天気はどうですか"),
    ("multilingual_expert", "كيف حالك اليوم؟"),
    ("multilingual_expert", "Hur mår du idag?"),
    ("multimodal_expert", "¿Qué se ve en esta imagen?"),
    ("multimodal_expert", "Describe la foto que te acabo de mandar"),
    ("multimodal_expert", "Lee el texto de este escaneo"),
    ("multimodal_expert", "Mira la captura de pantalla y dime qué botón pulso"),
    ("multimodal_expert", "¿Cuántas personas aparecen en la fotografía?"),
    ("multimodal_expert", "resume el pdf adjunto de 80 paginas"),
    ("multimodal_expert", "what's in this image"),
    ("multimodal_expert", "Read the total off the attached receipt"),
    ("multimodal_expert", "Which bar is the tallest in the chart I uploaded?"),
    ("multimodal_expert", "Is the dog in the picture a labrador?"),
    ("multimodal_expert", "Transcribe the handwriting in this photo"),
)


def router_for(experts: Sequence[tuple[str, str, int]] = FIVE, **sections: Any) -> SemanticRouter:
    listed = [{"expert_id": e, "model_path": "./m", "domain": d, "priority": p} for e, d, p in experts]
    return SemanticRouter(MultiModelConfig.model_validate({"experts": listed, **sections}))


@pytest.fixture(scope="module")
def router() -> SemanticRouter:
    return router_for()


def talk(*turns: str) -> list[dict[str, Any]]:
    """User turns with an assistant's answer between them."""
    messages: list[dict[str, Any]] = []
    for turn in turns:
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": "Aquí lo tienes."}]
    return messages[:-1]


def without_time(route: Route) -> tuple[Any, ...]:
    return tuple(value for name, value in vars(route).items() if name != "ms")


# --- the content classifier ---


def test_four_of_five_held_out_sentences_reach_their_domain(router: SemanticRouter) -> None:
    wrong = [(domain, text) for domain, text in HELD_OUT if router.route(talk(text)).domain != domain]
    assert len(wrong) <= 0.2 * len(HELD_OUT), wrong


def test_no_held_out_sentence_is_among_the_examples() -> None:
    def bare(text: str) -> str:
        return " ".join(re.findall(r"\w+", strip_accents(text.casefold()))) or text

    blind = Path(__file__).parent / "data" / "router_heldout.tsv"
    held_out = [text for _, text in HELD_OUT] + [row.text for row in read_labelled(blind, BUILT_IN_DOMAINS)]
    known = {bare(example.text) for example in read_examples(DATA)}
    assert not [place for place, text in enumerate(held_out) if bare(text) in known]


def test_at_least_nine_in_ten_of_the_blind_sentences_reach_their_domain(router: SemanticRouter) -> None:
    blind = Path(__file__).parent / "data" / "router_heldout.tsv"
    rows = read_labelled(blind, BUILT_IN_DOMAINS)
    result = figures(rows, [ask(router, row.text) for row in rows])
    assert result["accuracy"] >= 0.9 and result["ece"] <= 0.05 and result["auroc"] >= 0.85


def test_confidence_on_held_out_sentences_is_neither_boast_nor_shyness(router: SemanticRouter) -> None:
    routes = [(router.route(talk(text)), domain) for domain, text in HELD_OUT]
    right = sum(route.domain == domain for route, domain in routes) / len(routes)
    claimed = sum(route.confidence for route, _ in routes) / len(routes)
    assert abs(right - claimed) < 0.12


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("Escribe código Python", "coding"),
        ("hola", "general"),
        ("translate this to French", "multilingual_expert"),
        ("what's in this image", "multimodal_expert"),
        ("¿cómo funciona TCP?", "technical"),
        ("COMO FUNCIONA TCP", "technical"),
        ("como funciona el protocolo http", "technical"),
        ("```python\nfor x in y:\n    print(x)\n```", "coding"),
        (
            'Traceback (most recent call last):\n  File "a.py", line 3\nZeroDivisionError: division by zero',
            "coding",
        ),
    ],
)
def test_a_message_goes_to_the_domain_that_its_label_defines(
    router: SemanticRouter, text: str, domain: str
) -> None:
    route = router.route(talk(text))
    assert (route.domain, route.expert_id, route.abstained) == (domain, EXPERT_OF[domain], False)


def test_every_built_in_domain_has_at_least_120_examples_without_repeats() -> None:
    examples = built_in_examples()
    assert set(examples) == set(BUILT_IN_DOMAINS)
    for domain, texts in examples.items():
        assert len(set(texts)) == len(texts) >= 120, domain


def test_system_prompts_and_answers_do_not_count(router: SemanticRouter) -> None:
    coder = "You are a Python programmer. Write a Python function, fix the bug, run the unit tests."
    messages = [
        {"role": "system", "content": coder},
        {"role": "developer", "content": coder},
        *talk("Cuéntame un chiste de gatos"),
        {"role": "assistant", "content": coder},
        {"role": "tool", "content": coder},
    ]
    assert router.route(messages).domain == "general"


def test_only_an_assistant_speaking_is_nothing_to_route_on(router: SemanticRouter) -> None:
    assert router.route([{"role": "assistant", "content": "Escribe una función en Python"}]).abstained


def test_text_parts_are_read_like_plain_text(router: SemanticRouter) -> None:
    parts = [{"type": "text", "text": "Escribe una función"}, {"type": "input_text", "text": "en Python"}]
    assert router.route([{"role": "user", "content": parts}]).domain == "coding"


@pytest.mark.parametrize(
    "text",
    [
        "Wie lange dauert der Flug nach Madrid?",
        "Pouvez-vous me conseiller un bon restaurant pour ce soir ?",
        "Сколько лет Эйфелевой башне?",
        "東京でおすすめの場所はどこですか",
        "ما هو أفضل وقت لزيارة المغرب؟",
        "Jak dlouho se vaří vejce a jak poznám, že je hotové?",
    ],
)
def test_a_message_in_another_language_goes_to_the_multilingual_expert(
    router: SemanticRouter, text: str
) -> None:
    assert router.route(talk(text)).expert_id == "aya_expanse"


@pytest.mark.parametrize(
    "text",
    [
        "Warum bekomme ich in Python einen IndexError in dieser Funktion?",
        "Comment trier un tableau en JavaScript ?",
        "Напиши скрипт на bash для резервного копирования",
        "用 Python 读取 JSON 文件的代码",
    ],
)
def test_code_asked_for_in_another_language_stays_coding(router: SemanticRouter, text: str) -> None:
    assert router.route(talk(text)).domain == "coding"


# --- image and file parts ---


@pytest.mark.parametrize(
    "part",
    [
        PICTURE,
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
        {"type": "file", "file": {"file_id": "f"}},
        {"image_url": "data:image/png;base64,AAAA"},
    ],
)
def test_an_image_or_file_part_decides_against_the_words(
    router: SemanticRouter, part: Mapping[str, Any]
) -> None:
    words = {"type": "text", "text": "Escribe una función en Python"}
    route = router.route([{"role": "user", "content": [words, part]}])
    assert (route.expert_id, route.confidence, route.abstained) == ("gemma3_multimodal", 1.0, False)
    assert route.evidence


def test_an_image_earlier_in_the_talk_still_needs_eyes(router: SemanticRouter) -> None:
    messages = [{"role": "user", "content": [PICTURE]}, *talk("Escribe una función en Python")]
    assert router.route(messages).expert_id == "gemma3_multimodal"


def test_an_image_is_routed_by_its_words_when_no_usable_expert_sees(router: SemanticRouter) -> None:
    words = {"type": "text", "text": "Escribe una función en Python que lea un fichero"}
    messages = [{"role": "user", "content": [words, PICTURE]}]
    blind = [expert for expert in EXPERT_OF.values() if expert != "gemma3_multimodal"]
    assert router.route(messages, usable=blind).expert_id == "qwen_coder"


# --- prompts beyond an expert's context ---


def test_a_prompt_beyond_the_experts_context_goes_to_the_one_for_documents(router: SemanticRouter) -> None:
    ask = talk("Escribe código Python que lea esto:\n" + "x = 1\n" * 4000)
    fits = router.route(ask, context={"qwen_coder": 32_000})
    beyond = router.route(ask, context={"qwen_coder": 4096})
    assert (fits.expert_id, fits.signal) == ("qwen_coder", "content")
    assert (beyond.expert_id, beyond.signal, beyond.abstained) == ("gemma3_multimodal", "context", False)
    assert "beyond the context of qwen_coder (4096)" in beyond.reason


def test_without_an_expert_for_documents_the_best_of_those_that_fit_answers(router: SemanticRouter) -> None:
    ask = talk("Escribe código Python que lea esto:\n" + "x = 1\n" * 4000)
    small = {"qwen_coder": 4096, "gemma3_multimodal": 4096}
    route = router.route(ask, context=small)
    assert route.signal == "context" and route.expert_id in {"phi4_fast", "mistral_balanced", "aya_expanse"}


def test_when_no_expert_takes_so_much_the_widest_does(router: SemanticRouter) -> None:
    ask = talk("Escribe código Python que lea esto:\n" + "x = 1\n" * 4000)
    sizes = dict.fromkeys(EXPERT_OF.values(), 1024) | {"mistral_balanced": 2048}
    assert router.route(ask, context=sizes).expert_id == "mistral_balanced"


def test_the_whole_talk_counts_and_short_ones_are_not_affected(router: SemanticRouter) -> None:
    sizes = dict.fromkeys(EXPERT_OF.values(), 1024) | {"gemma3_multimodal": 100_000}
    assert router.route(talk("Escribe código Python"), context=sizes).expert_id == "qwen_coder"
    answer = {"role": "assistant", "content": "palabra " * 2000}
    longer = [*talk("hola"), answer, *talk("Escribe código Python")]
    assert router.route(longer, context=sizes).expert_id == "gemma3_multimodal"


def test_the_context_in_the_configuration_counts() -> None:
    experts = [
        {"expert_id": "coder", "model_path": "./m", "domain": "coding", "max_model_len": 512},
        {"expert_id": "reader", "model_path": "./m", "domain": "multimodal_expert"},
    ]
    own = SemanticRouter(MultiModelConfig.model_validate({"experts": experts}))
    assert own.route(talk("Escribe código Python")).expert_id == "coder"
    assert own.route(talk("Escribe código Python: " + "x = 1\n" * 2000)).expert_id == "reader"


# --- follow-ups ---


@pytest.mark.parametrize(
    ("turns", "domain"),
    [
        (("Escribe un poema sobre el otoño", "¿y en inglés?"), "general"),
        (("Write a Python function that adds two numbers", "make it shorter"), "coding"),
        (("Escribe una función que sume dos números", "ahora en Rust"), "coding"),
        (("Escribe una función en Python que sume", "hazla más corta", "¿y en Go?", "otra vez"), "coding"),
        (("¿Cómo funciona TCP?", "¿y UDP?"), "technical"),
        (("¿Cómo funciona TCP?", "👍"), "technical"),
        (("Traduce al francés: buenos días", "and in German"), "multilingual_expert"),
    ],
)
def test_a_follow_up_stays_with_the_domain_of_the_talk(
    router: SemanticRouter, turns: tuple[str, ...], domain: str
) -> None:
    route = router.route(talk(*turns))
    assert (route.domain, route.reason) == (domain, "follow-up: stays with the talk")


@pytest.mark.parametrize(
    ("turns", "domain"),
    [
        (("Escribe una función en Python que sume", "Cuéntame un chiste sobre gatos"), "general"),
        (("hola", "and how does a nuclear reactor work?"), "technical"),
        (("hello", "now write a Python script that renames files"), "coding"),
        (("Escribe un poema sobre el mar", "y ahora escribe una función en Python"), "coding"),
    ],
)
def test_a_clear_change_of_subject_leaves_the_talk(
    router: SemanticRouter, turns: tuple[str, ...], domain: str
) -> None:
    assert router.route(talk(*turns)).domain == domain


def test_a_follow_up_with_nothing_before_it_is_judged_alone(router: SemanticRouter) -> None:
    assert "follow-up" not in router.route(talk("make it shorter")).reason


# --- experts: availability, residency, priority ---


def test_probabilities_cover_the_configured_domains_and_sum_to_one() -> None:
    two = router_for((("a", "general", 3), ("b", "coding", 3)))
    route = two.route(talk("Translate this paragraph into German"))
    assert set(route.probabilities) == {"general", "coding"}
    assert sum(route.probabilities.values()) == pytest.approx(1.0)
    assert route.confidence == route.probabilities[route.domain]


def test_unusable_experts_are_never_chosen(router: SemanticRouter) -> None:
    route = router.route(talk("Escribe código Python"), usable={"phi4_fast", "mistral_balanced"})
    assert route.expert_id in {"phi4_fast", "mistral_balanced"}
    assert set(route.probabilities) == {"general", "technical"}


def test_when_none_is_usable_the_choice_is_made_as_if_all_were(router: SemanticRouter) -> None:
    assert router.route(talk("Escribe código Python"), usable=()).expert_id == "qwen_coder"


def test_among_experts_of_one_domain_the_loaded_comes_first_then_priority_then_the_file_order() -> None:
    coders = router_for(
        (("late", "coding", 3), ("first", "coding", 1), ("also", "coding", 1), ("g", "general", 1))
    )
    ask = talk("Escribe una función en Python")
    assert coders.route(ask).expert_id == "first"
    assert coders.route(ask, loaded={"late"}).expert_id == "late"
    assert coders.route(ask, loaded={"late", "also"}).expert_id == "also"


def test_among_near_ties_the_loaded_expert_answers() -> None:
    wide = router_for(router={"prefer_loaded_margin": 1.0, "threshold": 0.1})
    ask = talk("Escribe código Python")
    cold = wide.route(ask)
    warm = wide.route(ask, loaded={"mistral_balanced"})
    assert (cold.expert_id, warm.expert_id) == ("qwen_coder", "mistral_balanced")
    assert "near tie" in warm.reason and not warm.abstained
    assert warm.runner_up == "coding"


def test_without_a_near_tie_the_right_expert_is_worth_a_load() -> None:
    narrow = router_for(router={"prefer_loaded_margin": 0.0})
    route = narrow.route(talk("Escribe código Python"), loaded={"mistral_balanced", "phi4_fast"})
    assert route.expert_id == "qwen_coder"


# --- abstention ---

NOTHING_TO_JUDGE = ("", "   \n", "👍🎉🔥", "?!…", "42", "\x00\x00", "\ud83d", "\u200f\u200e")


@pytest.mark.parametrize("text", NOTHING_TO_JUDGE)
def test_a_message_without_words_is_abstained_from(router: SemanticRouter, text: str) -> None:
    route = router.route(talk(text))
    assert route.abstained and route.expert_id == "phi4_fast" and "abstained" in route.reason


def test_gibberish_is_below_the_threshold_and_says_so(router: SemanticRouter) -> None:
    route = router.route(talk("xqzt vrrk plmf"))
    assert route.abstained and max(route.probabilities.values()) < 0.5
    assert "below the threshold 0.5" in route.reason


def test_abstaining_takes_a_loaded_expert_then_a_general_one_then_priority() -> None:
    experts = (("code", "coding", 1), ("chat", "general", 5), ("tech", "technical", 2))
    asked = router_for(experts)
    assert asked.route(talk("")).expert_id == "chat"
    assert asked.route(talk(""), loaded={"tech"}).expert_id == "tech"
    assert asked.route(talk(""), loaded={"tech", "code"}).expert_id == "code"
    assert asked.route(talk(""), loaded={"tech", "chat"}).expert_id == "chat"
    assert router_for((("t", "technical", 2), ("c", "coding", 1))).route(talk("")).expert_id == "c"


def test_the_threshold_of_the_file_decides_what_is_abstained_from() -> None:
    strict, lax = (router_for(router={"threshold": value}) for value in (1.0, 0.0))
    ask = talk("Hazme una lista")
    assert strict.route(ask).abstained
    assert not lax.route(ask).abstained


# --- domains of the user's own ---


def test_a_declared_domain_is_learnt_from_its_examples() -> None:
    examples = [
        "¿Qué dice el estatuto de los trabajadores sobre las vacaciones?",
        "Redacta una demanda por despido improcedente",
        "¿Qué plazo hay para recurrir una sentencia?",
        "Is this clause of the contract enforceable in court?",
        "Draft a lawsuit against my landlord",
    ]
    legal = router_for(
        (*FIVE, ("lawyer", "legal", 3)),
        domains={"legal": {"description": "Derecho", "examples": examples}},
    )
    assert legal.route(talk("¿Qué plazo tengo para demandar por un despido?")).expert_id == "lawyer"
    assert legal.route(talk("Escribe código Python")).expert_id == "qwen_coder"


def test_a_declared_domain_without_examples_is_reached_by_name_only() -> None:
    quiet = router_for((*FIVE, ("x", "silent", 1)), domains={"silent": {}})
    route = quiet.route(talk("Escribe código Python"))
    assert route.expert_id == "qwen_coder" and route.probabilities["silent"] == 0.0


# --- odd input ---

json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
part_like = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["text", "image_url", "file", "input_audio", "??"]) | json_like,
        "text": json_like,
        "image_url": json_like,
    },
)
message_like = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system"]) | json_like,
        "content": st.text(st.characters(exclude_categories=()), max_size=200)
        | st.lists(part_like, max_size=4)
        | json_like,
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(messages=st.lists(message_like | json_like, max_size=6) | json_like)
def test_any_json_gives_a_route_to_a_configured_expert(router: SemanticRouter, messages: Any) -> None:
    route = router.route(messages, loaded=("phi4_fast",))
    assert route.domain == {expert: domain for expert, domain, _ in FIVE}[route.expert_id]
    assert set(route.probabilities) == set(BUILT_IN_DOMAINS)
    assert sum(route.probabilities.values()) == pytest.approx(1.0)
    assert route.confidence == route.probabilities[route.domain]
    assert route.runner_up != route.domain
    assert all(line.isprintable() for line in route.evidence)


ODD: tuple[Any, ...] = (
    None,
    7,
    "a plain string",
    [],
    [None],
    [{}],
    [{"role": "user"}],
    [{"role": "user", "content": None}],
    [{"role": "user", "content": 3.5}],
    [{"role": "user", "content": [{"type": "hologram", "hologram": {}}]}],
    [{"role": "user", "content": [{"type": "text", "text": None}]}],
    [{"role": "wizard", "content": "Escribe código Python"}],
    [{"role": ["user"], "content": "Escribe código Python"}],
    [{"role": "user", "content": "\u200f\u200e\u202e"}],
    [{"role": "user", "content": "👍🏽👩‍👩‍👧"}],
)


@pytest.mark.parametrize("messages", ODD)
def test_odd_messages_are_abstained_from(router: SemanticRouter, messages: Any) -> None:
    route = router.route(messages)
    assert route.abstained and route.expert_id == "phi4_fast" and route.signal == "nothing"


@pytest.mark.parametrize("noise", ["\x00", "\ud83d", "\u200f", "\u202e", "\ufeff", "\u0301"])
def test_stray_characters_do_not_hide_the_words(router: SemanticRouter, noise: str) -> None:
    assert router.route(talk(f"{noise}Escribe código{noise} Python {noise}")).expert_id == "qwen_coder"


def test_a_megabyte_is_judged_by_its_head_and_tail(router: SemanticRouter) -> None:
    filler = "palabra " * 130_000
    assert router.route(talk("Traduce al alemán este texto:\n" + filler)).domain == "multilingual_expert"
    middle = filler[:500_000] + " traduce al alemán este texto " + filler[500_000:]
    assert without_time(router.route(talk(middle))) == without_time(router.route(talk(filler)))


def test_blanks_do_not_hide_a_follow_up(router: SemanticRouter) -> None:
    assert router.route(talk("Escribe código Python", "y" + " " * 500_000 + "en")).expert_id == "qwen_coder"


# --- repeatability ---


def test_the_same_messages_get_the_same_route_from_any_router(router: SemanticRouter) -> None:
    again = router_for()
    for _, text in HELD_OUT[::4]:
        assert without_time(router.route(talk(text))) == without_time(again.route(talk(text)))


def test_threads_that_share_a_router_get_the_answers_of_one_alone(router: SemanticRouter) -> None:
    texts = [text for _, text in HELD_OUT]
    alone = [without_time(router.route(talk(text))) for text in texts]
    seen: list[list[tuple[Any, ...]]] = []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        seen.append([without_time(router.route(talk(text))) for text in texts])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [alone] * 4
