# SPDX-License-Identifier: Apache-2.0
"""Text to hashed n-grams and counted signals, in numpy, the same whether text comes whole or in pieces.

A text is cut into chunks: a word with the blanks before it. Everything counted is a whole number and belongs
to one chunk and the few tokens before it, so sums do not depend on how the text was split on its way here.

Of a text are read the first HEAD_CHARS characters and the last TAIL_CHARS: instructions stand at either end,
and the cost stays bounded however long the text is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vllm_axion.serving.language_signal import ENGLISH_WORDS, SPANISH_WORDS
from vllm_axion.serving.router_lexicon import CONCEPTS, PHRASES, concepts_of_word, strip_accents

HEAD_CHARS, TAIL_CHARS = 3072, 1024
CHUNK_CHARS = (
    64  # a longer run without blanks (Chinese, base64) is cut, so that what is unsettled stays short
)
GRAM_BUCKETS, WORD_BUCKETS, TRIPLE_BUCKETS = 1 << 17, 1 << 16, 1 << 16
COLUMNS = GRAM_BUCKETS + WORD_BUCKETS
LONGEST_GRAM = 5
START = ("^", "^", "^")  # the tokens before the first
CONTEXT = len(START)

Ints = NDArray[np.int64]

_CUT = re.compile(rf"(\S{{{CHUNK_CHARS}}})(?=\S)")
_LAST_RUN = re.compile(r"\s*(\S*)\Z")
_TOKEN = re.compile(r"\n\s*|\w+|[^\w\s]+")
_DIGITS = re.compile(r"\d+")
# The look of code, in text as typed. Blanks stand only at the beginning of a pattern, as they do in a chunk.
_SHAPES = re.compile(
    r"(?P<indent>\n(?:[ ]{2,}|\t)\s*(?=\S))|(?P<newline>\n)|(?P<fence>```)|(?P<call>\w\()"
    r"|(?P<camel>[a-z][A-Z])|(?P<snake>\w_\w)|(?P<dotted>[a-z]\.[a-z]{2})"
    r"|(?P<operator>[=!<>+*/-]=|[=-]>|::|&&|\|\||</|/>|\+\+|:=)|(?P<closing>[;{}\])]+(?=\s|$))"
    r"|(?P<option>(?<!\S)--?[a-zA-Z])|(?P<path>(?<![\w/])[~.]?/\w)|(?P<capitals>\b[A-Z]{3,}\b)"
    r"|(?P<question>[?¿؟？])|(?P<quote>[\"'`«»“”])|(?P<link>://)|(?P<bracket>[(\[{])"
    r"|(?P<symbol>[=<>\\|&$#*+^~%@])"
)
SHAPES: tuple[str, ...] = tuple(_SHAPES.groupindex)
COUNTS: tuple[str, ...] = (
    *("visible", "letters", "other script", "strange letters", "words", "spanish", "english"),
    *SHAPES,
    *CONCEPTS,
)
"""What `Pieces.counts` holds, in order: characters, words, the look of code, words that name a concept."""
AT = {name: place for place, name in enumerate(COUNTS)}
_WORDS, _SPANISH, _ENGLISH = AT["words"], AT["spanish"], AT["english"]
_CONCEPT = AT[CONCEPTS[0]]

_PRIME = np.uint32(0x01000193)
_POWERS = np.cumprod(np.array([1] + [0x01000193] * 4095, np.uint32), dtype=np.uint32)
_IS_HOME_LETTER = np.zeros(0x101, np.bool_)
_IS_HOME_LETTER[[ord(char) for char in "áéíóúüñªº"]] = True


@dataclass(frozen=True)
class Pieces:
    """What a stretch of text adds to what was read before it."""

    columns: Ints  # of its character and word n-grams, repeats kept
    token_of: Ints  # for each of `columns`, the place in `tokens` it belongs to
    triples: Ints  # buckets of the 3-grams of its words, for telling languages apart
    triple_word: Ints  # for each of `triples`, a number that those of one word share
    counts: Ints  # in the order of COUNTS
    tokens: tuple[str, ...]


def windows(text: str) -> tuple[str, str]:
    """The stretches that are read: the head and, of what lies behind it, the tail."""
    return text[:HEAD_CHARS], text[max(HEAD_CHARS, len(text) - TAIL_CHARS) :]


def settled(text: str) -> int:
    """How many leading characters are chunks that no later text can change. `text` begins at a chunk."""
    last = _LAST_RUN.search(text)
    if last is None:
        return 0
    word = len(last[1])
    if word <= CHUNK_CHARS:
        return last.start()
    return last.start(1) + (word - 1) // CHUNK_CHARS * CHUNK_CHARS


@lru_cache(maxsize=1 << 14)
def _known_word(token: str) -> tuple[str, bool, tuple[int, ...]]:
    """Without accents; whether it is a word; the counts it adds one to."""
    plain = strip_accents(token) or token
    if not token[0].isalpha():
        return plain, False, tuple(_CONCEPT + concept for concept in concepts_of_word(plain))
    adds = [_WORDS, *(_CONCEPT + concept for concept in concepts_of_word(plain))]
    if token in SPANISH_WORDS:
        adds.append(_SPANISH)
    if token in ENGLISH_WORDS:
        adds.append(_ENGLISH)
    return plain, True, tuple(adds)


def tokens(text: str) -> list[str]:
    """Case-folded words, runs of symbols, and line breaks (a tab behind one that indents)."""
    folded = unicodedata.normalize("NFC", text.casefold())
    found = _TOKEN.findall(_DIGITS.sub("0", folded))
    return [("\n" if len(t) == 1 else "\n\t") if t[0] == "\n" else t for t in found]


# The kinds of n-grams, each with a salt of its own: by length in characters, whole words, pairs, threes, and
# pairs over a gap; and 3-grams once more for telling languages apart.
_GRAM_SALTS = np.array([n * 0x9E3779B1 & 0xFFFFFFFF for n in range(1, LONGEST_GRAM + 1)], np.uint32)
_WORD_SALTS = np.array([n * 0x9E3779B1 & 0xFFFFFFFF for n in (11, 12, 13, 14)], np.uint32)
_TRIPLE_SALT = np.uint32(31 * 0x9E3779B1 & 0xFFFFFFFF) ^ _GRAM_SALTS[2]


def _mixed(h: NDArray[np.uint32]) -> Ints:
    """Spreads the bits of hashes, in place (the finaliser of MurmurHash3)."""
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x85EBCA6B)
    h ^= h >> np.uint32(13)
    h *= np.uint32(0xC2B2AE35)
    h ^= h >> np.uint32(16)
    return h.astype(np.int64)


def pieces(text: str, before: Sequence[str] = START) -> Pieces:
    """Read whole chunks that follow the tokens `before` (the last CONTEXT of them)."""
    text = unicodedata.normalize("NFKC", _CUT.sub(r"\1 ", text))
    counts = np.zeros(len(COUNTS), np.int64)
    for shape in _SHAPES.finditer(text):
        counts[AT[shape.lastgroup or ""]] += 1
    found = tokens(text)
    if not found:
        none = np.empty(0, np.int64)
        return Pieces(none, none, none, none, counts, ())
    known = [_known_word(token) for token in found]
    adds = [place for _, _, places in known for place in places]
    sequence = [*(strip_accents(token) or token for token in before), *(plain for plain, _, _ in known)]
    for place, token in enumerate(sequence):
        for concept, phrase in PHRASES.get(token, ()):
            end = place + len(phrase)
            if CONTEXT < end <= len(sequence) and _is_phrase(sequence[place:end], phrase):
                adds.append(_CONCEPT + concept)
    counts += np.bincount(adds, minlength=len(COUNTS))

    # One array of code points: the tokens in order, then again those that bear accents, with them.
    accented = [place for place, (plain, _, _) in enumerate(known) if plain != found[place]]
    owner = np.array([*range(-CONTEXT, len(found)), *accented], np.int64)
    is_word = np.array(
        [*(False for _ in before), *(word for _, word, _ in known), *(known[place][1] for place in accented)],
        np.bool_,
    )
    joined = " " + " ".join([*sequence, *(found[place] for place in accented)]) + " "
    points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    blank = points == 32
    blanks_to = np.cumsum(blank)
    begins = np.flatnonzero(blank)
    offset = int(begins[CONTEXT])
    inside = blanks_to - 1
    inside[-1] = inside[-2]
    _count_letters(points[offset:], (is_word[inside] & ~blank)[offset:], counts)

    size = points.size
    hashes = np.zeros((LONGEST_GRAM, size), np.uint32)
    valid = np.zeros((LONGEST_GRAM, size), np.bool_)
    hashes[0] = points
    valid[0] = ~blank
    for n in range(1, min(LONGEST_GRAM, size)):
        np.multiply(hashes[n - 1, : size - n], _PRIME, out=hashes[n, : size - n])
        hashes[n, : size - n] += points[n:]
        # Blanks stand only at either end of a gram: none spans two tokens.
        np.equal(blanks_to[n - 1 : size - 1], blanks_to[: size - n], out=valid[n, : size - n])
    valid[:, :offset] = False
    hashes ^= _GRAM_SALTS[:, None]
    length, places = np.nonzero(valid)
    grams = hashes[length, places]
    token_at = inside[places]
    of_words = np.flatnonzero((length == 2) & is_word[token_at])
    # Whole words, with and without accents; then pairs, threes and pairs over a gap, without accents.
    words = _word_hashes(points, blank, begins, inside)
    in_order = words[: len(sequence)]
    last, second, third = in_order[CONTEXT:], in_order[CONTEXT - 1 : -1], in_order[CONTEXT - 2 : -2]
    pair, gap = second * np.uint32(0x01B3C6A7) + last, third * np.uint32(0x2C1B3C6D) + last
    three = third * np.uint32(0x7FEB352D) + pair
    kinds = (words[CONTEXT:], pair, three, gap)
    salted = [kind ^ salt for kind, salt in zip(kinds, _WORD_SALTS, strict=True)]
    mixed = _mixed(np.concatenate((grams, *salted, grams[of_words] ^ _TRIPLE_SALT)))
    end = mixed.size - of_words.size
    columns, triples = mixed[:end], mixed[end:]
    columns[: grams.size] &= GRAM_BUCKETS - 1
    columns[grams.size :] &= WORD_BUCKETS - 1
    columns[grams.size :] += GRAM_BUCKETS
    triples &= TRIPLE_BUCKETS - 1
    all_tokens = owner[CONTEXT : len(sequence)]
    token_of = np.concatenate((owner[token_at], owner[CONTEXT:], all_tokens, all_tokens, all_tokens))
    return Pieces(columns, token_of, triples, token_at[of_words], counts, tuple(found))


def _is_phrase(tokens: Sequence[str], phrase: Sequence[str]) -> bool:
    """`phrase` is tokens; a star at the end of its last leaves that open."""
    *whole, last = phrase
    if list(tokens[:-1]) != whole:
        return False
    return tokens[-1].startswith(last[:-1]) if last.endswith("*") else tokens[-1] == last


def _word_hashes(
    points: NDArray[np.uint32], blank: NDArray[np.bool_], begins: NDArray[np.intp], inside: Ints
) -> NDArray[np.uint32]:
    """One hash for each token; `begins` are the blanks around them, `inside` the token of each point."""
    place = np.arange(points.size) - begins[inside]
    terms = points * _POWERS[np.minimum(place, _POWERS.size - 1)]
    terms[blank] = 0
    return np.add.reduceat(terms, begins[:-1] + 1, dtype=np.uint32)


def _count_letters(points: NDArray[np.uint32], letters: NDArray[np.bool_], counts: Ints) -> None:
    counts[AT["visible"]] += int((points != 32).sum())
    read = points[letters]
    counts[AT["letters"]] += read.size
    beyond = read[read >= 0x80]
    if not beyond.size:
        return
    # Letters of the Latin blocks; all others of a word are another script's.
    latin = (
        (beyond < 0x370)
        | ((beyond >= 0x1D00) & (beyond < 0x1F00))
        | ((beyond >= 0x2000) & (beyond < 0x2C00))
        | ((beyond >= 0xA720) & (beyond < 0xA800))
        | ((beyond >= 0x1F000) & (beyond < 0x20000))
    )
    counts[AT["other script"]] += int((~latin).sum())
    home = _IS_HOME_LETTER[np.minimum(beyond, _IS_HOME_LETTER.size - 1)]
    counts[AT["strange letters"]] += int((latin & ~home).sum())
