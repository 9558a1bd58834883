#!/usr/bin/env python3
"""One table of all measurements of `tests/gpu.sh`: our kernels and steps compared with PyTorch's and with the device's
rates of copies and of matrix products.

usage: table.py RESULTS FOLDER       writes FOLDER/<date>-<device>.md and prints its name

RESULTS holds `about` and `status` of tests/gpu.sh (lines of a key, a tab and a value), `bench.jsonl` of
benches/kernels, `peers.jsonl` of cuda/peers.py, `step.jsonl` of benches/step.py and `idle`, the summary printed with a
trace, `rates.json` and `simulated.json` of benches/rates.py. Each of these files may be missing. For every goal
(`goals.py`) the table reports whether it was met, missed or not measured. Needs no GPU and no packages beside Python's
standard library.
"""
import json, pathlib, re, sys

from goals import SHARE, goals


def stop(why):
    """Ends the program with a message for the user's mistakes."""
    print(f"error: {why}", file=sys.stderr)
    sys.exit(2)


def read(path, parse):
    """The parsed lines of a file, or an empty list if there is no such file."""
    lines = path.read_text().splitlines() if path.exists() else []
    try:
        return [parse(line) for line in lines if line]
    except ValueError as error:
        stop(f"{path}: {error}: not a result of tests/gpu.sh; delete it and measure again")


def objects(path):
    """The lines of a file as JSON objects."""
    def parse(line):
        value = json.loads(line)
        if not isinstance(value, dict):
            raise ValueError(f"{line} is no object")
        return value
    return read(path, parse)


class Results:
    def __init__(self, folder):
        if not folder.is_dir():
            stop(f"{folder} is no folder: name the results of tests/gpu.sh, target/gpu/results")
        pairs = lambda name: dict(read(folder / name, lambda line: line.split("\t", 1)))
        self.about, self.status = pairs("about"), pairs("status")
        bench, peers = objects(folder / "bench.jsonl"), objects(folder / "peers.jsonl")
        machine = lambda lines: next((line["machine"] for line in lines if "machine" in line), {})
        self.machine, self.torch = machine(bench), machine(peers)
        self.ours = [line for line in bench if "seconds" in line]
        self.wrong = [line for line in bench if "error" in line]
        self.peers = [line for line in peers if "seconds" in line]
        self.failed = [line for line in peers if "error" in line]
        self.steps = [line for line in objects(folder / "step.jsonl") if not line.get("smoke")]
        self.idle = " ".join(read(folder / "idle", str))
        whole = lambda name: json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        self.rates, self.simulated = whole("rates.json"), whole("simulated.json")

    def peers_of(self, line):
        return [p for p in self.peers if (p["name"], p["shape"]) == (line["name"], line["shape"])]

    def ceiling(self, name):
        """The highest rate of PyTorch in this comparison, in bytes or operations per second; None if not measured."""
        best = [(p["bytes"] or p["flops"]) / p["seconds"] for p in self.peers if p["name"] == name]
        return max(best, default=None)

    def share(self, line):
        """The line's share of the device's rate of copies, or of matrix products; None if that was not measured."""
        ceiling = self.machine.get("copy") if line["bytes"] else self.ceiling("matmul")
        return (line["bytes"] or line["flops"]) / line["seconds"] / ceiling if ceiling else None

    def memory_bound(self):
        """Our measurements of memory-bound kernels whose share is known."""
        return [line for line in self.ours if line["bytes"] and self.share(line) is not None]


def rate(line):
    if line["flops"]:
        return f"{line['flops'] / line['seconds'] / 1e12:.0f} TFLOP/s"
    return f"{line['bytes'] / line['seconds'] / 1e9:.0f} GB/s"


def label(line):
    return " ".join(filter(None, (line["name"], line["shape"], line.get("variant"))))


def percent(share):
    return "" if share is None else f"{share * 100:.0f} %"


def head(r):
    known = lambda what, value: [f"- {what}: {value}"] if value else []
    about = lambda what: known(what, r.about.get(what))
    ceilings = [f"the device's own copies {r.machine['copy'] / 1e9:.0f} GB/s"] if "copy" in r.machine else []
    ceilings += [f"PyTorch's copies {r.ceiling('copy') / 1e9:.0f} GB/s"] if r.ceiling("copy") else []
    ceilings += [f"bf16 products {r.ceiling('matmul') / 1e12:.0f} TFLOP/s"] if r.ceiling("matmul") else []
    torch = f"PyTorch {r.torch['torch']}, CUDA {r.torch['cuda']}, cuDNN {r.torch['cudnn']}" if r.torch else ""
    device, date = r.about.get("device", "an unknown device"), r.about.get("date", "at an unknown date")
    lines = [f"# Kernels and steps on {device}, {date}", ""]
    lines += about("commit") + about("driver") + about("clocks") + about("clocks after the benchmarks")
    lines += known("kernels compiled by", r.machine.get("kernels"))
    lines += known("compared with", torch) + known("ceilings, read and written", "; ".join(ceilings))
    return lines + [f"- {part}: {state}" for part, state in r.status.items()]


