# SPDX-License-Identifier: Apache-2.0
"""Byte-level BPE tokenizers for the demo experts, trained on the spot on a small text.

One set of merges serves all five; each family adds its own special tokens under the names its real models
use. Byte-level means that any text round-trips, trained on or not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import demo_chat_templates as templates

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 1280
"""Entries of a demo vocabulary, special tokens included (a multiple of 64: no padding in the head)."""


@dataclass(frozen=True)
class TokenizerFamily:
    """What one family adds to the common merges.

    `special` are never shown in an answer, `plain` are whole tokens that are ordinary text. With
    `special_first` they take the lowest ids (Gemma, Mistral, Cohere), otherwise the highest (Phi, Qwen).
    `named` are further attributes a processor asks the tokenizer for.
    """

    chat_template: str
    special: tuple[str, ...]
    eos: str
    pad: str
    bos: str | None = None
    unk: str | None = None
    plain: tuple[str, ...] = ()
    special_first: bool = True
    prepend_bos: bool = False
    named: tuple[tuple[str, str], ...] = ()


PHI = TokenizerFamily(
    chat_template=templates.PHI,
    special=(
        "<|endoftext|>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|end|>",
        "<|tool|>",
        "<|/tool|>",
        "<|tool_call|>",
        "<|/tool_call|>",
    ),
    bos="<|endoftext|>",
    eos="<|endoftext|>",
    pad="<|endoftext|>",
    special_first=False,
)
MISTRAL = TokenizerFamily(
    chat_template=templates.MISTRAL,
    special=(
        "<unk>",
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "[TOOL_CALLS]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
    ),
    bos="<s>",
    eos="</s>",
    pad="<unk>",
    unk="<unk>",
    prepend_bos=True,
)
QWEN = TokenizerFamily(
    chat_template=templates.QWEN,
    special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    plain=("<tool_call>", "</tool_call>"),
    eos="<|im_end|>",
    pad="<|endoftext|>",
    special_first=False,
)
GEMMA = TokenizerFamily(
    chat_template=templates.GEMMA,
    special=(
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<start_of_image>",
        "<end_of_image>",
        "<image_soft_token>",
    ),
    # vLLM's Gemma3 processor looks runs of newlines up by these very names, as the real vocabulary has them.
    plain=("\n", "\n\n", "\n\n\n", "\n\n\n\n"),
    bos="<bos>",
    eos="<eos>",
    pad="<pad>",
    unk="<unk>",
    prepend_bos=True,
    named=(
        ("boi_token", "<start_of_image>"),
        ("eoi_token", "<end_of_image>"),
        ("image_token", "<image_soft_token>"),
    ),
)
COHERE = TokenizerFamily(
    chat_template=templates.COHERE,
    special=(
        "<PAD>",
        "<UNK>",
        "<BOS_TOKEN>",
        "<EOS_TOKEN>",
        "<|START_OF_TURN_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        "<|USER_TOKEN|>",
        "<|CHATBOT_TOKEN|>",
        "<|SYSTEM_TOKEN|>",
    ),
    bos="<BOS_TOKEN>",
    eos="<|END_OF_TURN_TOKEN|>",
    pad="<PAD>",
    unk="<UNK>",
    prepend_bos=True,
)


def train_merges() -> tuple[list[str], list[tuple[str, str]]]:
    """Train the common byte-level BPE: tokens by rank (the 256 bytes first) and the merges between them.

    The same text gives the same result on every machine: `tokenizers` breaks ties by the tokens themselves.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS.splitlines(keepends=True), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return tokens, [(left, right) for left, right in model["merges"]]


def widened(
    merges: tuple[list[str], list[tuple[str, str]]], size: int
) -> tuple[list[str], list[tuple[str, str]]]:
    """As many tokens as a real vocabulary: the trained ones, then pairs of the most frequent among them.

    Real vocabularies have 32,000 entries and more; what a server holds and copies per tokenizer grows with
    that. The corpus is far too small to train so many.
    """
    tokens, pairs = list(merges[0]), list(merges[1])
    there = set(tokens)
    frequent = tokens[256:VOCAB_SIZE]
    for left in frequent:
        for right in frequent:
            if len(tokens) >= size:
                return tokens, pairs
            if left + right not in there:
                there.add(left + right)
                tokens.append(left + right)
                pairs.append((left, right))
    return tokens, pairs


