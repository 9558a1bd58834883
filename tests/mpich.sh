#!/usr/bin/env bash
# Builds the engine with MPICH, as on a cluster with an MPI of its own: on 2 and 4 ranks it trains, and `parity` passes.
# Debian's MPICH may be installed beside Open MPI (apt-get install mpich); without it this test is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v mpicc.mpich >/dev/null; then
    echo "mpich.sh: skipped: there is no mpicc.mpich; on Debian: apt-get install mpich"
    exit 0
fi
# A target folder of its own: the MPI bindings are made for one MPI.
export MPI_PKG_CONFIG=mpich MPICC=mpicc.mpich CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/mpich"
cargo build --release
engine=$CARGO_TARGET_DIR/release/swallow-engine
ldd "$engine" | grep -q libmpich || { echo "mpich.sh: $engine is not linked with MPICH" >&2; exit 1; }

runs=$(mktemp -d)
trap 'rm -rf "$runs"' EXIT
steps=3
for ranks in 2 4; do
    run=$runs/$ranks
    mpirun.mpich -n "$ranks" "$engine" train --config configs/parity.toml --set train.steps=$steps \
        --set "checkpoint.dir=\"$run\""
    [ "$(wc -l <"$run/metrics.jsonl")" = $steps ] || { echo "mpich.sh: $ranks ranks took other steps" >&2; exit 1; }
    mpirun.mpich -n "$ranks" "$engine" parity --config configs/parity.toml --set train.steps=$steps
done
echo "mpich.sh: passed"
