//! The tensors of a model under their Hugging Face names, slot by slot, and how tensor parallelism
//! cuts each. What is multiplied as one matrix (q, k, v; gate, up) stands side by side.

use crate::config::Model;
use crate::model::rect::Rect;
use std::ops::Range;

/// A part of the model whose weights are gathered and whose gradients are finished together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    Embedding,
    Layer(usize),
    Head,
}

/// How the ranks of a tensor-parallel group share a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TpShard {
    Rows,
    Cols,
    /// By rows, whole heads of this many rows; where there are more ranks than heads, neighbours hold the same head.
    Heads(usize),
    Whole,
}

/// One tensor of the Hugging Face checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    /// One or two dimensions, as in the file.
    pub dims: Vec<usize>,
    pub tp_shard: TpShard,
    /// Matrices are decayed by AdamW, norm weights are not.
    pub decayed: bool,
}

impl TensorSpec {
    fn matrix(name: String, rows: usize, cols: usize, tp_shard: TpShard) -> Self {
        TensorSpec { name, dims: vec![rows, cols], tp_shard, decayed: true }
    }

    fn norm(name: String, len: usize) -> Self {
        TensorSpec { name, dims: vec![len], tp_shard: TpShard::Whole, decayed: false }
    }

    /// A vector counts as one row.
    pub fn shape(&self) -> [usize; 2] {
        match self.dims[..] {
            [len] => [1, len],
            [rows, cols] => [rows, cols],
            _ => panic!("{} has {} dimensions, not 1 or 2", self.name, self.dims.len()),
        }
    }

    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What rank `rank` of `ranks` tensor-parallel ranks holds.
    pub fn held(&self, rank: usize, ranks: usize) -> Rect {
        let whole = Rect::whole(self.shape());
        match self.tp_shard {
            TpShard::Whole => whole,
            TpShard::Rows => Rect { rows: share(whole.rows.end, rank, ranks), ..whole },
            TpShard::Cols => Rect { cols: share(whole.cols.end, rank, ranks), ..whole },
            TpShard::Heads(dim) if self.copies(ranks) > 1 => {
                let head = rank / self.copies(ranks);
                Rect { rows: head * dim..(head + 1) * dim, ..whole }
            }
            TpShard::Heads(_) => Rect { rows: share(whole.rows.end, rank, ranks), ..whole },
        }
    }

    /// How many of `ranks` tensor-parallel ranks, neighbours, hold the same elements.
    pub fn copies(&self, ranks: usize) -> usize {
        match self.tp_shard {
            TpShard::Rows | TpShard::Cols => 1,
            TpShard::Heads(dim) => ranks.div_ceil(self.shape()[0] / dim),
            TpShard::Whole => ranks,
        }
    }
}

/// The consecutive part of `0 .. len` that falls to `rank`; the last ranks' may be shorter.
fn share(len: usize, rank: usize, ranks: usize) -> Range<usize> {
    let each = len.div_ceil(ranks);
    (rank * each).min(len)..((rank + 1) * each).min(len)
}

/// The slots in the order of the forward pass.
pub fn units(model: &Model) -> Vec<Unit> {
    let layers = (0..model.num_hidden_layers).map(Unit::Layer);
    std::iter::once(Unit::Embedding).chain(layers).chain([Unit::Head]).collect()
}

/// The tensors of one slot. A tied head has none but its norm.
pub fn tensors(model: &Model, unit: Unit) -> Vec<TensorSpec> {
    let (d, v) = (model.hidden_size, model.vocab_size);
    match unit {
        Unit::Embedding => vec![TensorSpec::matrix("model.embed_tokens.weight".into(), v, d, TpShard::Rows)],
        Unit::Layer(l) => layer(model, &format!("model.layers.{l}")),
        Unit::Head => {
            let head = TensorSpec::matrix("lm_head.weight".into(), v, d, TpShard::Rows);
            let norm = TensorSpec::norm("model.norm.weight".into(), d);
            if model.tie_word_embeddings { vec![norm] } else { vec![head, norm] }
        }
    }
}

fn layer(model: &Model, at: &str) -> Vec<TensorSpec> {
    let (d, f) = (model.hidden_size, model.intermediate_size);
    let q = model.num_attention_heads * model.head_dim;
    let kv = model.num_key_value_heads * model.head_dim;
    let matrix =
        |name: &str, rows, cols, tp_shard| TensorSpec::matrix(format!("{at}.{name}.weight"), rows, cols, tp_shard);
    vec![
        matrix("self_attn.q_proj", q, d, TpShard::Rows),
        matrix("self_attn.k_proj", kv, d, TpShard::Heads(model.head_dim)),
        matrix("self_attn.v_proj", kv, d, TpShard::Heads(model.head_dim)),
        matrix("self_attn.o_proj", d, q, TpShard::Cols),
        matrix("mlp.gate_proj", f, d, TpShard::Rows),
        matrix("mlp.up_proj", f, d, TpShard::Rows),
        matrix("mlp.down_proj", d, f, TpShard::Cols),
        TensorSpec::norm(format!("{at}.input_layernorm.weight"), d),
        TensorSpec::norm(format!("{at}.post_attention_layernorm.weight"), d),
    ]
}

/// Every tensor of the model, in the order of the slots.
pub fn all_tensors(model: &Model) -> Vec<TensorSpec> {
    units(model).into_iter().flat_map(|unit| tensors(model, unit)).collect()
}
