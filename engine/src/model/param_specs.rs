//! The model's parameters, declared once: their names in a Hugging Face checkpoint, their shapes, how tensor
//! parallelism shards them, and which of them a layer multiplies as one matrix (q, k, v; gate, up).
//!
//! A layer's parameters are a struct that is generic in the representation of each parameter: the tensors of the
//! checkpoint (`Vec<TensorSpec>`), a view into a bucket, a weight, a gradient. Buckets, checkpoints, export and the
//! optimizer take the tensors from here; `stage/params.rs` turns the same structs into views, and layers use them in
//! their equations.

use super::rect::Rect;
use crate::config::{MlpKind, Model};
use std::ops::Range;

/// A part of the model whose weights are gathered together and whose gradients are complete at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unit {
    Embedding,
    Layer(usize),
    Head,
}

/// How the ranks of a tensor-parallel group share a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TpShard {
    /// Consecutive rows (column-parallel in Megatron-LM's terms: the output features are sharded).
    Rows,
    /// Consecutive columns (row-parallel: the input features are sharded).
    Cols,
    /// Whole heads of this many rows each. With more ranks than heads, neighbouring ranks hold the same head.
    Heads(usize),
    /// Every rank holds the whole tensor.
    Whole,
}

/// How the optimizer updates a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Update {
    /// AdamW with weight decay: matrices.
    Decayed,
    /// AdamW without weight decay: norm weights.
    Plain,
    /// Not trained: no gradient, no optimizer step; the weights stay as they were loaded.
    Frozen,
}

/// One tensor of the Hugging Face checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    /// One to three dimensions, as in the file.
    pub dims: Vec<usize>,
    pub tp_shard: TpShard,
    pub update: Update,
}

impl TensorSpec {
    fn matrix(name: String, rows: usize, cols: usize, tp_shard: TpShard) -> Self {
        TensorSpec { name, dims: vec![rows, cols], tp_shard, update: Update::Decayed }
    }

    fn norm(name: String, len: usize) -> Self {
        TensorSpec { name, dims: vec![len], tp_shard: TpShard::Whole, update: Update::Plain }
    }

    /// The tensor as a matrix `[rows, cols]`: see [`matrix_shape`].
    pub fn shape(&self) -> [usize; 2] {
        matrix_shape(&self.dims)
            .unwrap_or_else(|| panic!("{} has {} dimensions, not 1 to 3", self.name, self.dims.len()))
    }

    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rectangle that tensor-parallel rank `rank` of `ranks` holds.
    pub fn held(&self, rank: usize, ranks: usize) -> Rect {
        let whole = Rect::whole(self.shape());
        match self.tp_shard {
            TpShard::Whole => whole,
            TpShard::Rows => Rect { rows: share(whole.rows.end, rank, ranks), ..whole },
            TpShard::Cols => Rect { cols: share(whole.cols.end, rank, ranks), ..whole },
            TpShard::Heads(dim) if self.replicas(ranks) > 1 => {
                let head = rank / self.replicas(ranks);
                Rect { rows: head * dim..(head + 1) * dim, ..whole }
            }
            TpShard::Heads(_) => Rect { rows: share(whole.rows.end, rank, ranks), ..whole },
        }
    }

    /// The number of neighbouring tensor-parallel ranks, of `ranks`, that hold the same elements.
    pub fn replicas(&self, ranks: usize) -> usize {
        match self.tp_shard {
            TpShard::Rows | TpShard::Cols => 1,
            TpShard::Heads(dim) => ranks.div_ceil(self.shape()[0] / dim),
            TpShard::Whole => ranks,
        }
    }
}

/// A tensor of one to three dimensions as a matrix: a vector is one row, `[E, r, c]` is E matrices stacked along the
/// rows. `None` for any other number of dimensions, and if the sizes overflow.
pub fn matrix_shape(dims: &[usize]) -> Option<[usize; 2]> {
    let shape = match *dims {
        [len] => [1, len],
        [rows, cols] => [rows, cols],
        [matrices, rows, cols] => [matrices.checked_mul(rows)?, cols],
        _ => return None,
    };
    shape[0].checked_mul(shape[1]).map(|_| shape)
}

/// The consecutive part of `0 .. len` that `rank` holds; the last ranks' parts may be shorter.
fn share(len: usize, rank: usize, ranks: usize) -> Range<usize> {
    let each = len.div_ceil(ranks);
    (rank * each).min(len)..((rank + 1) * each).min(len)
}

