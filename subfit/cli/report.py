"""`subfit report`."""

from subfit.cli.arguments import Parser


def run(arguments: list[str]) -> int:
    """Runs `subfit report`."""
    parser = Parser("subfit report", "One page, with pictures, on what ablations have found.")
    parser.add_argument("folders", nargs="+", help="Output folders of subfit ablate.")
    parser.add_argument("--output", help="Folder to write to; that of the first ablation if not given.")
    parsed = parser.parse_args(arguments)
    from subfit.ablation import report  # slow to import, which help does not wait for

    print(report.report(parsed.folders, parsed.output or parsed.folders[0]))
    return 0
