#!/usr/bin/env bash
# Tokens/s of a full training step, the engine and PyTorch in turns (A B A B), so that both see the same machine.
#
# usage: benches/compare.sh [SHAPE]... [-- TORCH_STEP_ARGS]      SHAPE: small | grouped; default: both
# PYTHON names a Python with torch and transformers (default: python3), ROUNDS how often (default: 3), STEPS how many steps a round.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} engine=${ENGINE:-target/release/swallow-engine} rounds=${ROUNDS:-3} steps=${STEPS:-25}
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT

shapes=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do shapes+=("$1"); shift; done
[ $# -gt 0 ] && shift
[ ${#shapes[@]} -gt 0 ] || shapes=(small grouped)

source benches/shapes.sh

run_engine() {
  rm -rf "$tmp/run"
  "$engine" train --config "$tmp/$1.toml" >/dev/null 2>&1
  rate "$1"
}

for shape in "${shapes[@]}"; do
  prepare "$shape"
  for _ in $(seq "$rounds"); do
    run_engine "$shape"
    "$python" benches/torch_step.py "$shape" "$@"
  done
done
