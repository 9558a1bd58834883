#!/usr/bin/env python3
"""Times PyTorch at the shapes of `benches/kernels`, on the same device, for comparison with our kernels.

usage: peers.py [--json FILE] [--seconds 500] [FILTER]
       peers.py step ...          a full training step instead: `peers_step.py`

Measures device copies and a bf16 matrix product (the ceilings); scaled dot-product attention with the flash and the
cuDNN backend; RMSNorm, SwiGLU, rotary positions and cross-entropy by torch.compile; embeddings; the fused AdamW.

Times are medians of repeats between CUDA events, after a warm-up. The calls take turns over several sets of random
tensors that together are larger than the L2 cache. They are captured in a CUDA graph if possible, so that the time of
launches does not count. A comparison that fails is recorded with its error, and the others still run.

Without a GPU a message is printed and the exit status is 0. `--smoke` runs everything once, tiny and on the CPU: it
tests this file and measures nothing.
"""
import argparse, contextlib, json, math, statistics, sys, time

BF16_BYTES, F32_BYTES = 2, 4
REPEATS = 11


class Shapes:
    """The shapes of benches/kernels, or `tiny` ones for the smoke test."""

    def __init__(self, tiny):
        self.tokens = 64 if tiny else 8192
        self.hidden = 32 if tiny else 4096
        self.ffn = [48] if tiny else [14336, 11008]
        self.vocab = [96] if tiny else [128256, 43176]
        self.chunk = 16 if tiny else 2048
        self.heads = (4, 2) if tiny else (32, 8)
        self.attention = [(32, 16)] if tiny else [(4096, 128), (8192, 128), (4096, 64), (8192, 64)]
        self.params = 1 << (10 if tiny else 27)
        self.copied = 1 << (10 if tiny else 30)
        self.matmul = 64 if tiny else 8192


class Bench:
    """Times calls and writes one line of JSON for each."""

    def __init__(self, torch, device, file, deadline):
        self.torch, self.device, self.file, self.deadline = torch, device, file, deadline
        self.cuda = device == "cuda"
        self.l2 = torch.cuda.get_device_properties(0).L2_cache_size if self.cuda else 1
        self.generator = torch.Generator(device=device).manual_seed(1)

    def random(self, *shape, dtype=None, scale=1.0):
        x = self.torch.randn(*shape, device=self.device, generator=self.generator, dtype=self.torch.float32) * scale
        return x.to(dtype or self.torch.bfloat16)

    def sets(self, bytes_each, make):
        """Enough sets of tensors that none is still in the cache when its turn comes again."""
        return [make() for _ in range(max(2, math.ceil(4 * self.l2 / bytes_each) if self.cuda else 2))]

    def write(self, **line):
        if self.file:
            print(json.dumps(line), file=self.file, flush=True)

    def run(self, name, shape, peer, sets, call, bytes=0, flops=0, note="", graph=True):
        """Times `call(*set)` over the sets in turn.

        `graph=False` is for calls that cannot be captured, because the host reads results of the device.
        """
        if time.monotonic() > self.deadline:
            return self.failed(name, shape, peer, "no time was left")
        try:
            seconds, how = self.seconds(sets, call, graph)
        except Exception as error:
            return self.failed(name, shape, peer, error)
        rate = f"{flops / seconds / 1e12:8.1f} TFLOP/s" if flops else f"{bytes / seconds / 1e9:8.0f} GB/s"
        print(f"{name:18} {shape:28} {peer:34} {seconds * 1e6:10.1f} us {rate}  {how} {note}".rstrip(), flush=True)
        self.write(name=name, shape=shape, peer=peer, seconds=seconds, bytes=bytes, flops=flops, how=how, note=note)

    def failed(self, name, shape, peer, error):
        text = str(error).strip().splitlines()
        text = f"{type(error).__name__}: {text[0]}" if isinstance(error, Exception) and text else str(error)
        print(f"{name:18} {shape:28} {peer:34} failed: {text[:160]}", flush=True)
        self.write(name=name, shape=shape, peer=peer, error=text[:400])

    def seconds(self, sets, call, graph):
        for one in sets + sets:
            call(*one)
        if not self.cuda:
            start = time.perf_counter()
            call(*sets[0])
            return max(time.perf_counter() - start, 1e-9), "smoke"
        self.torch.cuda.synchronize()
        round_of_sets, how = self.captured(sets, call, graph)
        once = self.elapsed(round_of_sets, 1)
        rounds = max(1, math.ceil(0.03 / once))
        self.elapsed(round_of_sets, rounds)
        return statistics.median(self.elapsed(round_of_sets, rounds) for _ in range(REPEATS)) / rounds / len(sets), how

    def captured(self, sets, call, graph):
        """A function that makes the call for each set: a CUDA graph, or plain calls if they cannot be captured."""
        def eager():
            for one in sets:
                call(*one)
        if not graph:
            return eager, "eager"
        try:
            captured, kept = self.torch.cuda.CUDAGraph(), []
            with self.torch.cuda.graph(captured, stream=self.torch.cuda.current_stream()):
                for one in sets:
                    kept.append(call(*one))

            def replay():
                captured.replay()
            # Keeps the tensors that the graph writes to alive as long as the graph.
            replay.kept = kept
            replay()
            self.torch.cuda.synchronize()
            return replay, "graph"
        except Exception:
            self.torch.cuda.synchronize()
            return eager, "eager"

    def elapsed(self, work, rounds):
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(rounds):
            work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


