"""`subfit benchmark`."""

import argparse
import json
from typing import Any

from subfit import registry
from subfit.cli.arguments import Parser, add_plugins, document_plugins, take
from subfit.cli.help import with_default
from subfit.cli.tables import show_table
from subfit.options.declarations import documented, file_of, read
from subfit.options.reading import read_mapping
from subfit.options.sources import merge, unfold

BOTH = ("dense", "compressed")
MIB = 1 << 20
EXAMPLES = (
    "subfit benchmark compressed --reference smollm2-135m",
    "subfit benchmark compressed --reference smollm2-135m --prompt_lengths 512 --contexts 256 --batch_sizes 1 4",
    "subfit benchmark --random_weights config.json --sparsity 0.25 --output speed",
)


def run(arguments: list[str]) -> int:
    """Runs `subfit benchmark`."""
    parser = _parser()
    rest = add_plugins(arguments)
    configurations, rest = take(rest, "config".__eq__)
    dotted, rest = take(rest, lambda option: "." in option)
    typed_in = vars(parser.parse_args(rest))
    as_json, allow_code = typed_in.pop("json", False), typed_in.pop("allow_code", False)
    given: dict[str, Any] = {}
    sources = {str(name): read_mapping(name) for _, name in configurations}
    for name, content in sources.items() if not allow_code else ():
        registry.check_code(content, name)
    for source in (*sources.values(), {**typed_in, **dict(dotted)}):
        given = merge(given, unfold(source))
    from subfit.benchmarking.benchmark import benchmark_from  # imports torch, which help does not wait for

    result = benchmark_from(given)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        _show(result, given.get("output"))
    return 0


def _parser() -> Parser:
    parser = Parser("subfit benchmark", "Speed and memory of a compressed model, beside the dense one.", EXAMPLES)
    parser.argument_default = argparse.SUPPRESS  # what is not given is as the configuration says, or at its default
    parser.add_argument("model", nargs="?", help="The compressed model: its folder or hub name.")
    parser.add_argument("--config", metavar="FILE", help="YAML file with options; of several, the later wins.")
    parser.add_argument("--reference", help="The dense model: hub name, folder, .gguf file or smollm2-135m.")
    parser.add_argument("--random_weights", help="A configuration to build both models from instead.")
    parser.add_argument("--sparsity", type=float, help="Share of either type that is then replaced [0.25].")
    parser.add_argument("--attention_bypass", help="What then takes the place of an Attention [low_rank].")
    parser.add_argument("--ffn_bypass", help="What then takes the place of a FeedForward [shared_low_rank].")
    file = file_of("subfit.benchmarking.workload")
    assert file is not None
    workload = read(file).classes["Workload"]
    texts = documented(workload.documentation)
    for argument in workload.arguments:
        text = with_default(argument, texts[argument.name])
        many = "*" if (argument.annotation or "").startswith("Sequence") else None
        parser.add_argument(f"--{argument.name}", nargs=many, type=int, help=text)
    parser.add_argument("--compile", action="store_true", help="Run both models through torch.compile.")
    parser.add_argument("--engine", help="What runs the models: transformers, vllm or llama.cpp [transformers].")
    parser.add_argument("--engine_python", help="Python of the environment that the engine is in [this one].")
    parser.add_argument("--output", help="New folder for benchmark.json and the picture benchmark.png.")
    parser.add_argument("--dtype", help="Data type of weights and computations [auto].")
    parser.add_argument("--device", help="Torch device [auto].")
    parser.add_argument("--trust_remote_code", action="store_true", help="Let code in a checkpoint run.")
    parser.add_argument("--json", action="store_true", help="Print the result as JSON.")
    document_plugins(parser)
    parser.add_argument("--allow_code", action="store_true", help="Let all .py files that configurations name run.")
    return parser


