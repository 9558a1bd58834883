#!/usr/bin/env python3
"""A full training step of the engine compared with PyTorch's, on the same device, in turns: ours, theirs, theirs in its
deterministic mode, ours, theirs.

usage: step.py [--json FILE] [--trace FILE] [--engine PROGRAM] [--runs FOLDER] [--seconds 480] [--smoke] CASE...

A case names a file of configs/bench and a micro-batch: wide-8b-1, wide-8b-2, llama-1b-4. Both sides train on random
tokens, with the same global batch, clipping and AdamW; PyTorch's side is `cuda/peers.py step`. Each turn appends a line
to the file of `--json`:

- tokens/s, from the median time of the steps after the warm-up; a step lasts from its start to the start of the next,
- the share of the device's 989 TFLOP/s by the formula `full`,
- peak memory,
- the seconds from the start of the process to the end of its first step.

For a turn that fails the line has the error instead. `--trace FILE` runs one turn of the engine alone, and writes the
trace of one step for Perfetto. `--smoke` makes both sides tiny and runs PyTorch on the CPU: it tests this file and
measures nothing.
"""
import argparse, json, os, pathlib, random, re, shutil, signal, statistics, struct, subprocess, sys, time, tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
PEAK = 989e12
WARM_UP = 5
# The most seconds of one side's turn, and the seconds that must be left for a case to be started.
TURN, LEAST = 240, 400
TINY = {"model": dict(hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2,
                      num_key_value_heads=1, vocab_size=512, max_position_embeddings=64),
        "train": dict(seq_length=64, micro_batch_size=1, global_batch_size=2, steps=7)}


class Case:
    def __init__(self, name, smoke):
        found = re.fullmatch(r"(.+)-(\d+)", name)
        self.path = ROOT / "configs/bench" / f"{found[1]}.toml" if found else None
        if not found or not self.path.exists():
            sys.exit(f"step: there is no case {name}: a file of configs/bench and a micro-batch, as wide-8b-2")
        self.name, self.smoke = name, smoke
        # The ways to compile PyTorch's model, the fastest first; if one fails with this PyTorch, the next is tried.
        ways = [("whole", "grouped"), ("whole", "expanded"), ("blocks", "expanded")]
        self.ways = {"default": list(ways), "deterministic": list(ways)}
        self.config = tomllib.loads(self.path.read_text())
        self.changes = {"train": {"micro_batch_size": int(found[2])}}
        if smoke:
            self.changes = TINY
        for table, keys in self.changes.items():
            self.config[table].update(keys)

    @property
    def tokens(self):
        """The tokens of a step."""
        return self.config["train"]["global_batch_size"] * self.config["train"]["seq_length"]

    def sets(self):
        """The changes to the configuration as flags of the engine."""
        pairs = [f"{table}.{key}={value}" for table, keys in self.changes.items() for key, value in keys.items()]
        return [word for pair in pairs for word in ("--set", pair)]

    def flops(self):
        """The FLOPs of a token, forward and backward, with attention counted for all positions: the formula `full`."""
        m = self.config["model"]
        h, kv = m["hidden_size"], m["num_key_value_heads"] * m["hidden_size"] // m["num_attention_heads"]
        attention = 4 * self.config["train"]["seq_length"] * h
        layer = 2 * (2 * h * h + 2 * h * kv + 3 * h * m["intermediate_size"]) + attention
        return 3 * (m["num_hidden_layers"] * layer + 2 * h * m["vocab_size"])