# -- the ceilings --

def ceilings(b, s):
    torch, n = b.torch, s.copied // F32_BYTES
    pairs = [(b.random(n, dtype=torch.float32), torch.empty(n, device=b.device)) for _ in range(2)]
    b.run("copy", str(s.copied), "torch copy_", pairs, lambda x, y: y.copy_(x), bytes=2 * s.copied)
    n = s.matmul
    pairs = [(b.random(n, n), b.random(n, n)) for _ in range(2)]
    b.run("matmul", f"{n}x{n}x{n}", "torch (cuBLAS)", pairs, lambda x, y: x @ y.T, flops=2 * n ** 3)


# -- attention --

def attention(b, s):
    import torch.nn.attention as backends
    flash, cudnn = backends.SDPBackend.FLASH_ATTENTION, backends.SDPBackend.CUDNN_ATTENTION
    for seq, dim in s.attention:
        for peer, backend, grouped in [("flash, enable_gqa", flash, True), ("flash, expanded kv", flash, False),
                                       ("cuDNN, enable_gqa", cudnn, True), ("cuDNN, expanded kv", cudnn, False)]:
            with backends.sdpa_kernel(backend):
                try:
                    attend(b, s, seq, dim, peer, grouped, deterministic=backend is flash)
                except Exception as error:
                    b.failed("attention", attention_shape(s, seq, dim), peer, error)


def attention_shape(s, seq, dim):
    return f"{seq}, {s.heads[0]}/{s.heads[1]} x {dim}"


def attend(b, s, seq, dim, peer, grouped, deterministic):
    """Times the forward pass, the backward pass and both together.

    With `deterministic`, the backward pass and both together are also timed with deterministic gradients.
    """
    torch, (heads, kv) = b.torch, s.heads
    shape, batch = attention_shape(s, seq, dim), max(1, s.tokens // seq)
    # The FLOPs of one product with a causal mask: half of the scores, two operations for each element.
    product = batch * heads * seq * seq * dim

    def forward(q, k, v, *_):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)

    def make():
        # In the layout of a projection's output: [batch, seq, heads, dim], viewed as [batch, heads, seq, dim].
        of = lambda h: b.random(batch, seq, h, dim).transpose(1, 2)
        q, k, v, do = of(heads), of(kv), of(kv), of(heads)
        if not grouped:
            k, v = (x.repeat_interleave(heads // kv, dim=1) for x in (k, v))
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        return q, k, v, do, forward(q, k, v)

    def backward(q, k, v, do, o):
        return torch.autograd.grad(o, (q, k, v), do, retain_graph=True)

    def both(q, k, v, do, _):
        return torch.autograd.grad(forward(q, k, v), (q, k, v), do)

    def only_forward(*one):
        with torch.no_grad():
            return forward(*one)

    sets = [make() for _ in range(2)]
    b.run("attention", shape, peer, sets, only_forward, flops=2 * product)
    b.run("attention_bwd", shape, peer, sets, backward, flops=5 * product, note=same_bits(b, sets[0], backward))
    b.run("attention_both", shape, peer, sets, both, flops=7 * product)
    if deterministic:
        torch.use_deterministic_algorithms(True)
        try:
            note = same_bits(b, sets[0], backward)
            b.run("attention_bwd", shape, peer + ", deterministic", sets, backward, flops=5 * product, note=note)
            b.run("attention_both", shape, peer + ", deterministic", sets, both, flops=7 * product)
        finally:
            torch.use_deterministic_algorithms(False)


def same_bits(b, one, call):
    """A note that says whether four more runs produce the same bits, which `deterministic` is meant to ensure."""
    first = call(*one)
    same = all(b.torch.equal(x, y) for _ in range(4) for x, y in zip(first, call(*one)))
    return "the same bits each time" if same else "other bits each time"


# -- element by element and row by row, by torch.compile --

def gradients(b, name, shape, forward, inputs, outputs_like, bytes_of):
    """Times the backward pass of a compiled function.

    `inputs` makes two lists: the inputs that need a gradient, and the others. `outputs_like` makes the gradients of the
    outputs.
    """
    torch = b.torch
    compiled = torch.compile(forward, dynamic=False)

    def make():
        wanted, rest = inputs()
        wanted = [x.requires_grad_() for x in wanted]
        y = compiled(*wanted, *rest)
        return wanted, (y if isinstance(y, tuple) else (y,)), outputs_like()

    call = lambda wanted, y, dy: torch.autograd.grad(y, wanted, dy, retain_graph=True)
    try:
        b.run(name, shape, "torch.compile", b.sets(bytes_of, make), call, bytes=bytes_of)
    except Exception as error:
        b.failed(name, shape, "torch.compile", error)


def rmsnorm(b, s):
    torch, shape = b.torch, f"{s.tokens}x{s.hidden}"
    size = s.tokens * s.hidden * BF16_BYTES

    def norm(x, w):
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + 1e-5) * w).to(torch.bfloat16)

    def add_norm(x, w, r):
        h = x + r
        return h, norm(h, w)

    x, w = lambda: b.random(s.tokens, s.hidden), lambda: b.random(s.hidden, dtype=torch.float32)
    compiled, compiled_add = torch.compile(norm, dynamic=False), torch.compile(add_norm, dynamic=False)
    b.run("rmsnorm", shape, "torch.compile", b.sets(2 * size, lambda: (x(), w())), compiled, bytes=2 * size)
    sets = b.sets(4 * size, lambda: (x(), w(), x()))
    b.run("add_rmsnorm", shape, "torch.compile", sets, compiled_add, bytes=4 * size)
    gradients(b, "rmsnorm_bwd", shape, norm, lambda: ([x(), w()], []), lambda: (x(),), 3 * size)
    # The gradient of the residual stream is added: the outputs are h and its norm, and both have a gradient.
    gradients(b, "rmsnorm_bwd_add", shape, add_norm, lambda: ([x(), w()], [x()]), lambda: (x(), x()), 4 * size)


