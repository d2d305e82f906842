"""Words that a case and a diagnosis use for what is wrong."""

_COMPONENTS = """
tokens stop sampler
embedding attn_norm q k v q_norm k_norm q_rope k_rope attention o post_attn_norm attn_residual
mlp_norm gate up activation down router expert post_mlp_norm residual
final_norm logits
"""

_CAUSES = """
double_bos missing_bos template generation_prompt missing_eos truncated_prompt tokenizer
stop_token_missing stop_too_early
repetition_penalty presence_penalty temperature top_k top_p not_the_argmax
embedding_multiplier position_embedding
norm_eps norm_offset norm_weight norm_scope norm_centred norm_order
bias_missing bias_extra weight_rows_permuted weight_heads_permuted weight_transposed weight_of_other_layer
weight_scale weight_precision weight_zero_point weight_rows_wrong gate_up_swapped shard_order input_dtype
rope_theta rope_scaling rope_layout rope_partial rope_missing position_offset position_precision position_reset
attention_scale attention_softcap window_size window_layers causal_mask kv_head_mapping kv_scale kv_precision
kv_stale kv_overwritten kv_missing qk_norm_missing attention_sink heads_missing
activation_function activation_clamped
residual_multiplier residual_missing
router_normalisation router_scaling router_top_k router_softmax_order shared_expert expert_order expert_missing
lm_head_tying logit_multiplier logit_softcap logit_bias
accumulation_dtype output_dtype not_finite
unknown
"""

COMPONENTS = frozenset(_COMPONENTS.split())
"""Components that a finding may name: the point whose computation is wrong, or what surrounds the model."""

CAUSES = frozenset(_CAUSES.split())
"""Causes that a finding may name."""
