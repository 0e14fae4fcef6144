"""`subfit benchmark`."""

import json
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from subfit.api import DEFAULTS
from subfit.benchmarking.benchmark import benchmark
from subfit.benchmarking.speed import Workload
from subfit.bypass import Bypass
from subfit.config import Parser, add_plugins, importable_arguments, without_plugins

BOTH = ("dense", "compressed")
MIB = 1 << 20


def run(arguments: list[str]) -> int:
    """Runs `subfit benchmark`."""
    parser = Parser(prog="subfit benchmark", description="Speed and memory of a compressed model, beside the dense one.")
    parser.add_argument("--config", action="config", help="YAML file with options; of several, the later wins.")
    parser.add_argument("model", nargs="?", type=str | None, help="The compressed model: its folder or hub name.")
    parser.add_argument(
        "--reference", type=str | None, help="The dense model: hub name, folder, .gguf file or smollm2-135m."
    )
    parser.add_argument("--random_weights", type=str | None, help="A configuration to build both models from instead.")
    parser.add_argument("--sparsity", type=float, default=0.25, help="Share of either type that is then replaced.")
    parser.add_argument("--attention_bypass", type=Bypass, help="What then takes the place of an Attention.")
    parser.add_argument("--ffn_bypass", type=Bypass, help="What then takes the place of a FeedForward.")
    timed = Workload()
    for name, text in (
        ("prompt_lengths", "Tokens of the prompts whose prefill is timed."),
        ("contexts", "Tokens in the cache when decoding starts."),
        ("batch_sizes", "Sequences decoded at once."),
        ("calibration_windows", "Windows with which the compression itself is timed; it is not, if not given."),
    ):
        parser.add_argument(f"--{name}", nargs="*", type=int, default=list(getattr(timed, name)), help=text)
    for name, text in (
        ("new_tokens", "Tokens decoded for each sequence."),
        ("calibration_length", "Tokens in a calibration window."),
        ("repeats", "Times that each is measured."),
        ("warmup", "Times that each is run before."),
        ("seed", "Seed of the tokens and of random weights."),
    ):
        parser.add_argument(f"--{name}", type=int, default=getattr(timed, name), help=text)
    parser.add_argument("--compile", action="store_true", help="Run both models through torch.compile.")
    parser.add_argument("--output", type=str | None, help="New folder for benchmark.json and the picture benchmark.png.")
    parser.add_argument("--dtype", type=str, default="auto", help="Data type of the weights.")
    parser.add_argument("--device", type=str, default="auto", help="Torch device.")
    parser.add_argument("--trust_remote_code", action="store_true", help="Let code in a checkpoint run.")
    parser.add_argument("--json", action="store_true", help="Print the result as JSON.")
    add_plugins(parser)
    bypasses = [part for name in ("attention_bypass", "ffn_bypass") for part in (f"--{name}", DEFAULTS[name])]
    wanted = importable_arguments([*bypasses, *without_plugins(arguments)])
    given = parser.instantiate(parser.parse_args(wanted)).as_dict()
    as_json = given.pop("json")
    for name in ("config", "plugins"):
        given.pop(name)
    workload = Workload(**{name: given.pop(name) for name in vars(timed)})
    result = benchmark(workload=workload, **given)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        _show(result, given["output"])
    return 0


def _show(result: dict[str, Any], output: str | None) -> None:
    """Prints a benchmark as two tables: speed, and what was counted."""
    console, setting = Console(), result["setting"]
    columns = ("", "dense", "compressed", "times (quartiles)", "ideal", "reached", "saved")
    speed = Table(*columns, title="speed", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    counted = Table("", "dense", "compressed", "ratio", title="counted")

    def count(name: str, dense: float, compressed: float, digits: int = 1, unit: float = 1) -> None:
        values = (f"{value / unit:,.{digits}f}" for value in (dense, compressed))
        counted.add_row(name, *values, f"{compressed / dense:.3f}" if dense else "")

    count("parameters", **_of(result["size"], "parameters"), digits=0)
    count("weights, MiB", **_of(result["size"], "weight_bytes"), unit=MIB)
    count("KV cache, bytes per token", **_of(result["size"], "kv_bytes_per_token"), digits=0)
    for entry in result["prefill"]:
        name = f"prefill {entry['prompt_length']:,}"
        speed.add_row(name, *(f"{1000 * entry['seconds'][key]:,.0f} ms" for key in BOTH), *_ratios(entry["speedup"]))
        count(f"{name}: MFLOP per token", **entry["flops_per_token"], unit=1e6)
        count(f"{name}: peak memory, MiB", **entry["peak_bytes"], unit=MIB)
    for entry in result["decoding"]:
        name = f"decode {entry['batch_size']} x {entry['context']:,}"
        speed.add_row(name, *(f"{entry['tokens_per_second'][key]:,.1f} / s" for key in BOTH), *_ratios(entry["speedup"]))
        count(f"{name}: MiB read per token", **entry["bytes_per_token"], unit=MIB)
        count(f"{name}: MFLOP per token", **entry["flops_per_token"], unit=1e6)
        count(f"{name}: KV cache, MiB", **entry["kv_bytes"], unit=MIB)
        count(f"{name}: peak memory, MiB", **entry["peak_bytes"], unit=MIB)
    console.print(counted)
    if speed.rows:
        console.print(speed)
        explained = "by FLOPs for the prefill, by bytes read for decoding; reached: of it; saved: of the time that it saves"
        console.print(f"ideal: {explained}")
    if result["compression"]:
        console.print(_compression(result["compression"]))
    breaks = [entry["graph_breaks"] for entry in (*result["prefill"], *result["decoding"]) if setting["compiled"]]
    mode = f"compiled, {sum(sum(found.values()) for found in breaks)} graph breaks" if setting["compiled"] else "eager"
    console.print(f"{setting['device']}, {setting['threads']} threads, {setting['dtype']}, {mode}", highlight=False)
    if output:
        console.print(f"written to {output}, with the picture benchmark.png", highlight=False)


def _compression(entries: list[dict[str, Any]]) -> Table:
    """What the compression costs, with each number of windows."""
    stages = ("score", "select", "fit", "forward")
    table = Table("windows", *(f"{name}, s" for name in stages), "forward passes", "memory, MiB", title="compression")
    for entry in entries:
        seconds = (f"{entry['seconds'][name]:,.1f}" for name in stages)
        size = f"{entry['windows']} x {entry['length']}"
        table.add_row(size, *seconds, f"{entry['forwards']:.2f}", f"{entry['peak_bytes'] / MIB:,.0f}")
    return table


def _of(sizes: dict[str, dict[str, int]], name: str) -> dict[str, int]:
    return {key: sizes[key][name] for key in BOTH}


def _ratios(speed: dict[str, Any]) -> list[str]:
    low, high = speed["quartiles"]
    saved = "" if speed["saved"] is None else f"{speed['saved']:.0%}"
    return [f"{speed['measured']:.2f} ({low:.2f}-{high:.2f})", f"{speed['ideal']:.2f}", f"{speed['reached']:.0%}", saved]
