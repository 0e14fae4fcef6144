"""`subfit compress`."""

import json
import shlex
import sys
from itertools import groupby
from typing import Any

import yaml

from subfit.cli.arguments import add_plugins, examples, take
from subfit.cli.help import options_help
from subfit.cli.signals import said_of_result
from subfit.cli.tables import show_table
from subfit.config import configuration, resolve
from subfit.errors import SubFitError
from subfit.options.precedence import overruled
from subfit.progress import duration, is_rank_zero

HELP = """usage: subfit compress [--config NAME] [--OPTION VALUE] ...

Replaces submodules of a model by small fitted bypasses. Options win over those in configurations, wherever they stand; of
several configurations, and of one option that is given twice, the later wins. A strategy's arguments are options inside
it: --scorer kl --scorer.windows 4 (`subfit list scorers kl`). Relative paths, those in configurations too, are relative
to the current folder.

General:
  --config NAME
      A preset (`subfit list presets`), a YAML or JSON file, the compression.json of a run, or the folder of a compressed
      model; may be repeated
  --plugins FILE
      A .py file with strategies; may be repeated
  --allow_code
      Let all .py files that configurations name run, not only those given by --plugins
  --print_config
      Print the whole configuration, which as --config makes the same run, and stop
  --json
      Print the record as JSON
  --debug
      Show where an error comes from
"""
EXAMPLES = (
    "subfit compress --output compressed",
    "subfit compress --config best --model smollm2-135m --calibration.path valid.txt --output compressed-best",
    "subfit compress --sparsity 0.125 --scorer kl --scorer.windows 4 --ffn_bypass linear",
    "subfit compress --config best --print_config",
)


def run(arguments: list[str]) -> int:
    """Runs `subfit compress`."""
    if "--help" in arguments or "-h" in arguments:
        print("\n".join([HELP, options_help("subfit.config", "Options"), "", examples(EXAMPLES)]))
        return 0
    flags = [argument for argument in arguments if argument in ("--json", "--print_config", "--allow_code")]
    rest = add_plugins([argument for argument in arguments if argument not in flags])
    given, unexpected = take(rest, lambda option: True)
    if unexpected:
        raise SubFitError(f"unexpected argument {unexpected[0]!r}; options are given as --OPTION VALUE")
    configurations = [str(value) for name, value in given if name == "config"]
    typed_in = {name: value for name, value in given if name != "config"}
    options = resolve(*configurations, typed_in, allow_code="--allow_code" in flags)
    if is_rank_zero():
        for line in overruled(given):
            print(f"subfit compress: {line}", file=sys.stderr)
    if "--print_config" in flags:
        written = configuration(options)
        print(json.dumps(written, indent=2) if "--json" in flags else yaml.safe_dump(written, sort_keys=False).rstrip())
        return 0
    from subfit import api  # imports torch, which help does not wait for

    with said_of_result(options.output):
        compression = api.run(options)
        if is_rank_zero() and "--json" in flags:
            print(json.dumps(compression.record, indent=2))
        elif is_rank_zero():
            _show(compression.record, options.output, has_code=bool(getattr(compression.model, "plugin_code", "")))
    return 0


def _show(record: dict[str, Any], output: str | None, has_code: bool) -> None:
    """Prints what a compression did, and what to do next.

    Args:
        has_code: whether the checkpoint has code of a plug-in, which must be allowed to run.
    """
    size, quality = record["size"], record.get("evaluation")
    before, after = size["before"], size["after"]
    rows = [
        ("parameters", before["parameters"], after["parameters"], ",d"),
        ("KV cache, bytes per token", before["kv_bytes_per_token"], after["kv_bytes_per_token"], ",d"),
        ("cache, bytes per sequence", *(size.get("state_bytes_per_sequence", 0) for size in (before, after)), ",d"),
        ("MFLOP per token", before["flops_per_token"] / 1e6, after["flops_per_token"] / 1e6, ",.2f"),
    ]
    if quality:
        rows.append(("perplexity", quality["reference_perplexity"], quality["perplexity"], ",.2f"))
    rows = [row for row in rows if row[1]]  # a cache of keys and values alone has no fixed part
    cells = [(name, format(a, form), format(b, form), f"{b / a:.3f}" if a else "") for name, a, b, form in rows]
    if quality:
        cells.append(("top-1 agreement", "", f"{quality['agreement']:.1%}", ""))
        cells.append(("KL divergence, nats", "", f"{quality['kl']:.4f}", ""))
    note = "Lower is better, but for the agreement of the two models' likeliest tokens." if quality else ""
    show_table(_title(record), ("", "dense", "compressed", "ratio"), cells, note=note)
    removed, added, selected = size["removed_parameters"], size["added_parameters"], record["selected"]
    print(f"replaced: {_layers(selected) or 'nothing'} ({len(selected)} of {len(record['scores'])} submodules)")
    print(f"parameters removed {removed:,}, added by bypasses {added:,}")
    print(f"time: {', '.join(f'{stage} {duration(seconds)}' for stage, seconds in record['seconds'].items())}")
    if output is None:
        print("not saved; --output FOLDER saves the model")
        return
    print(f"written to {output}, with the record compression.json and the picture scores.png")
    given = record["configuration"]
    named = f"{shlex.quote(output)} --reference {shlex.quote(str(given['model']))}"
    named += " --trust_remote_code" if has_code else ""
    if given["device_map"] == "device":
        print(f"next:\n  subfit evaluate {named}\n  subfit benchmark {named}")
        return
    limit = f" --max_memory {shlex.quote(given['max_memory'])}" if given["max_memory"] else ""
    print(f"next:\n  subfit evaluate {named} --device_map {given['device_map']}{limit}")


def _title(record: dict[str, Any]) -> str:
    return f"{record['configuration']['model']} and its compressed model"


def _layers(selected: list[str]) -> str:
    """The names of submodules in short, such as `attention.3, attention.5-7, ffn.2`."""
    found = []
    split = [(kind, tuple(label), int(layer)) for kind, layer, *label in (name.split(".") for name in selected)]
    for (kind, label), sites in groupby(sorted(split), lambda site: site[:2]):
        runs = groupby(enumerate(layer for *_, layer in sites), lambda pair: pair[1] - pair[0])
        for _, run_of in runs:
            layers = [layer for _, layer in run_of]
            name = f"{kind}.{layers[0]}" + (f"-{layers[-1]}" if len(layers) > 1 else "")
            found.append(".".join((name, *label)))
    return ", ".join(found)
