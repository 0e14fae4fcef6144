"""`subfit evaluate`."""

import json

from rich.console import Console
from rich.table import Table

from subfit import api
from subfit.commands.options import Parser
from subfit.data import Data


def run(arguments: list[str]) -> int:
    """Runs `subfit evaluate`."""
    parser = Parser(prog="subfit evaluate", description="Perplexity of a model, and its agreement with a reference.")
    parser.add_argument("model", help="The model: hub name, folder, .gguf file or smollm2-135m.")
    parser.add_argument("--reference", type=str | None, help="The model to compare with, such as the dense one.")
    parser.add_argument("--data", type=list[str] | str | None, help="Text files; sampled from the reference if not given.")
    parser.add_argument("--windows", type=int, default=16, help="Number of windows.")
    parser.add_argument("--length", type=int, default=512, help="Tokens in a window.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the sampling.")
    parser.add_argument("--dtype", type=str, default="auto", help="Data type of the weights.")
    parser.add_argument("--device", type=str, default="auto", help="Torch device.")
    parser.add_argument("--batch_size", type=int, default=4, help="Windows run at once.")
    parser.add_argument("--trust_remote_code", action="store_true", help="Let code in a checkpoint run.")
    parser.add_argument("--json", action="store_true", help="Print the result as JSON.")
    given = parser.parse_args(arguments).as_dict()
    as_json, files = given.pop("json"), given.pop("data") or []
    data = Data(path=files, windows=given.pop("windows"), length=given.pop("length"))
    result = api.evaluate(given.pop("model"), data=data, **given)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        table = Table("measure", "value", title=result["model"])
        for name, value in result.items():
            table.add_row(
                name,
                f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value),
            )
        Console().print(table)
    return 0
