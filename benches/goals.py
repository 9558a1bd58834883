#!/usr/bin/env python3
"""The performance goals on a device, a line for each: met (PASS), missed (FAIL) or not measured.

usage: goals.py RESULTS       prints the goals, by the results of `tests/gpu.sh`; `table.py` has the same lines

Beside a goal stand the speed relative to the peers, in their deterministic modes and as they are by default, and the
speed of light: the share of what the device could do at best, which is its rate of copies for memory-bound kernels and
its rate of large matrix products, measured in the same run, for everything else. Our kernels are deterministic always.
"""
import re, statistics, sys

# Memory-bound kernels: the share to reach of the rate at which the device copies.
SHARE = 0.8
# Attention: the speed to reach relative to PyTorch's, with the flash backend, whose gradients are deterministic where
# that was asked for, and with the cuDNN backend.
FLASH, FLASH_DEFAULT, CUDNN = 1.0, 0.9, 0.8
PASSES = {"attention": "attention forward", "attention_bwd": "attention backward",
          "attention_both": "both passes of attention"}
# Attention beside published figures, causal with heads of 128: the share to reach; and by devices, kernel and positions
# the TFLOP/s of FlashAttention-2 and of FlashAttention-3, from the plots in their repository.
PUBLISHED = 0.9
FIGURES = [("A100", "attention_both", 4096, 173, "FlashAttention-2"),
           ("A100", "attention_both", 8192, 182, "FlashAttention-2"),
           ("H100 H200", "attention", 4096, 579, "FlashAttention-3"),
           ("H100 H200", "attention", 8192, 602, "FlashAttention-3")]
# A full step: the tokens/s to reach relative to PyTorch's, and the share to reach of the device's peak by the formula
# `full`; each with the higher value that is aimed for.
STEP, STEP_AIM = 1.0, 1.15
MFU, MFU_AIM = 0.55, 0.62
# The dense bf16 peaks of the devices, operations a second.
PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}
# The peak by which benches/step.py computes the MFU.
STEP_PEAK = 989e12
# The share of a step's time to stay below, in which the device computes nothing.
GAPS = 0.03
# MFU by the formula `full` on many A100-40GB, which one device cannot measure.
CLUSTER = [("7B or 8B, tensor 2", 0.58), ("13B", 0.57), ("70B, tensor 8 x pipeline 8", 0.52)]


def goals(r):
    return [*attention(r), *published(r), *bandwidth(r), *full_steps(r), mfu(r), *cluster(), gaps(r), memory(r)]


def at_least(what, value, goal, show, beside=(), aim=None):
    """A line that compares the measured value with its goal; `value` is None if it was not measured."""
    aims = f" (aim: {show(aim)})" if aim else ""
    head = f"{what}, at least {show(goal)}{aims}"
    if value is None:
        return f"- not measured: {head}"
    reached = "the aim is reached" if aim and value >= aim else None
    missed = f"missed by {show(goal - value)}" if value < goal else None
    facts = "; ".join(filter(None, [show(value), *beside, reached, missed]))
    return f"- {'FAIL' if missed else 'PASS'}: {head}: {facts}"


def times(x):
    return f"{x:.2f}x"


def share(x):
    return f"{x * 100:.1f} %"


def tflops(x):
    return f"{x:.0f} TFLOP/s"


def light(value):
    return None if value is None else f"speed of light {share(value)}"


def is_deterministic(peer):
    return "deterministic" in peer


def beside(r, line, which):
    """How much faster the line is than the fastest of these peers at its shape; None if there is none."""
    seconds = [p["seconds"] for p in r.peers_of(line) if which(p["peer"])]
    return min(seconds) / line["seconds"] if seconds else None


def both_modes(r, line):
    """The speed relative to the fastest peer in a deterministic mode, and to the fastest as it is by default."""
    modes = {"deterministic": is_deterministic, "default": lambda peer: not is_deterministic(peer)}
    found = {mode: beside(r, line, which) for mode, which in modes.items()}
    return "; ".join(f"{mode} peer {times(ratio)}" for mode, ratio in found.items() if ratio is not None)


def fastest(r, name):
    """Our line of each shape. Of several variants the fastest is the one that the device would use."""
    best = {}
    for line in r.ours:
        if line["name"] == name and (line["shape"] not in best or line["seconds"] < best[line["shape"]]["seconds"]):
            best[line["shape"]] = line
    return list(best.values())


def attention(r):
    """For each pass and kind of peer a line, by the shape at which ours is slowest beside it."""
    def line(name, of, which, goal):
        ratios = [(beside(r, line, which), line) for line in fastest(r, name)]
        ratio, worst = min((x for x in ratios if x[0] is not None), default=(None, None), key=lambda x: x[0])
        notes = (f"at {worst['shape']}", both_modes(r, worst), light(r.share(worst))) if worst else ()
        return at_least(f"{PASSES[name]} beside {of}", ratio, goal, times, notes)

    lines = []
    for name in PASSES:
        flash = lambda peer: "flash" in peer and not is_deterministic(peer)
        cudnn = lambda peer: "cuDNN" in peer
        # The order of sums matters in the backward pass only.
        if name == "attention":
            lines.append(line(name, "PyTorch's flash", flash, FLASH))
        else:
            ordered = lambda peer: "flash" in peer and is_deterministic(peer)
            lines.append(line(name, "PyTorch's flash, deterministic", ordered, FLASH))
            lines.append(line(name, "PyTorch's flash by default", flash, FLASH_DEFAULT))
        lines.append(line(name, "cuDNN's by default", cudnn, CUDNN))
    return lines


