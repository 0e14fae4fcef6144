"""The options of a compression: declared, defaulted, resolved and written down here, for every way of giving them.

Relative paths, wherever they are given, are relative to the folder that the command runs in.

Options are flat, such as `sparsity` and `ffn_bypass`; one inside another is named with dots, such as `calibration.windows`,
or `ffn_bypass.ridge` (or `ffn_bypass.init_args.ridge`) for an argument of a strategy. Python, presets, files, the command
line, the cells of an ablation and sweeps all give mappings of them, which `resolve` makes into `Options`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from subfit import registry
from subfit.errors import SubFitError
from subfit.options.sources import check_recorded, find_source, merge, unfold
from subfit.options.typed import check_fields, check_known, typed

if TYPE_CHECKING:  # what they are in takes seconds to import, which help does not wait for
    from subfit.bypass import Substitute
    from subfit.calibration.settings import Data, EvaluationData
    from subfit.finetuning.settings import FineTuning
    from subfit.fitting.costs import Unit
    from subfit.fitting.sequential import Target
    from subfit.model.memory import DeviceMap
    from subfit.model.submodules import Kind
    from subfit.scorer import Scorer
    from subfit.selector import Selector

__all__ = ["DEFAULTS", "OPTIONS", "Options", "Recipe", "configuration", "resolve"]

Source = str | Path | Mapping[str, Any]  # a preset's name, a file, or options

DEFAULTS: dict[str, Any] = {  # of the options whose values are objects
    "scorer": "subfit",
    "selector": "per_type",
    "attention_bypass": "low_rank",
    "ffn_bypass": "shared_low_rank",
    "calibration": {},
    "evaluation": {},
}
SAME = "attention_bypass"  # value of `ffn_bypass`: the same object for both types, so that all sites are one group


@dataclass(kw_only=True)
class Recipe:
    """What a compression does, apart from the model and the data.

    Attributes:
        scorer: gives every site a number, lower is safer to replace.
        selector: chooses the sites.
        attention_bypass: takes the place of each chosen Attention, and of each chosen mixer of tokens of another type.
        ffn_bypass: takes the place of each chosen FeedForward; `attention_bypass` is the bypass of the Attentions itself, so
            that all sites are one group, which may share a basis.
        sparsity: share of the Attentions, of the other mixers of tokens, and of the FeedForwards, to replace.
        budget: what the sparsity is a share of: `submodules`, `parameters`, `kv_bytes`, `flops` or `latency`; of all but the
            first, net of what the bypasses cost.
        protect: sites never to replace, such as `ffn.11`, `layer.0` for all of a layer (`layer.-1` is the last), or `ffn`,
            `mixer` or `attention` for all of a type.
        fitting: `one_shot` fits all bypasses on the dense model's stream; `sequential` in depth order, each on the stream
            as the earlier ones have changed it.
        target: what a sequential fit aims at: `branch`, what the branch would add to the changed stream; `dense`, what it
            adds in the dense model; `corrected`, that plus `correction` times the dense stream minus the changed one. In
            a one-shot fit the three are the same.
        correction: share of the difference between the streams that the target `corrected` adds.
        refit_kept: ridge with which a sequential fit refits the output projections of the kept submodules, to the same
            target and towards their own weights, relative to the mean variance of what they read; not, if not given.
        finetune: how the fitted bypasses, and what `refit_kept` has refitted, are trained together afterwards; none if not
            given.
    """

    scorer: Scorer
    selector: Selector
    attention_bypass: Substitute
    ffn_bypass: Substitute
    sparsity: float = 0.25
    budget: Unit = "submodules"
    protect: list[str] = field(default_factory=list)
    fitting: Literal["one_shot", "sequential"] = "one_shot"
    target: Target = "corrected"
    correction: float = 1.0
    refit_kept: float | None = None
    finetune: FineTuning | None = None

    @property
    def substitutes(self) -> dict[Kind, Substitute]:
        """What takes the place of the sites of each type."""
        return {"attention": self.attention_bypass, "mixer": self.attention_bypass, "ffn": self.ffn_bypass}

    @property
    def training_windows(self) -> int:
        """Number of windows that are read to fine-tune on, beside those of the calibration."""
        return 0 if self.finetune is None else self.finetune.windows or 0

    def __post_init__(self) -> None:
        from subfit.fitting.budget import check_sparsity
        from subfit.fitting.costs import check_unit
        from subfit.fitting.regression import check_ridge

        check_fields(self)
        check_sparsity(self.sparsity)
        check_unit(self.budget)
        if self.refit_kept is not None:
            check_ridge(self.refit_kept)
            if self.fitting != "sequential":
                raise SubFitError("refit_kept needs fitting: sequential, as one-shot fits do not see what has changed")


@dataclass(kw_only=True)
class Options:
    """A whole compression run.

    Attributes:
        recipe: what is done; its attributes are options of their own, beside these.
        model: hub name, local folder, `.gguf` file, or `smollm2-135m`, which is embedded and needs no hub. null stands for a
            model that was given loaded and has no name.
        output: folder to write the compressed model to; it must not exist. Nothing is written if not given.
        calibration: tokens to score and fit on.
        evaluation: tokens to compare the compressed model with the dense one on; no windows, no evaluation.
        seed: seed of everything that is random.
        dtype: data type of weights and computations; `auto` is the checkpoint's own (of a quantised `.gguf` file, bfloat16),
            but computes in float32 where the device would emulate it, and saves the weights in the checkpoint's.
        device: torch device; `auto` is CUDA where there is one.
        device_map: where the weights are: `device`, all on the device; `disk`, those of the decoder layers on the disk, from
            where they are read while their layer runs; `auto`, the former if they take at most `max_memory`.
        max_memory: most memory that the weights may take with `auto`, such as `8GB`; half of what is free if not given.
        batch_size: windows run at once.
        fsdp: whether the processes that torchrun has started shard the weights of the decoder layers, for models that do not
            fit on one device.
        logger: where the run is logged, one or a list: `none`; `csv` or `tensorboard`, files in the folder `<output>.run`;
            `wandb` or `mlflow`, whose own settings hold; or a Logger of Lightning's, by `class_path` and `init_args`.
        engine: what the compressed model is to run in: `transformers`, or `llama.cpp`, which cannot hold everything: what it
            cannot is refused before the work.
        log_checkpoint: whether Weights & Biases gets the saved model, too.
        resume: a `last.ckpt` in the folder `<output>.run` of an interrupted run, to go on from with its fine-tuning.
    """

    recipe: Recipe
    model: str | None = "smollm2-135m"
    output: str | None = None
    calibration: Data
    evaluation: EvaluationData
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"
    device_map: DeviceMap = "device"
    max_memory: str | None = None
    batch_size: int = 8
    fsdp: bool = False
    logger: Any = "none"
    engine: Literal["transformers", "llama.cpp"] = "transformers"
    log_checkpoint: bool = False
    resume: str | None = None
    configurations = tuple[str, ...]()  # the files that the options were read from, which `resolve` sets; not an option

    def __post_init__(self) -> None:
        from subfit.calibration.settings import LARGEST_SEED

        check_fields(self)
        if not 0 <= self.seed <= LARGEST_SEED:
            raise SubFitError(f"seed is {self.seed}; it must be from 0 to {LARGEST_SEED}")
        if self.batch_size < 1:
            raise SubFitError(f"batch_size is {self.batch_size}; it must be at least 1")

    def check_files(self, named_in: Sequence[str] = ()) -> None:
        """Raises SubFitError if a text file of the calibration or the evaluation is missing.

        Args:
            named_in: files that name them, beside `configurations`, for the message.
        """
        for data in (self.calibration, self.evaluation):
            data.check_files((*named_in, *self.configurations))


RECIPE = tuple(f.name for f in dataclasses.fields(Recipe))
OPTIONS = RECIPE + tuple(f.name for f in dataclasses.fields(Options) if f.name != "recipe")


def resolve(*sources: Source, allow_code: bool = False) -> Options:
    """Returns the options that some sources give, of which the later win.

    Mappings are merged into one another, and arguments into the strategy that an earlier source has named. A strategy that
    is named begins with its own defaults: what an earlier source said of another one, or of the same, is dropped. Within one
    source the order does not matter.

    Args:
        sources: mappings, or names of presets, of files (YAML, JSON, or the `compression.json` of a run), or of folders of
            compressed models, see `find_source`. A strategy in a mapping is an object, a name, or a mapping with
            `class_path` and `init_args`; an object is kept as it is, and one that is given for both types of site is one
            group. `ffn_bypass: attention_bypass` says the same in plain data.
        allow_code: whether files of Python that a source other than a mapping names may run, beside those added as plug-ins.

    Raises:
        SubFitError: if an option or a strategy is unknown, or has a value that it cannot have, or a record does not hold it,
            or a source names code that may not run.
    """
    values, files = dict(DEFAULTS), list[str]()
    for source in sources:
        if not isinstance(source, Mapping):
            files.append(str(find_source(str(source))))
            source, name = registry.read_configuration(str(source), allow_code=allow_code), str(source)
        else:
            name = ""
        given = unfold(source)
        check_known(given, OPTIONS, name)
        values = {**values, **{name: merge(values.get(name), value) for name, value in given.items()}}
    for name, value in values.items():
        check_recorded(value, name)
    if values["ffn_bypass"] == SAME:
        shared = registry.made(registry.interface("bypasses"), values["attention_bypass"], "attention_bypass")
        values |= {"attention_bypass": shared, "ffn_bypass": shared}
    recipe: Recipe = typed(Recipe, {name: values.pop(name) for name in RECIPE if name in values}, "", registry.made)
    options: Options = typed(Options, {**values, "recipe": recipe}, "", registry.made)
    options.configurations = tuple(files)
    return options


def configuration(options: Options) -> dict[str, Any]:
    """Returns the options as plain data, defaults included, of which `resolve` makes the same run; see `registry.plain`."""
    recipe = options.recipe
    found = {name: registry.plain(getattr(recipe if name in RECIPE else options, name)) for name in OPTIONS}
    if recipe.ffn_bypass is recipe.attention_bypass:
        found["ffn_bypass"] = SAME
    return found
