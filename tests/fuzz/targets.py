"""What is fuzzed: each target draws a command and the files that it reads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from execution import Case
from hypothesis import strategies as st
from mutations import Draw, leaves, mutated, mutated_bytes, mutated_safetensors, mutated_text, written
from worlds import FINETUNE, GRID, OPTIONS

QUICK = ["--windows", "2", "--length", "8"]
COMMANDS = {
    "list": [["scorers", "kl"], ["presets", "best"], ["bypasses", "--details"], ["selectors", "--json"]],
    "evaluate": [["compressed", "--reference", "dense", "--data", "a=text.txt", *QUICK, "--stride", "4", "--seed", "1"]],
    "benchmark": [["compressed", "--reference", "dense", "--prompt_lengths", "0", "--engine", "x", "--output", "."]],
    "ablate": [["grid.yaml", "--output", "other", "--shard", "1/9", "--json"]],
    "report": [["missing", "--output", "page", "--json"]],
    "export": [["compressed", "model.gguf", "--json"]],
    "push": [["missing", "USER/NAME", "--private"]],
}


def options(draw: Draw, world: Path) -> Case:
    """Options of a compression on the command line, of which the configuration is printed."""
    flat = _flat(mutated(draw, OPTIONS, large=True) if draw(st.booleans()) else OPTIONS)
    chosen = draw(st.lists(st.sampled_from(sorted(flat)), min_size=1, max_size=4)) if flat else []
    arguments = [part for name in chosen for part in (f"--{name}", str(flat[name]))]
    return Case(["compress", "--print_config", *_odd_arguments(draw, arguments)])


def configuration(draw: Draw, world: Path) -> Case:
    """A configuration in YAML or JSON, which is printed in full."""
    base = {**OPTIONS, "finetune": FINETUNE} if draw(st.integers(0, 2)) == 0 else OPTIONS
    suffix, content = written(draw, mutated(draw, base, large=True))
    return Case(["compress", "--config", f"fuzzed{suffix}", "--print_config"], {f"fuzzed{suffix}": content})


def compression(draw: Draw, world: Path) -> Case:
    """A configuration that is run."""
    base = {**OPTIONS, "finetune": FINETUNE} if draw(st.integers(0, 4)) == 0 else OPTIONS
    content = json.dumps(mutated(draw, base)).encode()
    return Case(["compress", "--config", "fuzzed.json", "--output", "new"], {"fuzzed.json": content})


def grid(draw: Draw, world: Path) -> Case:
    """A grid of an ablation."""
    suffix, content = written(draw, mutated(draw, GRID))
    output = draw(st.sampled_from(["new", "new", "runs"]))
    return Case(["ablate", f"fuzzed{suffix}", "--output", output], {f"fuzzed{suffix}": content})


def record(draw: Draw, world: Path) -> Case:
    """The record of a compression, which is evaluated, or the configuration of another one."""
    content = json.loads((world / "compressed/compression.json").read_text())
    fuzzed = _as_file(draw, content)
    command = draw(
        st.sampled_from([["evaluate", "compressed", *QUICK], ["compress", "--config", "compressed", "--print_config"]])
    )
    return Case(command, {"compressed/compression.json": fuzzed})


def rows(draw: Draw, world: Path) -> Case:
    """The rows of an ablation, which are reported, or skipped by the same ablation."""
    lines = (world / "runs/rows.jsonl").read_text().splitlines()
    place = draw(st.integers(0, len(lines) - 1))
    lines[place] = _as_file(draw, json.loads(lines[place])).decode("utf-8", "surrogateescape")
    kept = lines if draw(st.booleans()) else [lines[place]]
    files = {"runs/rows.jsonl": ("\n".join(kept) + "\n").encode("utf-8", "surrogateescape")}
    if draw(st.integers(0, 5)) == 0:
        files["runs/grid.json"] = _as_file(draw, json.loads((world / "runs/grid.json").read_text()))
    return Case(draw(st.sampled_from([["report", "runs"], ["ablate", "grid.yaml", "--output", "runs"]])), files)


def section(draw: Draw, world: Path) -> Case:
    """The configuration of a compressed model; mostly its section `subfit`."""
    content = json.loads((world / "compressed/config.json").read_text())
    if draw(st.integers(0, 3)):
        content["subfit"] = mutated(draw, content["subfit"], large=True)
        fuzzed = json.dumps(content).encode("utf-8", "replace")
    else:
        fuzzed = _as_file(draw, content)
    return Case(["evaluate", "compressed", *QUICK, "--data", "text.txt"], {"compressed/config.json": fuzzed})


def weights(draw: Draw, world: Path) -> Case:
    """The weights of a model, dense or compressed."""
    name = draw(st.sampled_from(["dense", "compressed"]))
    content = mutated_safetensors(draw, (world / name / "model.safetensors").read_bytes())
    return Case(["evaluate", name, *QUICK, "--data", "text.txt"], {f"{name}/model.safetensors": content})


def texts(draw: Draw, world: Path) -> Case:
    """Texts and tasks."""
    name = draw(st.sampled_from(["text.txt", "rows.jsonl", "task.jsonl"]))
    lines = (world / name).read_text().splitlines()
    if name.endswith(".jsonl") and draw(st.booleans()):
        place = draw(st.integers(0, len(lines) - 1))
        lines[place] = json.dumps(mutated(draw, json.loads(lines[place])))
    content = "\n".join(lines)
    fuzzed = mutated_text(draw, content) if draw(st.booleans()) else mutated_bytes(draw, content.encode("utf-8", "replace"))
    used = ["--tasks", name] if name == "task.jsonl" else ["--data", name]
    return Case(["evaluate", "dense", *QUICK, *used], {name: fuzzed})


def commands(draw: Draw, world: Path) -> Case:
    """The arguments of the other commands."""
    command = draw(st.sampled_from(sorted(COMMANDS)))
    arguments = _odd_arguments(draw, draw(st.sampled_from(COMMANDS[command])))
    return Case([command, *arguments])


def _as_file(draw: Draw, content: Any) -> bytes:
    """Plain data as JSON, changed as data or as text."""
    if draw(st.integers(0, 3)):
        return json.dumps(mutated(draw, content, large=True)).encode("utf-8", "replace")
    return mutated_text(draw, json.dumps(content))


def _odd_arguments(draw: Draw, arguments: list[str]) -> list[str]:
    """Arguments of which one is changed, left out, or there twice."""
    found = list(arguments)
    place = draw(st.integers(0, max(len(found) - 1, 0)))
    odd = str(
        draw(leaves | st.sampled_from(["--", "-", "--x", "--seed", "--json", "--plugins", "--config", "{a: [1}", "{}"]))
    )
    change = draw(st.sampled_from(["value", "value", "remove", "insert", "double", "none"]))
    if change == "value" and found:
        found[place] = odd
    elif change == "remove" and found:
        del found[place]
    elif change == "insert":
        found.insert(place, odd)
    elif change == "double":
        found += found[place : place + 2]
    return found


def _flat(values: Any, before: str = "") -> dict[str, Any]:
    """The options as the command line has them, with dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items() if isinstance(values, dict) else ():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found


Target = Callable[[Draw, Path], Case]
TARGETS: dict[Target, int] = {  # of a hundred executions
    configuration: 25,
    options: 20,
    record: 15,
    section: 10,
    weights: 10,
    commands: 6,
    grid: 4,
    texts: 4,
    rows: 3,
    compression: 3,
}