def table(r):
    lines = ["",
             "Times are medians. The share is of the device's copies, or of the bf16 products. A peer's time stands "
             "with how many times", "as long it takes as ours.", "",
             "| kernel | shape | of | us | rate | share | peers: us (times ours) |", "|---|---|---|---|---|---|---|"]
    us = lambda seconds: f"{seconds * 1e6:.1f}"
    for line in r.ours:
        peers = []
        for p in r.peers_of(line):
            note = f", {p['note']}" if p.get("note") else ""
            peers.append(f"{p['peer']} {us(p['seconds'])} ({p['seconds'] / line['seconds']:.2f}x{note})")
        cells = [line["name"], line["shape"], line.get("variant", ""), us(line["seconds"]), rate(line)]
        lines.append("| " + " | ".join([*cells, percent(r.share(line)), "; ".join(peers)]) + " |")
    return lines


def steps(r):
    """The table of full training steps, in the order in which they ran."""
    if not r.steps:
        return []
    lines = ["", "## Full training steps", "",
             "Turns in the order in which they ran; tokens/s as the median of the steps after the warm-up, slowest to "
             "fastest in brackets.", "",
             "| case | turn | of | tokens/s | MFU (full) | peak, GiB | first step done after |",
             "|---|---|---|---|---|---|---|"]
    for s in r.steps:
        if "error" in s:
            of, cells = s["who"], [f"failed: {s['error']}".replace("|", "/"), "", "", ""]
        else:
            of = s["who"] + (f", {s['compiled']}" if "compiled" in s else "")
            cells = [f"{s['tokens_per_s']:.0f} ({s['slowest']:.0f} to {s['fastest']:.0f})", percent(s["mfu_full"]),
                     f"{s['peak_used'] / 2**30:.1f}", f"{s['start_s']:.1f} s"]
        lines.append("| " + " | ".join([s["case"], str(s["turn"]), of, *cells]) + " |")
    return lines


def rates(r):
    """The rates for `plan --calibrate`, and the steps that are simulated with them."""
    if not r.rates:
        return []
    lines = ["", "## Rates", "", "For `plan --calibrate`, from the same run (`benches/rates.py`).", ""]
    lines += [f"- {key} = {rate:.4g}" for key, rate in r.rates["rates"].items()]
    for case, seconds in r.rates["steps"].items():
        by_plan = r.simulated.get(case)
        off = f"simulated {by_plan:.4g} s, {100 * (by_plan / seconds - 1):+.1f} %" if by_plan else "not simulated"
        lines.append(f"- a step of {case}: measured {seconds:.4g} s, {off}")
    return lines


def verdict(r):
    """The goals and whether they were met, then the kernels that are slow, wrong or not compared."""
    lines = ["", "## Beside the goals", ""] + goals(r) + ["", "In detail:", ""]
    bound = r.memory_bound()
    slow = [f"{label(line)} ({percent(r.share(line))})" for line in bound if r.share(line) < SHARE]
    slower = f"; not {', '.join(slow)}" if slow else ""
    reached = f"{len(bound) - len(slow)} of {len(bound)}"
    lines.append(f"- at {SHARE * 100:.0f} % of the copies' rate or more: {reached}{slower}")
    behind = [f"{label(line)} ({p['peer']}, {p['seconds'] / line['seconds']:.2f}x)"
              for line in r.ours for p in r.peers_of(line) if p["seconds"] < line["seconds"]]
    lines.append("- slower than a peer: " + (", ".join(behind) if behind else "none"))
    lines += [f"- WRONG: {label(line)}: {line['error']}" for line in r.wrong]
    lines += [f"- not compared: {label(p)}, {p['peer']}: {p['error']}" for p in r.failed]
    return lines


def main(results, folder):
    r = Results(pathlib.Path(results))
    if not r.ours and not r.peers and not r.steps:
        sys.exit(f"table: nothing was measured in {results}")
    title = f"{r.about.get('date', 'undated')}-{r.about.get('device', 'device')}"
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    path = pathlib.Path(folder) / f"{name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(head(r) + steps(r) + table(r) + verdict(r) + rates(r)) + "\n")
    print(path)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
