"""`subfit push`."""

import json

from subfit.cli.arguments import Parser

EXAMPLES = ("subfit push compressed USER/NAME", "subfit push compressed USER/NAME --private")


def run(arguments: list[str]) -> int:
    """Runs `subfit push`."""
    parser = Parser("subfit push", "Uploads a compressed model to the hub, with a model card of its results.", EXAMPLES)
    parser.add_argument("folder", help="Folder that subfit compress wrote.")
    parser.add_argument("repository", help="Name on the hub, USER/NAME; made if there is none.")
    parser.add_argument("--private", action="store_true", help="Make a new repository private.")
    parser.add_argument("--json", action="store_true", help="Print the result as JSON.")
    given = parser.parse_args(arguments)
    from subfit.export.hub import push  # slow to import, which help does not wait for

    address = push(given.folder, given.repository, given.private)
    print(json.dumps({"commit": address}) if given.json else address)
    return 0
