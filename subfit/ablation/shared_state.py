"""The state that cells share: the model, the tokens, the dense streams, the scores and the moments."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subfit.ablation.dependencies import calibration_digest
from subfit.ablation.score_cache import cached_scores
from subfit.api import describe_data, model_of, tokens_of
from subfit.calibration.cache import Cache
from subfit.calibration.capture import Calibration
from subfit.calibration.checks import warn_of_shared_windows
from subfit.calibration.data import RunTokens, describe_tokens, read_tokens
from subfit.calibration.settings import Data, evaluation_seed
from subfit.config import Options, configuration
from subfit.evaluation.accuracy import TaskScores, average, describe_scores
from subfit.evaluation.comparison import Comparison
from subfit.evaluation.tasks import Task
from subfit.evaluation.zero_shot import score_task
from subfit.model.decoder_check import check_decoder
from subfit.model.dtypes import describe_dtypes
from subfit.model.finalizing import check_replaceable
from subfit.model.replacing import Switch, turn_off
from subfit.pipeline import compression_sizes, fit_recipe, timed, tune
from subfit.scorer import Scorer
from subfit.strategy import with_seed
from subfit.tracking.loggers import open_log
from subfit.tracking.provenance import provenance

BATCH_TOKENS = 2048  # of a task's sequences that are run at once

Record = dict[str, Any]


class SharedState:
    """Runs cells, and keeps of the latest one everything that the next may share.

    Args:
        folder: where moments and scores are kept for later runs; see `ablation.dependencies`.
        texts: further texts to evaluate on, by name.
        tasks: zero-shot tasks to evaluate on.
        expected: the options that it will be asked for, as far as they are known: their scorers share a pass.
    """

    def __init__(
        self,
        folder: Path,
        texts: Mapping[str, Data],
        tasks: Sequence[Task] = (),
        expected: Iterable[Options] = (),
    ):
        self._folder = folder
        self._texts = texts
        self._tasks = tasks
        self._expected = list(expected)
        self._kept: dict[str, tuple[Any, Any]] = {}

    def run(self, options: Options) -> Record:
        """Returns the record of `subfit compress` with these options; the model is dense again afterwards.

        Beside that, `texts` has what was measured on each text, the held-out windows (`evaluation`) among them,
        `text_tokens` their fingerprints, and `tasks` and `tasks_mean` the accuracies.
        """
        try:
            return self._run(options)
        except BaseException:
            self._kept.clear()  # a fit that failed half-way has left bypasses in the model
            raise

    def _run(self, options: Options) -> Record:
        torch.manual_seed(options.seed)
        self._load(options)
        tokens = self._read(options)
        calibration = self._calibration(tokens.calibration, options.batch_size)
        comparisons = self._comparisons(tokens, options.seed)
        described = describe_data(options, tokens)
        texts = {name: (comparisons[name].tokens, data) for name, data in self._texts.items()}
        seen = tokens.seen()
        described["text_tokens"] = {name: describe_tokens(found, data, seen) for name, (found, data) in texts.items()}
        dense = self._latest("tasks", "", self._accuracies)
        with open_log(options.logger, configuration(options), group=self._folder.absolute().parent.name) as log:
            switches, record = fit_recipe(calibration, options.recipe, options.seed, partial(self._score, options))
            try:
                tune(calibration, switches, options.recipe, record, log, tokens.training)
                record["size"] = compression_sizes(calibration, switches)
                with timed(record["seconds"], "evaluate"):
                    record |= self._evaluate(switches, comparisons, dense)
            finally:
                turn_off(switches)
            log.result(record)
        return record | described | provenance() | {"dtypes": describe_dtypes(calibration.model)}

    def _load(self, options: Options) -> None:
        source = (options.model, options.dtype, options.device, options.device_map, options.max_memory)
        if "model" in self._kept and self._kept["model"][0] != source:
            self._kept.clear()  # all of it holds the other model
        self._latest("model", source, lambda: model_of(options))

    def _model(self) -> tuple[Any, Any]:
        """The model and its tokenizer."""
        return self._kept["model"][1]

    def _read(self, options: Options) -> RunTokens:
        """The tokens to calibrate on, those held out, and those to train on."""
        asked = (options.seed, repr(options.calibration), repr(options.evaluation), options.recipe.training_windows)
        return self._latest("tokens", asked, lambda: tokens_of(options, *self._model()))

    def _calibration(self, tokens: Tensor, batch_size: int) -> Calibration:
        """A calibration whose cache no other model, data, batch size or version of the code has written."""
        model, _ = self._model()

        def make() -> Calibration:
            check_replaceable(model)
            cache = Cache(self._folder / calibration_digest(model, tokens, batch_size), str(model.device))
            calibration = Calibration(model, tokens, batch_size, cache)
            check_decoder(model, calibration.sites)
            return calibration

        return self._latest("calibration", (describe_tokens(tokens)["sha256"], batch_size), make)

    def _comparisons(self, its: RunTokens, seed: int) -> dict[str, Comparison]:
        """The comparisons with the dense model by the texts' names; that on the held-out windows is called `evaluation`."""
        model, tokenizer = self._model()
        found = {}

        def compare(name: str, tokens: Tensor) -> Comparison:
            warn_of_shared_windows(tokens, its.seen(), name)
            return Comparison(model, tokens)

        if len(its.evaluation):
            key = describe_tokens(its.evaluation)["sha256"]
            found["evaluation"] = self._latest("evaluation", key, lambda: compare("evaluation", its.evaluation))
        for name, data in self._texts.items():

            def read(name: str = name, data: Data = data) -> Comparison:
                return compare(name, read_tokens(data, model, tokenizer, evaluation_seed(seed, name))[0])

            found[name] = self._latest(f"text {name}", seed, read)
        return found

    def _score(self, options: Options, calibration: Calibration, scorer: Scorer) -> dict[Any, float]:
        """The scores of the sites; the scorers of other expected options on the same model and tokens share the pass."""
        same = ("model", "dtype", "device", "seed", "calibration", "batch_size")
        beside = [o for o in self._expected if all(getattr(o, name) == getattr(options, name) for name in same)]
        return cached_scores(calibration, scorer, [with_seed(other.recipe.scorer, other.seed) for other in beside])

    def _evaluate(self, switches: list[Switch], comparisons: dict[str, Comparison], dense: list[TaskScores]) -> Record:
        """The measurements on the texts and the tasks, with the switches on."""
        found: Record = {"texts": {name: comparison.measure(switches) for name, comparison in comparisons.items()}}
        if self._tasks:
            pairs = zip(self._accuracies(), dense, strict=True)
            found["tasks"] = {own.name: describe_scores(own, other) for own, other in pairs}
            found["tasks_mean"] = average(list(found["tasks"].values()))
        return found

    def _accuracies(self) -> list[TaskScores]:
        """The scores of the model, as it is now, on each task."""
        return [score_task(*self._model(), task, BATCH_TOKENS) for task in self._tasks]

    def _latest(self, what: str, key: Any, make: Callable[[], Any]) -> Any:
        """What was made for this key; what is there for another key is freed first."""
        if self._kept.get(what, (None,))[0] != key:
            self._kept.pop(what, None)
            self._kept[what] = (key, make())
        return self._kept[what][1]