def swiglu(b, s):
    torch = b.torch

    def forward(gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    for ffn in s.ffn:
        shape, size = f"{s.tokens}x{ffn}", s.tokens * ffn * BF16_BYTES
        gate_up, dy = lambda: b.random(s.tokens, 2 * ffn), lambda: (b.random(s.tokens, ffn),)
        compiled = torch.compile(forward, dynamic=False)
        b.run("swiglu", shape, "torch.compile", b.sets(3 * size, lambda: (gate_up(),)), compiled, bytes=3 * size)
        gradients(b, "swiglu_bwd", shape, forward, lambda: ([gate_up()], []), dy, 5 * size)


def rope(b, s):
    torch, (heads, kv) = b.torch, s.heads
    dim, turned = s.hidden // heads, heads + kv
    table = b.random(s.tokens, dim, dtype=torch.float32)

    def turn(x, table):
        (x1, x2), (cos, sin) = x.float().chunk(2, dim=-1), table.unsqueeze(1).chunk(2, dim=-1)
        return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).to(torch.bfloat16)

    size = s.tokens * turned * dim * BF16_BYTES
    sets = b.sets(2 * size, lambda: (b.random(s.tokens, turned, dim), table))
    compiled = torch.compile(turn, dynamic=False)
    b.run("rope", f"{s.tokens}x{turned}x{dim}", "torch.compile", sets, compiled, bytes=2 * size)


def cross_entropy(b, s):
    torch = b.torch

    def loss(logits, targets):
        return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")

    for vocab in s.vocab:
        shape, size = f"{s.chunk}x{vocab}", s.chunk * vocab * BF16_BYTES
        compiled = torch.compile(loss, dynamic=False)

        def make():
            targets = torch.randint(vocab, (s.chunk,), device=b.device, generator=b.generator)
            return b.random(s.chunk, vocab).requires_grad_(), targets

        both = lambda logits, targets: torch.autograd.grad(compiled(logits, targets), logits)
        b.run("xent", shape, "torch.compile", b.sets(2 * size, make), both, bytes=3 * size)


# -- the rest --

