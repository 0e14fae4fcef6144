"""What many compressions of one model share: the model, the tokens, the dense streams, the scores and the moments."""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subfit import registry
from subfit.api import model_of, tokens_of
from subfit.calibration.cache import Cache
from subfit.calibration.capture import Calibration
from subfit.calibration.data import Data, read_tokens
from subfit.config import Options, resolve
from subfit.config import configuration as configuration_of
from subfit.evaluation.accuracy import Scores as Accuracies
from subfit.evaluation.accuracy import average, describe
from subfit.evaluation.comparison import Comparison
from subfit.evaluation.tasks import Task
from subfit.evaluation.zero_shot import score_task
from subfit.model.replacing import check_replaceable, turn_off
from subfit.pipeline import fit_recipe, sizes, timed, tune
from subfit.scorer import Scorer, Scores, StreamScorer, score_sites, score_together
from subfit.tracking.loggers import open_log

BATCH_TOKENS = 2048  # of a task's sequences that are run at once


class SharedState:
    """Compresses one model in many ways; of everything that cells may share, that of the latest one is kept.

    Args:
        folder: where moments and scores are kept for later sessions, under a fingerprint of all that they depend on.
        texts: further texts to evaluate on, by name.
        tasks: zero-shot tasks to evaluate on.
        expected: the configurations that it will be asked for, as far as they are known: their scorers share a pass.
    """

    def __init__(
        self,
        folder: Path,
        texts: Mapping[str, Data],
        tasks: Sequence[Task] = (),
        expected: Iterable[dict[str, Any]] = (),
    ):
        self._folder = folder
        self._texts = texts
        self._tasks = tasks
        self._expected = list(expected)
        self._kept: dict[str, tuple[Any, Any]] = {}

    def run(self, configuration: dict[str, Any]) -> dict[str, Any]:
        """Returns the record of `subfit compress` with this configuration; the model is dense again afterwards."""
        try:
            return self._run(configuration)
        except BaseException:
            self._kept.clear()  # a fit that has failed half-way leaves the model with the bypasses that it had
            raise

    def _run(self, configuration: dict[str, Any]) -> dict[str, Any]:
        options = resolve(configuration)
        whole = configuration_of(options)
        torch.manual_seed(options.seed)
        calibration, comparisons = self._data(options)
        dense = self._latest("tasks", "", self._accuracies)

        def score(calibration: Calibration, scorer: Scorer) -> Scores:
            return _remembered(calibration, scorer, whole["scorer"], self._scorers_beside(whole))

        with open_log(options.logger, whole, group=self._folder.absolute().parent.name) as log:
            switches, record = fit_recipe(calibration, options.recipe, options.seed, score)
            try:
                tune(calibration, switches, options.recipe, record, log)
                record["size"] = sizes(calibration, switches)
                with timed(record["seconds"], "evaluate"):
                    record["texts"] = {name: comparison.measure(switches) for name, comparison in comparisons.items()}
                    if self._tasks:
                        pairs = zip(self._accuracies(), dense, strict=True)
                        record["tasks"] = {own.name: describe(own, other) for own, other in pairs}
                        record["tasks_mean"] = average(list(record["tasks"].values()))
            finally:
                turn_off(switches)
            log.result(record)
        return record

    def _scorers_beside(self, configuration: dict[str, Any]) -> list[dict[str, Any]]:
        """The scorers of all expected configurations with the model and the calibration tokens of this one."""
        same = ("model", "dtype", "device", "seed", "calibration", "batch_size")
        return [other["scorer"] for other in self._expected if all(other[key] == configuration[key] for key in same)]

    def _data(self, options: Options) -> tuple[Calibration, dict[str, Comparison]]:
        """The calibration, and the comparisons by name; that on the configuration's own windows is called `evaluation`."""
        source = (options.model, options.dtype, options.device)
        if "model" in self._kept and self._kept["model"][0] != source:
            self._kept.clear()  # all of it holds the other model
        model, tokenizer = self._latest("model", source, lambda: model_of(options))
        asked = (options.seed, repr(options.calibration), repr(options.evaluation))
        tokens, held_out = self._latest("tokens", asked, lambda: tokens_of(options, model, tokenizer))
        used = _digest([_bytes(tokens)])
        calibration = self._latest(
            "calibration", (used, options.batch_size), lambda: self._calibration(model, tokens, options.batch_size)
        )
        comparisons = {}
        if len(held_out):
            key = _digest([_bytes(held_out)])
            comparisons["evaluation"] = self._latest("evaluation", key, lambda: Comparison(model, held_out))
        for name, data in self._texts.items():

            def compare(data: Data = data) -> Comparison:
                return Comparison(model, read_tokens(data, model, tokenizer, options.seed)[0])

            comparisons[name] = self._latest(f"text {name}", options.seed, compare)
        return calibration, comparisons

    def _accuracies(self) -> list[Accuracies]:
        """What the model, as it is now, gets right of each task."""
        model, tokenizer = self._kept["model"][1]
        return [score_task(model, tokenizer, task, BATCH_TOKENS) for task in self._tasks]

    def _calibration(self, model: Any, tokens: Tensor, batch_size: int) -> Calibration:
        """A calibration whose cache no other model, data, batch size or version of the code has written."""
        check_replaceable(model)
        weights = (piece for value in model.state_dict().values() for piece in (str(value.dtype).encode(), _bytes(value)))
        settings = f"{batch_size} {tuple(tokens.shape)} torch {torch.__version__}".encode()
        fingerprint = _digest(chain([settings, _bytes(tokens)], _sources(), weights))
        return Calibration(model, tokens, batch_size, Cache(self._folder / fingerprint, str(model.device)))

    def _latest(self, what: str, key: Any, make: Callable[[], Any]) -> Any:
        """What was made for this key; what is there for another key is freed first."""
        if self._kept.get(what, (None,))[0] != key:
            self._kept.pop(what, None)
            self._kept[what] = (key, make())
        return self._kept[what][1]


