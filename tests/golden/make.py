"""Make the golden fixtures: tiny random models of each family, trained by Hugging Face transformers and PyTorch.

usage: make.py [CASE]...        (in an environment with requirements.txt; writes beside itself)

Each case's folder holds what the engine is given (init/, train.bin/.idx, valid.bin/.idx, and `config` in expected.json, which is the
engine's own configuration without paths) and what must come out of it: gradients of step 1, a row for each step, the final weights.
The cases whose heads the CUDA kernels take (BF16) have in `expected_bf16` what PyTorch itself comes to in bf16, by micro-batches of 1, 2, 4
and 8 sequences: how far that is from the reference is what a run in bf16 is measured by.

The reference is computed in float64 from float32 weights, so that the whole error that a test sees is the engine's. Transformers
casts to float32 in RMSNorm and in the rotary table whatever the model's type is: `exact` takes these casts out. Each case is also
trained in plain float32 with transformers untouched, and the difference is printed: it must be far inside the tests' bounds.

The families with experts have more in a row: `aux_loss` and `router_z_loss`, without their coefficients, and in that of step 1
`expert_counts`, how often each expert of each of these layers was chosen in the global batch. The losses are the engine's (every sequence
of every layer alone, then the mean), computed from the logits that the routers come to; transformers' own, which is over all layers and
sequences at once, is not used. `model` is the engine's whole [model], of which `config` has what config.json does not say. Tensors have
the names and shapes of files, where mixtral's and qwen3_moe's experts are apart: in memory they are packed. The gradients of an expert
without a token are 0. A choice of experts that rounding changes would be another model: none may differ in the float32 run, and what is
printed says how far the last expert chosen and the first one left out are from each other.
"""
import json, math, pathlib, shutil, sys
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import (Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, GptOssConfig, GptOssForCausalLM, LlamaConfig,
                          LlamaForCausalLM, MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM)
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.mixtral import modeling_mixtral
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3
from transformers.models.qwen3_moe import modeling_qwen3_moe

HERE = pathlib.Path(__file__).resolve().parent
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
CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "gemma2": Gemma2Config, "gpt2": GPT2Config,
           "mixtral": MixtralConfig, "qwen3_moe": Qwen3MoeConfig, "gpt_oss": GptOssConfig}
MODELS = {"llama": LlamaForCausalLM, "mistral": MistralForCausalLM, "qwen2": Qwen2ForCausalLM, "qwen3": Qwen3ForCausalLM,
          "gemma2": Gemma2ForCausalLM, "gpt2": GPT2LMHeadModel, "mixtral": MixtralForCausalLM, "qwen3_moe": Qwen3MoeForCausalLM,
          "gpt_oss": GptOssForCausalLM}
ROUTERS = (modeling_mixtral.MixtralTopKRouter, modeling_qwen3_moe.Qwen3MoeTopKRouter, modeling_gpt_oss.GptOssTopKRouter)
# The seed of a case is its place above plus 7, but for these.
SEEDS = {"two_stages": 41, "window": 51, "window_packed": 52, "yarn": 53, "rope_linear": 54, "biased": 61, "qwen2": 62, "qwen3": 63,
         "gemma2": 64, "gpt2": 65, "mixtral": 58, "qwen3_moe": 59, "qwen3_moe_norm": 125, "gpt_oss": 14}
# Heads of 64 and 128.
BF16 = ("head_dim_64", "head_dim_128")


def configs(case):
    """The engine's configuration without its paths, and transformers' of the model."""
    model, over = CASES[case]
    engine = {k: dict(BASE.get(k, {}), **over.get(k, {})) for k in [*BASE, *(["model"] if "model" in over else [])]}
    hf = dict(num_hidden_layers=2, max_position_embeddings=160, rms_norm_eps=1e-5, initializer_range=0.08, bos_token_id=1, eos_token_id=2,
              tie_word_embeddings=False, attn_implementation="sdpa")
    family = FAMILY.get(case, "llama")
    if family == "gpt2":
        hf = dict(bos_token_id=1, eos_token_id=2, attn_implementation="sdpa")
    if family == "gemma2":
        hf["attn_implementation"] = "eager"  # the other implementations have no soft-cap
    if family in ("mixtral", "qwen3_moe", "gpt_oss"):
        hf["experts_implementation"] = "eager"  # an expert after the other, in any type
    if family == "gpt_oss":
        hf["attn_implementation"] = "eager"  # the one that has sinks on a CPU
    return engine, CONFIGS[family](**dict(hf, **model))