def published(r):
    """Lines for the figures that were published for this kind of device."""
    device, lines = r.about.get("device", ""), []
    for devices, name, seq, figure, whose in FIGURES:
        if any(word in device for word in devices.split()):
            found = [line for line in fastest(r, name) if re.fullmatch(rf"{seq}, .* x 128", line["shape"])]
            rate = found[0]["flops"] / found[0]["seconds"] / 1e12 if found else None
            what = f"{PASSES[name]} of {seq} positions, {PUBLISHED * 100:.0f} % of {whose}'s {figure}"
            lines.append(at_least(what, rate, PUBLISHED * figure, tflops, [light(r.share(found[0]))] if found else ()))
    return lines


def bandwidth(r):
    """A line for each memory-bound kernel, by the shape at which it is slowest."""
    worst = {}
    for line in r.memory_bound():
        if line["name"] not in worst or r.share(line) < r.share(worst[line["name"]]):
            worst[line["name"]] = line
    # The share of the copies' rate is the speed of light.
    of_copies = "share of the copies' rate, the speed of light"
    lines = [at_least(f"{name}, {of_copies}", r.share(line), SHARE, share,
                      [f"at {line['shape']}", both_modes(r, line)]) for name, line in worst.items()]
    return lines or [at_least(f"memory-bound kernels, {of_copies}", None, SHARE, share)]


def measured(r, who):
    """The turns of one side that did not fail, by case."""
    by_case = {}
    for s in r.steps:
        if s["who"] == who and "error" not in s:
            by_case.setdefault(s["case"], []).append(s)
    return by_case


def peak(r):
    """The peak of the device; that of an H200 where it has another name."""
    return next((peak for word, peak in PEAKS.items() if word in r.about.get("device", "")), PEAKS["H200"])


def full_steps(r):
    """Lines for each case: the medians of the sides, which were measured in turns in the same run."""
    ours = measured(r, "engine")
    cases = list(dict.fromkeys(s["case"] for s in r.steps)) or [None]
    median = lambda turns, key: statistics.median(s[key] for s in turns)
    matmul = r.ceiling("matmul")

    def line(case, who):
        theirs = measured(r, who)
        what = f"a full step beside {who}{f', {case}' if case else ''}"
        if case not in ours or case not in theirs:
            return at_least(what, None, STEP, times, aim=STEP_AIM)
        ratio = median(ours[case], "tokens_per_s") / median(theirs[case], "tokens_per_s")
        part = light(median(ours[case], "mfu_full") * STEP_PEAK / matmul if matmul else None)
        return at_least(what, ratio, STEP, times, [part], STEP_AIM)

    return [line(case, who) for case in cases for who in ("torch.compile, deterministic", "torch.compile")]


def mfu(r):
    of_device = lambda step: step["mfu_full"] * STEP_PEAK / peak(r)
    cases = {case: statistics.median(map(of_device, turns)) for case, turns in measured(r, "engine").items()}
    value, case = max(((value, case) for case, value in cases.items()), default=(None, ""))
    what = f"MFU of a full step (formula full, of {peak(r) / 1e12:.0f} TFLOP/s)"
    return at_least(what, value, MFU, share, [f"by {case}"], MFU_AIM)


def cluster():
    return [at_least(f"MFU of {what} on A100-40GB (formula full)", None, goal, share) for what, goal in CLUSTER]


def gaps(r):
    head = f"exposed communication and host gaps of a step, under {share(GAPS)}"
    found = re.search(r"nothing computed in ([0-9.]+) %", r.idle)
    if not found:
        return f"- not measured: {head}"
    value = float(found[1]) / 100
    if value < GAPS:
        return f"- PASS: {head}: {share(value)}"
    return f"- FAIL: {head}: {share(value)}; missed by {share(value - GAPS)}"


def memory(r):
    turns = [s for s in r.steps if s["who"] == "engine" and "error" not in s]
    if not turns:
        return "- not measured: peak memory as planned"
    off = max(abs(s["peak_used"] - s["peak_planned"]) for s in turns)
    off = max([off] + [abs(s["blocks_used"] - s["blocks_planned"]) for s in turns])
    if off:
        return f"- FAIL: peak memory as planned: missed by {off} bytes"
    return f"- PASS: peak memory as planned: {turns[-1]['peak_used'] / 2**30:.2f} GiB"


def main(results):
    import pathlib
    from table import Results, stop
    r = Results(pathlib.Path(results))
    if not r.ours and not r.peers and not r.steps:
        stop(f"{results} has no measurements: name the results of tests/gpu.sh, target/gpu/results")
    print("\n".join(goals(r)))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
