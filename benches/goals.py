"""The performance goals on a device, and whether they were met: `table.py` prints a line for each of them."""
import re, statistics

# Memory-bound kernels: the share to reach of the rate at which the device copies.
SHARE = 0.8
# Attention: the speed to reach relative to PyTorch's, with the flash backend and deterministic gradients, and with the
# cuDNN backend.
FLASH, CUDNN = 1.0, 0.8
# A full step: the tokens/s to reach relative to PyTorch's, and the share to reach of the device's peak by the formula
# `full`; each with the higher value that is aimed for.
STEP, STEP_AIM = 1.0, 1.15
MFU, MFU_AIM = 0.55, 0.62
# The share of a step's time to stay below, in which the device computes nothing.
GAPS = 0.03


def goals(r):
    return [flash(r), cudnn(r), bandwidth(r), *full_steps(r), mfu(r), gaps(r), memory(r)]


def at_least(what, value, goal, show, detail="", aim=None):
    """A line that compares the measured value with its goal; `value` is None if it was not measured."""
    aims = f" (aim: {show(aim)})" if aim else ""
    head = f"- {what}, at least {show(goal)}{aims}: "
    if value is None:
        return head + "not measured"
    reached = " and the aim with it" if aim and value >= aim else ""
    verdict = f"met{reached}" if value >= goal else f"missed by {show(goal - value)}"
    return f"{head}{show(value)}{detail}: {verdict}"


def times(x):
    return f"{x:.2f}x"


def share(x):
    return f"{x * 100:.1f} %"


def attention(r, allowed):
    """The lowest speed of our attention relative to the fastest allowed peer, and the kernel and shape of it."""
    best = {}
    for line in r.ours:
        # Several variants of a kernel may be measured at one shape; the fastest is the one that the device would use.
        key = (line["name"], line["shape"])
        if line["name"].startswith("attention") and (key not in best or line["seconds"] < best[key]["seconds"]):
            best[key] = line
    ratios = []
    for (name, shape), line in best.items():
        seconds = [p["seconds"] for p in r.peers_of(line) if allowed(name, p["peer"])]
        ratios += [(min(seconds) / line["seconds"], f" at {name} {shape}")] if seconds else []
    return min(ratios, default=(None, ""))


def flash(r):
    # The order of sums matters in the backward pass only: ours is deterministic, so only deterministic peers compare.
    allowed = lambda name, peer: "flash" in peer and (name == "attention" or "deterministic" in peer)
    value, detail = attention(r, allowed)
    return at_least("attention beside PyTorch's flash, deterministic", value, FLASH, times, detail)


def cudnn(r):
    value, detail = attention(r, lambda name, peer: "cuDNN" in peer)
    return at_least("attention beside cuDNN's", value, CUDNN, times, detail)


def bandwidth(r):
    shares = [(r.share(line), f" by {line['name']} {line['shape']}") for line in r.memory_bound()]
    value, detail = min(shares, default=(None, ""))
    return at_least("memory-bound kernels, of the copies' rate", value, SHARE, share, detail)


def measured(r, who):
    """The turns of one side that did not fail, by case."""
    by_case = {}
    for s in r.steps:
        if s["who"] == who and "error" not in s:
            by_case.setdefault(s["case"], []).append(s)
    return by_case


def full_steps(r):
    """A line for each case: the medians of both sides, which were measured in turns in the same run."""
    ours, theirs = measured(r, "engine"), measured(r, "torch.compile")
    cases = list(dict.fromkeys(s["case"] for s in r.steps)) or [None]
    median = lambda turns: statistics.median(s["tokens_per_s"] for s in turns)
    ratio = lambda case: median(ours[case]) / median(theirs[case]) if case in ours and case in theirs else None
    name = lambda case: f"a full step beside torch.compile{f', {case}' if case else ''}"
    return [at_least(name(case), ratio(case), STEP, times, aim=STEP_AIM) for case in cases]


def mfu(r):
    cases = {case: statistics.median(s["mfu_full"] for s in turns) for case, turns in measured(r, "engine").items()}
    value, detail = max(((value, f" by {case}") for case, value in cases.items()), default=(None, ""))
    return at_least("MFU of a full step (formula full, of 989 TFLOP/s)", value, MFU, share, detail, MFU_AIM)


def gaps(r):
    head = f"- exposed communication and host gaps of a step, under {share(GAPS)}: "
    found = re.search(r"nothing computed in ([0-9.]+) %", r.idle)
    if not found:
        return head + "not measured"
    value = float(found[1]) / 100
    return f"{head}{share(value)}: " + ("met" if value < GAPS else f"missed by {share(value - GAPS)}")


def memory(r):
    turns = [s for s in r.steps if s["who"] == "engine" and "error" not in s]
    if not turns:
        return "- peak memory as planned: not measured"
    off = max(abs(s["peak_used"] - s["peak_planned"]) for s in turns)
    off = max([off] + [abs(s["blocks_used"] - s["blocks_planned"]) for s in turns])
    verdict = f"{turns[-1]['peak_used'] / 2**30:.2f} GiB: met" if off == 0 else f"missed by {off} bytes"
    return "- peak memory as planned: " + verdict
