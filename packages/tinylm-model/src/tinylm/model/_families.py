"""The Hugging Face families that we compute: for each, its fields in config.json, the values that it must have, and the
fields that change no logits.

Tables only. A field that is in none of them is refused by name (_huggingface.py), because what it does is not known.
Not here: the tensors' names (_layout.py). Next: _huggingface.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """fields: ours -> Hugging Face's name, and what transformers assumes where it is missing (None: a field that must
    be there, or one that from_json fills in). required: fields that change the mathematics, and the values that we
    compute, the first of which is what transformers assumes. read: what from_json reads by rules of its own."""

    architecture: str
    fields: Mapping[str, tuple[str, Any]]
    required: Mapping[str, tuple[Any, ...]]
    read: frozenset[str] = frozenset()
    ignored: frozenset[str] = field(default=frozenset())

    @property
    def known(self) -> frozenset[str]:
        """Every field that may be there."""
        return frozenset(
            {theirs for theirs, _ in self.fields.values()} | self.required.keys() | self.read | self.ignored | _IGNORED
        )


_GPT2 = {
    "vocab_size": ("vocab_size", 50257),
    "context": ("n_positions", 1024),
    "depth": ("n_layer", 12),
    "width": ("n_embd", 768),
    "heads": ("n_head", 12),
    "mlp_width": ("n_inner", None),
    "norm_eps": ("layer_norm_epsilon", 1e-5),
    "tie_embeddings": ("tie_word_embeddings", True),
}
_MODERN = {
    "vocab_size": ("vocab_size", None),
    "context": ("max_position_embeddings", None),
    "depth": ("num_hidden_layers", None),
    "width": ("hidden_size", None),
    "heads": ("num_attention_heads", None),
    "kv_heads": ("num_key_value_heads", None),
    "head_dim": ("head_dim", None),
    "mlp_width": ("intermediate_size", None),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "tie_embeddings": ("tie_word_embeddings", False),
}
_BIASED = _MODERN | {"attention_bias": ("attention_bias", False)}
_EXPERTS = _BIASED | {
    "mlp_width": ("moe_intermediate_size", 768),
    "experts": ("num_experts", 128),
    "experts_per_token": ("num_experts_per_tok", 8),
    "normalize_experts": ("norm_topk_prob", False),
    "balance_weight": ("router_aux_loss_coef", 0.001),
    "kv_heads": ("num_key_value_heads", 4),
}
_SILU = {"hidden_act": ("silu", "swish")}
_ROPE = frozenset({"rope_theta", "rope_parameters", "rope_scaling", "partial_rotary_factor"})
_WINDOW = frozenset({"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"})

FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        "GPT2LMHeadModel",
        _GPT2,
        {
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
            "pruned_heads": ({},),
        },
        ignored=frozenset(
            {
                *("n_ctx", "attn_pdrop", "embd_pdrop", "resid_pdrop", "reorder_and_upcast_attn", "n_special"),
                *("summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type"),
                *("summary_use_proj", "predict_special_tokens", "output_past"),
            }
        ),
    ),
    "llama": Family(
        "LlamaForCausalLM",
        _BIASED | {"bias": ("mlp_bias", False)},
        _SILU | {"rope_interleaved": (False,)},
        _ROPE | {"layer_types"},
        frozenset({"pretraining_tp", "is_llama_config"}),
    ),
    "mistral": Family(
        "MistralForCausalLM",
        _MODERN | {"kv_heads": ("num_key_value_heads", 8)},
        _SILU,
        _ROPE | {"sliding_window", "layer_types"},
    ),
    "qwen2": Family("Qwen2ForCausalLM", _MODERN | {"kv_heads": ("num_key_value_heads", 32)}, _SILU, _ROPE | _WINDOW),
    "qwen3": Family("Qwen3ForCausalLM", _BIASED | {"kv_heads": ("num_key_value_heads", 32)}, _SILU, _ROPE | _WINDOW),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        _EXPERTS,
        _SILU | {"decoder_sparse_step": (1,), "mlp_only_layers": ([],)},
        _ROPE | {"use_sliding_window", "sliding_window", "layer_types", "num_local_experts"},
        # no layer has a plain MLP, and the window is in all of them or none
        frozenset({"intermediate_size", "max_window_layers", "output_router_logits"}),
    ),
}

# What any config.json may carry: about training, decoding, tasks, files and versions. None of it changes a logit.
_IGNORED = frozenset(
    {
        *("architectures", "model_type", "tinylm", "torch_dtype", "dtype", "transformers_version", "_name_or_path"),
        *("_attn_implementation_autoset", "attn_implementation", "_attn_implementation", "transformers.js_config"),
        *("attention_dropout", "initializer_range", "gradient_checkpointing", "use_cache", "unsloth_version"),
        *("unsloth_fixed", "torchscript", "use_bfloat16", "tf_legacy_loss", "chunk_size_feed_forward"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id", "decoder_start_token_id"),
        *("forced_bos_token_id", "forced_eos_token_id", "tokenizer_class", "prefix", "task_specific_params"),
        *("id2label", "label2id", "num_labels", "_num_labels", "problem_type", "finetuning_task"),
        *("output_attentions", "output_hidden_states", "output_scores", "return_dict", "return_dict_in_generate"),
        *("is_decoder", "is_encoder_decoder", "tie_encoder_decoder", "cross_attention_hidden_size"),
        *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups"),
        *("diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty"),
        *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences"),
        *("remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens"),
    }
)
