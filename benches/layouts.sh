#!/usr/bin/env bash
# Tokens/s of one rank on one core and of two ranks on two cores, in turns: data, tensor and pipeline parallel.
#
# usage: benches/layouts.sh [SHAPE]      SHAPE: small | grouped; default: grouped
# ROUNDS is the number of rounds (default: 3), STEPS the number of steps of a round (default: 8); PYTHON names a Python
# with numpy (default: python3).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} engine=${ENGINE:-target/release/swallow-engine}
rounds=${ROUNDS:-3} steps=${STEPS:-8} shape=${1:-grouped}
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
source benches/shapes.sh
[ "$(id -u)" != 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

# Eight micro-batches of one sequence in a step; with data parallelism each rank has four of them.
batches=(--set train.micro_batch_size=1 --set train.global_batch_size=8)
prepare "$shape" 2

# run NAME RANKS ARGS...
run() {
  local name=$1 ranks=$2
  shift 2
  rm -rf "$tmp/run"
  mpirun -n "$ranks" --bind-to core "$engine" train --config "$tmp/$shape.toml" "${batches[@]}" "$@" \
    >/dev/null 2>"$tmp/err" || {
    cat "$tmp/err"
    exit 1
  }
  rate "$shape, $name"
}

for _ in $(seq "$rounds"); do
  run "one rank, one core" 1
  run "two ranks, data" 2
  run "two ranks, tensor" 2 --set parallel.tensor=2
  run "two ranks, tensor, no sequence parallelism" 2 --set parallel.tensor=2 --set parallel.sequence_parallel=false
  run "two ranks, pipeline" 2 --set parallel.pipeline=2
done
