"""Runs in vLLM's environment: what models generate, which of their layers have a cache, and the most weights while loading.

As `python vllm_generate.py REQUEST ANSWER`, two files of JSON. The request has `prompts` (lists of token ids), `count` and
`runs`: by name, a `folder` and further `options` of LLM. The answer has, by name, what `generate` returns, or an `error`.
"""

import gc
import json
import sys
import weakref
from pathlib import Path

from torch.nn.modules.module import register_module_parameter_registration_hook
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory


class Weights:
    """The most elements of parameters that were alive at once, as modules registered them."""

    def __init__(self):
        self.alive, self.most = {}, 0
        register_module_parameter_registration_hook(self.see)

    def see(self, module, name, parameter):
        if parameter is not None:
            self.alive[id(parameter)] = weakref.ref(parameter)
            self.most = max(self.most, sum(p.numel() for p in (ref() for ref in self.alive.values()) if p is not None))

    def reset(self):
        self.alive, self.most = {}, 0


def generate(prompts, count, weights, folder, options):
    model = LLM(folder, dtype="float32", enforce_eager=True, skip_tokenizer_init=True, **options)
    core = model.llm_engine.engine_core.engine_core
    settings = SamplingParams(
        temperature=0, max_tokens=count, min_tokens=count, ignore_eos=True, logprobs=0, detokenize=False
    )
    outputs = model.generate([{"prompt_token_ids": ids} for ids in prompts], settings, use_tqdm=False)
    outputs = [output.outputs[0] for output in outputs]
    loaded = core.model_executor.driver_worker.worker.model_runner.model
    return {
        "tokens": [list(o.token_ids) for o in outputs],
        "logprobs": [[step[t].logprob for step, t in zip(o.logprobs, o.token_ids, strict=True)] for o in outputs],
        "cached": sorted(name for specs in core.model_executor.get_kv_cache_specs() for name in specs),
        "weights": sum(p.numel() for p in loaded.parameters()),
        "most": weights.most,
    }


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    answer, weights = {}, Weights()
    for name, run in request["runs"].items():
        weights.reset()
        try:
            answer[name] = generate(request["prompts"], request["count"], weights, **run)
        except Exception as error:
            answer[name] = {"error": str(error)}
        gc.collect()
        cleanup_dist_env_and_memory()
        Path(sys.argv[2]).write_text(json.dumps(answer))
