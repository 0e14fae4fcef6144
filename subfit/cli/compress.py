"""`subfit compress`."""

import json
import sys
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from subfit import api
from subfit.config import (
    add_plugins,
    compression_parser,
    configuration_of,
    importable_arguments,
    options_from,
    with_defaults,
    without_plugins,
)
from subfit.model.processes import is_rank_zero


def run(arguments: list[str]) -> int:
    """Runs `subfit compress`."""
    parser = compression_parser("subfit compress", "Replaces submodules of a model by small fitted bypasses.")
    parser.add_argument("--json", action="store_true", help="Print the record as JSON.")
    add_plugins(parser)
    wanted = [argument for argument in without_plugins(arguments) if argument != "--print_config"]
    parsed = parser.parse_args(with_defaults(importable_arguments(wanted)))
    configuration = configuration_of(parser, parsed)
    if "--print_config" in arguments:
        print(yaml.safe_dump(configuration, sort_keys=False), end="")
        return 0
    options = options_from(parser, parsed)
    record = api.run(options, configuration).record
    if not is_rank_zero():
        return 0
    if parsed.json:
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
