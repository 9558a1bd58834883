#!/usr/bin/env python3
"""The rates that a device reached, out of the results of `tests/gpu.sh`, for `swallow-engine plan --calibrate`.

usage: rates.py RESULTS [ENGINE]

Writes RESULTS/rates.json: `device` and `memory_gib`; `rates`, each only if it was measured; and for the reader `date`,
`commit` and `steps`, the measured seconds of a step. With ENGINE, the program, it also writes RESULTS/simulated.json:
the seconds of the same steps as `plan` simulates them with these rates.

| rate | made of |
| --- | --- |
| matmul_tflops | all matrix products of the traced step (`trace.json`) |
| attention_tflops, attention_backward_tflops | attention with heads of 128 elements (`bench.jsonl`) |
| memory_gb_s | norms, SwiGLU, rotary positions and the gradient of the loss (`bench.jsonl`) |
| adamw_gb_s, rmsnorm_backward_gb_s, xent_stats_gb_s | the kernels of these names (`bench.jsonl`) |

A rate is the sum of operations or bytes over the sum of seconds. `steps` comes from `step.jsonl`.
"""
import json, pathlib, re, statistics, subprocess, sys

from goals import fastest, measured
from table import Results, stop

# The kernels that a rate is made of; the names are those of benches/kernels.
KERNELS = {
    "memory_gb_s": ["rmsnorm", "add_rmsnorm", "swiglu", "swiglu_bwd", "rope", "xent_grad"],
    "adamw_gb_s": ["adamw"],
    "rmsnorm_backward_gb_s": ["rmsnorm_bwd", "rmsnorm_bwd_add"],
    "xent_stats_gb_s": ["xent_stats"],
}
ATTENTION = {"attention_tflops": "attention", "attention_backward_tflops": "attention_bwd"}


def over(lines, work):
    """The work of all lines over their seconds; None without lines."""
    return sum(line[work] for line in lines) / sum(line["seconds"] for line in lines) if lines else None


def products(path):
    """Operations and seconds of the matrix products of a trace."""
    events = json.loads(path.read_text())["traceEvents"] if path.exists() else []
    lines = []
    for event in events:
        found = re.search(r"^matmul .* m x n x k = (\d+) x (\d+) x (\d+)$", event["name"])
        if found and event["ph"] == "X":
            m, n, k = map(int, found.groups())
            lines.append(dict(flops=2 * m * n * k, seconds=event["dur"] / 1e6))
    return lines


def rates(r, trace):
    found = {"matmul_tflops": (over(products(trace), "flops"), 1e12)}
    for key, name in ATTENTION.items():
        lines = [line for line in fastest(r, name) if line["shape"].endswith(" x 128")]
        found[key] = (over(lines, "flops"), 1e12)
    for key, names in KERNELS.items():
        found[key] = (over([line for line in r.memory_bound() if line["name"] in names], "bytes"), 1e9)
    return {key: rate / unit for key, (rate, unit) in found.items() if rate}


def steps(r):
    """The median seconds of our step, by case."""
    return {case: statistics.median(s["step_s"] for s in turns) for case, turns in measured(r, "engine").items()}


def simulated(engine, path, case):
    """The seconds of a case's step by the plan with these rates; None if they do not suffice."""
    from step import Case
    case = Case(case, smoke=False)
    command = [engine, "plan", "--config", case.path, *case.sets(), "--calibrate", path, "--json"]
    plan = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if plan.returncode:
        print(f"rates: {case.name} is not simulated: {plan.stderr.strip()}", file=sys.stderr)
        return None
    return json.loads(plan.stdout)["step"]["seconds"]


def main(results, engine=None):
    results = pathlib.Path(results)
    r = Results(results)
    if "memory" not in r.machine:
        stop(f"{results}/bench.jsonl does not describe the device: measure with the part bench of tests/gpu.sh")
    path = results / "rates.json"
    about = {key: r.about[key] for key in ("date", "commit") if key in r.about}
    line = dict(device=r.machine["device"], memory_gib=r.machine["memory"] / 2**30, **about,
                rates=rates(r, results / "trace.json"), steps=steps(r))
    path.write_text(json.dumps(line, indent=2) + "\n")
    if engine:
        seconds = {case: simulated(engine, path, case) for case in line["steps"]}
        (results / "simulated.json").write_text(json.dumps({c: s for c, s in seconds.items() if s}, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
