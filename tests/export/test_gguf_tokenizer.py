"""What a file for llama.cpp says of the tokenizer."""

import pytest
from conftest import tiny_tokenizer
from tokenizers import Regex, Tokenizer, models, normalizers
from tokenizers.pre_tokenizers import ByteLevel, Metaspace, Sequence, Split, Whitespace
from tokenizers_of import CHAT, byte_level, sentence_piece
from transformers import PreTrainedTokenizerFast

from subfit.errors import SubFitError
from subfit.export.gguf_tokenizer import vocabulary_of
from subfit.export.pre_tokenizers import KNOWN

CONTROL, UNUSED, BYTE = 3, 5, 6


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_a_pre_tokenizer_is_found_by_what_it_does(known):
    assert vocabulary_of(byte_level(known.make(), known.ignore_merges), 400, []).pre == known.name


def test_the_same_pattern_in_other_words_is_found_too():
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # of GPT-2
    written = Sequence([Split(Regex(pattern), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])
    assert vocabulary_of(byte_level(written), 400, []).pre == "gpt-2"


@pytest.mark.parametrize(
    "unknown", [Sequence([Whitespace(), ByteLevel(add_prefix_space=False)]), ByteLevel(add_prefix_space=True)]
)
def test_an_unknown_pre_tokenizer_is_refused(unknown):
    with pytest.raises(SubFitError, match="splits texts as none of these does: gpt-2, smollm"):
        vocabulary_of(byte_level(unknown), 400, [])


def test_special_tokens_and_the_chat_template_are_written():
    found = vocabulary_of(byte_level(ByteLevel(add_prefix_space=False), bos=True), 410, [2, 0])
    assert found.special == {"bos": 1, "eos": 2, "unk": 3, "pad": 0, "eot": 0}
    assert found.adds == {"bos": True, "eos": False}
    assert found.types[:4] == [CONTROL] * 4
    assert found.types[400:] == [UNUSED] * 10
    assert found.tokens[:2] == ["<pad>", "<s>"]
    assert found.chat_template == CHAT
    assert found.scores is None


def test_a_vocabulary_that_is_larger_than_the_embedding_is_refused():
    with pytest.raises(SubFitError, match="token 399 of the tokenizer has no row in the embedding of 390"):
        vocabulary_of(byte_level(ByteLevel(add_prefix_space=False)), 390, [])


def test_scores_of_sentence_piece_are_in_the_order_of_its_merges():
    tokenizer = sentence_piece()
    found, ids = vocabulary_of(tokenizer, 500, []), tokenizer.get_vocab()
    assert found.merges is None
    assert found.space_prefix
    assert found.types[4:260] == [BYTE] * 256
    earlier, later = found.tokens[-2], found.tokens[-1]
    assert found.scores[ids[earlier]] > found.scores[ids[later]]


def test_merges_that_sentence_piece_would_not_make_are_refused():
    vocabulary = {token: i for i, token in enumerate(["<unk>", "a", "b", "c", "ab", "bc", "abc"])}
    model = models.BPE(vocabulary, [("a", "b"), ("b", "c"), ("ab", "c")], unk_token="<unk>", byte_fallback=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))
    with pytest.raises(SubFitError, match=r"never joins \('a', 'bc'\)"):
        vocabulary_of(tokenizer, 7, [])


def test_a_space_at_the_start_alone_is_told():
    tokenizer = sentence_piece()
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.backend_tokenizer.pre_tokenizer = Metaspace(prepend_scheme="first", split=False)
    found = vocabulary_of(tokenizer, 500, [])
    assert found.space_prefix
    assert "begins with one" in found.notes[0]
    assert "after a special token" in found.notes[1]


def test_a_normal_form_is_told_and_another_normalizer_refused():
    tokenizer = byte_level(ByteLevel(add_prefix_space=False))
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    assert "NFC" in vocabulary_of(tokenizer, 400, []).notes[0]
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(SubFitError, match="changes texts by Lowercase"):
        vocabulary_of(tokenizer, 400, [])


def test_another_kind_of_tokenizer_is_refused():
    with pytest.raises(SubFitError, match="the tokenizer is WordLevel"):
        vocabulary_of(tiny_tokenizer(), 101, [])