def aux_coefficient(hf, engine):
    """That of the load-balancing loss: the engine's own key, or config.json's where that says that the loss is computed."""
    return engine.get("model", {}).get("router_aux_loss_coef", hf.router_aux_loss_coef if getattr(hf, "output_router_logits", False) else 0.0)


def table(hf, engine):
    """The engine's whole [model] of a family with experts, which is what it must read in config.json, with the keys that it is given beside."""
    keys = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
            "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "initializer_range", "num_local_experts", "num_experts_per_tok"]
    keys += dict(mixtral=[], gpt_oss=["attention_bias", "sliding_window", "layer_types"],
                 qwen3_moe=["moe_intermediate_size", "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers"])[hf.model_type]
    out = dict(architecture=hf.model_type, **{k: getattr(hf, k) for k in keys})
    out["head_dim"] = out["head_dim"] or hf.hidden_size // hf.num_attention_heads
    rope = dict(hf.rope_parameters)
    out["rope_theta"] = rope.pop("rope_theta")
    if rope["rope_type"] != "default":
        out["rope_scaling"] = rope
    return {**out, "router_aux_loss_coef": aux_coefficient(hf, engine), **engine.get("model", {})}


def model_of(hf):
    """A random model of a configuration."""
    return MODELS[hf.model_type](hf)


def disturb(model, case):
    """Moves what transformers starts at 0 or 1, which would hide a tensor that is left out, and spreads what routers and experts come to."""
    family = model.config.model_type
    for n, p in model.named_parameters():
        if p.ndim < 2:
            zero = n.endswith(".bias") or family == "gemma2"  # Gemma has differences from 1
            p.copy_((0 if zero else 1) + 0.2 * torch.randn_like(p))
        if n.endswith("proj_bias"):  # gpt_oss's experts have a row each
            p.copy_(0.5 * torch.randn_like(p))
        if n.endswith("experts.gate_up_proj") and family == "gpt_oss":
            p.mul_(5.0)  # beyond 7 at times
        if n.endswith("experts.down_proj") and family == "gpt_oss":
            p.mul_(0.4)  # and still no more than the rest of the layer
        if n.endswith("embed_tokens.weight") and case == "qwen3_moe":
            p.add_(0.07)  # all tokens have something in common: some experts have most of them, some hardly any
        if n.endswith(("mlp.gate.weight", "mlp.router.weight")):
            p.mul_(4.0)  # chosen experts and others lie well apart


def filed(family, tensors):
    """Tensors by their names in files, where experts of mixtral and qwen3_moe are not packed."""
    out = {}
    for n, p in tensors.items():
        stem, _, packed = n.rpartition(".experts.")
        if not stem or family == "gpt_oss":
            out[n.replace(".mlp.", ".block_sparse_moe.") if family == "mixtral" else n] = p
            continue
        parts = zip(("gate_proj", "up_proj"), p.chunk(2, 1)) if packed == "gate_up_proj" else [("down_proj", p)]
        names = dict(gate_proj="w1", up_proj="w3", down_proj="w2") if family == "mixtral" else {}
        for part, experts in parts:
            for j, weight in enumerate(experts):
                out[f"{stem.replace('.mlp', '.block_sparse_moe') if names else stem}.experts.{j}.{names.get(part, part)}.weight"] = weight
    return out


