"""The pre-tokenizers that llama.cpp knows by name, found by what a tokenizer does with a text, not by its own name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

from subfit.export.deci import unsupported

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}"
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*%s"
TEKKEN = WORDS.replace("%s", "") + rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
GPT_4O = WORDS.replace("%s", f"{CONTRACTIONS}?") + rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"

PROBES = (
    "Hello world! It's 9 o'clock, and WE'LL see HTTPServer2 in camelCase.\n\n\tHe said:  \"I'm    here\"   \n \n",
    "3 33 333 3333 33333 3.14 1,000 x86 ½ ² Ⅷ ٣٤ \r\n(a+b)*c == d//e; f() -> {g} /* h */\n\n\n\n\t\t\tend",
    "¿Qué? Ça va, naïve Ærø Straße ǅ ﬁ; нет, Ελληνικά, 你好，世界。 こんにちは 한국어 हिन्दी ไทย עברית 🚀🦙",
    "e\u0301 \u200d\u00a0\u3000x",
    " leading, trailing ",
    "'S 'T 'RE don'T I'D 'ſ cats' ''quoted'' #@!$%^&*~`|<>?[]\\",
)


@dataclass(frozen=True)
class PreTokenizer:
    """A pre-tokenizer of llama.cpp.

    Attributes:
        name: in the file.
        make: the same one in `tokenizers`.
        ignore_merges: whether a word that is in the vocabulary is not put together by merges; goes with the name.
    """

    name: str
    make: Callable[[], Any]
    ignore_merges: bool = False


def _split(pattern: str) -> Any:
    return Sequence([Split(Regex(pattern), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])


def _digits_first() -> Any:
    return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])


KNOWN = (
    PreTokenizer("gpt-2", partial(ByteLevel, add_prefix_space=False)),
    PreTokenizer("smollm", _digits_first),
    PreTokenizer("llama-bpe", partial(_split, LLAMA_3), ignore_merges=True),
    PreTokenizer("smaug-bpe", partial(_split, LLAMA_3)),
    PreTokenizer("qwen2", partial(_split, QWEN_2)),
    PreTokenizer("tekken", partial(_split, TEKKEN), ignore_merges=True),
    PreTokenizer("gpt-4o", partial(_split, GPT_4O)),
)


def name_of(pre_tokenizer: Any, ignore_merges: bool) -> str:
    """Returns the name that llama.cpp has for a pre-tokenizer of `tokenizers`.

    Raises:
        SubFitError: if it splits texts as none of the known ones does.
    """
    for known in KNOWN:
        same = known.make()
        if ignore_merges == known.ignore_merges and all(_pieces(pre_tokenizer, t) == _pieces(same, t) for t in PROBES):
            return known.name
    names = ", ".join(known.name for known in KNOWN)
    raise unsupported(f"the tokenizer splits texts as none of these does: {names}")


def _pieces(pre_tokenizer: Any, text: str) -> list[str]:
    return [piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)]
