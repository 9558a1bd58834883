"""Make the golden fixtures: tiny random models of each family, trained by Hugging Face transformers and PyTorch.

usage: make.py [CASE]...        (in an environment with requirements.txt; writes beside itself)

Each case's folder holds what the engine is given (init/, train.bin/.idx, valid.bin/.idx, and `config` in expected.json, which is the
engine's own configuration without paths) and what must come out of it: gradients of step 1, a row for each step, the final weights.
The cases whose heads the CUDA kernels take (BF16) have in `expected_bf16` the results of PyTorch in bf16, by micro-batches of 1, 2, 4
and 8 sequences: a run of the engine in bf16 is measured by how far these are from the reference.

The reference is computed in float64 from float32 weights, so that the whole error that a test sees is the engine's. Transformers
casts to float32 in RMSNorm and in the rotary table whatever the model's type is: `exact` takes these casts out. Each case is also
trained in plain float32 with transformers untouched, and the difference is printed: it must be far inside the tests' bounds.

The families with experts have more in a row: `aux_loss` and `router_z_loss`, without their coefficients, and in that of step 1
`expert_counts`, how often each expert of each of these layers was chosen in the global batch. The losses are the engine's (every sequence
of every layer alone, then the mean), computed from the logits of the routers; transformers' own, which is over all layers and
sequences at once, is not used. `model` is the engine's whole [model], of which `config` has what config.json does not say. Tensors have
the names and shapes of files, where mixtral's and qwen3_moe's experts are apart: in memory they are packed. The gradients of an expert
without a token are 0. A choice of experts that rounding changes would be another model: none may differ in the float32 run, and what is
printed says how far the last expert chosen and the first one left out are from each other.
"""
import json, math, pathlib, shutil, sys
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import (Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, GptOssConfig, GptOssForCausalLM, LlamaConfig,
                          LlamaForCausalLM, MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM)
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.mixtral import modeling_mixtral
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3
from transformers.models.qwen3_moe import modeling_qwen3_moe

from cases import BASE, BF16, CASES, FAMILY, MASKED, PACKED, SEEDS
from routers import ROUTERS, Routing, aux_coefficient, balance, clamped, filed, report, table
from streams import Mixture, Tokens, write_tokens

HERE = pathlib.Path(__file__).resolve().parent
CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "gemma2": Gemma2Config, "gpt2": GPT2Config,
           "mixtral": MixtralConfig, "qwen3_moe": Qwen3MoeConfig, "gpt_oss": GptOssConfig}
MODELS = {"llama": LlamaForCausalLM, "mistral": MistralForCausalLM, "qwen2": Qwen2ForCausalLM, "qwen3": Qwen3ForCausalLM,
          "gemma2": Gemma2ForCausalLM, "gpt2": GPT2LMHeadModel, "mixtral": MixtralForCausalLM, "qwen3_moe": Qwen3MoeForCausalLM,
          "gpt_oss": GptOssForCausalLM}


def configs(case):
    """The engine's configuration without its paths, and transformers' of the model."""
    model, over = CASES[case]
    engine = {k: dict(BASE.get(k, {}), **over.get(k, {})) for k in [*BASE, *(["model"] if "model" in over else [])]}
    hf = dict(num_hidden_layers=2, max_position_embeddings=160, rms_norm_eps=1e-5, initializer_range=0.08, bos_token_id=1, eos_token_id=2,
              tie_word_embeddings=False, attn_implementation="sdpa")
    family = FAMILY.get(case, "llama")
    if family == "gpt2":
        hf = dict(bos_token_id=1, eos_token_id=2, attn_implementation="sdpa")
    if family == "gemma2":
        hf["attn_implementation"] = "eager"  # the other implementations have no soft-cap
    if family in ("mixtral", "qwen3_moe", "gpt_oss"):
        hf["experts_implementation"] = "eager"  # an expert after the other, in any type
    if family == "gpt_oss":
        hf["attn_implementation"] = "eager"  # the one that has sinks on a CPU
    return engine, CONFIGS[family](**dict(hf, **model))


def model_of(hf):
    """A random model of a configuration."""
    return MODELS[hf.model_type](hf)


