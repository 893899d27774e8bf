# SPDX-License-Identifier: Apache-2.0
"""Words that name a concept in many languages: what examples alone would have to repeat in each of them.

Case-folded, parted by commas. `stem*` is a word's beginning, `*stem*` may stand anywhere (scripts without
spaces), anything else is a whole word. A match is one more feature for the classifier, which learns from the
examples how far to believe it: "python" may be a snake. Symbols stand apart, as the tokens do: `c ++`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

_CODING = """
python*, javascript*, dart, delphi, arduino, terraform, ansible, kubectl, array*, string,
strings, dataframe*, endpoint*, rebase, usestate, useeffect, bucle*, typescript*, java, kotlin,
rust, golang, c ++, c #, php, ruby, perl, scala, haskell, matlab, lua, sql, mysql, postgres*,
sqlite, html, css, json, yaml, regex*, bash, powershell, shell, pandas, numpy, django, flask,
fastapi, react, vue, angular, node . js, npm, pip, docker*, kubernetes, git, github, makefile,
cmake, gcc, webpack, awk, pytest, junit, stacktrace, traceback, exception, codigo*, code,
codice, codi, codul, kod*, quellcode, script*, fonction*, funktion, funktionen, funkcj*, funkce,
funkci*, funzione, funcao, funcoes, funcio, functie, fonksiyon*, fungsi, funktio*, compil*,
kompil*, debug*, depura*, refactor*, unit test*, test unitari*, expresion regular, bug, bugs,
vba, excel formula, program, programa, programma, programm, programme, код, кода, коде, коду,
функци*, скрипт*, компил*, программу, запрос, κωδικα*, συναρτηση*, *代码*, *代碼*, *函数*,
*函數*, *コード*, *関数*, *バグ*, *スクリプト*, *プログラム*, *编程*, *脚本*, *코드*, *함수*,
*버그*, *스크립트*, *파이썬*, كود, الكود, دالة, برمج*, بايثون, קוד, פונקצי*, पायथन, *कोड*,
*फंक्शन*, *फ़ंक्शन*, *โค้ด*, *ฟังก์ชัน*
"""
_PICTURE = """
imagen, imagenes, image, images, imagem, imagens, immagin*, imatge*, imaxe*, foto, fotos,
fotograf*, photo*, picture*, screenshot*, captura, capturas, pantallazo*, capture d ' ecran,
bildschirmfoto*, bild, bilder, bildet, billede*, afbeelding*, kuva, kuvassa, zdjeci*, obraz*,
kep, kepen, resim, resimde, gambar, hinh anh, scan, scanned, escane*, scansion*, ocr, grafico,
grafica, diagrama, diagram, chart, plot, radiografia, x - ray, dibujo, drawing, adjunt*, attached,
attachment, uploaded, ci - joint*, angehangt*, allegat*, anexad*, pdf, diapositiv*, slides, video,
handwrit*, handschrift*, manuscrit*, whiteboard, картин*, изображен*, фото*, снимк*, скриншот*,
εικονα*, φωτογραφια*, *画像*, *写真*, *图片*, *圖片*, *照片*, *截图*, *사진*, *이미지*, صورة, الصورة, תמונה,
*चित्र*, *तस्वीर*, *รูปภาพ*
"""
_TRANSLATION = """
traduc*, traduz*, traduir, tradui*, tradurre, translat*, ubersetz*, vertaal*, vertaling,
oversaet*, oversett*, oversatt*, kaanna, przetlumacz*, preloz*, prevedi, fordit*, cevir*,
terjemah*, itzuli*, перевед*, перевод*, μεταφρασ*, *翻译*, *翻譯*, *翻訳*, *訳して*, *번역*, ترجم*, תרגם,
*अनुवाद*, *แปล*, conjug*, como se dice, como digo, how do you say, how do i say, how to say,
como se pronuncia, pronounce, gramatic*, grammar, spelling, ortograf*, idioma, idiomas, language
is, subtitul*, subjuntivo, subjunctive, native speaker, native say
"""
_LANGUAGE_NAME = """
ingles, inglesa, espanol, espanola, castellano, frances, francesa, aleman, alemana, italiano,
italiana, portugues, portuguesa, catalan, gallego, euskera, vasco, valenciano, neerlandes,
holandes, sueco, danes, noruego, fines, finlandes, polaco, checo, eslovaco, hungaro, rumano,
bulgaro, serbio, croata, griego, turco, ruso, ucraniano, arabe, hebreo, persa, hindi, bengali,
urdu, chino, mandarin, japones, coreano, vietnamita, tailandes, indonesio, swahili, suajili,
latin, esperanto, islandes, irlandes, quechua, guarani, nahuatl, english, spanish, french,
german, italian, portuguese, galician, basque, dutch, swedish, danish, norwegian, finnish,
polish, czech, slovak, hungarian, romanian, bulgarian, serbian, croatian, greek, turkish,
russian, ukrainian, arabic, hebrew, persian, farsi, chinese, cantonese, japanese, korean,
vietnamese, thai, indonesian, tagalog, icelandic, irish, welsh, tamil, telugu, yoruba, zulu,
anglais, espagnol, allemand, englisch, spanisch, franzosisch, inglese, spagnolo, tedesco,
английск*, испанск*
"""
_STEMS = {
    "coding": _CODING,
    "picture": _PICTURE,
    "translation": _TRANSLATION,
    "language name": _LANGUAGE_NAME,
}
CONCEPTS: tuple[str, ...] = tuple(_STEMS)
_ACCENTS = re.compile(r"[\u0300-\u036f]")


def strip_accents(text: str) -> str:
    """`mañana` -> `manana`: many people type without them. Marks of other scripts than the European stay."""
    if text.isascii():
        return text
    decomposed = unicodedata.normalize("NFD", text)
    return unicodedata.normalize("NFC", _ACCENTS.sub("", decomposed))


# Whole words and beginnings are looked up word by word: many times quicker than one long alternation.
_WHOLE: dict[str, int] = {}
_BEGINNING: dict[str, int] = {}
_PHRASES: list[tuple[int, re.Pattern[str]]] = []
_ANYWHERE: list[tuple[int, re.Pattern[str]]] = []


def _sort_in(concept: int, stems: str) -> None:
    phrases: list[str] = []
    anywhere: list[str] = []
    for stem in (stem.strip() for stem in strip_accents(stems).replace("\n", " ").split(",")):
        if stem.startswith("*"):
            anywhere.append(re.escape(stem.strip("*")))
        elif re.search(r"\W", stem.rstrip("*")) and not re.search(r"[^\x00-\u08ff]", stem):
            phrases.append(
                rf"(?<!\w){re.escape(stem.rstrip('*'))}" + ("" if stem.endswith("*") else r"(?!\w)")
            )
        elif stem.endswith("*"):
            _BEGINNING[stem.rstrip("*")] = concept
        else:
            _WHOLE[stem] = concept
    if phrases:
        _PHRASES.append((concept, re.compile("|".join(phrases))))
    if anywhere:
        _ANYWHERE.append((concept, re.compile("|".join(anywhere))))


for _concept, _listed in enumerate(_STEMS.values()):
    _sort_in(_concept, _listed)
_LONGEST_BEGINNING = max(map(len, _BEGINNING))


@lru_cache(maxsize=1 << 14)
def _concept_of(word: str) -> int | None:
    plain = strip_accents(word)
    found = _WHOLE.get(plain)
    for length in range(2, min(len(plain), _LONGEST_BEGINNING) + 1):
        if found is not None:
            break
        found = _BEGINNING.get(plain[:length])
    return found


def concept_strengths(words: Sequence[str]) -> list[float]:
    """For each of `CONCEPTS`: 0 (not named), 0.75 (once) or 1 (more), in case-folded words and symbols."""
    hits = [0] * len(CONCEPTS)
    for word in words:
        concept = _concept_of(word)
        if concept is not None:
            hits[concept] += 1
    spaced = strip_accents(" ".join(words))
    for concept, pattern in _PHRASES if spaced.isascii() else (*_PHRASES, *_ANYWHERE):
        if pattern.search(spaced):
            hits[concept] += 1
    return [(0.0, 0.75, 1.0)[min(count, 2)] for count in hits]
