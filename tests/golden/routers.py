"""The families with experts: their configuration, their tensors in files, the losses of routers, and how uneven the routing is."""
import torch
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.mixtral import modeling_mixtral
from transformers.models.qwen3_moe import modeling_qwen3_moe

ROUTERS = (modeling_mixtral.MixtralTopKRouter, modeling_qwen3_moe.Qwen3MoeTopKRouter, modeling_gpt_oss.GptOssTopKRouter)


def aux_coefficient(hf, engine):
    """The coefficient of the load-balancing loss: the engine's own key, or config.json's where that says that the loss is computed."""
    return engine.get("model", {}).get("router_aux_loss_coef", hf.router_aux_loss_coef if getattr(hf, "output_router_logits", False) else 0.0)


def table(hf, engine):
    """The engine's whole [model] of a family with experts: what it must read in config.json, and the keys that only its own configuration has."""
    keys = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
            "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "initializer_range", "num_local_experts", "num_experts_per_tok"]
    keys += dict(mixtral=[], gpt_oss=["attention_bias", "sliding_window", "layer_types"],
                 qwen3_moe=["moe_intermediate_size", "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers"])[hf.model_type]
    out = dict(architecture=hf.model_type, **{k: getattr(hf, k) for k in keys})
    out["head_dim"] = out["head_dim"] or hf.hidden_size // hf.num_attention_heads
    rope = dict(hf.rope_parameters)
    out["rope_theta"] = rope.pop("rope_theta")
    if rope["rope_type"] != "default":
        out["rope_scaling"] = rope
    return {**out, "router_aux_loss_coef": aux_coefficient(hf, engine), **engine.get("model", {})}


def filed(family, tensors):
    """Tensors by their names in files, where experts of mixtral and qwen3_moe are not packed."""
    out = {}
    for n, p in tensors.items():
        stem, _, packed = n.rpartition(".experts.")
        if not stem or family == "gpt_oss":
            out[n.replace(".mlp.", ".block_sparse_moe.") if family == "mixtral" else n] = p
            continue
        parts = zip(("gate_proj", "up_proj"), p.chunk(2, 1)) if packed == "gate_up_proj" else [("down_proj", p)]
        names = dict(gate_proj="w1", up_proj="w3", down_proj="w2") if family == "mixtral" else {}
        for part, experts in parts:
            for j, weight in enumerate(experts):
                out[f"{stem.replace('.mlp', '.block_sparse_moe') if names else stem}.experts.{j}.{names.get(part, part)}.weight"] = weight
    return out


class Routing:
    """The logits and choices of a model's routers in each forward pass after which they are taken."""

    def __init__(self, model):
        self.last = []  # logits and chosen experts of each layer's tokens
        for m in model.modules():
            if isinstance(m, ROUTERS):
                m.register_forward_hook(lambda m, _, out: self.last.append((out[0], out[2])))

    def take(self):
        last, self.last = self.last, []
        return last


def balance(routed, sequences):
    """Of the routers in one forward pass: the engine's load-balancing loss, the mean of log(Z)^2, and how often each expert was chosen."""
    aux, z, counts = [], [], []
    for logits, chosen in routed:
        E = logits.shape[-1]
        n = torch.nn.functional.one_hot(chosen, E).sum(1).view(sequences, -1, E)
        p = torch.softmax(logits, -1).view(sequences, -1, E)
        aux.append(E * (n.to(p.dtype).mean(1) * p.mean(1)).sum(-1).mean())
        z.append(torch.logsumexp(logits, -1).square().mean())
        counts.append(n.sum((0, 1)).tolist())
    return sum(aux) / len(aux), sum(z) / len(z), counts


def report(rows, plain_rows, routes, plain_routes):
    """Prints how uneven the routing is and how far choices are from being others. None may be another in float32."""
    pairs = [(a, b) for step, plain in zip(routes, plain_routes) for a, b in zip(step, plain)]
    k = pairs[0][0][1].shape[1]
    assert all(chosen.sort()[0].equal(plain.sort()[0]) for (_, chosen), (_, plain) in pairs)
    best = [logits.topk(k + 1)[0] for (logits, _), _ in pairs]
    gap = min(float((b[:, k - 1] - b[:, k]).min()) for b in best)
    off = max(float((logits - plain).abs().max()) for (logits, _), (plain, _) in pairs)
    worst = [max(abs(a[key] - b[key]) / b[key] for a, b in zip(plain_rows, rows)) for key in ("aux_loss", "router_z_loss")]
    print(f"  choices are at least {gap:.1e} apart, float32 moves logits by {off:.1e}, aux_loss by {worst[0]:.1e}, router_z_loss by {worst[1]:.1e}; "
          f"aux_loss {rows[0]['aux_loss']:.3f} -> {rows[-1]['aux_loss']:.3f}, "
          f"router_z_loss {rows[0]['router_z_loss']:.2f} -> {rows[-1]['router_z_loss']:.2f}")
    never = [[sum((chosen == e).sum().item() == 0 for _, chosen in layer) for e in range(len(counts))]
             for layer, counts in zip(zip(*routes), rows[0]["expert_counts"])]
    print(f"  chosen in step 1: {rows[0]['expert_counts']}; steps without a token: {never}")


def clamped(model, init, tokens, t):
    """Prints how often the gates and values of gpt_oss's experts are beyond 7 in step 1."""
    model.load_state_dict(init)
    seen = []
    for layer in model.model.layers:
        apply = layer.mlp.experts._apply_gate
        layer.mlp.experts._apply_gate = lambda x, apply=apply: (seen.append(x), apply(x))[1]
    ids, _, mask, _ = tokens.batch(0, t["global_batch_size"], t["seq_length"], False, torch.float32)
    model(input_ids=ids, attention_mask=mask, use_cache=False)
    x = torch.cat([x.flatten(0, -2) for x in seen]).detach()
    gate, up = x[:, ::2], x[:, 1::2]
    print("  of the gates {:.1e} are above 7 and {:.1e} below -7, of the values {:.1e} and {:.1e}".format(
        *(float(c.float().mean()) for c in (gate > 7, gate < -7, up > 7, up < -7))))
