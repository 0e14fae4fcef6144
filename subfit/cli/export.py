"""`subfit export`."""

import json
import sys
from typing import Any

from subfit.cli.arguments import Parser

EXAMPLES = (
    "subfit export compressed compressed.gguf",
    "subfit export compressed compressed-q8_0.gguf --type q8_0",
)


def run(arguments: list[str]) -> int:
    """Runs `subfit export`; the exit code is 1 if what was written differs from the model by more than it may."""
    given = vars(parser().parse_args(arguments))
    as_json = given.pop("json")
    from subfit.export.llama_cpp import export_gguf  # imports torch, which help does not wait for

    result = export_gguf(given.pop("model"), given.pop("output"), **given)
    for note in result["notes"]:
        print(f"note: {note}", file=sys.stderr)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        _show(result)
    return 0 if result["verification"] is None or result["verification"]["passed"] else 1


def parser() -> Parser:
    """Returns what reads the arguments."""
    about = "Writes a model as a file that llama.cpp, Ollama and LM Studio read."
    parser = Parser("subfit export", about, EXAMPLES)
    parser.add_argument("model", help="The model: folder of a compressed one, or a dense one.")
    parser.add_argument("output", help="The file to write, OUT.gguf.")
    types = "Data type of the matrices: f32, f16, bf16, q8_0, or by llama.cpp q4_k_m, q5_k_m, q6_k [the model's]."
    parser.add_argument("--type", default="auto", help=types)
    parser.add_argument("--verify", action="store_true", help="Compare what llama.cpp computes with transformers.")
    parser.add_argument("--trust_remote_code", action="store_true", help="Let code in a checkpoint run.")
    parser.add_argument("--json", action="store_true", help="Print the result as JSON.")
    return parser


def _show(result: dict[str, Any]) -> None:
    """Prints what was written, and what it was compared with."""
    print(f"written to {result['output']}: {result['bytes'] / 1e6:,.1f} MB, {result['type']}")
    print(f"layers: {result['layers']}, KV cache: {result['kv_bytes_per_token']:,} bytes per token")
    print(f"replaced: {', '.join(result['replaced']) or 'nothing'}")
    found = result["verification"]
    if found:
        print(f"tokenizer: {found['equal_texts']} of {found['texts']} texts have equal tokens")
        print(f"greedy generation: {found['equal_tokens']} of {found['tokens']} tokens are equal")
        print(f"log-probabilities: differ by {found['log_probability_difference']:.2g} at most; KL {found['kl']:.2g} nats")
        print("llama.cpp and transformers agree" if found["passed"] else "llama.cpp and transformers differ too much")
