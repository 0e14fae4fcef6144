"""What is timed, and two models that can be timed on it side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from subfit.errors import SubFitError
from subfit.model.dtypes import compute_natively, name_of, rounding_of, saved_dtype
from subfit.model.loading import load
from subfit.options.typed import check_fields


@dataclass(frozen=True)
class Workload:
    """What is timed.

    Attributes:
        prompt_lengths: tokens of the prompts whose prefill is timed, one prompt at a time.
        contexts: tokens in the key-value cache when decoding starts.
        batch_sizes: sequences decoded at once.
        new_tokens: tokens decoded for each sequence.
        calibration_windows: numbers of calibration windows with which a compression is timed.
        calibration_length: tokens in each of these.
        repeats: times that each is measured; a compression once.
        warmup: times that each is run before.
        seed: of the tokens.

    Raises:
        SubFitError: if a number is out of range.
    """

    prompt_lengths: Sequence[int] = (128, 512, 1024)
    contexts: Sequence[int] = (512,)
    batch_sizes: Sequence[int] = (1, 4)
    new_tokens: int = 32
    calibration_windows: Sequence[int] = ()
    calibration_length: int = 512
    repeats: int = 7
    warmup: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if not (self.prompt_lengths or (self.contexts and self.batch_sizes) or self.calibration_windows):
            rest = "contexts and batch_sizes, or calibration_windows"
            raise SubFitError(f"there is nothing to time: give prompt_lengths, or {rest}")
        for name, value in vars(self).items():
            least = 0 if name in ("warmup", "seed") else 1
            for number in value if isinstance(value, Sequence) else (value,):
                if not isinstance(number, int) or number < least:
                    raise SubFitError(f"{name} is {number!r}; it must be a whole number of at least {least}")

    def positions(self) -> int:
        """Returns the length of the longest sequence."""
        calibration = [self.calibration_length] if self.calibration_windows else []
        decoded = [context + self.new_tokens for context in self.contexts]
        return max([*self.prompt_lengths, *decoded, *calibration], default=0)


def load_both(names: Mapping[str, str], options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Loads the `dense` and the `compressed` model of these names; the dense one in the data types of the compressed one.

    Args:
        names: as for `load`.
        options: of `load`.

    Returns:
        The models and their tokenizers, by the keys of `names`.
    """
    models, tokenizers = dict[str, Any](), dict[str, Any]()
    models["compressed"], tokenizers["compressed"] = load(names["compressed"], **options)
    same = {**options, "dtype": name_of(saved_dtype(models["compressed"]))}
    models["dense"], tokenizers["dense"] = load(names["dense"], **same)
    if rounding_of(models["compressed"]) is not None:
        compute_natively(models["dense"], models["dense"].device)
    return models, tokenizers


def check_comparable(dense: Any, compressed: Any, workload: Workload) -> None:
    """Raises SubFitError unless both models read the same tokens into streams of one width, and as many as are timed."""
    (rows, width), found = (tuple(m.get_input_embeddings().weight.shape) for m in (dense, compressed))
    if found != (rows, width):
        raise SubFitError(
            f"the model has {found[0]} tokens and width {found[1]}, the reference {rows} and {width}: it is of another model"
        )
    for model in (dense, compressed):
        most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if most is not None and workload.positions() > most:
            raise SubFitError(f"sequences of {workload.positions()} tokens are too long: the model has {most} positions")