def markov(n, vocab, rng):
    """A stream that can be learned: a noisy chain in which most tokens have one successor."""
    follows = rng.integers(0, vocab, vocab)
    out = np.zeros(n, np.int64)
    for i in range(1, n):
        out[i] = follows[out[i - 1]] if rng.random() < 0.8 else rng.integers(0, vocab)
    out[n // 2] = vocab - 1  # the largest id occurs
    return out


def documents(n, rng):
    """Lengths of documents that together have n tokens; some are longer than a sample, some are single tokens."""
    lengths = []
    while sum(lengths) < n:
        lengths.append(min(int(rng.choice([1, 2, rng.integers(5, 60), rng.integers(60, 200)])), n - sum(lengths)))
    return np.array(lengths, np.int32)


def write_tokens(prefix, tokens, lengths, dtype):
    """Megatron's indexed dataset: raw tokens, and their sequence lengths, byte offsets and document ends."""
    tokens.astype(dtype).tofile(f"{prefix}.bin")
    code = {np.dtype(np.int32): 4, np.dtype(np.uint16): 8}[np.dtype(dtype)]
    with open(f"{prefix}.idx", "wb") as f:
        f.write(b"MMIDIDX\x00\x00" + np.uint64(1).tobytes() + np.uint8(code).tobytes())
        f.write(np.uint64(len(lengths)).tobytes() + np.uint64(len(lengths) + 1).tobytes())
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        f.write(lengths.tobytes() + (starts * np.dtype(dtype).itemsize).tobytes() + np.arange(len(lengths) + 1, dtype=np.int64).tobytes())


def learning_rate(step, steps, o):
    """The rate of a step; the first is 1."""
    lr, low, warmup = o["lr"], o["min_lr"], o["warmup_steps"]
    if step <= warmup:
        return lr * step / warmup
    r = (step - warmup) / (steps - warmup)
    if o["schedule"] == "wsd":
        t = max(0.0, (step - (steps - o["decay_steps"])) / o["decay_steps"])
        return lr - (lr - low) * (t if o["decay_shape"] == "linear" else math.sqrt(t))
    return {"cosine": low + (lr - low) * (1 + math.cos(math.pi * r)) / 2, "linear": lr - (lr - low) * r, "constant": lr}[o["schedule"]]


class Tokens:
    """A stream of documents and its samples in sequential order."""

    def __init__(self, n, vocab, rng):
        self.n, self.ids, self.lengths = n, markov(n, vocab, rng), documents(n, rng)
        self.doc = np.repeat(np.arange(len(self.lengths)), self.lengths)
        self.counts = None  # whether each token counts as a target
        self.window = None  # the model's, where a mask is made here; transformers makes its own where there is none
        self.by_kind = False  # whether the model's layers differ, so that each kind has a mask of its own
        self.rows = None  # of a packed source

    def mask(self, t, rng):
        """Stretches that count and that do not; the targets of samples 8 to 11, of sample 17 and of step 4 do not count."""
        self.counts = np.zeros(len(self.ids), np.uint8)
        at = 0
        while at < len(self.ids):
            length = int(rng.integers(1, 30))
            self.counts[at:at + length] = rng.random() < 0.6
            at += length
        S, G = t["seq_length"], t["global_batch_size"]
        for first, end in [(8, 12), (17, 18), (3 * G, 4 * G)]:
            self.counts[first * S + 1:end * S + 1] = 0

    def batch(self, first, count, seq, masked, dtype):
        """Inputs and labels, [count, seq] each, and the additive attention mask, if any."""
        if self.rows is not None:
            return self.packed_batch(first, count, seq, dtype)
        at = (np.arange(first, first + count)[:, None] * seq) + np.arange(seq)
        mask = None
        if masked:
            doc = torch.from_numpy(self.doc[at])
            open_ = (doc[:, :, None] == doc[:, None, :]) & self.seen(seq)
            mask = torch.zeros(count, 1, seq, seq, dtype=dtype).masked_fill(~open_[:, None], -torch.inf)
        labels = self.ids[at + 1] if self.counts is None else np.where(self.counts[at + 1] > 0, self.ids[at + 1], -100)
        return torch.from_numpy(self.ids[at]), torch.from_numpy(labels), mask, None

    def seen(self, seq):
        """Whether a query sees a key: itself, and the positions before it that are inside of the window."""
        return torch.ones(seq, seq, dtype=torch.bool).tril().triu(1 - (self.window or seq))

    def pack(self, seq):
        """Rows of documents by best fit, in the order of the file: each (start, tokens) of a piece of the stream."""
        self.rows = []
        units = [(start + cut, min(seq, n - cut)) for start, n in zip(np.cumsum(self.lengths) - self.lengths, self.lengths) for cut in range(0, n, seq)]
        for first in range(0, len(units), 4096):
            rows, room = [], []
            for start, n in units[first:first + 4096]:
                fits = [(left, i) for i, left in enumerate(room) if left >= n]
                if not fits:
                    rows.append([])
                    room.append(seq)
                i = min(fits)[1] if fits else len(rows) - 1
                rows[i].append((start, n))
                room[i] -= n
            self.rows += rows

    def packed_batch(self, first, count, seq, dtype):
        """As `batch`, of rows: padding is id 0, and the last token of a unit predicts nothing. Also the positions."""
        ids, labels = np.zeros((count, seq), np.int64), np.full((count, seq), -100)
        unit, positions = np.zeros((count, seq), np.int64), np.zeros((count, seq), np.int64)
        for row in range(count):
            at = 0
            pieces = self.rows[(first + row) % len(self.rows)]
            for k, (start, n) in enumerate(pieces):
                ids[row, at:at + n] = self.ids[start:start + n]
                counts = self.counts[start + 1:start + n] > 0
                labels[row, at:at + n - 1] = np.where(counts, self.ids[start + 1:start + n], -100)
                unit[row, at:at + n], positions[row, at:at + n] = k, np.arange(n)
                at += n
            unit[row, at:], positions[row, at:] = len(pieces), np.arange(seq - at)
        unit = torch.from_numpy(unit)
        masks = []
        for seen in (self.seen(seq), torch.ones(seq, seq, dtype=torch.bool).tril()):
            open_ = (unit[:, :, None] == unit[:, None, :]) & seen
            masks.append(torch.zeros(count, 1, seq, seq, dtype=dtype).masked_fill(~open_[:, None], -torch.inf))
        mask = dict(sliding_attention=masks[0], full_attention=masks[1]) if self.by_kind else masks[0]
        return torch.from_numpy(ids), torch.from_numpy(labels), mask, torch.from_numpy(positions)


class Mixture:
    """Streams mixed in stages by Megatron's blend, which starts anew at each stage; the streams go on."""

    def __init__(self, stages, streams, samples_of_stages):
        self.streams, self.order, used = streams, [], {name: 0 for name in streams}
        self.counts = None  # all targets count
        for stage, samples in zip(stages, samples_of_stages):
            names, weights = [s["prefix"] for s in stage["train"]], np.array([s["weight"] for s in stage["train"]])
            shares, taken = weights / weights.sum(), np.zeros(len(names))
            for i in range(samples):
                chosen = int(np.argmax(shares * max(i, 1) - taken))
                taken[chosen] += 1
                self.order.append((names[chosen], used[names[chosen]]))
                used[names[chosen]] += 1

    def batch(self, first, count, seq, masked, dtype):
        chosen = [(self.streams[name], k) for name, k in self.order[first : first + count]]
        # A stream starts over at its end.
        parts = [stream.batch(k % ((stream.n - 1) // seq), 1, seq, masked, dtype) for stream, k in chosen]
        return tuple(None if p[0] is None else torch.cat(p) for p in zip(*parts))


def validation(model, sets, step, t, masked, dtype):
    """The mean loss over the next batches of all sets, and that of each set where there are several."""
    count, S = t["eval_steps"] * t["global_batch_size"], t["seq_length"]
    with torch.no_grad():
        # Every validation takes the next samples of each set, which starts over at its end.
        first = {name: (step // t["eval_interval"] - 1) * count % ((stream.n - 1) // S) for name, stream in sets.items()}
        each = {name: losses(model, stream.batch(first[name], count, S, masked, dtype))[0].item() for name, stream in sets.items()}
    row = dict(valid_loss=sum(each.values()) / len(each))
    return row if len(each) == 1 else dict(row, valid={name: dict(loss=loss, loss_tokens=count * S) for name, loss in each.items()})


def losses(model, batch):
    """Mean cross-entropy, and the mean of log(Z)^2."""
    ids, labels, mask, positions = batch
    # transformers' own loss of routers cannot have these masks.
    quiet = dict(output_router_logits=False) if hasattr(model.config, "output_router_logits") else {}
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, **quiet).logits
    logits = logits.float() if logits.dtype == torch.bfloat16 else logits  # as transformers' own loss
    if (labels < 0).any():
        counted = (labels >= 0).flatten()
        ce = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        z = (torch.logsumexp(logits, -1).square().flatten() * counted).sum()
        return ce / max(int(counted.sum()), 1), z / max(int(counted.sum()), 1)
    ce = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    return ce, torch.logsumexp(logits, -1).square().mean()


class Routing:
    """What the routers of a model come to, in each forward pass after which it is taken."""

    def __init__(self, model):
        self.last = []  # logits and chosen experts of each layer's tokens
        for m in model.modules():
            if isinstance(m, ROUTERS):
                m.register_forward_hook(lambda m, _, out: self.last.append((out[0], out[2])))

    def take(self):
        last, self.last = self.last, []
        return last


def balance(routed, sequences):
    """Of the routers in one forward pass: the engine's load-balancing loss, the mean of log(Z)^2, and how often each expert was chosen."""
    aux, z, counts = [], [], []
    for logits, chosen in routed:
        E = logits.shape[-1]
        n = torch.nn.functional.one_hot(chosen, E).sum(1).view(sequences, -1, E)
        p = torch.softmax(logits, -1).view(sequences, -1, E)
        aux.append(E * (n.to(p.dtype).mean(1) * p.mean(1)).sum(-1).mean())
        z.append(torch.logsumexp(logits, -1).square().mean())
        counts.append(n.sum((0, 1)).tolist())
    return sum(aux) / len(aux), sum(z) / len(z), counts


def optimizer(model, o):
    """AdamW that decays matrices and leaves norm weights, sinks and biases alone, those too of which experts have a row each."""
    decayed = {n: p.ndim >= 2 and not n.endswith("_bias") for n, p in model.named_parameters()}
    groups = [dict(params=[p for n, p in model.named_parameters() if decayed[n]], weight_decay=o["weight_decay"]),
              dict(params=[p for n, p in model.named_parameters() if not decayed[n]], weight_decay=0.0)]
    return torch.optim.AdamW(groups, lr=0.0, betas=o["betas"], eps=o["eps"])


def train(model, config, tokens, valid, dtype):
    """A row for each step, the gradients of the first, and what the routers came to in each; `valid`: the validation sets by name."""
    t, o = config["train"], config["optimizer"]
    opt, rows, grads, routing, routes = optimizer(model, o), [], {}, Routing(model), []
    aux_coef, router_z_coef = aux_coefficient(model.config, config), config.get("model", {}).get("router_z_loss_coef", 0.0)
    masked = config["data"].get("mask_document_boundaries", False)
    G, S = t["global_batch_size"], t["seq_length"]
    for step in range(1, t["steps"] + 1):
        row = dict(step=step, lr=learning_rate(step, t["steps"], o))
        for g in opt.param_groups:
            g["lr"] = row["lr"]
        opt.zero_grad()
        ce, z = losses(model, tokens.batch((step - 1) * G, G, S, masked, dtype))
        routed, total = routing.take(), ce + t["z_loss"] * z
        if routed:
            aux, router_z, counts = balance(routed, G)
            total = total + aux_coef * aux + router_z_coef * router_z
            routes.append([(logits.detach(), chosen) for logits, chosen in routed])
        total.backward()
        if step == 1:
            grads = {n: p.grad.float().clone() for n, p in model.named_parameters()}
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), o["clip_grad"])
        opt.step()
        row.update(loss=ce.item(), grad_norm=norm.item())
        if tokens.counts is not None:
            row["loss_tokens"] = int((tokens.batch((step - 1) * G, G, S, masked, dtype)[1] >= 0).sum())
        if t["z_loss"]:
            row["z_loss"] = t["z_loss"] * z.item()
        if routed:
            row.update(aux_loss=aux.item(), router_z_loss=router_z.item(), **({"expert_counts": counts} if step == 1 else {}))
        if t.get("eval_interval") and step % t["eval_interval"] == 0:
            row.update(validation(model, valid, step, t, masked, dtype))
            routing.take()
        rows.append(row)
    return rows, grads, routes


def shares(weights, wanted, init):
    """Of each tensor, and of all together, how far it is from what is wanted, as a share of the distance trained."""
    square = lambda a, b: float((a.double() - b.double()).square().sum())
    off, way = [{n: square(x[n], wanted[n]) for n in sorted(wanted)} for x in (weights, init)]
    return {n: math.sqrt(off[n] / way[n]) for n in off}, math.sqrt(sum(off.values()) / sum(way.values()))


def rounded(hf, init, config, tokens, final, micro):
    """PyTorch's own run in bf16, by micro-batches of `micro` sequences: the model is in bf16, but its rotary frequencies; the sums of its
    gradients, the masters and the optimizer are in float32."""
    t, o = config["train"], config["optimizer"]
    model, masters = model_of(hf).float(), model_of(hf).float()
    masters.load_state_dict(init)
    pairs = list(zip(model.parameters(), masters.parameters()))
    for p, master in pairs:
        p.data, master.grad = master.detach().bfloat16(), torch.zeros_like(master)
    opt, rows, G, S = optimizer(masters, o), [], t["global_batch_size"], t["seq_length"]
    for step in range(1, t["steps"] + 1):
        for g in opt.param_groups:
            g["lr"] = learning_rate(step, t["steps"], o)
        opt.zero_grad(set_to_none=False)
        loss = 0.0
        for first in range((step - 1) * G, step * G, micro):
            model.zero_grad()
            ce, _ = losses(model, tokens.batch(first, micro, S, False, torch.bfloat16))
            ce.backward()
            loss += ce.item() * micro / G
            for p, master in pairs:
                master.grad += p.grad.float() * (micro / G)
        norm = torch.nn.utils.clip_grad_norm_(masters.parameters(), o["clip_grad"])
        opt.step()
        for p, master in pairs:
            p.data.copy_(master.detach())
        rows.append(dict(loss=loss, grad_norm=norm.item()))
    each, together = shares({n: p.detach() for n, p in masters.named_parameters()}, final, init)
    return dict(micro_batch_size=micro, steps=rows, weights=dict(each=each, together=together))


class exact:
    """While this stands, transformers' RMSNorm, rotary table, routers and Gemma's softmax compute in the model's own type."""

    NORMS = (modeling_llama.LlamaRMSNorm, modeling_mistral.MistralRMSNorm, modeling_qwen2.Qwen2RMSNorm, modeling_qwen3.Qwen3RMSNorm,
             modeling_mixtral.MixtralRMSNorm, modeling_qwen3_moe.Qwen3MoeRMSNorm, modeling_gpt_oss.GptOssRMSNorm)
    ROPES = (modeling_llama.LlamaRotaryEmbedding, modeling_mistral.MistralRotaryEmbedding, modeling_qwen2.Qwen2RotaryEmbedding,
             modeling_qwen3.Qwen3RotaryEmbedding, modeling_gemma2.Gemma2RotaryEmbedding, modeling_mixtral.MixtralRotaryEmbedding,
             modeling_qwen3_moe.Qwen3MoeRotaryEmbedding, modeling_gpt_oss.GptOssRotaryEmbedding)

    def __enter__(self):
        gemma = modeling_gemma2.Gemma2RMSNorm
        self.before = [(kind, "forward", kind.forward) for kind in (*self.NORMS, *self.ROPES, *ROUTERS[:2], gemma)]
        self.before.append((modeling_gemma2, "eager_attention_forward", modeling_gemma2.eager_attention_forward))
        for kind in self.NORMS:
            kind.forward = lambda m, x: m.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + m.variance_epsilon)
        gemma.forward = lambda m, x: (1 + m.weight) * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + m.eps)
        for kind in self.ROPES:
            kind.forward = self.table
        for kind in ROUTERS[:2]:  # gpt_oss's computes in the model's type
            kind.forward = self.route
        modeling_gemma2.eager_attention_forward = self.attention

    def __exit__(self, *_):
        for kind, name, forward in self.before:
            setattr(kind, name, forward)

    @staticmethod
    def attention(m, q, k, v, mask, dropout=0.0, scaling=None, softcap=None, **_):
        k, v = [modeling_gemma2.repeat_kv(x, m.num_key_value_groups) for x in (k, v)]
        scores = q @ k.transpose(2, 3) * scaling
        scores = softcap * torch.tanh(scores / softcap) + mask
        p = torch.softmax(scores, -1)
        return (p @ v).transpose(1, 2).contiguous(), p

    @staticmethod
    def table(m, x, position_ids):
        angles = position_ids[:, :, None].to(x.dtype) * m.inv_freq.to(x.dtype)
        if not isinstance(m, modeling_gpt_oss.GptOssRotaryEmbedding):  # whose rotation takes half of the table
            angles = torch.cat((angles, angles), -1)
        return angles.cos() * m.attention_scaling, angles.sin() * m.attention_scaling


    @staticmethod
    def route(m, x):
        logits = x.reshape(-1, m.hidden_dim) @ m.weight.T
        best, chosen = torch.softmax(logits, -1).topk(m.top_k)
        return logits, best / best.sum(-1, keepdim=True) if getattr(m, "norm_topk_prob", True) else best, chosen


def distance(a, b):
    """The largest relative difference of two tensors' norms, over all tensors; one that is 0 (an expert without tokens) must be 0 in both."""
    return max(float((a[n].double() - b[n].double()).norm() / (b[n].double().norm() or 1)) for n in b)


def staged(engine, out, vocab, rng):
    """The mixture of a case with stages and its validation sets, whose files are written."""
    t, data = engine["train"], engine["data"]
    G, S = t["global_batch_size"], t["seq_length"]
    ends = [stage.get("until_step", t["steps"]) for stage in data["stage"]]
    samples = [(end - start) * G for start, end in zip([0] + ends, ends)]
    streams = {s["prefix"]: Tokens(60 * S + 17, vocab, rng) for stage in data["stage"] for s in stage["train"]}
    valid = {s["name"]: (s["prefix"], Tokens(t["eval_steps"] * G * 2 * S + 1, vocab, rng)) for s in data["valid"]}
    for prefix, stream in [*streams.items(), *valid.values()]:
        write_tokens(out / prefix, stream.ids, stream.lengths, np.uint16)
    return Mixture(data["stage"], streams, samples), {name: stream for name, (_, stream) in valid.items()}


def make(case):
    engine, hf = configs(case)
    t = engine["train"]
    out = HERE / case
    shutil.rmtree(out, ignore_errors=True)
    seed = SEEDS.get(case, 7 + list(CASES).index(case))
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = model_of(hf).float()
    with torch.no_grad():
        disturb(model, case)
    model.save_pretrained(out / "init")
    (out / "init/generation_config.json").unlink()
    init = {n: p.detach().clone() for n, p in model.named_parameters()}
    by_file = lambda tensors: filed(hf.model_type, tensors)
    written = load_file(out / "init/model.safetensors")
    assert written.keys() == by_file(init).keys() and all(written[n].equal(p) for n, p in by_file(init).items())

    samples = t["steps"] * t["global_batch_size"]
    if "stage" in engine["data"]:
        tokens, valid = staged(engine, out, hf.vocab_size, rng)
    else:
        tokens = Tokens(samples * t["seq_length"] + 17, hf.vocab_size, rng)
        valid = Tokens(t.get("eval_steps", 0) * t["global_batch_size"] * t["seq_length"] + 1, hf.vocab_size, rng)
        if case in MASKED:
            for name, part in (("train", tokens), ("valid", valid))[:2 if t.get("eval_interval") else 1]:
                part.mask(t, rng)
                part.counts.tofile(out / f"{name}.mask.bin")
                (out / f"{name}.meta.json").write_text('{ "mask": true }\n')
        tokens.window = valid.window = getattr(hf, "sliding_window", None)
        tokens.by_kind = len(set(getattr(hf, "layer_types", None) or [])) > 1
        if case in PACKED:
            tokens.pack(t["seq_length"])
        write_tokens(out / "train", tokens.ids, tokens.lengths, np.int32 if case == "llama3_rope" else np.uint16)
        if t.get("eval_interval"):
            write_tokens(out / "valid", valid.ids, valid.lengths, np.uint16)
        valid = dict(valid=valid)

    plain_rows, plain_grads, plain_routes = train(model, engine, tokens, valid, torch.float32)
    plain_final = {n: p.detach() for n, p in model.named_parameters()}
    model = model_of(hf).double()
    model.load_state_dict(dict(init, **({"lm_head.weight": init.get("model.embed_tokens.weight", init.get("transformer.wte.weight"))} if hf.tie_word_embeddings else {})))
    with exact():
        rows, grads, routes = train(model, engine, tokens, valid, torch.float64)
    final = {n: p.detach().float() for n, p in model.named_parameters()}
    grads, plain_grads = by_file(grads), by_file(plain_grads)
    save_file({n: g.contiguous() for n, g in grads.items()}, out / "grads.safetensors")
    save_file({n: p.contiguous() for n, p in by_file(final).items()}, out / "final.safetensors")
    expected = dict(config=engine, steps=rows, **({"pack": True} if case in PACKED else {}))
    if routes:
        expected["model"] = table(hf, engine)
    if case in BF16:
        expected["expected_bf16"] = [rounded(hf, init, engine, tokens, final, micro) for micro in (1, 2, 4, 8)]
    (out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")

    worst = {k: max(abs(a[k] - b[k]) / max(b[k], 1e-9) for a, b in zip(plain_rows, rows)) for k in ("loss", "grad_norm")}
    moved = max(shares(by_file(plain_final), by_file(final), by_file(init))[0].values())
    clipped = sum(r["grad_norm"] > engine["optimizer"]["clip_grad"] for r in rows)
    print(f"{case}: loss {rows[0]['loss']:.3f} -> {rows[-1]['loss']:.3f}, {clipped} of {len(rows)} steps clipped; float32 differs by {worst['loss']:.1e} (loss), "
          f"{worst['grad_norm']:.1e} (norm), {distance(plain_grads, grads):.1e} (gradients), {moved:.1e} (weights)")
    if routes:
        report(rows, plain_rows, routes, plain_routes)
    if hf.model_type == "gpt_oss":
        clamped(model_of(hf).float(), init, tokens, t)


def report(rows, plain_rows, routes, plain_routes):
    """Prints how uneven the routing is and how far choices are from being others. None may be another in float32."""
    pairs = [(a, b) for step, plain in zip(routes, plain_routes) for a, b in zip(step, plain)]
    k = pairs[0][0][1].shape[1]
    assert all(chosen.sort()[0].equal(plain.sort()[0]) for (_, chosen), (_, plain) in pairs)
    best = [logits.topk(k + 1)[0] for (logits, _), _ in pairs]
    gap = min(float((b[:, k - 1] - b[:, k]).min()) for b in best)
    off = max(float((logits - plain).abs().max()) for (logits, _), (plain, _) in pairs)
    worst = [max(abs(a[key] - b[key]) / b[key] for a, b in zip(plain_rows, rows)) for key in ("aux_loss", "router_z_loss")]
    print(f"  choices are at least {gap:.1e} apart, float32 moves logits by {off:.1e}, aux_loss by {worst[0]:.1e}, router_z_loss by {worst[1]:.1e}; "
          f"aux_loss {rows[0]['aux_loss']:.3f} -> {rows[-1]['aux_loss']:.3f}, "
          f"router_z_loss {rows[0]['router_z_loss']:.2f} -> {rows[-1]['router_z_loss']:.2f}")
    never = [[sum((chosen == e).sum().item() == 0 for _, chosen in layer) for e in range(len(counts))]
             for layer, counts in zip(zip(*routes), rows[0]["expert_counts"])]
    print(f"  chosen in step 1: {rows[0]['expert_counts']}; steps without a token: {never}")


def clamped(model, init, tokens, t):
    """Prints how often the gates and values of gpt_oss's experts are beyond 7 in step 1."""
    model.load_state_dict(init)
    seen = []
    for layer in model.model.layers:
        apply = layer.mlp.experts._apply_gate
        layer.mlp.experts._apply_gate = lambda x, apply=apply: (seen.append(x), apply(x))[1]
    losses(model, tokens.batch(0, t["global_batch_size"], t["seq_length"], False, torch.float32))
    x = torch.cat([x.flatten(0, -2) for x in seen]).detach()
    gate, up = x[:, ::2], x[:, 1::2]
    print("  of the gates {:.1e} are above 7 and {:.1e} below -7, of the values {:.1e} and {:.1e}".format(
        *(float(c.float().mean()) for c in (gate > 7, gate < -7, up > 7, up < -7))))


def tokenizers():
    """A SentencePiece model with byte fallback and a byte-level tokenizer.json, both of a few kilobytes, trained on this file."""
    import sentencepiece, tempfile
    from tokenizers import ByteLevelBPETokenizer

    out = HERE / "tokenizers"
    out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        sentencepiece.SentencePieceTrainer.train(input=__file__, model_prefix=f"{tmp}/tiny", vocab_size=400, model_type="bpe", byte_fallback=True,
                                                 character_coverage=1.0, normalization_rule_name="identity", minloglevel=2, num_threads=1)
        shutil.copy(f"{tmp}/tiny.model", out / "tokenizer.model")
    bpe = ByteLevelBPETokenizer()
    bpe.train([__file__], vocab_size=300, show_progress=False, special_tokens=["<s>", "</s>"])
    bpe.save(str(out / "tokenizer.json"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if not sys.argv[1:]:
        tokenizers()
    for name in sys.argv[1:] or CASES:
        make(name)
