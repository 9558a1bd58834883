#!/usr/bin/env python3
"""One table of what `tests/gpu.sh` has measured: ours beside PyTorch's, and beside what the device copies and multiplies.

usage: table.py RESULTS FOLDER       writes FOLDER/<date>-<device>.md and prints its name

RESULTS holds `about` and `status` of tests/gpu.sh (lines of key and value, a tab between them), `bench.jsonl` of benches/kernels,
`peers.jsonl` of cuda/peers.py, `step.jsonl` of benches/step.py and `idle`, what a trace said. What is missing is left out, and said
so: of every goal (`goals.py`) the table says whether it was met, missed or not measured. Needs no GPU and nothing beside Python.
"""
import json, pathlib, re, sys

from goals import SHARE, goals


def read(path, parse):
    """The lines of a file, or none where it is not there."""
    return [parse(line) for line in path.read_text().splitlines() if line] if path.exists() else []


class Results:
    def __init__(self, folder):
        pairs = lambda name: dict(read(folder / name, lambda line: line.split("\t", 1)))
        self.about, self.status = pairs("about"), pairs("status")
        bench, peers = read(folder / "bench.jsonl", json.loads), read(folder / "peers.jsonl", json.loads)
        machine = lambda lines: next((line["machine"] for line in lines if "machine" in line), {})
        self.machine, self.torch = machine(bench), machine(peers)
        self.ours = [line for line in bench if "seconds" in line]
        self.wrong = [line for line in bench if "error" in line]
        self.peers = [line for line in peers if "seconds" in line]
        self.failed = [line for line in peers if "error" in line]
        self.steps = [line for line in read(folder / "step.jsonl", json.loads) if not line["smoke"]]
        self.idle = " ".join(read(folder / "idle", str))

    def peers_of(self, line):
        return [p for p in self.peers if (p["name"], p["shape"]) == (line["name"], line["shape"])]

    def ceiling(self, name):
        """Bytes or operations a second of PyTorch."""
        best = [(p["bytes"] or p["flops"]) / p["seconds"] for p in self.peers if p["name"] == name]
        return max(best, default=None)

    def share(self, line):
        """Of what the device copies, or of what it multiplies; None where that was not measured."""
        ceiling = self.machine.get("copy") if line["bytes"] else self.ceiling("matmul")
        return (line["bytes"] or line["flops"]) / line["seconds"] / ceiling if ceiling else None


def rate(line):
    return f"{line['flops'] / line['seconds'] / 1e12:.0f} TFLOP/s" if line["flops"] else f"{line['bytes'] / line['seconds'] / 1e9:.0f} GB/s"


def label(line):
    return " ".join(filter(None, (line["name"], line["shape"], line.get("variant"))))


def percent(share):
    return "" if share is None else f"{share * 100:.0f} %"


def head(r):
    known = lambda what, value: [f"- {what}: {value}"] if value else []
    ceilings = [f"the device's own copies {r.machine['copy'] / 1e9:.0f} GB/s"] if "copy" in r.machine else []
    ceilings += [f"PyTorch's copies {r.ceiling('copy') / 1e9:.0f} GB/s"] if r.ceiling("copy") else []
    ceilings += [f"bf16 products {r.ceiling('matmul') / 1e12:.0f} TFLOP/s"] if r.ceiling("matmul") else []
    torch = f"PyTorch {r.torch['torch']}, CUDA {r.torch['cuda']}, cuDNN {r.torch['cudnn']}" if r.torch else ""
    lines = [f"# Kernels and steps on {r.about.get('device', 'an unknown device')}, {r.about.get('date', 'at an unknown date')}", ""]
    lines += known("commit", r.about.get("commit")) + known("driver", r.about.get("driver"))
    lines += known("clocks", r.about.get("clocks")) + known("clocks after the benchmarks", r.about.get("clocks after the benchmarks"))
    lines += known("kernels compiled by", r.machine.get("kernels"))
    lines += known("compared with", torch) + known("ceilings, read and written", "; ".join(ceilings))
    return lines + [f"- {part}: {state}" for part, state in r.status.items()]


def table(r):
    lines = ["", "Times are medians. The share is of the device's copies, or of the bf16 products. A peer's time stands with how many times",
             "as long it takes as ours.", "", "| kernel | shape | of | us | rate | share | peers: us (times ours) |", "|---|---|---|---|---|---|---|"]
    for line in r.ours:
        us = lambda seconds: f"{seconds * 1e6:.1f}"
        peers = "; ".join(f"{p['peer']} {us(p['seconds'])} ({p['seconds'] / line['seconds']:.2f}x{', ' + p['note'] if p.get('note') else ''})" for p in r.peers_of(line))
        cells = [line["name"], line["shape"], line.get("variant", ""), us(line["seconds"]), rate(line), percent(r.share(line)), peers]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def steps(r):
    """Full steps, in the order in which they ran."""
    if not r.steps:
        return []
    lines = ["", "## Full training steps", "", "Turns in the order in which they ran; tokens/s as the median of the steps after the warm-up, slowest to fastest in brackets.",
             "", "| case | turn | of | tokens/s | MFU (full) | peak, GiB | first step done after |", "|---|---|---|---|---|---|---|"]
    for s in r.steps:
        if "error" in s:
            cells = [f"failed: {s['error']}".replace("|", "/"), "", "", ""]
        else:
            of = s["who"] + (f", {s['compiled']}" if "compiled" in s else "")
            cells = [f"{s['tokens_per_s']:.0f} ({s['slowest']:.0f} to {s['fastest']:.0f})", percent(s["mfu_full"]), f"{s['peak_used'] / 2**30:.1f}", f"{s['start_s']:.1f} s"]
        lines.append("| " + " | ".join([s["case"], str(s["turn"]), s["who"] if "error" in s else of, *cells]) + " |")
    return lines


def verdict(r):
    """What was to be reached, and what was not."""
    lines = ["", "## Beside the goals", ""] + goals(r) + ["", "In detail:", ""]
    bound = [line for line in r.ours if line["bytes"] and r.share(line) is not None]
    slow = [f"{label(line)} ({percent(r.share(line))})" for line in bound if r.share(line) < SHARE]
    lines.append(f"- at {SHARE * 100:.0f} % of the copies' rate or more: {len(bound) - len(slow)} of {len(bound)}" + (f"; not {', '.join(slow)}" if slow else ""))
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
    name = re.sub(r"[^a-z0-9]+", "-", f"{r.about.get('date', 'undated')}-{r.about.get('device', 'device')}".lower()).strip("-")
    path = pathlib.Path(folder) / f"{name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(head(r) + steps(r) + table(r) + verdict(r)) + "\n")
    print(path)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