def disturb(model, case):
    """Moves what transformers starts at 0 or 1, which would hide a tensor that is left out, and spreads the outputs of routers and experts."""
    family = model.config.model_type
    for n, p in model.named_parameters():
        if p.ndim < 2:
            zero = n.endswith(".bias") or family == "gemma2"  # Gemma has differences from 1
            p.copy_((0 if zero else 1) + 0.2 * torch.randn_like(p))
        if n.endswith("proj_bias"):  # gpt_oss's experts have a row each
            p.copy_(0.5 * torch.randn_like(p))
        if n.endswith("experts.gate_up_proj") and family == "gpt_oss":
            p.mul_(5.0)  # beyond 7 at times
        if n.endswith("experts.down_proj") and family == "gpt_oss":
            p.mul_(0.4)  # and still no more than the rest of the layer
        if n.endswith("embed_tokens.weight") and case == "qwen3_moe":
            p.add_(0.07)  # all tokens have something in common: some experts have most of them, some hardly any
        if n.endswith(("mlp.gate.weight", "mlp.router.weight")):
            p.mul_(4.0)  # chosen experts and others lie well apart


def learning_rate(step, steps, o):
    """The rate of a step; the first is 1."""
    lr, low, warmup = o["lr"], o["min_lr"], o["warmup_steps"]
    if step <= warmup:
        return lr * step / warmup
    r = (step - warmup) / (steps - warmup)
    if o["schedule"] == "wsd":
        t = max(0.0, (step - (steps - o["decay_steps"])) / o["decay_steps"])
        return lr - (lr - low) * (t if o["decay_shape"] == "linear" else math.sqrt(t))
    return {"cosine": low + (lr - low) * (1 + math.cos(math.pi * r)) / 2, "linear": lr - (lr - low) * r, "constant": lr}[o["schedule"]]


def validation(model, sets, step, t, masked, dtype):
    """The mean loss over the next batches of all sets, and that of each set where there are several."""
    count, S = t["eval_steps"] * t["global_batch_size"], t["seq_length"]
    with torch.no_grad():
        # Every validation takes the next samples of each set, which starts over at its end.
        first = {name: (step // t["eval_interval"] - 1) * count % ((stream.n - 1) // S) for name, stream in sets.items()}
        each = {name: losses(model, stream.batch(first[name], count, S, masked, dtype))[0].item() for name, stream in sets.items()}
    row = dict(valid_loss=sum(each.values()) / len(each))
    return row if len(each) == 1 else dict(row, valid={name: dict(loss=loss, loss_tokens=count * S) for name, loss in each.items()})


def losses(model, batch):
    """Mean cross-entropy, and the mean of log(Z)^2."""
    ids, labels, mask, positions = batch
    # transformers' own loss of routers cannot have these masks.
    quiet = dict(output_router_logits=False) if hasattr(model.config, "output_router_logits") else {}
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, **quiet).logits
    logits = logits.float() if logits.dtype == torch.bfloat16 else logits  # as transformers' own loss
    if (labels < 0).any():
        counted = (labels >= 0).flatten()
        ce = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        z = (torch.logsumexp(logits, -1).square().flatten() * counted).sum()
        return ce / max(int(counted.sum()), 1), z / max(int(counted.sum()), 1)
    ce = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    return ce, torch.logsumexp(logits, -1).square().mean()


def optimizer(model, o):
    """AdamW that decays matrices and leaves norm weights, sinks and biases alone, those too of which experts have a row each."""
    decayed = {n: p.ndim >= 2 and not n.endswith("_bias") for n, p in model.named_parameters()}
    groups = [dict(params=[p for n, p in model.named_parameters() if decayed[n]], weight_decay=o["weight_decay"]),
              dict(params=[p for n, p in model.named_parameters() if not decayed[n]], weight_decay=0.0)]
    return torch.optim.AdamW(groups, lr=0.0, betas=o["betas"], eps=o["eps"])


def train(model, config, tokens, valid, dtype):
    """A row for each step, the gradients of the first, and the routers' logits and choices in each; `valid`: the validation sets by name."""
    t, o = config["train"], config["optimizer"]
    opt, rows, grads, routing, routes = optimizer(model, o), [], {}, Routing(model), []
    aux_coef, router_z_coef = aux_coefficient(model.config, config), config.get("model", {}).get("router_z_loss_coef", 0.0)
    masked = config["data"].get("mask_document_boundaries", False)
    G, S = t["global_batch_size"], t["seq_length"]
    for step in range(1, t["steps"] + 1):
        row = dict(step=step, lr=learning_rate(step, t["steps"], o))
        for g in opt.param_groups:
            g["lr"] = row["lr"]
        opt.zero_grad()
        ce, z = losses(model, tokens.batch((step - 1) * G, G, S, masked, dtype))
        routed, total = routing.take(), ce + t["z_loss"] * z
        if routed:
            aux, router_z, counts = balance(routed, G)
            total = total + aux_coef * aux + router_z_coef * router_z
            routes.append([(logits.detach(), chosen) for logits, chosen in routed])
        total.backward()
        if step == 1:
            grads = {n: p.grad.float().clone() for n, p in model.named_parameters()}
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), o["clip_grad"])
        opt.step()
        row.update(loss=ce.item(), grad_norm=norm.item())
        if tokens.counts is not None:
            row["loss_tokens"] = int((tokens.batch((step - 1) * G, G, S, masked, dtype)[1] >= 0).sum())
        if t["z_loss"]:
            row["z_loss"] = t["z_loss"] * z.item()
        if routed:
            row.update(aux_loss=aux.item(), router_z_loss=router_z.item(), **({"expert_counts": counts} if step == 1 else {}))
        if t.get("eval_interval") and step % t["eval_interval"] == 0:
            row.update(validation(model, valid, step, t, masked, dtype))
            routing.take()
        rows.append(row)
    return rows, grads, routes


