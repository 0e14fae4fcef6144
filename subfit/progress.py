"""Progress on stderr: what a run is doing, how far it is, and how long it will still take.

On a terminal, a bar shows the stage that is under way. Elsewhere, as in the log of a batch job, a line says once a minute
where a long stage is. In both cases, a line with its time stays of each stage. Stages inside another one add to its bar. The
environment variable `SUBFIT_PROGRESS=0` turns all of it off; of processes that work together, the first one shows it.

While a stage is under way, progress bars of other libraries are off.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from subfit.interruptions import uninterrupted

SWITCH = "SUBFIT_PROGRESS"
FIRST, INTERVAL = 30.0, 60.0  # seconds after which a stage has a line where there is no terminal: the first, the others
NARROW = 60  # columns of a terminal that has no room for the bar

_stages: list[Stage] = []  # those under way, the outermost first
_live: Live | None = None  # what shows them on a terminal


class Stage:
    """A part of a run, as a context. Call `advance` as its work proceeds.

    Args:
        name: what is done, such as `scoring 60 submodules`.
        total: how much there is to do; not known if None.
        unit: what is counted, such as `layers`.
        done: how much was done before, where work is resumed.
        line: whether a line stays of it. If not, those of the stages inside it do not stay either.

    Attributes:
        note: what else is shown, such as the latest loss.
    """

    def __init__(self, name: str, total: int | None = None, unit: str = "", *, done: int = 0, line: bool = True):
        self.name, self.total, self.unit, self.done, self.line = name, total, unit, done, line
        self.note = ""
        self._before = done
        self._context = ExitStack()

    def advance(self, count: int = 1) -> None:
        """Says that so much more is done."""
        self.done += count

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        _stages.append(self)
        if len(_stages) == 1:
            try:
                with uninterrupted():
                    self._context.enter_context(_without_other_bars())
                    self._context.enter_context(show_above(None) if is_on_terminal() else _lines())
            except BaseException:  # an interruption, after which `__exit__` is not called
                _stages.clear()
                self._context.close()
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        if self not in _stages:  # one around it has ended before
            return
        del _stages[_stages.index(self) :]
        if _stages and self.note:
            _stages[-1].note = self.note
        self._context.close()
        if not _stages and self.line and kind is None and is_shown():
            print(", ".join(filter(None, [f"{self.name}: {duration(self.seconds)}", self.note])), file=sys.stderr)

    @property
    def seconds(self) -> float:
        """The seconds since it began."""
        return time.monotonic() - self._start

    @property
    def remaining(self) -> float | None:
        """The seconds that it will still take at the pace so far; None where that is not known."""
        made = self.done - self._before
        return None if self.total is None or made <= 0 else self.seconds / made * (self.total - self.done)

    @property
    def count(self) -> str:
        """How much of how much is done, such as `12/30 layers`."""
        return f"{self.done:,}/{self.total:,} {self.unit}".rstrip()


def is_rank_zero() -> bool:
    """Whether this process is the one, of those that work together, that logs, saves and prints.

    One that is alone is it, whatever a job before it has left in the environment.
    """
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def is_shown() -> bool:
    """Whether this process shows progress."""
    return os.environ.get(SWITCH) != "0" and is_rank_zero()


def is_on_terminal() -> bool:
    """Whether this process shows progress on a terminal."""
    return is_shown() and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def duration(seconds: float) -> str:
    """Returns a time as text, such as `0.4 s`, `12 s`, `3 min 05 s` or `2 h 07 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@contextmanager
def show_above(above: Callable[[], RenderableType] | None) -> Iterator[None]:
    """Within the context, the terminal shows the stages below what `above` renders.

    Inside itself, it shows at once what has begun, and no more. It has no effect where progress is not shown on a terminal.
    """
    global _live
    if _live is not None:
        _live.refresh()
        yield
        return
    if not is_on_terminal():
        yield
        return
    console = Console(stderr=True)
    live = Live(console=console, get_renderable=lambda: _shown(console, above), transient=True, redirect_stdout=False)
    _live = live
    try:
        with uninterrupted():  # else it could be stopped half-way, and fail when it stops
            live.start()
        yield
    finally:
        end()


def end() -> None:
    """Ends what the terminal shows, if it shows anything."""
    global _live
    with uninterrupted():
        if _live is not None:
            _live.stop()
        _live = None


def _named(stages: list[Stage]) -> tuple[str, Stage, list[str]]:
    """What stages inside one another are called together, the one whose bar is shown, and what is counted in it.

    Args:
        stages: a copy of those under way, which may end at any moment in the thread that does the work.
    """
    named = next((index for index, stage in enumerate(stages) if stage.line), len(stages) - 1)
    counted = [stage for stage in stages if stage.total is not None]
    main = counted[0] if counted else stages[0]
    notes = [stages[-1].note] if stages[-1].note else []
    counts = [counted[0].count, counted[-1].count] if counted else []
    return ": ".join(stage.name for stage in stages[: named + 1]), main, [*dict.fromkeys(counts), *notes]


def _time(stage: Stage) -> str:
    remaining = stage.remaining
    return f"{duration(stage.seconds)} so far" if remaining is None else f"{duration(remaining)} left"


def _shown(console: Console, above: Callable[[], RenderableType] | None) -> RenderableType:
    """What the terminal shows."""
    parts: list[RenderableType] = [above()] if above else []
    if stages := list(_stages):
        name, main, details = _named(stages)
        row: list[RenderableType] = [Text(name, overflow="fold"), Text(", ".join([*details, _time(main)]), overflow="fold")]
        if main.total is not None and console.width >= NARROW:
            row.insert(1, ProgressBar(main.total, main.done, width=console.width // 4))
        line = Table.grid(padding=(0, 1))
        line.add_row(*row)
        parts.append(line)
    return Group(*parts)


def _lines() -> AbstractContextManager[None]:
    """Within the context, a line says from time to time where the stages are."""
    return _reporting() if is_shown() else nullcontext()


@contextmanager
def _reporting() -> Iterator[None]:
    ended = threading.Event()

    def report() -> None:
        wait = FIRST
        while not ended.wait(wait) and (stages := list(_stages)):
            name, main, details = _named(stages)
            print(f"{name}: {', '.join([*details, _time(main)])}", file=sys.stderr, flush=True)
            wait = INTERVAL

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _without_other_bars() -> Iterator[None]:
    """Within the context, bars of tqdm, with which all other libraries show their progress, are not shown."""
    from tqdm import tqdm

    init = tqdm.__init__

    def silent(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **{**kwargs, "disable": True})

    tqdm.__init__ = silent  # type: ignore[method-assign]
    try:
        yield
    finally:
        tqdm.__init__ = init  # type: ignore[method-assign]
