"""One page that shows what an ablation has found."""

import io
import json
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from subfit.ablation.figures import (
    Row,
    draw_curves,
    draw_effects,
    draw_scores,
    draw_selections,
    draw_tradeoff,
    label,
    net_parameters,
    pareto_front,
    ratio,
)
from subfit.ablation.rows import read_rows, write_text
from subfit.errors import SubFitError

CAPTIONS = {
    "tradeoff": ("What is lost for what is saved", "Each dot is a cell; nothing is better than the line on both counts."),
    "effects": ("What each axis does", "Dots are cells, diamonds their geometric means, bars one standard deviation."),
    "curves": ("What fine-tuning gains", "On the calibration windows that were held out; step 0 is the closed-form fit."),
    "scores": (
        "What the scorers think of each submodule",
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
    rows = [
        {**row, "values": {**({"study": Path(name).name} if len(folders) > 1 else {}), **row["values"]}}
        for name in folders
        for row in read_rows(Path(name)).values()
    ]
    done = [row for row in rows if row["status"] == "done" and row["texts"]]
    if not done:
        raise SubFitError(f"{', '.join(folders)}: there is no finished cell with an evaluation to report")
    axes = [axis for axis in dict.fromkeys(key for row in done for key in row["values"]) if _varies(done, axis)]
    figures = (
        {"tradeoff": draw_tradeoff(done, axes[0] if axes else None), "effects": draw_effects(done, axes)} if axes else {}
    )
    tuned = [row for row in done if row.get("finetune", {}).get("curve")]
    figures |= {"curves": draw_curves(tuned)} if tuned else {}
    figures |= {"scores": draw_scores(done), "selections": draw_selections(done)}
    columns, cells = _table(done, axes)
    front = [done[index] for index in pareto_front([(net_parameters(row), ratio(row)) for row in done])]
    template = Environment(loader=PackageLoader("subfit.ablation", "."), autoescape=True, undefined=StrictUndefined)
    page = template.get_template("report.html.jinja").render(
        title=f"Ablation: {', '.join(Path(name).name for name in folders)}",
        done=len(done),
        failed=[row for row in rows if row["status"] == "failed"],
        figures=[{"title": CAPTIONS[n][0], "caption": CAPTIONS[n][1], "svg": _svg(f)} for n, f in figures.items()],
        columns=[{"name": name, "text": text} for name, text in columns],
        cells=[{"fields": values, "front": row in front} for row, values in zip(done, cells, strict=True)],
        front=[{"summary": _summary(row), "yaml": _configuration(row)} for row in front],
    )
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=120)
            figure.savefig(folder / f"{name}.svg")
    except OSError as error:
        raise SubFitError(f"cannot write to the folder {output}: {error}") from error
    lines = [[name for name, _ in columns], ["---"] * len(columns), *([shown for _, shown in values] for values in cells)]
    write_text(folder / "table.md", "".join(f"| {' | '.join(line)} |\n" for line in lines))
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _varies(rows: list[Row], axis: str) -> bool:
    return len({label(row["values"].get(axis)) for row in rows}) > 1


def _table(rows: list[Row], axes: list[str]) -> tuple[list[tuple[str, bool]], list[list[tuple[Any, str]]]]:
    """The columns, each with whether it is text, and for each row the value and what is shown of it."""
    texts = list(dict.fromkeys(name for row in rows for name in row["texts"]))
    columns = [(axis, not all(isinstance(row["values"].get(axis), int | float) for row in rows)) for axis in axes]
    columns += [(f"ratio, {name}", False) for name in texts]
    asked = any("tasks_mean" in row for row in rows)
    columns += [(name, False) for name in ("accuracy retained", "above chance")] if asked else []
    columns += [(name, False) for name in ("agreement", "KL", "net parameters", "added", "KV cache", "compress, s")]
    cells = []
    for row in rows:
        first, size, seconds = next(iter(row["texts"].values())), row["size"], row["seconds"]
        kept = size["after"]["kv_bytes_per_token"] / size["before"]["kv_bytes_per_token"]
        spent = sum(seconds[stage] for stage in ("score", "select", "fit"))
        cell: list[tuple[Any, str]] = [(label(row["values"].get(axis)), label(row["values"].get(axis))) for axis in axes]
        cell += [_ratio(row["texts"].get(name)) for name in texts]
        if asked:
            tasks = row.get("tasks_mean", {})
            cell += [_retained(tasks), _share(tasks.get("retained_above_chance"))]
        cell += [(first["agreement"], f"{first['agreement']:.1%}"), (first["kl"], f"{first['kl']:.3f}")]
        cell += [(number, f"{number:,}") for number in (net_parameters(row), size["added_parameters"])]
        cells.append([*cell, (kept, f"{kept:.0%}"), (spent, f"{spent:.0f}")])
    return columns, cells


def _ratio(measured: dict[str, Any] | None) -> tuple[Any, str]:
    """A perplexity ratio, and how it is shown, with its interval."""
    if measured is None:
        return "", ""
    ratio, interval = measured["perplexity_ratio"], measured.get("perplexity_ratio_interval")
    return ratio, f"{ratio:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _share(value: float | None) -> tuple[Any, str]:
    return ("", "") if value is None else (value, f"{value:.1%}")


def _retained(tasks: dict[str, Any]) -> tuple[Any, str]:
    """The accuracy as a share of the reference's, and how it is shown, with the 95 % interval of the paired difference."""
    value, shown = _share(tasks.get("retained"))
    if shown and tasks["difference_error"] is not None:
        spread = 1.96 * tasks["difference_error"] / tasks["reference_accuracy"]
        shown += f" [{value - spread:.1%}, {value + spread:.1%}]"
    return value, shown


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