def shares(weights, wanted, init):
    """Of each tensor, and of all together, how far it is from what is wanted, as a share of the distance trained."""
    square = lambda a, b: float((a.double() - b.double()).square().sum())
    off, way = [{n: square(x[n], wanted[n]) for n in sorted(wanted)} for x in (weights, init)]
    return {n: math.sqrt(off[n] / way[n]) for n in off}, math.sqrt(sum(off.values()) / sum(way.values()))


def rounded(hf, init, config, tokens, final, micro):
    """PyTorch's own run in bf16, by micro-batches of `micro` sequences: the model is in bf16, but its rotary frequencies; the sums of its
    gradients, the masters and the optimizer are in float32."""
    t, o = config["train"], config["optimizer"]
    model, masters = model_of(hf).float(), model_of(hf).float()
    masters.load_state_dict(init)
    pairs = list(zip(model.parameters(), masters.parameters()))
    for p, master in pairs:
        p.data, master.grad = master.detach().bfloat16(), torch.zeros_like(master)
    opt, rows, G, S = optimizer(masters, o), [], t["global_batch_size"], t["seq_length"]
    for step in range(1, t["steps"] + 1):
        for g in opt.param_groups:
            g["lr"] = learning_rate(step, t["steps"], o)
        opt.zero_grad(set_to_none=False)
        loss = 0.0
        for first in range((step - 1) * G, step * G, micro):
            model.zero_grad()
            ce, _ = losses(model, tokens.batch(first, micro, S, False, torch.bfloat16))
            ce.backward()
            loss += ce.item() * micro / G
            for p, master in pairs:
                master.grad += p.grad.float() * (micro / G)
        norm = torch.nn.utils.clip_grad_norm_(masters.parameters(), o["clip_grad"])
        opt.step()
        for p, master in pairs:
            p.data.copy_(master.detach())
        rows.append(dict(loss=loss, grad_norm=norm.item()))
    each, together = shares({n: p.detach() for n, p in masters.named_parameters()}, final, init)
    return dict(micro_batch_size=micro, steps=rows, weights=dict(each=each, together=together))


