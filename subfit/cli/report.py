"""`subfit report`."""

from subfit.ablation import report
from subfit.config import Parser


def run(arguments: list[str]) -> int:
    """Runs `subfit report`."""
    parser = Parser(prog="subfit report", description="One page, with pictures, on what ablations have found.")
    parser.add_argument("folders", nargs="+", type=str, help="Output folders of subfit ablate.")
    parser.add_argument("--output", type=str | None, help="Folder to write to; that of the first ablation if not given.")
    parsed = parser.parse_args(arguments)
    print(report.report(parsed.folders, parsed.output or parsed.folders[0]))
    return 0
