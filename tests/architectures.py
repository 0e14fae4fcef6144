"""Tiny models of the causal model types of transformers, with every parameter off its default."""

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig

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
    "gemma3": {"mm_tokens_per_image": 4},
    "blt": {"encoder_hash_byte_group_vocab": 101},
    "dots3_note_text": {"num_key_value_heads": 4, "head_dim": 8, "per_layer_config": {}},
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32},
    "dots3_note_vision_encoder": {"adapter_in_dim": 32, "adapter_out_dim": 32},
    "kimi_linear": {"num_key_value_heads": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "minicpm3": {"num_key_value_heads": 4},
    "zamba": {"layer_types": ["linear_attention", "hybrid"] * 2, "attention_head_dim": 16, "attention_hidden_size": 64},
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": MIXED, "residual_multiplier": 0.3},
    "granite": {"residual_multiplier": 0.3},
    "longcat_flash": {"num_key_value_heads": 4, "head_dim": 4, "num_layers": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {
        "attn_config": {"clip_qkv": 8, "kv_n_heads": 2, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_top_k": 2},
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 64,
        "indexer_compress_ratio": 2,
    },
    "reformer": {"is_decoder": True, "attn_layers": ["local", "lsh"] * 2, "axial_pos_embds": False},
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "qk_dim_factor": 1.0},
    "zaya": {"num_experts_per_tok": 1},
}
ASSISTANT = {  # of a larger model, whose keys and values all layers read
    **{"vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "sliding_window": 8, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": 0},
    **{"layer_types": ["sliding_attention", "full_attention"] * 2, **GEMMA4},
}
WHOLE = {  # of these, transformers makes no default configuration
    f"{text}_assistant": {"text_config": {"model_type": f"{text}_text", **ASSISTANT}, "backbone_hidden_size": 32}
    for text in ("gemma4", "gemma4_unified")
}
KINDS_OF_LAYERS = ("layer_types", "mlp_layer_types", "layers_block_type", "indexer_types")


def tiny_config(family: str) -> PreTrainedConfig:
    """Returns the configuration of a model of this type with four layers of width 32."""
    return CONFIG_MAPPING[family](**WHOLE[family]) if family in WHOLE else _tiny(CONFIG_MAPPING[family]())


def _tiny(default: PreTrainedConfig) -> PreTrainedConfig:
    """A small configuration of the type of another one, as are those of the models that it is made of."""
    cls, own = type(default), OWN.get(default.model_type, {})
    default.allow_global_per_layer_attribute_access = True  # else those that name values for each layer cannot be asked
    given = {name: value for name, value in TINY.items() if name in own or _may_be_given(default, name)}
    for name in () if set(own).intersection(KINDS_OF_LAYERS) else KINDS_OF_LAYERS:
        kinds = list(dict.fromkeys(getattr(default, name, None) or ()))
        if kinds and _may_be_given(default, name):
            given[name] = [kinds[i % len(kinds)] for i in range(LAYERS)]
    parts = {name: getattr(default, name, None) for name in cls.sub_configs if name not in own}
    given |= {name: _tiny(part) for name, part in parts.items() if part is not None}
    return cls(**given | own)


def _may_be_given(default: PreTrainedConfig, name: str) -> bool:
    """Whether a configuration has this value, and does not derive it from others."""
    name = default.attribute_map.get(name, name)
    return hasattr(default, name) and not isinstance(getattr(type(default), name, None), property)


def tiny_model_of(family: str):
    """Returns a small model of this type; its random weights, norms and biases are of no special value."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(family)).eval()
    saved = model.state_dict()
    for p in model.parameters():
        if p.ndim > 1 and p.any():
            p.data.mul_(3)
        elif p.is_floating_point():
            p.data.add_(0.1 * torch.randn(p.shape).to(p.dtype))
    for name, buffer in model.named_buffers():
        if name in saved and buffer.is_floating_point():  # such as Gemma 4's `layer_scalar`
            buffer.add_(0.1 * torch.randn(buffer.shape).to(buffer.dtype))
    return model
