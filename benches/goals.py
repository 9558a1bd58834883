"""What was to be reached on a device, and whether it was: `table.py` prints a line for each goal."""
import re, statistics

# Of the copies' rate, what memory-bound kernels are to reach.
SHARE = 0.8
# Of the speed of PyTorch's attention: with the flash backend and deterministic gradients, and with cuDNN's.
FLASH, CUDNN = 1.0, 0.8
# Of PyTorch's tokens/s, and of the device's peak by the formula `full`; then what is aimed for.
STEP, STEP_AIM = 1.0, 1.15
MFU, MFU_AIM = 0.55, 0.62
# Of a step, in which nothing may compute.
GAPS = 0.03


def goals(r):
    return [flash(r), cudnn(r), bandwidth(r), *full_steps(r), mfu(r), gaps(r), memory(r)]


def at_least(what, value, goal, show, detail="", aim=None):
    """A line that says what was reached; `value` is None where it was not measured."""
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
    """Our least advantage over the fastest of the allowed peers, and where that is."""
    best = {}
    for line in r.ours:
        # Several kernels may be measured at a shape; the fastest is the device's own.
        key = (line["name"], line["shape"])
        if line["name"].startswith("attention") and (key not in best or line["seconds"] < best[key]["seconds"]):
            best[key] = line
    ratios = []
    for (name, shape), line in best.items():
        seconds = [p["seconds"] for p in r.peers_of(line) if allowed(name, p["peer"])]
        ratios += [(min(seconds) / line["seconds"], f" at {name} {shape}")] if seconds else []
    return min(ratios, default=(None, ""))


def flash(r):
    # Forward there is but one order; backward only the deterministic one is what ours does.
    allowed = lambda name, peer: "flash" in peer and (name == "attention" or "deterministic" in peer)
    value, detail = attention(r, allowed)
    return at_least("attention beside PyTorch's flash, deterministic", value, FLASH, times, detail)


def cudnn(r):
    value, detail = attention(r, lambda name, peer: "cuDNN" in peer)
    return at_least("attention beside cuDNN's", value, CUDNN, times, detail)


def bandwidth(r):
    bound = [(r.share(line), f" by {line['name']} {line['shape']}") for line in r.ours if line["bytes"] and r.share(line) is not None]
    value, detail = min(bound, default=(None, ""))
    return at_least("memory-bound kernels, of the copies' rate", value, SHARE, share, detail)


def measured(r, who):
    """Tokens/s by case: the median of the turns."""
    by_case = {}
    for s in r.steps:
        if s["who"] == who and "error" not in s:
            by_case.setdefault(s["case"], []).append(s)
    return by_case


def full_steps(r):
    """A line a case: both sides in the same run."""
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
    return "- peak memory as planned: " + (f"{turns[-1]['peak_used'] / 2**30:.2f} GiB: met" if off == 0 else f"missed by {off} bytes")
