"""A tokenizer of transformers as llama.cpp reads it: byte-level BPE, or BPE as of SentencePiece."""

import json
from dataclasses import dataclass, field
from typing import Any

from gguf import GGUFWriter, TokenType

from subfit.export.deci import unsupported
from subfit.export.pre_tokenizers import name_of

SPACE = "▁"  # how SentencePiece writes a space
SPECIAL = ("bos", "eos", "unk", "pad")


@dataclass
class Vocabulary:
    """What a file says of the tokenizer.

    Attributes:
        tokens, types: one for each row of the embedding.
        merges: pairs of tokens, best first, of byte-level BPE with the pre-tokenizer `pre`; None for SentencePiece.
        scores: of tokens, for SentencePiece.
        space_prefix: whether a text gets a space before it.
        adds: whether `bos` and `eos` are added to a text.
        special: ids of `bos`, `eos`, `unk`, `pad` and `eot`.
        chat_template: in Jinja.
        notes: where llama.cpp differs from transformers.
    """

    tokens: list[str]
    types: list[int]
    merges: list[str] | None = None
    pre: str = "default"
    scores: list[float] | None = None
    space_prefix: bool = False
    adds: dict[str, bool] = field(default_factory=dict)
    special: dict[str, int] = field(default_factory=dict)
    chat_template: str | None = None
    notes: list[str] = field(default_factory=list)

    def write(self, writer: GGUFWriter) -> None:
        """Adds it to a file's metadata."""
        writer.add_tokenizer_model("gpt2" if self.scores is None else "llama")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.space_prefix)
        writer.add_add_bos_token(self.adds["bos"])
        writer.add_add_eos_token(self.adds["eos"])
        for name, number in self.special.items():
            getattr(writer, f"add_{name}_token_id")(number)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def vocabulary_of(tokenizer: Any, rows: int, stops: list[int]) -> Vocabulary:
    """Returns what a file says of a tokenizer.

    Args:
        tokenizer: of transformers.
        rows: of the embedding; those past the tokenizer's tokens are unused.
        stops: ids that end a generation, of which llama.cpp gets a second one as the end of a turn.

    Raises:
        SubFitError: if llama.cpp has no such tokenizer.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    described = json.loads(backend.to_str()) if backend is not None else {"model": {}}
    model = described["model"]
    if model.get("type") != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        kind = model.get("type") or type(tokenizer).__name__
        raise unsupported(f"the tokenizer is {kind}; it has BPE of bytes and of SentencePiece")
    tokens, types = _tokens(tokenizer, model, rows)
    found = Vocabulary(tokens, types, adds=_added(tokenizer), special=_special(tokenizer, stops))
    pairs = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    if model.get("byte_fallback"):
        found.scores = _scores(model["vocab"], pairs, rows)
        found.space_prefix = _space_prefix(backend, found)
    else:
        normalizer = (described.get("normalizer") or {}).get("type")
        if normalizer not in (None, "NFC"):
            raise unsupported(f"the tokenizer changes texts by {normalizer}, which llama.cpp cannot")
        if normalizer:
            found.notes.append("llama.cpp does not bring texts to Unicode's form NFC before it splits them")
        if backend.pre_tokenizer is None:
            raise unsupported("the tokenizer is BPE of neither bytes nor SentencePiece")
        found.pre = name_of(backend.pre_tokenizer, bool(model.get("ignore_merges")))
        found.merges = [" ".join(pair) for pair in pairs]
    stripping = [t.content for t in tokenizer.added_tokens_decoder.values() if t.lstrip or t.rstrip or t.single_word]
    if stripping:
        found.notes.append(f"llama.cpp keeps the white space beside special tokens such as {stripping[0]}")
    template = getattr(tokenizer, "chat_template", None)
    found.chat_template = template.get("default") if isinstance(template, dict) else template
    return found


def _tokens(tokenizer: Any, model: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """The token and its type for each row of the embedding."""
    by_id = {number: token for token, number in model["vocab"].items()}
    added = tokenizer.added_tokens_decoder
    last = max([*by_id, *added])
    if last >= rows:
        raise unsupported(f"token {last} of the tokenizer has no row in the embedding of {rows}")
    tokens, types = [], []
    for number in range(rows):
        token, kind = by_id.get(number), TokenType.NORMAL
        if number in added:
            token = added[number].content
            kind = TokenType.CONTROL if added[number].special else TokenType.USER_DEFINED
            kind = TokenType.UNKNOWN if model.get("byte_fallback") and token == model.get("unk_token") else kind
        elif token is None:
            token, kind = f"[PAD{number}]", TokenType.UNUSED
        elif model.get("byte_fallback") and len(token) == 6 and token.startswith("<0x"):
            kind = TokenType.BYTE
        tokens.append(token)
        types.append(int(kind))
    return tokens, types


def _scores(vocabulary: dict[str, int], merges: list[tuple[str, ...]], rows: int) -> list[float]:
    """The scores by which SentencePiece, which joins any two pieces that make a token, does what the merges say."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        token, before = left + right, merges[rank - 1] if rank else ("", "")
        if token in ranks and "".join(before) != token:
            raise unsupported(f"the tokenizer makes {token!r} at two ranks, which SentencePiece does not")
        ranks.setdefault(token, rank)
    known = set(merges)
    for token in ranks:
        for cut in range(1, len(token)):
            pair = token[:cut], token[cut:]
            if pair not in known and all(part in ranks or (len(part) == 1 and part in vocabulary) for part in pair):
                raise unsupported(f"the tokenizer never joins {pair}, which SentencePiece would")
    scores = [0.0] * rows
    for token, rank in ranks.items():
        scores[vocabulary[token]] = -1.0 - rank
    return scores


def _space_prefix(backend: Any, found: Vocabulary) -> bool:
    """Whether a text gets a space before it; its other spaces are written as SentencePiece does.

    Raises:
        SubFitError: if texts are changed in another way.
    """
    prefixes = []
    for text in ("two  words ", " x\n\ty"):
        changed, pieces = backend.normalizer.normalize_str(text) if backend.normalizer else text, 1
        if backend.pre_tokenizer:
            split = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(changed)]
            changed, pieces = "".join(split), len(split)
        plain = text.replace(" ", SPACE)
        if pieces != 1 or changed not in (plain, SPACE + plain):
            raise unsupported("the tokenizer splits or changes texts as SentencePiece does not")
        prefixes.append(changed != plain)
    if prefixes[0] != prefixes[1]:
        found.notes.append("llama.cpp adds a space to a text that begins with one, too")
    if '"prepend_scheme":"first"' in backend.to_str().replace(" ", ""):
        found.notes.append("llama.cpp adds a space to the text after a special token, too, not only to that at the start")
    return prefixes[0]


def _added(tokenizer: Any) -> dict[str, bool]:
    """Whether `bos` and `eos` are added to a text."""
    plain, whole = (tokenizer("x", add_special_tokens=special)["input_ids"] for special in (False, True))
    start, end = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    for bos in (False, True):
        for eos in (False, True):
            if whole == start * bos + plain + end * eos:
                return {"bos": bos, "eos": eos}
    raise unsupported("the tokenizer adds other tokens to a text than bos before it and eos after it")


def _special(tokenizer: Any, stops: list[int]) -> dict[str, int]:
    ids = {name: getattr(tokenizer, f"{name}_token_id", None) for name in SPECIAL}
    ids["eot"] = next((number for number in stops if number != ids["eos"]), None)
    return {name: number for name, number in ids.items() if number is not None}
