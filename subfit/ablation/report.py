"""One page with the results of an ablation: pictures and a table."""

import io
import json
from pathlib import Path

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from subfit.ablation.figures import (
    Row,
    draw_curves,
    draw_effects,
    draw_score_ranks,
    draw_selections,
    draw_tradeoff,
    label,
    net_parameters,
    pareto_front,
    ratio,
)
from subfit.ablation.rows import read_rows, write_text
from subfit.ablation.table import Column, columns_of, markdown
from subfit.errors import SubFitError

CAPTIONS = {
    "tradeoff": ("What is lost for what is saved", "Each dot is a cell; nothing is better than the line on both counts."),
    "effects": ("What each axis does", "Dots are cells, diamonds their geometric means, bars one standard deviation."),
    "curves": ("What fine-tuning gains", "On the calibration windows that were held out; step 0 is the closed-form fit."),
    "scores": (
        "How the scorers rank the submodules",
        "A line is a scorer, a column a layer; the darker, the safer to replace.",
    ),
    "selections": (
        "Which submodules are replaced",
        "A line is a scorer; the darker, the more of its cells replace the submodule.",
    ),
}


def report(folders: list[str], output: str) -> Path:
    """Writes `report.html`, self-contained, its figures as `.png` and `.svg`, and its table as `table.md`.

    Args:
        folders: output folders of `subfit ablate`.
        output: folder to write to; what it holds under these names is replaced.

    Returns:
        The path of the page.

    Raises:
        SubFitError: if a folder holds no finished cell, or the page cannot be written.
    """
    rows = _read(folders)
    done = [row for row in rows if row["status"] == "done" and row["texts"]]
    if not done:
        raise SubFitError(f"{', '.join(folders)}: there is no finished cell with an evaluation to report")
    axes = [axis for axis in dict.fromkeys(key for row in done for key in row["values"]) if _varies(done, axis)]
    figures = _figures(done, axes)
    columns = columns_of(done, axes)
    failed = [row for row in rows if row["status"] == "failed"]
    page = _page(f"Ablation: {', '.join(Path(name).name for name in folders)}", done, failed, figures, columns)
    _save(figures, Path(output))
    write_text(Path(output) / "table.md", markdown(columns, done))
    write_text(Path(output) / "report.html", page)
    return Path(output) / "report.html"


def _read(folders: list[str]) -> list[Row]:
    """The rows of all folders; of more than one, with an axis that tells the folders apart."""
    rows = [(Path(name).name, row) for name in folders for row in read_rows(Path(name)).values()]
    if len(folders) == 1:
        return [row for _, row in rows]
    return [{**row, "values": {"study": study, **row["values"]}} for study, row in rows]


def _figures(rows: list[Row], axes: list[str]) -> dict[str, Figure]:
    """The figures by name, as far as the rows have something to show."""
    figures: dict[str, Figure] = {}
    if axes:
        figures |= {"tradeoff": draw_tradeoff(rows, axes[0]), "effects": draw_effects(rows, axes)}
    tuned = [row for row in rows if row.get("finetune", {}).get("curve")]
    if tuned:
        figures["curves"] = draw_curves(tuned)
    return figures | {"scores": draw_score_ranks(rows), "selections": draw_selections(rows)}


def _page(title: str, done: list[Row], failed: list[Row], figures: dict[str, Figure], columns: list[Column]) -> str:
    """The page as HTML."""
    front = [done[index] for index in pareto_front([(net_parameters(row), ratio(row)) for row in done])]
    template = Environment(loader=PackageLoader("subfit.ablation", "."), autoescape=True, undefined=StrictUndefined)
    return template.get_template("report.html.jinja").render(
        title=title,
        done=len(done),
        failed=failed,
        figures=[{"title": CAPTIONS[n][0], "caption": CAPTIONS[n][1], "svg": _svg(f)} for n, f in figures.items()],
        columns=columns,
        cells=[{"fields": [column.field(row) for column in columns], "front": row in front} for row in done],
        front=[{"summary": _summary(row), "yaml": _configuration(row)} for row in front],
    )


def _save(figures: dict[str, Figure], folder: Path) -> None:
    """Writes the figures as images."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=120)
            figure.savefig(folder / f"{name}.svg")
    except OSError as error:
        raise SubFitError(f"cannot write to the folder {folder}: {error}") from error


def _varies(rows: list[Row], axis: str) -> bool:
    return len({label(row["values"].get(axis)) for row in rows}) > 1


def _summary(row: Row) -> str:
    values = ", ".join(f"{axis}: {label(value)}" for axis, value in row["values"].items())
    return f"ratio {ratio(row):.3f}, {net_parameters(row):,} parameters out ({values})"


def _configuration(row: Row) -> str:
    return yaml.safe_dump(json.loads(json.dumps(row["configuration"])), sort_keys=False)


def _svg(figure: Figure) -> str:
    """The figure as an element of a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return text[text.index("<svg") :]
