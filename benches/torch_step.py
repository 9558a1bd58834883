"""Tokens/s of a full training step in PyTorch on the CPU, with which the engine's is compared (benches/README.md).

usage: torch_step.py SHAPE [--threads 2] [--seconds 20] [--compile] [--experts eager]
SHAPE: small | grouped | qwen3 | gemma2 | qwen3_moe

Hugging Face models in float32 with SDPA attention (Gemma 2: eager, which alone has the soft-cap), mean cross-entropy,
backward, clipping at 1.0, and fused AdamW with weight decay on matrices only. `--experts` chooses how transformers
multiplies the rows of experts: `eager`, a product for each, or `grouped_mm`. Prints one line: the median over steps.
Needs torch==2.11.0 and transformers==5.17.0.
"""
import argparse, statistics, time
import torch
from transformers import (Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config,
                          Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM)

# name: (samples, tokens of a sample, model). The engine uses the same shapes: shapes.sh.
SHAPES = {
    "small": (4, 256, dict(num_hidden_layers=6, hidden_size=288, intermediate_size=768, num_attention_heads=6,
                           num_key_value_heads=6, vocab_size=32000)),
    "grouped": (4, 512, dict(num_hidden_layers=8, hidden_size=512, intermediate_size=1376, num_attention_heads=8,
                             num_key_value_heads=4, vocab_size=8192)),
    "qwen3": (4, 512, dict(num_hidden_layers=8, hidden_size=512, intermediate_size=1376, num_attention_heads=8,
                           num_key_value_heads=4, head_dim=96, vocab_size=8192)),
    "gemma2": (4, 512, dict(num_hidden_layers=8, hidden_size=512, intermediate_size=1376, num_attention_heads=4,
                            num_key_value_heads=2, head_dim=128, vocab_size=8192, sliding_window=256,
                            query_pre_attn_scalar=128, pad_token_id=None)),
    "qwen3_moe": (4, 512, dict(num_hidden_layers=8, hidden_size=512, intermediate_size=1376, moe_intermediate_size=344,
                               num_experts=16, num_experts_per_tok=4, norm_topk_prob=True, num_attention_heads=8,
                               num_key_value_heads=4, head_dim=64, vocab_size=8192)),
}
FAMILIES = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "gemma2": (Gemma2Config, Gemma2ForCausalLM),
            "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM)}


def main(a):
    torch.set_num_threads(a.threads)
    torch.manual_seed(1)
    samples, seq, shape = SHAPES[a.shape]
    settings, kind = FAMILIES.get(a.shape, (LlamaConfig, LlamaForCausalLM))
    gemma = a.shape == "gemma2"
    config = settings(**shape, max_position_embeddings=seq, attn_implementation="eager" if gemma else "sdpa",
                      tie_word_embeddings=gemma)
    if a.shape == "qwen3_moe":
        config._experts_implementation = a.experts
    model = kind(config).float().train()
    groups = [dict(params=[p for p in model.parameters() if p.ndim >= 2], weight_decay=0.1),
              dict(params=[p for p in model.parameters() if p.ndim < 2], weight_decay=0.0)]
    opt = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), eps=1e-8, fused=True)
    forward = torch.compile(model) if a.compile else model

    def step():
        x = torch.randint(0, shape["vocab_size"], (samples, seq + 1))
        opt.zero_grad(set_to_none=True)
        logits = forward(input_ids=x[:, :-1], use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()

    for _ in range(3):
        step()
    times, start = [], time.perf_counter()
    while time.perf_counter() - start < a.seconds or len(times) < 5:
        t = time.perf_counter()
        step()
        times.append(time.perf_counter() - t)
    rate = samples * seq / statistics.median(times)
    how = "compiled" if a.compile else "eager"
    how += f", experts {a.experts}" if a.shape == "qwen3_moe" else ""
    print(f"torch {torch.__version__} {how} {a.shape}: {rate:.0f} tokens/s, median of {len(times)} steps, "
          f"{a.threads} threads")


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("shape", choices=SHAPES)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--seconds", type=float, default=20)
    p.add_argument("--compile", action="store_true")
    p.add_argument("--experts", choices=["eager", "grouped_mm"], default="eager")
    main(p.parse_args())
