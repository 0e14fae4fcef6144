"""What a run saves to its output folder: its result, and before a fine-tuning the closed-form one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from subfit.finetuning.closed_form import is_unfinished
from subfit.model.checkpoint import save
from subfit.model.folders import check_free, remove_leftovers
from subfit.progress import Stage
from subfit.tracking.plots import draw_scores


class Saved:
    """The output folder of a run.

    Args:
        output: where; nothing is saved if None.
        resume: the state of an interrupted run that this one goes on from. The folder may hold its closed-form result.
        configuration: all options of the run, as plain data.

    Attributes:
        run_folder: folder of what the run leaves besides its result; None if nothing is saved.

    Raises:
        SubFitError: if the folder exists, or cannot be made.
    """

    def __init__(self, output: str | None, resume: str | None, configuration: Mapping[str, Any]):
        self._output, self._configuration = output, configuration
        self.run_folder = output and f"{output}.run"
        self._has_closed_form = False
        if output is not None:
            remove_leftovers(Path(output).absolute())
            self._has_closed_form = resume is not None and is_unfinished(output, configuration)
            if not self._has_closed_form:
                check_free(output)

    def save(self, model: Any, tokenizer: Any, record: dict[str, Any], closed_form: bool) -> None:
        """Saves a model that can be saved, and its record, in the place of the closed-form result, if that is there.

        Args:
            closed_form: whether this is the closed-form result of a run that goes on; it is saved once.
        """
        if self._output is None or closed_form and self._has_closed_form:
            return
        with Stage(f"writing {self._output}"), torch.random.fork_rng(devices=[]):
            save(model, tokenizer, record, self._output, draw_scores, replace=self._has_closed_form)
        self._has_closed_form = closed_form

    @contextmanager
    def said_of_errors(self) -> Iterator[None]:
        """Within the context, whatever ends the run has a note that says where its result is, or its
        closed-form one, if that is there."""
        try:
            yield
        except BaseException as error:  # which may come between the writing and any note of it here: the folder tells
            if self._output is not None and Path(self._output).exists():
                error.add_note(self._where(self._output))
            raise

    def _where(self, output: str) -> str:
        """What to say of the folder, which holds something of this run."""
        if not is_unfinished(output, self._configuration):
            return f"the result is in {output}"
        state = Path(f"{self.run_folder}/last.ckpt")
        more = f"; with --resume {state} the fine-tuning goes on" if state.is_file() else ""
        return f"the closed-form result is in {output}{more}"