def write_tokens(prefix, vocab, tokens):
    """Writes random ids in Megatron's .bin and .idx format: one document of 32-bit tokens."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    draw = random.Random(1)
    prefix.with_suffix(".bin").write_bytes(struct.pack(f"<{tokens}i", *(draw.randrange(vocab) for _ in range(tokens))))
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 4, 1, 2)
    prefix.with_suffix(".idx").write_bytes(head + struct.pack("<iqqq", tokens, 0, 0, 1))


def run(command, log, limit, **variables):
    """Runs a command with additional environment variables, and logs what it prints.

    Returns pairs for the lines that it printed: the seconds from its start to the line, and the line.
    """
    start, lines = time.monotonic(), []
    with open(log, "w") as out:
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                 env={**os.environ, **variables}, start_new_session=True)
        signal.signal(signal.SIGALRM, lambda *_: os.killpg(child.pid, signal.SIGKILL))
        signal.alarm(max(1, int(limit)))
        for line in child.stdout:
            lines.append((time.monotonic() - start, line.rstrip()))
            print(f"{lines[-1][0]:8.2f} {line.rstrip()}", file=out, flush=True)
        code = child.wait()
        signal.alarm(0)
    if code:
        said = next((text for _, text in reversed(lines) if "rror" in text), lines[-1][1] if lines else "")
        took = time.monotonic() - start
        raise RuntimeError(f"ended with {code} after {took:.0f} s: {said.strip()[:300]} (see {log})")
    return lines


def rates(case, seconds):
    """Rates of the steps after the warm-up, from the seconds of all steps."""
    step = statistics.median(seconds[WARM_UP:])
    per_s = case.tokens / step
    spread = [case.tokens / s for s in (max(seconds[WARM_UP:]), min(seconds[WARM_UP:]))]
    return dict(step_s=step, tokens_per_s=per_s, slowest=spread[0], fastest=spread[1], steps=len(seconds) - WARM_UP,
                mfu_full=per_s * case.flops() / PEAK)


def ours(case, a, limit, log, *more):
    folder = a.runs / case.name
    shutil.rmtree(folder, ignore_errors=True)
    places = [f'data.train=[{{prefix="{a.runs / "tokens"}"}}]', f"checkpoint.dir={folder}"]
    command = [a.engine, "train", "--config", case.path, *case.sets(), "--set", places[0], "--set", places[1], *more]
    lines = run([str(word) for word in command], log, limit)
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # The phases of a step add up to the time from its start to the start of the next.
    phases = lambda step: sum(seconds for key, seconds in step.items() if key.endswith("_s") and key in PHASES)
    memory = json.loads((folder / "memory.json").read_text())["ranks"][0]
    first = next(at for at, text in lines if text.startswith("step 1/"))
    return dict(rates(case, [phases(step) for step in steps]), start_s=first,
                peak_planned=memory["planned"]["reserved_bytes"], peak_used=memory["used"]["reserved_bytes"],
                blocks_planned=memory["planned"]["peak_bytes"], blocks_used=memory["used"]["peak_bytes"],
                loss=[steps[0]["loss"], steps[-1]["loss"]], engine_mfu_full=steps[-1]["mfu_full"])


PHASES = {"data_s", "forward_s", "backward_s", "pipeline_s", "reduce_s", "optimizer_s", "validation_s", "report_s",
          "checkpoint_s"}


def theirs(case, a, limit, log, mode="default"):
    ways = case.ways[mode]
    spec = a.runs / f"{case.name}.json"
    spec.write_text(json.dumps({table: case.config[table] for table in ("model", "train", "optimizer")}))
    until, failed = time.monotonic() + limit, []
    while ways:
        compiled, heads = ways[0]
        command = [sys.executable, str(ROOT / "cuda/peers.py"), "step", str(spec), "--compile", compiled]
        command += ["--heads", heads, "--mode", mode] + ["--smoke"] * case.smoke
        # Each case and way has its own compiler cache: a process that was killed may leave incomplete files in it.
        cache = a.runs / f"inductor-{case.name}-{mode}-{compiled}-{heads}"
        variables = dict(TORCHINDUCTOR_CACHE_DIR=str(cache), PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True")
        if mode == "deterministic":
            # Without it PyTorch refuses cuBLAS in this mode.
            variables["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        try:
            lines = run(command, f"{log}-{compiled}-{heads}", until - time.monotonic(), **variables)
        except RuntimeError as error:
            shutil.rmtree(cache, ignore_errors=True)
            ways.pop(0)
            failed.append(f"{compiled}, {heads}: {error}")
            continue
        data = json.loads(next(text for _, text in lines if text.startswith('{"step_s"')))
        return dict(rates(case, data["step_s"]), start_s=data["start_s"], peak_used=data["peak"], loss=data["loss"],
                    torch=data["torch"], compiled=f"{compiled}, kv heads {heads}", failed=failed)
    raise RuntimeError("; ".join(failed) or "none of its ways worked before")


def deterministic(case, a, limit, log):
    return theirs(case, a, limit, log, "deterministic")


# The sides of each turn, in this order; there is time for one turn of the deterministic mode.
SIDES = [("engine", ours), ("torch.compile", theirs)]
TURNS = [SIDES + [("torch.compile, deterministic", deterministic)], SIDES]


def measure(case, a, file, until):
    """Measures both sides in turns, and writes a line for each turn to `file`."""
    steps = case.config["train"]["steps"]
    write_tokens(a.runs / "tokens", case.config["model"]["vocab_size"], steps * case.tokens + 1)
    for turn, sides in enumerate(TURNS, 1):
        for who, side in sides:
            line = dict(case=case.name, turn=turn, who=who, smoke=case.smoke)
            try:
                limit = min(TURN, until - time.monotonic())
                if limit < 20:
                    raise RuntimeError("no time was left")
                log = a.runs / f"{case.name}-{who.replace(', ', '-')}-{turn}.log"
                line.update(side(case, a, limit, log))
                memory = f"{line['peak_used'] / 2**30:.1f} GiB, " if line["peak_used"] else ""
                print(f"{case.name:12} {turn} {who:14} {line['tokens_per_s']:10.0f} tokens/s  "
                      f"{line['mfu_full'] * 100:5.1f} % of the peak (full), "
                      f"{memory}first step done after {line['start_s']:.1f} s, "
                      f"loss {line['loss'][0]:.3f} to {line['loss'][1]:.3f}", flush=True)
            except (RuntimeError, OSError, KeyError, ValueError, StopIteration, IndexError) as error:
                line["error"] = f"{type(error).__name__}: {error}"[:600]
                print(f"{case.name:12} {turn} {who:14} failed: {line['error']}", flush=True)
            print(json.dumps(line), file=file, flush=True)


def trace(case, a):
    """Runs the engine alone, and copies the trace of one step, for Perfetto, to the file of `--trace`."""
    write_tokens(a.runs / "tokens", case.config["model"]["vocab_size"], case.config["train"]["steps"] * case.tokens + 1)
    log = a.runs / f"{case.name}-trace.log"
    line = ours(case, a, a.seconds, log, "--trace", str(WARM_UP + 1))
    shutil.copy(next((a.runs / case.name / "traces").glob("*.json")), a.trace)
    said = next(text for text in log.read_text().splitlines() if "nothing computed" in text)
    print(f"{case.name}: {line['tokens_per_s']:.0f} tokens/s with a trace; {said.split('; ')[-1]}")


def main(a):
    cases = [Case(name, a.smoke) for name in a.case]
    a.runs = a.runs.resolve()
    a.runs.mkdir(parents=True, exist_ok=True)
    if a.trace:
        for case in cases:
            trace(case, a)
        return
    until = time.monotonic() + a.seconds
    late = []
    for case in cases:
        if until - time.monotonic() < (LEAST if not a.smoke else 0):
            late.append(case.name)
            continue
        with open(a.json, "a") as file:
            measure(case, a, file, until)
    if late:
        sys.exit(f"step: no time was left for {' '.join(late)}")


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("case", nargs="+")
    p.add_argument("--json", default="/dev/null", help="a line for each turn is appended to it")
    p.add_argument("--trace", type=pathlib.Path, help="where to put a step's trace")
    p.add_argument("--engine", type=pathlib.Path, default=ROOT / "target/release/swallow-engine")
    p.add_argument("--runs", type=pathlib.Path, default=ROOT / "runs/bench")
    p.add_argument("--seconds", type=float, default=480)
    p.add_argument("--smoke", action="store_true", help="once, tiny; PyTorch on the CPU")
    main(p.parse_args())
