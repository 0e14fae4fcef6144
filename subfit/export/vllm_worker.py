"""Runs vLLM for `vllm_engine`, in vLLM's environment: a line of JSON in, a line of JSON out.

As `python -m subfit.export.vllm_worker DEMAND`, where DEMAND has the fields of `engine.Demand` and a `folder`. It first
writes what it serves. Then it answers requests, `prompts` and `new_tokens`, with the seconds of `prefill` and `decode`.
"""

import json
import os
import sys
import time
from importlib.metadata import entry_points
from typing import Any


def main() -> None:
    """Serves until the input ends; what vLLM prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(found: dict[str, Any]) -> None:
        print(json.dumps(found), file=answers, flush=True)

    try:
        if "subfit" not in entry_points(group="vllm.general_plugins").names:
            raise RuntimeError("subfit is not installed beside vLLM: pip install --no-deps subfit")
        model = _load(json.loads(sys.argv[1]))
        answer(_described(model))
        for line in sys.stdin:
            answer(_timed(model, **json.loads(line)))
    except Exception as error:
        lines = [text.strip() for text in str(error).splitlines() if text.strip()]
        ours = [text for text in lines if "subfit: " in text]
        answer({"error": (ours or lines or [type(error).__name__])[0]})


def _load(demand: dict[str, Any]) -> Any:
    from vllm import LLM  # not installed where SubFit is developed

    return LLM(
        demand["folder"],
        dtype=demand["dtype"],
        max_model_len=demand["tokens"] + 1,
        max_num_seqs=demand["sequences"],
        enforce_eager=not demand["compiled"],
        enable_prefix_caching=False,  # a prompt that is timed again must be read again
        skip_tokenizer_init=True,
        disable_log_stats=False,  # else there are no time stamps
    )


def _described(model: Any) -> dict[str, Any]:
    import vllm

    core = model.llm_engine.engine_core.engine_core
    specs = [spec for specs in core.model_executor.get_kv_cache_specs() for spec in specs.values()]
    config = core.vllm_config.cache_config
    return {
        "version": f"vllm {vllm.__version__}",
        "bytes_per_token": sum(spec.page_size_bytes / spec.block_size for spec in specs),
        "tokens": config.num_gpu_blocks * config.block_size if specs else None,
    }


def _timed(model: Any, prompts: list[list[int]], new_tokens: int) -> dict[str, float]:
    """What vLLM's own time stamps say, the last of all sequences: no difference of two runs."""
    from vllm import SamplingParams

    count = new_tokens + 1
    settings = SamplingParams(temperature=0, max_tokens=count, min_tokens=count, ignore_eos=True, detokenize=False)
    start = time.monotonic()
    outputs = model.generate([{"prompt_token_ids": prompt} for prompt in prompts], settings, use_tqdm=False)
    first, last = (max(getattr(o.metrics, name) for o in outputs) for name in ("first_token_ts", "last_token_ts"))
    return {"prefill": first - start, "decode": last - first}


if __name__ == "__main__":
    main()