class exact:
    """While this stands, transformers' RMSNorm, rotary table, routers and Gemma's softmax compute in the model's own type."""

    NORMS = (modeling_llama.LlamaRMSNorm, modeling_mistral.MistralRMSNorm, modeling_qwen2.Qwen2RMSNorm, modeling_qwen3.Qwen3RMSNorm,
             modeling_mixtral.MixtralRMSNorm, modeling_qwen3_moe.Qwen3MoeRMSNorm, modeling_gpt_oss.GptOssRMSNorm)
    ROPES = (modeling_llama.LlamaRotaryEmbedding, modeling_mistral.MistralRotaryEmbedding, modeling_qwen2.Qwen2RotaryEmbedding,
             modeling_qwen3.Qwen3RotaryEmbedding, modeling_gemma2.Gemma2RotaryEmbedding, modeling_mixtral.MixtralRotaryEmbedding,
             modeling_qwen3_moe.Qwen3MoeRotaryEmbedding, modeling_gpt_oss.GptOssRotaryEmbedding)

    def __enter__(self):
        gemma = modeling_gemma2.Gemma2RMSNorm
        self.before = [(kind, "forward", kind.forward) for kind in (*self.NORMS, *self.ROPES, *ROUTERS[:2], gemma)]
        self.before.append((modeling_gemma2, "eager_attention_forward", modeling_gemma2.eager_attention_forward))
        for kind in self.NORMS:
            kind.forward = lambda m, x: m.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + m.variance_epsilon)
        gemma.forward = lambda m, x: (1 + m.weight) * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + m.eps)
        for kind in self.ROPES:
            kind.forward = self.table
        for kind in ROUTERS[:2]:  # gpt_oss's computes in the model's type
            kind.forward = self.route
        modeling_gemma2.eager_attention_forward = self.attention

    def __exit__(self, *_):
        for kind, name, forward in self.before:
            setattr(kind, name, forward)

    @staticmethod
    def attention(m, q, k, v, mask, dropout=0.0, scaling=None, softcap=None, **_):
        k, v = [modeling_gemma2.repeat_kv(x, m.num_key_value_groups) for x in (k, v)]
        scores = q @ k.transpose(2, 3) * scaling
        scores = softcap * torch.tanh(scores / softcap) + mask
        p = torch.softmax(scores, -1)
        return (p @ v).transpose(1, 2).contiguous(), p

    @staticmethod
    def table(m, x, position_ids):
        angles = position_ids[:, :, None].to(x.dtype) * m.inv_freq.to(x.dtype)
        if not isinstance(m, modeling_gpt_oss.GptOssRotaryEmbedding):  # whose rotation takes half of the table
            angles = torch.cat((angles, angles), -1)
        return angles.cos() * m.attention_scaling, angles.sin() * m.attention_scaling


    @staticmethod
    def route(m, x):
        logits = x.reshape(-1, m.hidden_dim) @ m.weight.T
        best, chosen = torch.softmax(logits, -1).topk(m.top_k)
        return logits, best / best.sum(-1, keepdim=True) if getattr(m, "norm_topk_prob", True) else best, chosen


def distance(a, b):
    """The largest relative difference of two tensors' norms, over all tensors; one that is 0 (an expert without tokens) must be 0 in both."""
    return max(float((a[n].double() - b[n].double()).norm() / (b[n].double().norm() or 1)) for n in b)


def staged(engine, out, vocab, rng):
    """The mixture of a case with stages and its validation sets, whose files are written."""
    t, data = engine["train"], engine["data"]
    G, S = t["global_batch_size"], t["seq_length"]
    ends = [stage.get("until_step", t["steps"]) for stage in data["stage"]]
    samples = [(end - start) * G for start, end in zip([0] + ends, ends)]
    streams = {s["prefix"]: Tokens(60 * S + 17, vocab, rng) for stage in data["stage"] for s in stage["train"]}
    valid = {s["name"]: (s["prefix"], Tokens(t["eval_steps"] * G * 2 * S + 1, vocab, rng)) for s in data["valid"]}
    for prefix, stream in [*streams.items(), *valid.values()]:
        write_tokens(out / prefix, stream.ids, stream.lengths, np.uint16)
    return Mixture(data["stage"], streams, samples), {name: stream for name, (_, stream) in valid.items()}


