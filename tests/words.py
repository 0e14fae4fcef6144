"""A tokenizer that joins a space to the following word, trained in memory, and items of tasks made of its words."""

import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = ["the", "a", "cat", "dog", "house", "sat", "on", "in", "because", "they", "were", "rain,", "snow", "or", "café"]
SPECIAL = ["<pad>", "<s>", "</s>"]


def sentence(rng: random.Random, words: int) -> str:
    """Returns words drawn at random."""
    return " ".join(rng.choices(WORDS, k=words))


def word_tokenizer(begins: bool = False, merges: int = 60) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer.

    Args:
        begins: whether it puts the begin-of-text token before every text, as those of Llama and Gemma do.
        merges: number of tokens of more than one byte.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = len(SPECIAL) + len(alphabet) + merges
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([sentence(random.Random(0), 400)], trainer)
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def rows(count: int, seed: int = 0) -> list[dict]:
    """Returns items with choices, of many lengths, as a task file holds them."""
    rng = random.Random(seed)
    made = []
    for index in range(count):
        choices = [sentence(rng, rng.randint(1, 4)) for _ in range(rng.randint(2, 4))]
        query = sentence(rng, rng.randint(1, 9)) + rng.choice(["", ":", "\n", " "])
        made.append({"query": query, "choices": choices, "gold": index % len(choices)})
    return made
