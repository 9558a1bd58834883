#!/usr/bin/env bash
# Measures this machine for `swallow-engine plan --calibrate OUT`: times every operation and every call between ranks of
# a configuration's step, on all ranks at once, each on its own core. Results of several layouts may be added to one
# file.
#
# usage: benches/figures.sh OUT.json RANKS CONFIG.toml [KEY=VALUE...]
# e.g.   benches/figures.sh figures.json 2 configs/demo.toml parallel.pipeline=2
# BIND   how mpirun places ranks (default: core)
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,9s/^# \?//p' "$0"; exit 2; }
out=$(realpath -m "$1") ranks=$2
shift 2
cd "$(dirname "$0")/.."
[ "$(id -u)" != 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
built=$(cargo build --release --bench figures --message-format=json 2>/dev/null |
  sed -n 's/.*"executable":"\([^"]*figures-[^"]*\)".*/\1/p' | tail -1)
[ -x "$built" ] || { cargo build --release --bench figures; exit 1; }
exec mpirun -n "$ranks" --bind-to "${BIND:-core}" "$built" "$out" "$@"
