#!/usr/bin/env bash
# Tokens/s of a full training step, of the engine and PyTorch in turns (A B A B), so that both run under the same
# conditions; and the share of the f32 FMA peak of all cores that each reaches, by the formula `model`. The peak is
# measured first.
#
# usage: benches/compare.sh [SHAPE]... [-- TORCH_STEP_ARGS]      SHAPE: small | grouped | qwen3 | gemma2 | qwen3_moe;
# default: all
# PYTHON names a Python with torch, transformers and numpy (default: python3). ROUNDS is the number of turns (default:
# 3), STEPS the number of steps of a turn.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} engine=${ENGINE:-target/release/swallow-engine}
rounds=${ROUNDS:-3} steps=${STEPS:-25}
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT

shapes=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do shapes+=("$1"); shift; done
[ $# -gt 0 ] && shift
[ ${#shapes[@]} -gt 0 ] || shapes=(small grouped qwen3 gemma2 qwen3_moe)

source benches/shapes.sh

run_engine() {
  rm -rf "$tmp/run"
  "$engine" train --config "$tmp/$1.toml" >/dev/null 2>&1
  rate "$1"
}

# The ways in which PyTorch multiplies the rows of experts; one where there are none.
ways() {
  if [ "$1" = qwen3_moe ]; then echo eager grouped_mm; else echo eager; fi
}

# Prints a line that contains `N tokens/s`, with the share of the peak appended.
with_share() {
  awk -v peak="$peak" -v flops="$(cat "$tmp/flops")" '{
    for (i = 2; i <= NF; i++) if ($i ~ /^tokens\/s/) rate = $(i - 1)
    printf "%s, %.1f %% of the FMA peak\n", $0, 100 * rate * flops / (peak * 1e9)
  }' <<<"$1"
}

cargo build --quiet --release --bench peak
peak=$(cargo bench --quiet --bench peak 2>/dev/null)
printf 'f32 FMA peak of %s cores: %s GFLOP/s\n' "$(nproc)" "$peak"
for shape in "${shapes[@]}"; do
  prepare "$shape"
  for _ in $(seq "$rounds"); do
    line=$(run_engine "$shape") && with_share "$line"
    for experts in $(ways "$shape"); do
      line=$("$python" benches/torch_step.py "$shape" --threads "$(nproc)" --experts "$experts" "$@") &&
        with_share "$line"
    done
  done
done
