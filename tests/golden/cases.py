"""The cases: a tiny model each, and how it is trained."""

BASE = dict(
    train=dict(seq_length=48, global_batch_size=8, steps=14, z_loss=0.0),
    optimizer=dict(lr=3e-3, min_lr=1e-4, schedule="cosine", warmup_steps=3, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1, clip_grad=1.0),
    data=dict(order="sequential"),
)
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
# Each case: the model, and what differs from BASE. Sequences straddle the 16, 32, 64 and 128 rows that kernels are tiled by.
CASES = {
    "mha_odd_vocab": (
        dict(hidden_size=40, intermediate_size=104, num_attention_heads=4, num_key_value_heads=4, vocab_size=131),
        dict(train=dict(eval_interval=5, eval_steps=2), data=dict(split="1,0,0")),
    ),
    "gqa_masked": (
        dict(hidden_size=48, intermediate_size=80, num_attention_heads=8, head_dim=6, num_key_value_heads=2, vocab_size=97, num_hidden_layers=3),
        dict(train=dict(seq_length=72), optimizer=dict(schedule="linear"), data=dict(mask_document_boundaries=True)),
    ),
    "llama3_rope": (  # head_dim 16: of the eight frequencies one is kept, two are blended, five are divided by the factor
        dict(hidden_size=48, intermediate_size=96, num_attention_heads=4, head_dim=16, num_key_value_heads=2, vocab_size=113,
             rope_parameters=dict(LLAMA3, original_max_position_embeddings=64)),
        dict(train=dict(seq_length=100), optimizer=dict(schedule="wsd", decay_steps=6, decay_shape="1-sqrt")),
    ),
    "tied_z_loss": (
        dict(hidden_size=32, intermediate_size=88, num_attention_heads=4, num_key_value_heads=1, vocab_size=151, tie_word_embeddings=True),
        dict(train=dict(z_loss=1e-2, seq_length=33), optimizer=dict(schedule="wsd", decay_steps=5, decay_shape="linear")),
    ),
    "head_dim_64": (
        dict(hidden_size=64, intermediate_size=72, num_attention_heads=1, num_key_value_heads=1, vocab_size=89),
        dict(train=dict(seq_length=130), optimizer=dict(schedule="constant")),
    ),
    "head_dim_128": (
        dict(hidden_size=32, intermediate_size=48, num_attention_heads=2, head_dim=128, num_key_value_heads=1, vocab_size=79, num_hidden_layers=1),
        dict(train=dict(seq_length=65)),
    ),
    # Made for layouts: eight heads for eight tensor-parallel ranks, a vocabulary that is odd, layers that 2 and 4 do not divide.
    "parity": (
        dict(hidden_size=64, intermediate_size=48, num_attention_heads=8, num_key_value_heads=2, vocab_size=331, num_hidden_layers=5,
             max_position_embeddings=32),
        dict(train=dict(seq_length=32, global_batch_size=16, steps=6, z_loss=1e-3), data=dict(mask_document_boundaries=True)),
    ),
    "parity_tied": (
        dict(hidden_size=64, intermediate_size=48, num_attention_heads=8, num_key_value_heads=8, vocab_size=331, num_hidden_layers=4,
             max_position_embeddings=32, tie_word_embeddings=True),
        dict(train=dict(seq_length=32, global_batch_size=16, steps=6)),
    ),
    # Targets that do not count: stretches of them, whole samples, the micro-batches of a rank, and all of step 4.
    "loss_mask": (
        dict(hidden_size=32, intermediate_size=56, num_attention_heads=4, num_key_value_heads=2, vocab_size=127, num_hidden_layers=4),
        dict(train=dict(seq_length=40, steps=8, z_loss=1e-2, eval_interval=4, eval_steps=1), data=dict(mask_document_boundaries=True)),
    ),
    # Documents packed into rows, the longer ones cut, with a mask as of conversations.
    "packed": (
        dict(hidden_size=32, intermediate_size=56, num_attention_heads=4, num_key_value_heads=2, vocab_size=109, num_hidden_layers=4),
        dict(train=dict(seq_length=48, steps=8)),
    ),
    # A window that ends inside of tiles, with the mask that transformers makes, and with packed documents.
    "window": (
        dict(hidden_size=48, intermediate_size=80, num_attention_heads=4, num_key_value_heads=2, vocab_size=103, num_hidden_layers=3,
             sliding_window=21),
        dict(train=dict(seq_length=90)),
    ),
    "window_packed": (
        dict(hidden_size=32, intermediate_size=56, num_attention_heads=4, num_key_value_heads=2, vocab_size=107, num_hidden_layers=4,
             sliding_window=11),
        dict(train=dict(seq_length=48, steps=12)),
    ),
    "yarn": (  # head_dim 24: of the twelve frequencies some are kept, some mixed, some divided by the factor
        dict(hidden_size=48, intermediate_size=96, num_attention_heads=4, head_dim=24, num_key_value_heads=2, vocab_size=113,
             rope_parameters=dict(rope_type="yarn", rope_theta=1000.0, factor=4.0, original_max_position_embeddings=40, beta_fast=8.0)),
        dict(train=dict(seq_length=100)),
    ),
    "rope_linear": (
        dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=4, vocab_size=97,
             rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.5)),
        dict(train=dict(seq_length=60, steps=12)),
    ),
    # The other families, in four layers. Sizes are chosen for layouts: two key/value heads for up to eight ranks.
    "biased": (
        dict(hidden_size=32, intermediate_size=56, num_attention_heads=8, num_key_value_heads=2, vocab_size=111, num_hidden_layers=4,
             attention_bias=True, mlp_bias=True),
        dict(train=dict(seq_length=40, steps=12)),
    ),
    "qwen2": (  # a window in some layers, with packed documents
        dict(hidden_size=32, intermediate_size=56, num_attention_heads=8, num_key_value_heads=2, vocab_size=115, num_hidden_layers=4,
             use_sliding_window=True, sliding_window=13,
             layer_types=["sliding_attention", "full_attention", "full_attention", "sliding_attention"]),
        dict(train=dict(seq_length=48, steps=12)),
    ),
    "qwen3": (  # heads that are together wider than the model
        dict(hidden_size=32, intermediate_size=56, num_attention_heads=8, num_key_value_heads=2, head_dim=6, vocab_size=117, num_hidden_layers=4,
             tie_word_embeddings=True),
        dict(train=dict(seq_length=70, steps=12)),
    ),
    "gemma2": (  # caps that scores and logits reach
        dict(hidden_size=32, intermediate_size=56, num_attention_heads=8, num_key_value_heads=2, head_dim=6, vocab_size=119, num_hidden_layers=4,
             sliding_window=19, query_pre_attn_scalar=3, attn_logit_softcapping=2.0, final_logit_softcapping=3.0, pad_token_id=None,
             tie_word_embeddings=True),
        dict(train=dict(seq_length=70, steps=12)),
    ),
    "gpt2": (  # learned positions restart with packed documents
        dict(n_embd=32, n_inner=56, n_head=8, vocab_size=121, n_layer=4, n_positions=160, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
             initializer_range=0.08, tie_word_embeddings=True),
        dict(train=dict(seq_length=48, steps=12)),
    ),
    # The families with experts. Both losses of routers, by the engine's own keys.
    "mixtral": (
        dict(hidden_size=32, intermediate_size=24, num_attention_heads=4, num_key_value_heads=2, vocab_size=101, num_hidden_layers=4,
             num_local_experts=4, num_experts_per_tok=2),
        dict(train=dict(seq_length=44, steps=8), model=dict(router_aux_loss_coef=0.02, router_z_loss_coef=1e-3)),
    ),
    # The weights of the chosen do not sum to 1, the first layer has no experts, some experts of the others have no token, and one has nearly
    # all. Targets that do not count are tokens to the routers: step 4 has no other loss than theirs. The coefficient is in config.json.
    "qwen3_moe": (
        dict(hidden_size=32, intermediate_size=40, moe_intermediate_size=12, num_attention_heads=8, num_key_value_heads=2, head_dim=6,
             vocab_size=123, num_hidden_layers=4, num_experts=8, num_experts_per_tok=3, norm_topk_prob=False, mlp_only_layers=[0],
             output_router_logits=True, router_aux_loss_coef=0.03),
        dict(train=dict(seq_length=40, steps=8, z_loss=1e-2, eval_interval=4, eval_steps=1), data=dict(mask_document_boundaries=True)),
    ),
    # Every other layer has experts; one of them has far more tokens than the others.
    "qwen3_moe_norm": (
        dict(hidden_size=24, intermediate_size=40, moe_intermediate_size=16, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
             vocab_size=99, num_hidden_layers=4, num_experts=8, num_experts_per_tok=2, norm_topk_prob=True, decoder_sparse_step=2),
        dict(train=dict(seq_length=36, steps=5)),
    ),
    # Gates and values that reach their clamps. Of the eight rotary frequencies two are kept, two mixed and four divided, by ends that are not
    # rounded to whole pairs.
    "gpt_oss": (
        dict(hidden_size=32, intermediate_size=24, num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=105,
             num_hidden_layers=4, num_local_experts=4, num_experts_per_tok=2, sliding_window=11,
             rope_parameters=dict(rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=40, beta_fast=3.0,
                                  beta_slow=1.0, truncate=False)),
        dict(train=dict(seq_length=46, steps=6)),
    ),
    # Two stages: a source goes on where the first stage left it, one ends, one begins. Each validation set has its own loss.
    "two_stages": (
        dict(hidden_size=48, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2, vocab_size=127, num_hidden_layers=3),
        dict(
            train=dict(seq_length=40, steps=12, eval_interval=4, eval_steps=2),
            data=dict(
                stage=[dict(until_step=5, train=[dict(prefix="ja", weight=0.7), dict(prefix="en", weight=0.3)]),
                       dict(train=[dict(prefix="code", weight=2.0), dict(prefix="ja", weight=5.0)])],
                valid=[dict(prefix="valid_ja", name="ja"), dict(prefix="valid_en", name="en")],
            ),
        ),
    ),
}
# The cases with PREFIX.mask.bin.
MASKED = ("loss_mask", "packed", "window_packed", "qwen2", "gpt2", "qwen3_moe")
# The cases with pack = true.
PACKED = ("packed", "window_packed", "qwen2", "gpt2")
# The cases of another family than Llama.
FAMILY = {"window": "mistral", "window_packed": "mistral", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2", "gpt2": "gpt2",
          "mixtral": "mixtral", "qwen3_moe": "qwen3_moe", "qwen3_moe_norm": "qwen3_moe", "gpt_oss": "gpt_oss"}
# The seed of a case is its place above plus 7, but for these.
SEEDS = {"two_stages": 41, "window": 51, "window_packed": 52, "yarn": 53, "rope_linear": 54, "biased": 61, "qwen2": 62, "qwen3": 63,
         "gemma2": 64, "gpt2": 65, "mixtral": 58, "qwen3_moe": 59, "qwen3_moe_norm": 125, "gpt_oss": 14}
# Heads of 64 and 128.
BF16 = ("head_dim_64", "head_dim_128")