def make(case):
    engine, hf = configs(case)
    t = engine["train"]
    out = HERE / case
    shutil.rmtree(out, ignore_errors=True)
    seed = SEEDS.get(case, 7 + list(CASES).index(case))
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = model_of(hf).float()
    with torch.no_grad():
        disturb(model, case)
    model.save_pretrained(out / "init")
    (out / "init/generation_config.json").unlink()
    init = {n: p.detach().clone() for n, p in model.named_parameters()}
    by_file = lambda tensors: filed(hf.model_type, tensors)
    written = load_file(out / "init/model.safetensors")
    assert written.keys() == by_file(init).keys() and all(written[n].equal(p) for n, p in by_file(init).items())

    samples = t["steps"] * t["global_batch_size"]
    if "stage" in engine["data"]:
        tokens, valid = staged(engine, out, hf.vocab_size, rng)
    else:
        tokens = Tokens(samples * t["seq_length"] + 17, hf.vocab_size, rng)
        valid = Tokens(t.get("eval_steps", 0) * t["global_batch_size"] * t["seq_length"] + 1, hf.vocab_size, rng)
        if case in MASKED:
            for name, part in (("train", tokens), ("valid", valid))[:2 if t.get("eval_interval") else 1]:
                part.mask(t, rng)
                part.counts.tofile(out / f"{name}.mask.bin")
                (out / f"{name}.meta.json").write_text('{ "mask": true }\n')
        tokens.window = valid.window = getattr(hf, "sliding_window", None)
        tokens.by_kind = len(set(getattr(hf, "layer_types", None) or [])) > 1
        if case in PACKED:
            tokens.pack(t["seq_length"])
        write_tokens(out / "train", tokens.ids, tokens.lengths, np.int32 if case == "llama3_rope" else np.uint16)
        if t.get("eval_interval"):
            write_tokens(out / "valid", valid.ids, valid.lengths, np.uint16)
        valid = dict(valid=valid)

    plain_rows, plain_grads, plain_routes = train(model, engine, tokens, valid, torch.float32)
    plain_final = {n: p.detach() for n, p in model.named_parameters()}
    model = model_of(hf).double()
    model.load_state_dict(dict(init, **({"lm_head.weight": init.get("model.embed_tokens.weight", init.get("transformer.wte.weight"))} if hf.tie_word_embeddings else {})))
    with exact():
        rows, grads, routes = train(model, engine, tokens, valid, torch.float64)
    final = {n: p.detach().float() for n, p in model.named_parameters()}
    grads, plain_grads = by_file(grads), by_file(plain_grads)
    save_file({n: g.contiguous() for n, g in grads.items()}, out / "grads.safetensors")
    save_file({n: p.contiguous() for n, p in by_file(final).items()}, out / "final.safetensors")
    expected = dict(config=engine, steps=rows, **({"pack": True} if case in PACKED else {}))
    if routes:
        expected["model"] = table(hf, engine)
    if case in BF16:
        expected["expected_bf16"] = [rounded(hf, init, engine, tokens, final, micro) for micro in (1, 2, 4, 8)]
    (out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")

    worst = {k: max(abs(a[k] - b[k]) / max(b[k], 1e-9) for a, b in zip(plain_rows, rows)) for k in ("loss", "grad_norm")}
    moved = max(shares(by_file(plain_final), by_file(final), by_file(init))[0].values())
    clipped = sum(r["grad_norm"] > engine["optimizer"]["clip_grad"] for r in rows)
    print(f"{case}: loss {rows[0]['loss']:.3f} -> {rows[-1]['loss']:.3f}, {clipped} of {len(rows)} steps clipped; float32 differs by {worst['loss']:.1e} (loss), "
          f"{worst['grad_norm']:.1e} (norm), {distance(plain_grads, grads):.1e} (gradients), {moved:.1e} (weights)")
    if routes:
        report(rows, plain_rows, routes, plain_routes)
    if hf.model_type == "gpt_oss":
        clamped(model_of(hf).float(), init, tokens, t)


def tokenizers():
    """A SentencePiece model with byte fallback and a byte-level tokenizer.json, both of a few kilobytes, trained on this file."""
    import sentencepiece, tempfile
    from tokenizers import ByteLevelBPETokenizer

    out = HERE / "tokenizers"
    out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        sentencepiece.SentencePieceTrainer.train(input=__file__, model_prefix=f"{tmp}/tiny", vocab_size=400, model_type="bpe", byte_fallback=True,
                                                 character_coverage=1.0, normalization_rule_name="identity", minloglevel=2, num_threads=1)
        shutil.copy(f"{tmp}/tiny.model", out / "tokenizer.model")
    bpe = ByteLevelBPETokenizer()
    bpe.train([__file__], vocab_size=300, show_progress=False, special_tokens=["<s>", "</s>"])
    bpe.save(str(out / "tokenizer.json"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if not sys.argv[1:]:
        tokenizers()
    for name in sys.argv[1:] or CASES:
        make(name)
