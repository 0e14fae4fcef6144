"""`subfit compress`."""

import json
import os
import sys
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from subfit.cli.arguments import add_plugins, take
from subfit.cli.help import options_help
from subfit.config import configuration, resolve
from subfit.errors import SubFitError
from subfit.options.precedence import overruled

HELP = """usage: subfit compress [--config NAME] [--OPTION VALUE] ...

Replaces submodules of a model by small fitted bypasses. Options win over those in configurations, wherever they stand; of
several configurations, and of one option that is given twice, the later wins. A strategy's arguments are options inside
it: --scorer kl --scorer.windows 4. Relative paths, those in configurations too, are relative to the current folder.

  --config NAME
      A preset (`subfit list presets`), a YAML or JSON file, the compression.json of a run, or the folder of a compressed
      model; may be repeated
  --plugins FILE
      A .py file with strategies; may be repeated
  --print_config
      Print the whole configuration, which as --config makes the same run, and stop
  --json
      Print the record as JSON
  --debug
      Show where an error comes from
"""


def run(arguments: list[str]) -> int:
    """Runs `subfit compress`."""
    if "--help" in arguments or "-h" in arguments:
        print(HELP + options_help("subfit.config", "Options"))
        return 0
    flags = [argument for argument in arguments if argument in ("--json", "--print_config")]
    rest = add_plugins([argument for argument in arguments if argument not in flags])
    given, unexpected = take(rest, lambda option: True)
    if unexpected:
        raise SubFitError(f"unexpected argument {unexpected[0]!r}; options are given as --OPTION VALUE")
    configurations = [str(value) for name, value in given if name == "config"]
    options = resolve(*configurations, {name: value for name, value in given if name != "config"})
    if os.environ.get("RANK", "0") == "0":
        for line in overruled(given):
            print(f"subfit compress: {line}", file=sys.stderr)
    if "--print_config" in flags:
        print(yaml.safe_dump(configuration(options), sort_keys=False), end="")
        return 0
    from subfit import api  # imports torch, which help does not wait for
    from subfit.model.processes import is_rank_zero

    record = api.run(options).record
    if not is_rank_zero():
        return 0
    if "--json" in flags:
        print(json.dumps(record, indent=2))
    else:
        _show(record, options.output)
    return 0


def _show(record: dict[str, Any], output: str | None) -> None:
    """Prints what a compression did as tables."""
    size, quality, console = record["size"], record.get("evaluation"), Console()
    before, after = size["before"], size["after"]
    table = Table("", "dense", "compressed", "ratio", title="SubFit")
    rows = [("parameters", before["parameters"], after["parameters"])]
    rows.append(("KV cache, bytes per token", before["kv_bytes_per_token"], after["kv_bytes_per_token"]))
    rows.append(("MFLOP per token", before["flops_per_token"] / 1e6, after["flops_per_token"] / 1e6))
    if quality:
        rows.append(("perplexity", quality["reference_perplexity"], quality["perplexity"]))
    for name, dense, compressed in rows:
        style = ",.2f" if isinstance(dense, float) else ",d"
        table.add_row(name, format(dense, style), format(compressed, style), f"{compressed / dense:.3f}" if dense else "")
    if quality:
        table.add_row("top-1 agreement with dense", "", f"{quality['agreement']:.1%}", "")
        table.add_row("KL divergence from dense, nats", "", f"{quality['kl']:.4f}", "")
    removed, added = size["removed_parameters"], size["added_parameters"]
    table.add_row("added / removed parameters", "", f"{added:,} / {removed:,}", f"{added / removed:.3f}" if removed else "")
    console.print(table)
    stages = Table(*record["seconds"], title="seconds")
    stages.add_row(*(f"{value:.1f}" for value in record["seconds"].values()))
    console.print(stages)
    console.print(f"replaced: {', '.join(record['selected']) or 'nothing'}", highlight=False)
    if output:
        console.print(f"written to {output}, with the picture scores.png", highlight=False)
    sys.stdout.flush()
