"""`subfit evaluate`."""

import argparse
import json
from pathlib import Path
from typing import Any

from subfit.cli.arguments import Parser
from subfit.cli.generations import show_generations
from subfit.cli.tables import show_table
from subfit.errors import SubFitError
from subfit.evaluation.limits import FEWEST_ITEMS, FEWEST_WINDOWS

EXAMPLES = (
    "subfit evaluate compressed --reference smollm2-135m",
    "subfit evaluate compressed --reference smollm2-135m --data wikitext=test.txt narrative.txt --in_domain wikitext",
    "subfit evaluate compressed --reference smollm2-135m --tasks questions.jsonl --limit 100 --json",
    "subfit evaluate compressed --reference smollm2-135m --probes",
    'subfit evaluate compressed --reference smollm2-135m --data samples=self --prompts "The capital of France is"',
)


def run(arguments: list[str]) -> int:
    """Runs `subfit evaluate`."""
    text = "Perplexity and zero-shot accuracy of a model, what it retains of a reference's, and what both write."
    parser = Parser("subfit evaluate", text, EXAMPLES)
    parser.add_argument("model", help="The model: hub name, folder, .gguf file or smollm2-135m.")
    parser.add_argument("--reference", help="The model to compare with, such as the dense one.")
    files = "Text files, as NAME=PATH or PATH; NAME=self is sampled from the reference, as is the text if nothing is given."
    parser.add_argument("--data", nargs="+", action="extend", default=[], metavar="TEXT", help=files)
    parser.add_argument("--in_domain", nargs="*", metavar="NAME", help="Texts of the calibration's domain.")
    parser.add_argument("--windows", type=int, default=argparse.SUPPRESS, help="Number of windows of each text [16].")
    parser.add_argument("--length", type=int, default=argparse.SUPPRESS, help="Tokens in a window [512].")
    parser.add_argument("--stride", type=int, help="Tokens from window to window; the length if not given.")
    tasks = "Zero-shot tasks: local .jsonl files, or names of lm-evaluation-harness."
    parser.add_argument("--tasks", nargs="+", action="extend", default=[], metavar="TASK", help=tasks)
    parser.add_argument("--limit", type=int, help="Number of items of each task, the first ones; all if not given.")
    probes = "Measure copying, recall and a word mentioned before; needs no data."
    parser.add_argument("--probes", action="store_true", help=probes)
    prompts = "Texts that both models continue, greedily, side by side."
    parser.add_argument("--prompts", nargs="+", action="extend", default=[], metavar="TEXT", help=prompts)
    parser.add_argument("--new_tokens", type=int, default=40, help="Tokens to write after each prompt, at most [40].")
    parser.add_argument("--seed", type=int, default=0, help="Seed of sampling and of resampling [0].")
    parser.add_argument("--dtype", default="auto", help="Data type of weights and computations [auto].")
    parser.add_argument("--device", default="auto", help="Torch device [auto].")
    where = (
        "Where the weights are: all on the device, those of the decoder layers on the disk, or as they fit (auto) [device]."
    )
    parser.add_argument("--device_map", default="device", metavar="{device,disk,auto}", help=where)
    most = "Most memory that the weights of a model may take with auto, such as 8GB; half of what is free if not given."
    parser.add_argument("--max_memory", help=most)
    parser.add_argument("--batch_size", type=int, default=4, help="Windows, or sequences of 512 tokens, run at once [4].")
    parser.add_argument("--trust_remote_code", action="store_true", help="Let code in a checkpoint run.")
    parser.add_argument("--json", action="store_true", help="Print the result as JSON.")
    given = vars(parser.parse_args(arguments))
    from subfit.calibration.settings import Data, EvaluationData
    from subfit.evaluation.evaluate import evaluate

    as_json = given.pop("json")
    size = {name: given.pop(name) for name in ("windows", "length") if name in given}
    texts: dict[str, Data] = {
        name: EvaluationData(**size) if path == "self" else EvaluationData(path=path, **size)
        for name, path in _named(given.pop("data")).items()
    }
    data = texts if texts or given["tasks"] or given["prompts"] or given["probes"] else EvaluationData(**size)
    result = evaluate(given.pop("model"), data=data, **given)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        _show(result)
    return 0


def _named(entries: list[str]) -> dict[str, str]:
    """The files by name, or `self`: NAME=PATH, or a path, which is named by its file's stem."""
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        name, path = (name, path) if equals else (Path(entry).stem, entry)
        if name in found:
            raise SubFitError(f"two texts are called {name!r}; give them names: --data NAME=PATH")
        found[name] = path
    return found


def _show(result: dict[str, Any]) -> None:
    """Prints an evaluation as tables."""
    if result["texts"]:
        _show_texts(result["texts"])
    if result["tasks"]:
        _show_tasks(result["tasks"], result["tasks_mean"])
    if result["probes"]:
        _show_probes(result["probes"])
    if result["generations"]:
        show_generations(result["generations"])
    data = result["calibration"] or {}
    told = [f"{key} {data[key]}" for key in ("source", "path", "dataset", "windows", "length") if data.get(key)]
    lines = {"model": result["model"], "reference": result["reference"], "calibration": ", ".join(told) or None}
    lines |= {"parameters": f"{result['parameters']:,}", "KV cache, bytes per token": f"{result['kv_bytes_per_token']:,}"}
    if result.get("state_bytes_per_sequence"):
        lines["cache, bytes per sequence"] = f"{result['state_bytes_per_sequence']:,}"
    for name, value in lines.items():
        if value is not None:
            print(f"{name}: {value}")


