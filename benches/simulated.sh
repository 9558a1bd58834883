#!/usr/bin/env bash
# Compares the simulated step of two CPU ranks, each on its own core, with the measured one: data, tensor and pipeline
# parallel. The simulation uses figures that benches/figures.sh measures just before.
#
# usage: benches/simulated.sh [SHAPE]      SHAPE: small | grouped; default: grouped
# ROUNDS is the number of rounds (default: 3), STEPS the number of steps of a round (default: 12); PYTHON names a Python
# with numpy (default: python3).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} engine=${ENGINE:-target/release/swallow-engine}
rounds=${ROUNDS:-3} steps=${STEPS:-12} shape=${1:-grouped}
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
source benches/shapes.sh
[ "$(id -u)" != 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
prepare "$shape" 2

# compare NAME KEY=VALUE...
compare() {
  local name=$1 key set=()
  shift
  rm -rf "$tmp/run"
  for key in train.micro_batch_size=1 train.global_batch_size=8 "$@"; do set+=(--set "$key"); done
  benches/figures.sh "$tmp/figures.json" 2 "$tmp/$shape.toml" \
    train.micro_batch_size=1 train.global_batch_size=8 "$@" >/dev/null
  mpirun -n 2 --bind-to core "$engine" train --config "$tmp/$shape.toml" "${set[@]}" >/dev/null 2>"$tmp/err" || {
    cat "$tmp/err"
    exit 1
  }
  "$engine" plan --config "$tmp/$shape.toml" --ranks 2 "${set[@]}" --calibrate "$tmp/figures.json" --json \
    >"$tmp/run/plan.json"
  "$python" - "$tmp/run" "$shape, $name" <<'PY'
import json, statistics, sys
run, name = sys.argv[1:]
steps = [json.loads(line)["step_time_s"] for line in open(run + "/metrics.jsonl")]
measured, plan = statistics.median(steps[3:]), json.load(open(run + "/plan.json"))["step"]
seconds = plan["seconds"]
off = 100 * (seconds / measured - 1)
print(f"{name}: measured {measured:.3f} s a step, simulated {seconds:.3f} s, {off:+.1f} %", end="")

# The boxes of a timeline by rank, each with its middle as a share of the step. A plan has one rank of each stage only.
def boxes(timeline):
    works = lambda row: [s for s in row["stretches"] if "micro_batch" in s]
    middle = lambda s: (s["what"], s["micro_batch"], (s["start"] + s["end"]) / 2 / timeline["seconds"])
    return {row["rank"]: [middle(s) for s in works(row)] for row in timeline["ranks"]}

ran, planned = boxes(json.load(open(run + "/timeline.json"))), boxes(plan["timeline"])
same = all([box[:2] for box in planned[rank]] == [box[:2] for box in ran[rank]] for rank in planned)
off = statistics.mean(abs(a[2] - b[2]) for rank in planned for a, b in zip(planned[rank], ran[rank]))
print(f"; boxes {'in the same order' if same else 'IN ANOTHER ORDER'}, {100 * off:.1f} % of the step away", flush=True)
PY
}

for _ in $(seq "$rounds"); do
  compare "pipeline" parallel.pipeline=2
  compare "tensor" parallel.tensor=2
  compare "data"
done
