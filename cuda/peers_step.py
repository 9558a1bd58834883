"""Times the full training step of a plain Llama in PyTorch: `cuda/peers.py step`, started by `benches/step.py`.

f32 weights under bf16 autocast (so f32 master weights), torch.compile, scaled dot-product attention with the flash
backend and grouped heads, clipping, fused AdamW with weight decay on matrices only; gradients are accumulated in f32
over micro-batches. The last line of the output is a JSON object: the seconds of each step, from the end of the step
before to its own end; the seconds from the start of the process to the end of the first step; peak memory; and the
first and the last loss.
"""
import argparse, contextlib, json, sys, time

START = time.monotonic()


def model_of(torch, m, kv_heads):
    """The model of a configuration's table [model]; `kv_heads` says how attention gets keys and values."""
    nn, F = torch.nn, torch.nn.functional
    hidden, ffn = m["hidden_size"], m["intermediate_size"]
    heads, kv = m["num_attention_heads"], m["num_key_value_heads"]
    dim, eps = hidden // heads, m["rms_norm_eps"]

    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(hidden))

        def forward(self, x):
            return F.rms_norm(x.float(), (hidden,), self.weight, eps).to(x.dtype)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            linear = lambda rows, columns: nn.Linear(columns, rows, bias=False)
            self.before, self.between = Norm(), Norm()
            self.qkv, self.out = linear((heads + 2 * kv) * dim, hidden), linear(hidden, hidden)
            self.gate_up, self.down = linear(2 * ffn, hidden), linear(hidden, ffn)

        def forward(self, x, cos, sin):
            batch, seq, _ = x.shape
            q, k, v = self.qkv(self.before(x)).view(batch, seq, heads + 2 * kv, dim).split((heads, kv, kv), dim=2)
            q, k, v = (t.transpose(1, 2) for t in (turn(q, cos, sin), turn(k, cos, sin), v))
            if kv_heads == "expanded":
                k, v = (t.repeat_interleave(heads // kv, dim=1) for t in (k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=kv_heads == "grouped")
            x = x + self.out(y.transpose(1, 2).reshape(batch, seq, hidden))
            gate, up = self.gate_up(self.between(x)).chunk(2, dim=-1)
            return x + self.down(F.silu(gate) * up)

    def turn(x, cos, sin):
        a, b = x.float().chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)

    class Llama(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(m["vocab_size"], hidden)
            self.blocks = nn.ModuleList(Block() for _ in range(m["num_hidden_layers"]))
            self.norm, self.head = Norm(), nn.Linear(hidden, m["vocab_size"], bias=False)
            if m["tie_word_embeddings"]:
                self.head.weight = self.embed.weight

        def forward(self, ids, targets, cos, sin):
            x = self.embed(ids).to(torch.bfloat16)
            for block in self.blocks:
                x = block(x, cos, sin)
            logits = self.head(self.norm(x))
            return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    model = Llama()
    for p in model.parameters():
        if p.ndim == 2:
            nn.init.normal_(p, std=0.02)
    return model


def tables(torch, m, seq):
    """The cosines and sines of the rotary positions, each [1, seq, 1, dim / 2]."""
    half = m["hidden_size"] // m["num_attention_heads"] // 2
    speeds = m["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.outer(torch.arange(seq, dtype=torch.float64), speeds)[None, :, None, :]
    return angles.cos().float(), angles.sin().float()


def attention_by_flash(torch, on_device):
    if not on_device:
        return contextlib.nullcontext()
    backends = torch.nn.attention
    return backends.sdpa_kernel(backends.SDPBackend.FLASH_ATTENTION)


def compiled(torch, model, how):
    """Compiles the model as one graph, or block by block, where all blocks share one compilation."""
    if how == "whole":
        return torch.compile(model, dynamic=False)
    for block in model.blocks:
        block.compile(dynamic=False)
    return model


def optimizer_of(torch, model, o):
    matrices = [p for p in model.parameters() if p.ndim == 2]
    groups = [dict(params=matrices, weight_decay=o["weight_decay"]),
              dict(params=[p for p in model.parameters() if p.ndim == 1], weight_decay=0.0)]
    return torch.optim.AdamW(groups, lr=o["lr"], betas=tuple(o["betas"]), eps=1e-8, fused=True)


def train(torch, config, how, kv_heads, on_device):
    m, t, o = config["model"], config["train"], config["optimizer"]
    where, seq = "cuda" if on_device else "cpu", t["seq_length"]
    torch.manual_seed(1)
    with torch.device(where):
        model = model_of(torch, m, kv_heads).train()
        cos, sin = (table.to(where) for table in tables(torch, m, seq))
    optimizer, forward = optimizer_of(torch, model, o), compiled(torch, model, how)
    micro = t["micro_batch_size"]
    parts = t["global_batch_size"] // micro
    losses, marks = [], []

    def step():
        optimizer.zero_grad(set_to_none=True)
        x = torch.randint(m["vocab_size"], (parts, micro, seq + 1), device=where)
        total = 0
        for part in x:
            with torch.autocast(where, dtype=torch.bfloat16):
                loss = forward(part[:, :-1], part[:, 1:], cos, sin) / parts
            loss.backward()
            total = total + loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), o["clip_grad"], foreach=True)
        optimizer.step()
        losses.append(total)
        marks.append(mark(torch, on_device))

    marks.append(mark(torch, on_device))
    with attention_by_flash(torch, on_device):
        step()
        first = float(losses[0])
        start_s = time.monotonic() - START
        for _ in range(t["steps"] - 1):
            step()
    last = float(losses[-1])
    step_s = [seconds(a, b, on_device) for a, b in zip(marks, marks[1:])]
    peak = torch.cuda.max_memory_allocated() if on_device else 0
    return dict(step_s=step_s, start_s=start_s, peak=peak, loss=[first, last], torch=torch.__version__)


def mark(torch, on_device):
    """Records a time stamp on the device, without making the host wait; on the CPU, the current time."""
    if not on_device:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds(a, b, on_device):
    return a.elapsed_time(b) / 1e3 if on_device else b - a


def main(words):
    p = argparse.ArgumentParser(prog="peers.py step", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("config", help="JSON with the tables model, train and optimizer of a configuration")
    p.add_argument("--compile", choices=("whole", "blocks"), default="whole")
    p.add_argument("--heads", choices=("grouped", "expanded"), default="grouped",
                   help="how attention gets the heads of keys and values")
    p.add_argument("--mode", choices=("default", "deterministic"), default="default",
                   help="whether the same inputs must give the same bits")
    p.add_argument("--smoke", action="store_true", help="on the CPU: a test of this file, not a measurement")
    a = p.parse_args(words)
    try:
        import torch, torch.nn.attention
    except ImportError as error:
        sys.exit(f"error: no PyTorch here: {error}")
    if not a.smoke and not torch.cuda.is_available():
        sys.exit("error: no GPU here")
    if a.mode == "deterministic":
        import torch.utils.deterministic
        torch.use_deterministic_algorithms(True)
        # Deterministic means the same bits here; it need not fill uninitialised tensors too.
        torch.utils.deterministic.fill_uninitialized_memory = False
    with open(a.config) as file:
        config = json.load(file)
    print(json.dumps(train(torch, config, a.compile, a.heads, not a.smoke)), flush=True)