def _show(result: dict[str, Any], output: str | None) -> None:
    """Prints a benchmark as tables: what was counted, speed, and what the compression costs."""
    setting = result["setting"]
    speed: list[list[str]] = []
    counted: list[list[str]] = []

    def count(name: str, dense: float, compressed: float, digits: int = 1, unit: float = 1) -> None:
        values = (f"{value / unit:,.{digits}f}" for value in (dense, compressed))
        counted.append([name, *values, f"{compressed / dense:.3f}" if dense else ""])

    count("parameters", **_of(result["size"], "parameters"), digits=0)
    count("weights, MiB", **_of(result["size"], "weight_bytes"), unit=MIB)
    count("KV cache, bytes per token", **_of(result["size"], "kv_bytes_per_token"), digits=0)
    if result["size"]["dense"].get("state_bytes_per_sequence"):
        count("cache, bytes per sequence", **_of(result["size"], "state_bytes_per_sequence"), digits=0)
    for entry in result["prefill"]:
        name = f"prefill {entry['prompt_length']:,}"
        speed.append([name, *(f"{1000 * entry['seconds'][key]:,.0f} ms" for key in BOTH), *_ratios(entry["speedup"])])
        count(f"{name}: MFLOP per token", **entry["flops_per_token"], unit=1e6)
        if "peak_bytes" in entry:
            count(f"{name}: peak memory, MiB", **entry["peak_bytes"], unit=MIB)
    for entry in result["decoding"]:
        name = f"decode {entry['batch_size']} x {entry['context']:,}"
        speed.append([name, *(f"{entry['tokens_per_second'][key]:,.1f} / s" for key in BOTH), *_ratios(entry["speedup"])])
        count(f"{name}: MiB read per token", **entry["bytes_per_token"], unit=MIB)
        count(f"{name}: MFLOP per token", **entry["flops_per_token"], unit=1e6)
        count(f"{name}: KV cache, MiB", **entry["kv_bytes"], unit=MIB)
        if "peak_bytes" in entry:
            count(f"{name}: peak memory, MiB", **entry["peak_bytes"], unit=MIB)
    show_table("counted", ("", *BOTH, "ratio"), counted, note="Lower is better.")
    if speed:
        explained = (
            "speed-up: dense over compressed time, higher is better, with quartiles.\n"
            "ideal: what the FLOPs (prefill) or the bytes read (decoding) allow; reached: share of it;\n"
            "saved: share of the time that it would save."
        )
        show_table("speed", ("", *BOTH, "speed-up", "ideal", "reached", "saved"), speed, note=explained)
    if result["compression"]:
        _show_compression(result["compression"])
    if "engine" in result:
        _show_engine(result)
    breaks = [entry["graph_breaks"] for entry in (*result["prefill"], *result["decoding"]) if "graph_breaks" in entry]
    mode = "compiled" if setting["compiled"] else "eager"
    mode += f", {sum(sum(found.values()) for found in breaks)} graph breaks" if breaks else ""
    print(f"{setting['device']}, {setting['threads']} threads, {setting['dtype']}, {mode}")
    if output:
        print(f"written to {output}: benchmark.json" + (" and the picture benchmark.png" if speed else ""))


def _show_engine(result: dict[str, Any]) -> None:
    """What only another engine says: the cache that it keeps, and the requests that it answers."""
    cache = result["engine"]["cache"]
    rows = [["KV cache, bytes per token", *(f"{cache[key]['bytes_per_token']:,.0f}" for key in BOTH)]]
    if all(cache[key]["tokens"] for key in BOTH):
        rows.append(["tokens in the memory for it", *(f"{cache[key]['tokens']:,}" for key in BOTH)])
    for entry in result["decoding"]:
        name = f"{entry['context']:,} + {entry['new_tokens']} tokens: requests"
        rows.append([f"{name} at once in equal memory", *(f"{entry['requests_at_once'][key]:,}" for key in BOTH)])
        rows.append([f"{name} per second", *(f"{entry['requests_per_second'][key]:,.2f}" for key in BOTH)])
    show_table(result["engine"]["version"], ("", *BOTH), rows)


def _show_compression(entries: list[dict[str, Any]]) -> None:
    """What the compression costs, with each number of windows."""
    stages, rows = ("score", "select", "fit", "forward"), []
    for entry in entries:
        seconds = (f"{entry['seconds'][name]:,.1f}" for name in stages)
        size = f"{entry['windows']} x {entry['length']}"
        rows.append([size, *seconds, f"{entry['forwards']:.2f}", f"{entry['peak_bytes'] / MIB:,.0f}"])
    columns = ("windows", *(f"{name}, s" for name in stages), "forward passes", "memory, MiB")
    show_table("cost of the compression", columns, rows, note="Lower is better.")


def _of(sizes: dict[str, dict[str, int]], name: str) -> dict[str, int]:
    return {key: sizes[key][name] for key in BOTH}


def _ratios(speed: dict[str, Any]) -> list[str]:
    low, high = speed["quartiles"]
    saved = "" if speed["saved"] is None else f"{speed['saved']:.0%}"
    return [f"{speed['measured']:.2f} ({low:.2f}-{high:.2f})", f"{speed['ideal']:.2f}", f"{speed['reached']:.0%}", saved]