def _show_texts(texts: dict[str, dict[str, Any]]) -> None:
    """A column for each text."""
    compared = "reference_perplexity" in next(iter(texts.values()))
    domains = {None: "not said", True: "in", False: "out"}
    rows = [["calibration domain", *(domains[text["in_domain"]] for text in texts.values())]]
    rows.append(["perplexity", *(_with_interval(text, "perplexity") for text in texts.values())])
    if compared:
        rows.append(["reference's perplexity", *(f"{text['reference_perplexity']:,.2f}" for text in texts.values())])
        rows.append(["ratio", *(_with_interval(text, "perplexity_ratio") for text in texts.values())])
        rows.append(["top-1 agreement", *(f"{text['agreement']:.1%}" for text in texts.values())])
        rows.append(["KL divergence, nats", *(f"{text['kl']:.4f}" for text in texts.values())])
    rows.append(["bits per byte", *(f"{text['bits_per_byte']:.4f}" for text in texts.values())])
    rows.append(["tokens, windows", *(f"{text['tokens']:,}, {text['windows']:,}" for text in texts.values())])
    better = f"Lower is better{', but for the agreement' if compared else ''}. In brackets, 95 % bootstrap intervals."
    without = [name for name, text in texts.items() if text["perplexity_interval"] is None]
    if without:
        better += f"\nNo interval for {', '.join(without)}: at least {FEWEST_WINDOWS} windows are needed."
    show_table("perplexity", ("", *texts), rows, note=better)


def _with_interval(text: dict[str, Any], name: str) -> str:
    interval = text[f"{name}_interval"]
    form = ",.2f" if name == "perplexity" else ",.3f"
    shown = format(text[name], form)
    return f"{shown} [{interval[0]:{form}}, {interval[1]:{form}}]" if interval else shown


def _show_tasks(tasks: dict[str, dict[str, Any]], mean: dict[str, Any]) -> None:
    """A row for each task, and one for their mean."""
    columns = ["task", "items", "chance", "acc", "acc_norm"]
    compared = "difference" in mean
    columns += ["reference", "difference", "retained", "above chance"] if compared else []
    rows = []
    for name, task in tasks.items():
        accuracies = [_percent(task.get(metric), task.get(f"{metric}_error")) for metric in ("acc", "acc_norm")]
        row = [name, f"{task['items']:,}", _percent(task["chance"]), *accuracies]
        rows.append(row + (_retained(task, task.get(f"reference_{task['metric']}")) if compared else []))
    if len(tasks) > 1:
        row = ["mean", "", _percent(mean["chance"]), "", _percent(mean["accuracy"], mean["accuracy_error"])]
        rows.append(row + (_retained(mean, mean.get("reference_accuracy")) if compared else []))
    note = "Higher is better. The mean, and what is compared, is of acc_norm where there are choices, else of acc."
    note += " In brackets, 95 % intervals." if compared else ""
    without = [name for name, task in tasks.items() if task["acc_error"] is None]
    if without:
        note += f"\nNo error and no interval for {', '.join(without)}: at least {FEWEST_ITEMS} items are needed."
    show_table("zero-shot accuracy, %, ± standard error", columns, rows, note=note)


def _retained(task: dict[str, Any], dense: float | None) -> list[str]:
    shown = [_percent(dense), _percent(task["difference"], task["difference_error"])]
    for name in ("retained", "retained_above_chance"):
        interval = task[f"{name}_interval"]
        shown.append(_percent(task[name]) + (f" [{_percent(interval[0])}, {_percent(interval[1])}]" if interval else ""))
    return shown


def _show_probes(probes: dict[str, dict[str, Any]]) -> None:
    """A row for each probe."""
    compared = "difference" in next(iter(probes.values()))
    columns = ["probe", "items", "loss, nats", *(["reference", "difference"] if compared else [])]
    rows = []
    for name, probe in probes.items():
        row = [name, f"{probe['items']:,}", _nats(probe, "loss")]
        rows.append(row + ([f"{probe['reference_loss']:.3f}", _nats(probe, "difference")] if compared else []))
    note = "Lower is better. In brackets, 95 % bootstrap intervals over the items."
    show_table("what the context tells, loss per token", columns, rows, note=note)


def _nats(probe: dict[str, Any], name: str) -> str:
    low, high = probe[f"{name}_interval"]
    return f"{probe[name]:.3f} [{low:.3f}, {high:.3f}]"


def _percent(value: float | None, error: float | None = None) -> str:
    if value is None:
        return "–"
    return f"{value:.1%}".removesuffix("%") + (f" ±{100 * error:.1f}" if error is not None else "")
