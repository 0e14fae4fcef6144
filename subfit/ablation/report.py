"""One page with the results of an ablation: pictures and a table."""

import json
import re
from pathlib import Path

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from subfit.ablation.depth import draw_score_ranks, draw_selections
from subfit.ablation.effects import draw_accuracy, draw_effects, names_of_axes
from subfit.ablation.figures import draw_cache, draw_curves, draw_tradeoff, draw_trend, line_axis
from subfit.ablation.measures import Row, cache_left, grouped, is_finite, label, net_parameters, pareto_front, ratio, varying
from subfit.ablation.replicates import merge_seeds
from subfit.ablation.rows import read_rows, write_text
from subfit.ablation.table import Column, columns_of, markdown, notes
from subfit.errors import SubFitError, missing
from subfit.tracking.atomic import whole_file
from subfit.tracking.drawing import DPI
from subfit.tracking.provenance import differing

MOST = "Of more than seven methods, those that lose the least are shown, and SubFit's own."
CAPTIONS = {
    "tradeoff": f"A line joins the cells of one method; bands are 95 % intervals. {MOST}",
    "cache": f"A line joins the cells of one method; bands are 95 % intervals. {MOST}",
    "trend": "A line joins the cells that differ in this option only; bands are 95 % intervals.",
    "effects": "A large dot is one cell, with its 95 % interval; or the geometric mean of several cells, the small dots.",
    "accuracy": "A large dot is one cell, with its 95 % interval; or the mean of several cells, the small dots.",
    "curves": "On the windows that were held out from training.",
    "scores": "A row is a scorer, a column a layer.",
    "selections": "A column is a layer; the darker, the more of the row's cells replace the submodule.",
}


def report(folders: list[str], output: str) -> Path:
    """Writes `report.html`, self-contained, its figures as `.png` and `.svg`, and its table as `table.md`.

    Args:
        folders: output folders of `subfit ablate`.
        output: folder to write to; what it holds under these names is replaced.

    Returns:
        The path of the page.

    Raises:
        SubFitError: if a folder is missing or holds no finished cell, or the page cannot be written.
    """
    rows = _read(folders)
    done = [row for row in rows if row["status"] == "done" and row["texts"]]
    if not done:
        raise SubFitError(f"{', '.join(folders)}: there is no finished cell with an evaluation to report")
    merged = merge_seeds(done)
    axes = varying(merged, list(dict.fromkeys(key for row in merged for key in row["values"])))
    finite = [row for row in done if is_finite(row)]
    figures = _figures(finite, axes) if finite else {}
    columns = columns_of(merged, axes)
    failed = [row for row in rows if row["status"] == "failed"]
    pictures = _save(figures, Path(output))
    write_text(Path(output) / "table.md", markdown(columns, merged))
    title = f"Ablation: {', '.join(Path(name).name for name in folders)}"
    write_text(Path(output) / "report.html", _page(title, done, merged, failed, pictures, columns))
    return Path(output) / "report.html"


def _read(folders: list[str]) -> list[Row]:
    """The rows of all folders; of more than one, with an axis that tells the folders apart.

    A folder that is named twice is read once: its rows are no replicates of themselves.
    """
    for name in folders:
        if not Path(name).is_dir():
            raise SubFitError(f"the folder {missing(name)}")
    different = {Path(name).resolve(): name for name in reversed(folders)}
    named = {path.name for path in different}
    rows = list[Row]()
    for path, name in reversed(different.items()):
        study = path.name if len(named) == len(different) else name
        found = read_rows(Path(name)).values()
        rows += found if len(different) == 1 else [{**row, "values": {"study": study, **row["values"]}} for row in found]
    return rows


def _figures(rows: list[Row], axes: list[str]) -> dict[str, Figure]:
    """The figures by name, as far as the rows have something to show; those of further texts have the text in their name."""
    figures: dict[str, Figure] = {}
    merged = merge_seeds(rows)
    for number, text in enumerate(dict.fromkeys(text for row in rows for text in row["texts"])):
        suffix = "-" + re.sub(r"\W+", "-", text) if number else ""
        figures |= {f"{name}{suffix}": figure for name, figure in _line_figures(merged, axes, text).items()}
    if names_of_axes(rows, axes):
        figures["effects"] = draw_effects(rows, axes)
        if all("tasks_mean" in row for row in rows):
            figures["accuracy"] = draw_accuracy(rows, axes)
    tuned = [row for row in merged if row.get("finetune", {}).get("curve")]
    if tuned:
        figures["curves"] = draw_curves(tuned, axes)
    return figures | {"scores": draw_score_ranks(rows), "selections": draw_selections(rows, axes)}


def _line_figures(rows: list[Row], axes: list[str], text: str) -> dict[str, Figure]:
    """The figures of the ratios on one text along the first numeric axis, if there is one."""
    joined = line_axis(rows, axes)
    if joined is None:
        return {}
    lines = list(grouped(rows, [axis for axis in axes if axis != joined]).values())
    if all(len(set(map(net_parameters, line))) == 1 for line in lines):
        return {"trend": draw_trend(rows, axes, text)}
    figures = {"tradeoff": draw_tradeoff(rows, axes, text)}
    if len({frozenset(map(cache_left, line)) for line in lines}) > 1:  # otherwise it is the first picture again
        figures["cache"] = draw_cache(rows, axes, text)
    return figures


def _page(
    title: str, done: list[Row], rows: list[Row], failed: list[Row], pictures: dict[str, str], columns: list[Column]
) -> str:
    """The page as HTML.

    Args:
        done: the finished cells.
        rows: the rows of the table.
    """
    finite = [row for row in rows if is_finite(row)]
    said = differing(row.get("processor") for row in done)
    front = [finite[index] for index in pareto_front([(net_parameters(row), ratio(row)) for row in finite])]
    template = Environment(loader=PackageLoader("subfit.ablation", "."), autoescape=True, undefined=StrictUndefined)
    return template.get_template("report.html.jinja").render(
        title=title,
        done=len(done),
        failed=failed,
        figures=[{"name": name, "caption": CAPTIONS[name.partition("-")[0]], "svg": svg} for name, svg in pictures.items()],
        columns=columns,
        cells=[{"fields": [column.field(row) for column in columns], "front": row in front} for row in rows],
        notes=[*notes(columns, rows), *([f"Not all cells ran on one machine; {said}."] if said else [])],
        front=[{"summary": _summary(row), "yaml": _configuration(row)} for row in front],
    )


def _save(figures: dict[str, Figure], folder: Path) -> dict[str, str]:
    """Writes the figures as images; returns each as an element of a page."""
    pictures = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            for kind in ("png", "svg"):
                with whole_file(folder / f"{name}.{kind}") as partial:
                    figure.savefig(partial, format=kind, dpi=DPI)
            text = (folder / f"{name}.svg").read_text(encoding="utf-8")
            pictures[name] = text[text.index("<svg") :]
    except OSError as error:
        raise SubFitError(f"cannot write to the folder {folder}: {error}") from error
    return pictures


def _summary(row: Row) -> str:
    values = ", ".join(f"{axis}: {label(value)}" for axis, value in row["values"].items())
    return f"ratio {ratio(row):.3f}, {net_parameters(row):,} parameters removed ({values})"


def _configuration(row: Row) -> str:
    return yaml.safe_dump(json.loads(json.dumps(row["configuration"])), sort_keys=False)
