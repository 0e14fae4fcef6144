"""Tiny models of the causal model types of transformers, with every parameter off its default."""

import re

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

LAYERS = 4
# fmt: off
TINY = {  # of these names, a configuration gets those that it has
    "vocab_size": 101, "max_position_embeddings": 256, "hidden_size": 32, "num_hidden_layers": 4,
    "num_attention_heads": 4, "intermediate_size": 48, "eos_token_id": 2, "bos_token_id": 1, "num_key_value_heads": 2,
    "pad_token_id": 0, "head_dim": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "sliding_window": 8,
    "num_experts": 4, "n_routed_experts": 4, "topk_group": 1, "qk_rope_head_dim": 4, "v_head_dim": 8,
    "qk_nope_head_dim": 4, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_head_dim": 8, "n_group": 1, "ffn_dim": 48,
    "decoder_ffn_dim": 48, "num_local_experts": 4, "n_shared_experts": 1, "d_model": 32, "type_vocab_size": 2,
    "encoder_ffn_dim": 48, "encoder_layers": 4, "encoder_attention_heads": 4, "decoder_layers": 4,
    "decoder_attention_heads": 4, "attention_heads": 4, "num_layers": 4, "num_heads": 4, "n_layer": 4, "n_head": 4,
    "n_layers": 4, "n_heads": 4, "shared_expert_intermediate_size": 16, "index_head_dim": 8, "index_n_heads": 2,
    "first_k_dense_replace": 1, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "index_topk": 64, "n_positions": 256, "n_embd": 32, "num_kv_shared_layers": 0,
    "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "max_window_layers": 2,
    "vocab_size_per_layer_input": 101, "hidden_size_per_layer_input": 8, "shared_intermediate_size": 48,
    "chunk_size": 8, "moe_topk": 2, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8,
    "rotary_dim": 4, "state_size": 8, "conv_kernel": 4, "time_step_rank": 2, "conv_L_cache": 3,
    "attention_hidden_size": 32, "attn_layer_period": 2, "attn_layer_offset": 1, "moe_num_experts": 4,
    "linear_head_dim": 8, "linear_num_heads": 4, "embedding_size": 32, "ffn_hidden_size": 48,
    "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8, "sliding_window_size": 8,
    "kv_channels": 8, "intermediate_size_mlp": 48, "attention_chunk_size": 8, "n_groups": 1, "dim_head": 8,
    "dim_ff": 48, "dff": 48, "num_kv_heads": 2, "mamba_d_ssm": 64, "expert_ffn_hidden_size": 16, "zero_expert_num": 2,
    "dense_intermediate_size": 48, "local_attention": 8, "window_size": 8, "mamba_dt_rank": 4,
    "expert_layer_period": 2, "expert_layer_offset": 1, "word_embed_proj_dim": 32, "ssm_state_size": 8,
    "mamba_num_heads": 8, "mamba_head_dim": 8, "moe_shared_expert_intermediate_size": 16, "lru_width": 32,
    "attention_window_size": 8, "attention_head_size": 8, "feed_forward_size": 48, "emb_dim": 32, "d_inner": 48,
    "d_head": 8, "embedding_dim": 32, "mamba_headdim": 8, "router_hidden_size": 16, "laurel_rank": 4,
    "short_conv_kernel_size": 4, "moe_k": 2, "num_expert_group": 1, "num_experts_per_token": 2, "max_seq_len": 256,
    "num_dense_layers": 1, "num_decoder_layers": 4, "num_decoder_attention_heads": 4, "num_encoder_layers": 4,
    "num_encoder_attention_heads": 4, "output_embedding_size": 32, "input_embedding_size": 32, "context_length": 256,
    "shared_experts_intermediate_size": 16, "query_pre_attn_scalar": 8, "o_lora_rank": 8, "o_groups": 2,
    "ple_embed_dim": 8, "hc_lowrank": 8, "ngram_vocab_size_base": 200, "adapter_rank": 4, "moe_num_shared_experts": 1,
}
# fmt: on
GEMMA4 = {"head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 0}
MIXED = ["linear_attention", "full_attention"] * 2
OWN = {  # what a type needs besides
    **dict.fromkeys(
        ["axk2", "deepseek_v2", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa"],
        {"num_key_value_heads": 4},
    ),
    **dict.fromkeys(["axk1", "deepseek_v3", "youtu"], {"num_key_value_heads": 4, "head_dim": 4}),
    "bailing_hybrid": {"num_key_value_heads": 4},
    "bamba": {"attn_layer_indices": [1, 3]},
    "gemma4_text": {  # as E2B and E4B are: with inputs for each layer, and layers that share keys and values
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        **GEMMA4,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 2,
    },
    "gemma4_unified_text": {"layer_types": ["sliding_attention", "full_attention"] * 2, **GEMMA4},
    "kimi_linear": {"num_key_value_heads": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "minicpm3": {"num_key_value_heads": 4},
    "zamba": {"layer_types": ["linear_attention", "hybrid"] * 2, "attention_head_dim": 16, "attention_hidden_size": 64},
    "zamba2": {"layer_types": ["linear_attention", "hybrid"] * 2, "attention_head_dim": 16, "attention_hidden_size": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": MIXED, "residual_multiplier": 0.3},
    "granite": {"residual_multiplier": 0.3},
    "longcat_flash": {"num_key_value_heads": 4, "head_dim": 4, "num_layers": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
}
NO_CONFIGURATION = "no small configuration was found that transformers builds and runs"
NOT_TRIED = {
    **dict.fromkeys(
        ["blt", "emu3", "fuyu", "gemma3", "gemma3n", "gemma4", "gemma4_unified", "git", "got_ocr2", "llama4", "mllama"]
        + [
            "dots3_note",
            "moss_transcribe_diarize",
            "musicgen",
            "musicgen_melody",
            "phi4_multimodal",
            "qwen3_5",
            "qwen3_5_moe",
        ]
        + ["qwen4_exp", "whisper"],
        "it has models for images, sounds or bytes beside the decoder, which are large by default",
    ),
    **dict.fromkeys(
        ["cohere_compass_text", "dbrx", "dots3_note_text", "gemma4_assistant", "gemma4_unified_assistant", "qwen4_exp_text"]
        + ["reformer", "xlm", "xlnet", "xlstm", "zamba2", "zaya"],
        NO_CONFIGURATION,
    ),
    "xmod": "it does not run before a language is set in Python",
}
KINDS_OF_LAYERS = ("layer_types", "mlp_layer_types", "layers_block_type", "indexer_types")


def tiny_config(family: str):
    """Returns the configuration of a model of this type with four layers of width 32."""
    cls = CONFIG_MAPPING[family]
    default, own = cls(), OWN.get(family, {})
    given = {name: value for name, value in TINY.items() if name in own or hasattr(default, name)}
    for name in () if set(own).intersection(KINDS_OF_LAYERS) else KINDS_OF_LAYERS:
        kinds = list(dict.fromkeys(getattr(default, name, None) or ()))
        if kinds:
            given[name] = [kinds[i % len(kinds)] for i in range(LAYERS)]
    given |= own
    while True:
        try:
            return cls(**given)
        except (AttributeError, NotImplementedError) as error:  # what is derived from others cannot be given
            named = [name for name in re.findall(r"\w+", str(error)) if name in given or name in KINDS_OF_LAYERS]
            if not named:
                raise
            names = KINDS_OF_LAYERS if named[0] in KINDS_OF_LAYERS else named[:1]
            given = {name: value for name, value in given.items() if name not in names}


def tiny_model_of(family: str):
    """Returns a small model of this type; its random weights, norms and biases are of no special value."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(family)).eval()
    saved = model.state_dict()
    for p in model.parameters():
        if p.ndim > 1:
            p.data.mul_(3)
        elif p.is_floating_point():
            p.data.add_(0.1 * torch.randn(p.shape).to(p.dtype))
    for name, buffer in model.named_buffers():
        if name in saved and buffer.is_floating_point():  # such as Gemma 4's `layer_scalar`
            buffer.add_(0.1 * torch.randn(buffer.shape).to(buffer.dtype))
    return model