def _remembered(calibration: Calibration, scorer: Scorer, spec: dict[str, Any], beside: Iterable[dict[str, Any]]) -> Scores:
    """The scores of the sites, from the calibration's cache if they are there.

    If they are not, the scorers `beside` this one that can look at the same pass do so, too.
    """
    cache = calibration.cache
    assert cache is not None
    name = _name(scorer, spec)
    found = cache.get(name)
    if found is None:
        wanted = {name: scorer}
        if isinstance(scorer, StreamScorer):
            made = [(its, registry.make("scorers", its)) for its in beside]
            wanted |= {_name(other, its): other for its, other in made if isinstance(other, StreamScorer)}
        try:
            together = score_together(calibration, list(wanted.values()))
        except Exception:  # the fault may be another's, which its own cells will show
            wanted, together = {name: scorer}, [score_sites(calibration, scorer)]
        for each, scores in zip(wanted, together, strict=True):
            cache.put(each, {"scores": torch.tensor([scores[site] for site in calibration.sites], dtype=torch.float64)})
        found = cache.load(name)
    return dict(zip(calibration.sites, found["scores"].tolist(), strict=True))


def _name(scorer: Scorer, spec: dict[str, Any]) -> str:
    """What the scores of a scorer are called in the cache; its file, and those that it reads, are part of that."""
    arguments = [value for value in spec.get("init_args", {}).values() if isinstance(value, str)]
    files = [path for path in map(Path, [inspect.getfile(type(scorer)), *arguments]) if path.is_file()]
    return "scores-" + _digest([json.dumps(spec, sort_keys=True).encode(), *(path.read_bytes() for path in files)])


def _sources() -> Iterator[bytes]:
    """The code that moments and scores depend on."""
    for folder in (Path(__file__).parent, *map(Path, import_module("subfit.strategies").__path__)):
        for path in sorted(folder.rglob("*.py")):
            yield path.read_bytes()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1, 1).view(torch.uint8).numpy().tobytes()


def _digest(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()[:32]
