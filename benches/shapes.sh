# The models that the other scripts of this folder time. A script that sources this sets $tmp, $python and $steps first.

# shape: layers hidden ffn heads kv_heads head_dim vocab samples seq (torch_step.py has the same)
declare -A dims=([small]="6 288 768 6 6 48 32000 4 256" [grouped]="8 512 1376 8 4 64 8192 4 512"
  [qwen3]="8 512 1376 8 4 96 8192 4 512" [gemma2]="8 512 1376 4 2 128 8192 4 512"
  [qwen3_moe]="8 512 1376 8 4 64 8192 4 512")
# shape: further lines of [model]
declare -A more=([small]='architecture = "llama"' [grouped]='architecture = "llama"' [qwen3]='architecture = "qwen3"'
  [gemma2]='architecture = "gemma2"
sliding_window = 256
query_pre_attn_scalar = 128
attn_logit_softcapping = 50.0
final_logit_softcapping = 30.0
tie_word_embeddings = true' [qwen3_moe]='architecture = "qwen3_moe"
moe_intermediate_size = 344
num_local_experts = 16
num_experts_per_tok = 4
norm_topk_prob = true')

# Writes random tokens, drawn as on PyTorch's side, and the configuration of a shape: $tmp/SHAPE.toml, whose run is
# $tmp/run. $1 is the shape; there are tokens for $2 (default: 1) times the samples of all steps.
prepare() {
  read -r layers hidden ffn heads kv head_dim vocab samples seq <<<"${dims[$1]}"
  "$python" - "$tmp/$1" "$vocab" $((steps * samples * seq * ${2:-1} + 1)) <<'PY'
import sys, numpy as np
prefix, vocab, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
np.random.default_rng(1).integers(0, vocab, n).astype(np.uint16).tofile(prefix + ".bin")
u64 = lambda *x: np.array(x, np.uint64).tobytes()
head = b"MMIDIDX\0\0" + u64(1) + b"\x08" + u64(1, 2)
open(prefix + ".idx", "wb").write(head + np.int32(n).tobytes() + u64(0) + u64(0, 1))
PY
  cat >"$tmp/$1.toml" <<TOML
[model]
${more[$1]}
num_hidden_layers = $layers
hidden_size = $hidden
intermediate_size = $ffn
num_attention_heads = $heads
num_key_value_heads = $kv
head_dim = $head_dim
vocab_size = $vocab
max_position_embeddings = $seq
rope_theta = 10000.0
rms_norm_eps = 1e-6
[train]
backend = "cpu"
precision = "f32"
seq_length = $seq
micro_batch_size = $samples
global_batch_size = $samples
steps = $steps
[optimizer]
lr = 3e-4
schedule = "constant"
[data]
train = [ { prefix = "$tmp/$1" } ]
order = "sequential"
[checkpoint]
dir = "$tmp/run"
TOML
}

# Prints the tokens/s of the run in $tmp/run, the median over the steps after the third, under the name $1. Writes the
# FLOPs of a token, by the formula `model`, to $tmp/flops.
rate() {
  "$python" - "$tmp" "$1" <<'PY'
import json, statistics, sys
tmp, name = sys.argv[1:]
rows = [json.loads(line) for line in open(tmp + "/run/metrics.jsonl")][3:]
rate = rows[0]["tokens"] / statistics.median(r["step_time_s"] for r in rows)
print(f"engine {name}: {rate:.0f} tokens/s, median of {len(rows)} steps")
print(1e12 * rows[0]["tflops_model"] / rows[0]["tokens_per_s_per_rank"], file=open(tmp + "/flops", "w"))
PY
}