/// Declares a layer's parameters. A field is a parameter, or (`name: Struct`) the parameters of a nested layer.
macro_rules! params {
    (
        $(#[$doc:meta])*
        $name:ident {
            $($(#[$inner_doc:meta])* $inner:ident: $struct:ident,)* ;
            $($(#[$field_doc:meta])* $field:ident,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name<T> {
            $($(#[$inner_doc])* pub $inner: $struct<T>,)*
            $($(#[$field_doc])* pub $field: T,)*
        }

        impl<T> $name<T> {
            /// Applies `f` to each parameter, in the order of the declaration.
            pub fn map<U>(self, f: &mut impl FnMut(T) -> U) -> $name<U> {
                $name { $($inner: self.$inner.map(f),)* $($field: f(self.$field),)* }
            }

            /// All parameters, in the order of the declaration.
            pub fn all(self) -> Vec<T> {
                let mut all = Vec::new();
                self.map(&mut |parameter| all.push(parameter));
                all
            }
        }
    };
}

params!(
    /// Token embedding.
    Embedding { ;
        /// `[V/tp, D]`.
        table,
    }
);

params!(
    /// Attention with packed projections.
    Attention { ;
        /// `[(H + 2G) d, D]`: Wq, Wk, Wv stacked along the rows.
        qkv,
        /// `[D, H d]`.
        out,
    }
);

params!(
    /// SwiGLU feed-forward layer.
    Mlp { ;
        /// `[2F, D]`: Wg above Wu.
        gate_up,
        /// `[D, F]`.
        down,
    }
);

params!(
    /// Transformer layer.
    Block {
        attention: Attention,
        mlp: Mlp,
        ;
        /// Weight of the RMSNorm before attention, `[1, D]`.
        norm1,
        /// Weight of the RMSNorm before the MLP, `[1, D]`.
        norm2,
    }
);

params!(
    /// Final norm and output layer.
    Head { ;
        /// `[V/tp, D]`. If tied to the embedding, it has no tensor of its own.
        table,
        /// `[1, D]`.
        norm,
    }
);

pub fn embedding(model: &Model) -> Embedding<Vec<TensorSpec>> {
    let (d, v) = (model.hidden_size, model.vocab_size);
    Embedding { table: vec![TensorSpec::matrix("model.embed_tokens.weight".into(), v, d, TpShard::Rows)] }
}

/// Transformer layer `l`; the tensors of a list are stacked along the rows of the matrix that the layer reads.
pub fn layer(model: &Model, l: usize) -> Block<Vec<TensorSpec>> {
    use TpShard::{Cols, Heads, Rows};
    let d = model.hidden_size;
    let MlpKind::SwiGlu { intermediate_size: f } = model.layer(l).mlp;
    let q = model.num_attention_heads * model.head_dim;
    let kv = model.num_key_value_heads * model.head_dim;
    let name = |name: &str| format!("model.layers.{l}.{name}.weight");
    let matrix = |module: &str, rows, cols, tp_shard| TensorSpec::matrix(name(module), rows, cols, tp_shard);
    Block {
        attention: Attention {
            qkv: vec![
                matrix("self_attn.q_proj", q, d, Rows),
                matrix("self_attn.k_proj", kv, d, Heads(model.head_dim)),
                matrix("self_attn.v_proj", kv, d, Heads(model.head_dim)),
            ],
            out: vec![matrix("self_attn.o_proj", d, q, Cols)],
        },
        mlp: Mlp {
            gate_up: vec![matrix("mlp.gate_proj", f, d, Rows), matrix("mlp.up_proj", f, d, Rows)],
            down: vec![matrix("mlp.down_proj", d, f, Cols)],
        },
        norm1: vec![TensorSpec::norm(name("input_layernorm"), d)],
        norm2: vec![TensorSpec::norm(name("post_attention_layernorm"), d)],
    }
}

pub fn head(model: &Model) -> Head<Vec<TensorSpec>> {
    let (d, v) = (model.hidden_size, model.vocab_size);
    let table = TensorSpec::matrix("lm_head.weight".into(), v, d, TpShard::Rows);
    Head {
        table: if model.tie_word_embeddings { vec![] } else { vec![table] },
        norm: vec![TensorSpec::norm("model.norm.weight".into(), d)],
    }
}

/// The units in the order of the forward pass.
pub fn units(model: &Model) -> Vec<Unit> {
    let layers = (0..model.num_hidden_layers).map(Unit::Layer);
    std::iter::once(Unit::Embedding).chain(layers).chain([Unit::Head]).collect()
}

/// The tensors of one unit, in the order in which a bucket packs them.
pub fn tensors(model: &Model, unit: Unit) -> Vec<TensorSpec> {
    match unit {
        Unit::Embedding => embedding(model).all().concat(),
        Unit::Layer(l) => layer(model, l).all().concat(),
        Unit::Head => head(model).all().concat(),
    }
}

/// Every tensor of the model, in the order of the units.
pub fn all_tensors(model: &Model) -> Vec<TensorSpec> {
    units(model).into_iter().flat_map(|unit| tensors(model, unit)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_dimensions_are_matrices_one_below_the_other() {
        assert_eq!(matrix_shape(&[7]), Some([1, 7]));
        assert_eq!(matrix_shape(&[3, 7]), Some([3, 7]));
        assert_eq!(matrix_shape(&[2, 3, 7]), Some([6, 7]));
        assert_eq!(matrix_shape(&[]), None);
        assert_eq!(matrix_shape(&[1, 2, 3, 4]), None);
        assert_eq!(matrix_shape(&[1 << 40, 1 << 40, 2]), None);
    }
}
