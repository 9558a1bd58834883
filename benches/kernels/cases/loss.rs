//! Cross-entropy and the embedding.

use super::{BF16, F32, NEW_BF16, NEW_F32, Sizes};
use crate::case::{Case, Data, Tensor, Work};
use cuda::machine::{Done, Machine};
use cuda::ops::{self, EmbedScratch, Rows};
use cuda::tensor::View;
use engine::backend::Xent;

pub fn cases(s: &Sizes) -> Vec<Case> {
    let of = |v| [xent_stats(s, v), xent_grad(s, v), xent(s, v), xent_stats_capped(s, v), xent_grad_capped(s, v)];
    let mut all: Vec<Case> = s.vocab.iter().flat_map(|&v| of(v)).collect();
    let vocab = s.vocab[0];
    all.push(embed(s, vocab));
    // Ids from the whole vocabulary, and so few that each occurs hundreds of times.
    all.extend([("embed_bwd", vocab), ("embed_bwd_few", 16)].map(|(name, ids)| embed_bwd(s, name, vocab, ids)));
    all
}

/// Logits, targets, stats, weights.
fn logits(s: &Sizes, vocab: usize, logits: Tensor) -> Vec<Tensor> {
    let targets = Tensor::read(s.chunk, Data::Ids(vocab as u32));
    vec![logits, targets, Tensor::written(3 * s.chunk, NEW_F32), Tensor::read(s.chunk, Data::Positive(1.0))]
}

const PLAIN: Xent = Xent { first: 0, z_loss: 1e-4, cap: None };
/// With Gemma 2's soft-cap.
const CAPPED: Xent = Xent { cap: Some(30.0), ..PLAIN };

fn stats(m: &dyn Machine, v: &[View]) -> Done {
    ops::xent_stats(m, v[0], v[1], PLAIN, v[2])
}

fn stats_capped(m: &dyn Machine, v: &[View]) -> Done {
    ops::xent_stats(m, v[0], v[1], CAPPED, v[2])
}

fn grad(m: &dyn Machine, v: &[View]) -> Done {
    ops::xent_grad(m, v[0], Rows { stats: v[2], targets: v[1], weights: v[3] }, PLAIN)
}

fn grad_capped(m: &dyn Machine, v: &[View]) -> Done {
    ops::xent_grad(m, v[0], Rows { stats: v[2], targets: v[1], weights: v[3] }, CAPPED)
}

fn xent_stats(s: &Sizes, vocab: usize) -> Case {
    let n = s.chunk * vocab;
    let tensors = logits(s, vocab, Tensor::read(n, BF16));
    Case::new("xent_stats", format!("{}x{vocab}", s.chunk), Work::Bytes(2 * n), tensors, stats)
}

fn xent_grad(s: &Sizes, vocab: usize) -> Case {
    let n = s.chunk * vocab;
    let tensors = logits(s, vocab, Tensor::written(n, BF16));
    Case::new("xent_grad", format!("{}x{vocab}", s.chunk), Work::Bytes(4 * n), tensors, grad).prepared(stats)
}

fn xent_stats_capped(s: &Sizes, vocab: usize) -> Case {
    let n = s.chunk * vocab;
    let tensors = logits(s, vocab, Tensor::read(n, BF16));
    Case::new("xent_stats_capped", format!("{}x{vocab}", s.chunk), Work::Bytes(2 * n), tensors, stats_capped)
}

fn xent_grad_capped(s: &Sizes, vocab: usize) -> Case {
    let n = s.chunk * vocab;
    let tensors = logits(s, vocab, Tensor::written(n, BF16));
    let case = Case::new("xent_grad_capped", format!("{}x{vocab}", s.chunk), Work::Bytes(4 * n), tensors, grad_capped);
    case.prepared(stats_capped)
}

/// Both, one after the other, without a soft-cap.
fn xent(s: &Sizes, vocab: usize) -> Case {
    let n = s.chunk * vocab;
    let tensors = logits(s, vocab, Tensor::written(n, BF16));
    Case::new("xent", format!("{}x{vocab}", s.chunk), Work::Bytes(6 * n), tensors, |m, v| {
        stats(m, v)?;
        grad(m, v)
    })
}

fn embed(s: &Sizes, vocab: usize) -> Case {
    let n = s.tokens * s.hidden;
    let table = Tensor::read(vocab * s.hidden, BF16);
    let tensors = vec![Tensor::read(s.tokens, Data::Ids(vocab as u32)), table, Tensor::written(n, NEW_BF16)];
    let shape = format!("{}x{} of {vocab}", s.tokens, s.hidden);
    Case::new("embed", shape, Work::Bytes(4 * n), tensors, |m, v| ops::embed(m, v[0], v[1], 0, v[2]))
}

fn embed_bwd(s: &Sizes, name: &'static str, vocab: usize, ids: usize) -> Case {
    let n = s.tokens * s.hidden;
    let tensors = vec![
        Tensor::read(s.tokens, Data::Ids(ids as u32)),
        Tensor::read(n, BF16),
        Tensor::written(vocab * s.hidden, F32),
        Tensor::scratch(ops::embed_words(s.tokens), 4),
        Tensor::scratch(ops::embed_parts(s.tokens, s.hidden), 4),
    ];
    // Each row of dy is read; each row of the table's gradient that occurs is read and written.
    let bytes = 2 * n + 8 * s.hidden * ids.min(s.tokens);
    let shape = format!("{}x{} of {vocab}", s.tokens, s.hidden);
    Case::new(name, shape, Work::Bytes(bytes), tensors, |m, v| {
        ops::embed_bwd(m, v[0], v[1], 0, v[2], EmbedScratch { words: v[3], parts: v[4] })
    })
}