def build_tokenizer(
    family: TokenizerFamily, merges: tuple[list[str], list[tuple[str, str]]], size: int = VOCAB_SIZE
) -> PreTrainedTokenizerFast:
    """The tokenizer of one family: exactly ``size`` entries, chat template included."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    own = [*family.special, *family.plain]
    common = merges[0][: size - len(own)]
    ordered = own + common if family.special_first else common + own
    vocab = {token: number for number, token in enumerate(ordered)}
    if len(vocab) != size:
        raise RuntimeError(f"demo tokenizer: {len(vocab)} entries instead of {size}: the corpus is too small")
    kept = [(left, right) for left, right in merges[1] if left + right in vocab]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=kept))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in family.special]
    )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in family.plain])
    if family.prepend_bos and family.bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A",
            pair=f"{family.bos} $A {family.bos} $B",
            special_tokens=[(family.bos, vocab[family.bos])],
        )
    names = {
        "bos_token": family.bos,
        "eos_token": family.eos,
        "pad_token": family.pad,
        "unk_token": family.unk,
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=family.chat_template,
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
        extra_special_tokens=dict(family.named),
        **{key: value for key, value in names.items() if value is not None},
    )


def quiet_ids(tokenizer: PreTrainedTokenizerFast, family: TokenizerFamily) -> list[int]:
    """Ids a random answer should seldom hold: special tokens, pieces of a character, control characters."""
    texts = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
    special = set(family.special)
    return [
        number
        for number, text in enumerate(texts)
        if text in special or "\ufffd" in text or not text.replace("\n", " ").isprintable()
    ]


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    tokenizer.save_pretrained(str(directory))


_CORPUS = '''\
The quick brown fox jumps over the lazy dog while the rain in Spain stays mainly in the plain.
A server listens on a port, reads a request, chooses the model that knows the subject and streams the
answer back.
When nobody has asked for a while the model leaves memory, and the next question brings it home again.
Write a short poem about the sea, then explain how a bridge carries its weight from one side of the river
to the other.
What is the capital of France? How many people live in Madrid, in Buenos Aires, in Mexico City and in
Bogotá?
Please summarise the following text in three sentences and tell me which of them matters most to a young
reader.
The weather today is cold and clear; tomorrow there will be wind from the north, with some snow above two
thousand metres.
She opened the window, looked at the street below and thought about everything that had happened since
the morning.
Numbers: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 20 25 30 42 50 64 100 128 256 512 1000 1024 2024 2025 2026 3.14
2.71.
In this picture you can see a small house, a tall tree, two dogs and a red bicycle leaning against the wall.
Describe the image, count the objects in it, read the sign above the door and say what colour the sky is.
Memory, threads, caches, registers and vectors decide how fast a processor multiplies one matrix by another.
Good morning, thank you very much, you are welcome, see you tomorrow, have a nice day, I would like to
help you.
El perro de San Roque no tiene rabo porque Ramón Ramírez se lo ha cortado, y nadie sabe dónde está la razón.
Había una vez un pequeño pueblo entre las montañas donde cada mañana el panadero despertaba a los niños
con su canción.
¿Cuál es la capital de España? ¿Cuántos años tienes? ¿Qué hora es? ¡Qué alegría verte otra vez,
muchísimas gracias!
La traducción al español de esta frase no es difícil, pero exige atención a los acentos: á, é, í, ó, ú,
ü, ñ.
Mi abuela preparaba un café fuerte después de comer, mientras mi abuelo leía el periódico sentado junto
al balcón.
Explícame, por favor, cómo funciona un motor eléctrico y por qué la energía no se crea ni se destruye.
El servidor escucha en un puerto, recibe la petición, elige el modelo adecuado y devuelve la respuesta
palabra a palabra.
También quisiera saber qué tiempo hará mañana en Sevilla, en Córdoba, en Málaga y en las islas Canarias.
Los pingüinos y las cigüeñas viajan lejos; el corazón del niño late deprisa cuando oye el tren que llega
a la estación.
Buenos días, buenas tardes, buenas noches, hasta luego, de nada, lo siento, no hay problema, con mucho
gusto.
Bonjour le monde, merci beaucoup; guten Morgen, danke schön; olá, muito obrigado; ciao, grazie mille.
def fibonacci(n: int) -> int:
    """Return the n-th number of the sequence."""
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a

class Stack:
    def __init__(self) -> None:
        self.items: list[str] = []

    def push(self, item: str) -> None:
        self.items.append(item)

    def pop(self) -> str:
        if not self.items:
            raise IndexError("pop from an empty stack")
        return self.items.pop()

import json, os, sys
from pathlib import Path
with open("config.json", encoding="utf-8") as file:
    data = json.load(file)
print({key: value for key, value in data.items() if value is not None})
try:
    result = function(argument, keyword=True)
except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
async function main() { const answer = await fetch("http://127.0.0.1:8082/v1/models"); return
answer.json(); }
for (let i = 0; i < array.length; i++) { if (array[i] === null) continue; total += array[i]; }
#include <stdio.h>
int main(void) { printf("hello, world\\n"); return 0; }
static inline float dot(const float *x, const float *y, size_t n) { float s = 0.0f; while (n--) s += *x++
* *y++; return s; }
SELECT name, COUNT(*) FROM users WHERE active = TRUE GROUP BY name ORDER BY name LIMIT 10;
fn main() { let mut values: Vec<u32> = Vec::new(); values.push(1); println!("{:?}", values); }
<html><head><title>Page</title></head><body class="main"><p>Text</p></body></html>
{"name": "get_weather", "arguments": {"city": "Madrid", "unit": "celsius"}, "type": "function", "id":
"call_1"}
git commit -m "message" && make test || exit 1; curl -s http://localhost:8082/health | python -m json.tool
'''