def embedding(b, s):
    torch, vocab = b.torch, s.vocab[0]
    shape, size = f"{s.tokens}x{s.hidden} of {vocab}", s.tokens * s.hidden
    table, dtable = b.random(vocab, s.hidden), torch.zeros(vocab, s.hidden, device=b.device)
    ids = lambda: torch.randint(vocab, (s.tokens,), device=b.device, generator=b.generator)
    look_up = lambda ids: torch.nn.functional.embedding(ids, table)
    b.run("embed", shape, "torch", b.sets(4 * size, lambda: (ids(),)), look_up, bytes=4 * size)
    # Adds bf16 rows to an existing f32 table, as gradients are accumulated.
    sets = b.sets(10 * size, lambda: (ids(), b.random(s.tokens, s.hidden)))
    add = lambda ids, dy: dtable.index_add_(0, ids, dy.float())
    b.run("embed_bwd", shape, "torch index_add_", sets, add, bytes=10 * size)
    torch.use_deterministic_algorithms(True)
    try:
        b.run("embed_bwd", shape, "torch index_add_, deterministic", sets, add, bytes=10 * size, graph=False)
    finally:
        torch.use_deterministic_algorithms(False)
    dense = lambda ids, dy: torch.ops.aten.embedding_dense_backward(dy, ids, vocab, -1, False)
    note = "fills the whole table"
    b.run("embed_bwd", shape, "torch, a new bf16 table", sets, dense, bytes=10 * size, note=note, graph=False)


def optimizer(b, s):
    torch, n = b.torch, s.params
    weights = [b.random(n, dtype=torch.float32).requires_grad_() for _ in range(2)]
    steps = []
    for w in weights:
        w.grad = b.random(n, dtype=torch.float32, scale=1e-3)
        settings = dict(lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True, capturable=b.cuda)
        steps.append((torch.optim.AdamW([w], **settings).step,))
    note = "28 bytes a parameter: no bf16 weights are written"
    b.run("adamw", str(n), "torch fused AdamW", steps, lambda step: step(), bytes=28 * n, note=note)
    norm = lambda w: torch.linalg.vector_norm(w.detach())
    b.run("sum_squares", str(n), "torch vector_norm", [(w,) for w in weights], norm, bytes=4 * n)


def casts(b, s):
    torch, n = b.torch, s.params
    f32 = lambda: (b.random(n, dtype=torch.float32), torch.empty(n, device=b.device, dtype=torch.bfloat16))
    b.run("round", str(n), "torch copy_", b.sets(6 * n, f32), lambda x, y: y.copy_(x), bytes=6 * n)
    sets = b.sets(4 * n, lambda: (b.random(n), b.random(n)))
    b.run("add", str(n), "torch add_", sets, lambda x, y: x.add_(y), bytes=6 * n)


CASES = [ceilings, attention, rmsnorm, swiglu, rope, cross_entropy, embedding, optimizer, casts]


def main(a):
    try:
        import torch
    except ImportError as error:
        print(f"peers: no PyTorch here ({error}), nothing is compared")
        return
    if not a.smoke and not torch.cuda.is_available():
        print("peers: no GPU here, nothing is compared")
        return
    # The backward pass of one forward pass runs many times, so it must not reuse the memory of saved tensors.
    import torch._functorch.config, torch.utils.deterministic
    torch._functorch.config.donated_buffer = False
    # Deterministic means the same bits here; it need not fill uninitialised tensors too.
    torch.utils.deterministic.fill_uninitialized_memory = False
    file = open(a.json, "w") if a.json else None
    b = Bench(torch, "cpu" if a.smoke else "cuda", file, time.monotonic() + a.seconds)
    device = "the CPU, as a smoke test" if a.smoke else torch.cuda.get_device_name()
    print(f"PyTorch {torch.__version__} on {device}")
    cuda, cudnn = torch.version.cuda, torch.backends.cudnn.version()
    b.write(machine={"torch": torch.__version__, "cuda": cuda, "cudnn": cudnn, "device": device})
    # A backward pass runs on the stream of its forward pass, so both and the capture of graphs use one stream.
    with torch.cuda.stream(torch.cuda.Stream()) if b.cuda else contextlib.nullcontext():
        for case in CASES:
            if not a.filter or a.filter in case.__name__:
                measure(b, case, Shapes(a.smoke))


def measure(b, case, shapes):
    try:
        case(b, shapes)
    except Exception as error:
        b.failed(case.__name__, "", "torch", error)
    b.torch.compiler.reset()
    if b.cuda:
        b.torch.cuda.empty_cache()


if __name__ == "__main__":
    if sys.argv[1:2] == ["step"]:
        import peers_step
        sys.exit(peers_step.main(sys.argv[2:]))
    p = argparse.ArgumentParser()
    names = ", ".join(c.__name__ for c in CASES)
    p.add_argument("filter", nargs="?", help=f"only the groups whose name contains this: {names}")
    p.add_argument("--json", help="where to write a line for each comparison")
    p.add_argument("--seconds", type=float, default=500, help="after this time no more comparisons are started")
    p.add_argument("--smoke", action="store_true", help="once, tiny, on the CPU")
    sys.exit(main(p.parse_args()))
