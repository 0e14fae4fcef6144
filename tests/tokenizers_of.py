"""Small tokenizers, trained on the spot, of the kinds that llama.cpp has."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
CHAT = "{% for message in messages %}<s>{{ message.role }}: {{ message.content }}</s>{% endfor %}"


def byte_level(pre_tokenizer, ignore_merges: bool = False, size: int = 400, bos: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE; with `bos`, it adds it to every text."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return _wrapped(tokenizer)


def sentence_piece(size: int = 500) -> PreTrainedTokenizerFast:
    """BPE as of SentencePiece: it joins any two pieces that make a token, and has bytes for other characters."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=size - 256 - len(SPECIAL)))
    pieces = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    bytes_of = [f"<0x{value:02X}>" for value in range(256)]
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *bytes_of, *pieces])}
    joined = [piece for piece in pieces if len(piece) > 1]
    merges = [(token[:cut], token[cut:]) for token in joined for cut in range(1, len(token))]
    merges = [pair for pair in merges if pair[0] in vocabulary and pair[1] in vocabulary]
    made = {"".join(pair) for pair in merges}
    assert made == set(joined)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return _wrapped(tokenizer)


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT, **names)
