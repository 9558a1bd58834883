//! The model's parameters, declared once: their names in a Hugging Face checkpoint, their shapes, how tensor
//! parallelism shards them, and which of them a layer multiplies as one matrix (q, k, v; gate, up).
//!
//! A layer's parameters are a struct that is generic in the representation of each parameter: the tensors of the
//! checkpoint (`Vec<TensorSpec>`), a view into a bucket, a weight, a gradient. Buckets, checkpoints, export and the
//! optimizer take the tensors from here; `stage/params.rs` turns the same structs into views, and layers use them in
//! their equations.

use super::rect::Rect;
use super::stored::{PackedPart, Stored};
use crate::config::{self, Model, NormKind};
use std::ops::Range;

/// A part of the model whose weights are gathered together and whose gradients are complete at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unit {
    Embedding,
    Layer(usize),
    /// The experts of a layer: a unit of the parameters alone, since their gradients are summed over fewer ranks.
    Experts(usize),
    Head,
}

/// How the ranks of a tensor-parallel group share a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TpShard {
    /// Consecutive rows (column-parallel in Megatron-LM's terms: the output features are sharded), and the elements of
    /// their bias.
    Rows,
    /// Consecutive columns (row-parallel: the input features are sharded).
    Cols,
    /// Whole heads of this many rows, or elements of a bias, each. With more ranks than heads, neighbouring ranks hold
    /// the same head.
    Heads(usize),
    /// Every rank holds the whole tensor.
    Whole,
    /// Every rank holds the whole tensor and computes a part of its gradient, whether rows are sharded or not: norms of
    /// heads, which each rank applies to its own heads, and routers, whose gradients come from a rank's own columns of
    /// the experts.
    Partial,
}

/// How the optimizer updates a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Update {
    /// AdamW with weight decay: matrices.
    Decayed,
    /// AdamW without weight decay: norm weights and biases.
    Plain,
    /// Not trained: no gradient, no optimizer step; the weights stay as they were loaded.
    Frozen,
}

/// A tensor's weights before training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// Normal, with the deviation `initializer_range`.
    Normal,
    Zeros,
    Ones,
}

/// A rank's part of the experts of every layer: its index among the expert-parallel ranks, and their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertShare {
    pub rank: usize,
    pub ranks: usize,
}

impl ExpertShare {
    pub const ALL: ExpertShare = ExpertShare { rank: 0, ranks: 1 };

    /// The experts of this part, of `experts`, which the number of ranks divides.
    pub fn of(self, experts: usize) -> Range<usize> {
        let each = experts / self.ranks;
        self.rank * each..(self.rank + 1) * each
    }
}

/// One tensor of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in a Hugging Face checkpoint; where `stored` says that the file has another form, a name beside it. The
    /// engine's own checkpoints have this name.
    pub name: String,
    /// One to three dimensions. Matrices are `[out, in]`, as `torch.nn.Linear` has them.
    pub dims: Vec<usize>,
    pub tp_shard: TpShard,
    pub update: Update,
    pub init: Init,
    /// The tensor's place in a Hugging Face file, if it is not there under its own name and as it is.
    pub stored: Option<Stored>,
    /// Its place in a file that has the experts of a layer packed, where such a file has it otherwise.
    pub packed: Option<Stored>,
}

impl TensorSpec {
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
            TpShard::Whole | TpShard::Partial => whole,
            TpShard::Rows => self.features(share(self.dims[0], rank, ranks)),
            TpShard::Cols => Rect { cols: share(whole.cols.end, rank, ranks), ..whole },
            TpShard::Heads(dim) if self.replicas(ranks) > 1 => {
                let head = rank / self.replicas(ranks);
                self.features(head * dim..(head + 1) * dim)
            }
            TpShard::Heads(_) => self.features(share(self.dims[0], rank, ranks)),
        }
    }

    /// The rectangle of these output features: the rows of a matrix, or the elements of its bias.
    fn features(&self, range: Range<usize>) -> Rect {
        let whole = Rect::whole(self.shape());
        match self.dims[..] {
            [_] => Rect { cols: range, ..whole },
            _ => Rect { rows: range, ..whole },
        }
    }

    /// The number of neighbouring tensor-parallel ranks, of `ranks`, that hold the same elements.
    pub fn replicas(&self, ranks: usize) -> usize {
        match self.tp_shard {
            TpShard::Rows | TpShard::Cols => 1,
            TpShard::Heads(dim) => ranks.div_ceil(self.dims[0] / dim),
            TpShard::Whole | TpShard::Partial => ranks,
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
pub(crate) fn share(len: usize, rank: usize, ranks: usize) -> Range<usize> {
    let each = len.div_ceil(ranks);
    (rank * each).min(len)..((rank + 1) * each).min(len)
}

/// Declares a layer's parameters, in four lists: single parameters, those that some models lack, nested layers, and
/// those that some models lack.
macro_rules! params {
    (
        $(#[$doc:meta])*
        $name:ident {
            $($(#[$field_doc:meta])* $field:ident,)* ;
            $($(#[$option_doc:meta])* $option:ident?,)* ;
            $($(#[$inner_doc:meta])* $inner:ident: $struct:ident,)* ;
            $($(#[$some_doc:meta])* $some:ident?: $some_struct:ident,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name<T> {
            $($(#[$field_doc])* pub $field: T,)*
            $($(#[$option_doc])* pub $option: Option<T>,)*
            $($(#[$inner_doc])* pub $inner: $struct<T>,)*
            $($(#[$some_doc])* pub $some: Option<$some_struct<T>>,)*
        }

        impl<T> $name<T> {
            /// Applies `f` to each parameter, in the order of the declaration.
            pub fn map<U>(self, f: &mut impl FnMut(T) -> U) -> $name<U> {
                $name {
                    $($field: f(self.$field),)*
                    $($option: self.$option.map(&mut *f),)*
                    $($inner: self.$inner.map(f),)*
                    $($some: self.$some.map(|some| some.map(f)),)*
                }
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
    /// y = x W^T + b.
    Linear {
        /// `[n, k]`.
        weight, ;
        /// `[1, n]`.
        bias?, ; ;
    }
);

params!(
    /// A norm over the hidden size, `[1, D]` each.
    Norm {
        weight, ;
        /// LayerNorm has a bias, RMSNorm has none.
        bias?, ; ;
    }
);

params!(
    /// RMSNorms of the heads of q and of k: one weight for all heads, `[1, d]` each.
    HeadNorms {
        q, k, ; ; ;
    }
);

params!(
    /// The embedding.
    Embedding {
        /// `[V/tp, D]`.
        table, ;
        /// Learned positions, `[positions/tp, D]`.
        positions?, ; ;
    }
);

params!(
    /// Attention with packed projections.
    Attention { ;
        /// `[1, H]`.
        sinks?, ;
        /// `[(H + 2G) d, D]`: Wq, Wk, Wv stacked along the rows.
        qkv: Linear,
        /// `[D, H d]`.
        out: Linear, ;
        norms?: HeadNorms,
    }
);

params!(
    /// Feed-forward layer.
    Mlp { ; ;
        /// `[2F, D]`, Wg above Wu, or `[F, D]` where there is no gate.
        up: Linear,
        /// `[D, F]`.
        down: Linear, ;
    }
);

params!(
    /// The experts that a rank holds, one below the other.
    Experts { ; ;
        /// `[E 2F, D]`: of each expert Wg above Wu.
        up: Linear,
        /// `[E D, F]`.
        down: Linear, ;
    }
);

params!(
    /// Feed-forward layer with experts.
    Moe { ; ;
        /// `[E, D]`, of all experts.
        router: Linear,
        experts: Experts, ;
    }
);

/// The feed-forward part of a layer.
#[derive(Debug, Clone, Copy)]
pub enum FeedForward<T> {
    Mlp(Mlp<T>),
    Moe(Moe<T>),
}

impl<T> FeedForward<T> {
    /// Applies `f` to each parameter, in the order of the declaration.
    pub fn map<U>(self, f: &mut impl FnMut(T) -> U) -> FeedForward<U> {
        match self {
            FeedForward::Mlp(mlp) => FeedForward::Mlp(mlp.map(f)),
            FeedForward::Moe(moe) => FeedForward::Moe(moe.map(f)),
        }
    }
}

params!(
    /// Transformer layer.
    Block { ; ;
        attention: Attention,
        feed_forward: FeedForward,
        /// Before attention.
        norm1: Norm,
        /// Before the MLP.
        norm2: Norm, ;
        /// Of attention's output, before the residual sum.
        post1?: Norm,
        /// Of the MLP's output, before the residual sum.
        post2?: Norm,
    }
);

params!(
    /// Final norm and output layer.
    Head {
        /// `[V/tp, D]`. If tied to the embedding, it has no tensor of its own.
        table, ; ;
        norm: Norm, ;
    }
);

pub fn embedding(model: &Model) -> Embedding<Vec<TensorSpec>> {
    let (d, v, names) = (model.hidden_size, model.vocab_size, model.tensor_names());
    let table = |name: &str, rows| vec![matrix(name, rows, d, TpShard::Rows)];
    let positions = model.learned_positions();
    Embedding { table: table(names.table, v), positions: positions.map(|rows| table(names.positions, rows)) }
}

/// Transformer layer `l` with this share of its experts; the tensors of a list are stacked along the rows of the matrix
/// that the layer reads.
pub fn layer(model: &Model, l: usize, share: ExpertShare) -> Block<Vec<TensorSpec>> {
    let (of, names, d) = (model.layer(l), model.tensor_names(), model.hidden_size);
    let norm = |name: &str| norm(of.norm, &names.of_layer(l, name), d);
    Block {
        attention: attention(model, l),
        feed_forward: match of.experts() {
            None => FeedForward::Mlp(mlp(model, l)),
            Some(experts) => FeedForward::Moe(moe(model, l, experts, share)),
        },
        norm1: norm(names.norm1),
        norm2: norm(names.norm2),
        post1: of.post_norms.then(|| norm(names.post1)),
        post2: of.post_norms.then(|| norm(names.post2)),
    }
}

fn attention(model: &Model, l: usize) -> Attention<Vec<TensorSpec>> {
    use TpShard::{Cols, Heads, Partial, Rows, Whole};
    let (of, names, dim) = (model.layer(l), model.tensor_names(), model.head_dim);
    let (d, q, kv) = (model.hidden_size, model.num_attention_heads * dim, model.num_key_value_heads * dim);
    let [q_name, k_name, v_name] = names.qkv.map(|name| names.of_layer(l, name));
    let parts = [(q_name, q, Rows), (k_name, kv, Heads(dim)), (v_name, kv, Heads(dim))];
    let together = names.qkv_together.map(|name| names.of_layer(l, name));
    let stored = |parts| in_file(names.transposed, together.as_deref(), parts);
    let of_heads = |name: &str| vec![vector(&format!("{}.weight", names.of_layer(l, name)), dim, Partial, Init::Ones)];
    let out = names.of_layer(l, names.out);
    Attention {
        qkv: Linear {
            weight: stored(parts.iter().map(|(name, rows, shard)| weight(name, *rows, d, *shard)).collect()),
            bias: (of.biases.qkv)
                .then(|| stored(parts.iter().map(|(name, rows, shard)| bias(name, *rows, *shard)).collect())),
        },
        out: Linear {
            weight: in_file(names.transposed, None, vec![weight(&out, d, q, Cols)]),
            bias: of.biases.out.then(|| vec![bias(&out, d, Whole)]),
        },
        sinks: of.sinks.then(|| {
            let name = names.of_layer(l, names.sinks);
            vec![vector(&name, model.num_attention_heads, Rows, Init::Normal)]
        }),
        norms: of.head_norms.then(|| HeadNorms { q: of_heads(names.head_norms[0]), k: of_heads(names.head_norms[1]) }),
    }
}

fn mlp(model: &Model, l: usize) -> Mlp<Vec<TensorSpec>> {
    use TpShard::{Cols, Rows, Whole};
    let (of, names, d) = (model.layer(l), model.tensor_names(), model.hidden_size);
    let f = of.mlp().intermediate_size;
    let (up, down) = (names.up.iter().map(|name| names.of_layer(l, name)), names.of_layer(l, names.down));
    Mlp {
        up: Linear {
            weight: in_file(names.transposed, None, up.clone().map(|name| weight(&name, f, d, Rows)).collect()),
            bias: of.biases.mlp.then(|| up.map(|name| bias(&name, f, Rows)).collect()),
        },
        down: Linear {
            weight: in_file(names.transposed, None, vec![weight(&down, d, f, Cols)]),
            bias: of.biases.mlp.then(|| vec![bias(&down, d, Whole)]),
        },
    }
}

fn moe(model: &Model, l: usize, of: config::Experts, share: ExpertShare) -> Moe<Vec<TensorSpec>> {
    use TpShard::{Cols, Partial, Rows};
    let (names, d, f) = (model.tensor_names(), model.hidden_size, of.mlp.intermediate_size);
    let biases = model.layer(l).biases.mlp;
    let router = names.of_layer(l, names.router);
    // The tensors of these modules of each expert, which a packed file has together.
    let of_experts = |modules: &[&str], together: &str, spec: &dyn Fn(&str) -> TensorSpec| -> Vec<TensorSpec> {
        let n = modules.len();
        let each = share.of(of.count).flat_map(|e| (0..n).map(move |i| (e, i)));
        let place = |e, i| PackedPart { l, together, expert: [e, of.count], part: [i, n] };
        each.map(|(e, i)| spec(&names.of_expert(l, e, modules[i])).in_packed(names, place(e, i))).collect()
    };
    let up = |spec: &dyn Fn(&str) -> TensorSpec| of_experts(names.expert_up, "gate_up_proj", spec);
    let down = |spec: &dyn Fn(&str) -> TensorSpec| of_experts(&[names.expert_down], "down_proj", spec);
    Moe {
        router: Linear {
            weight: vec![weight(&router, of.count, d, Partial).router_in_packed(names, l)],
            bias: of.router_bias.then(|| vec![bias(&router, of.count, Partial)]),
        },
        experts: Experts {
            up: Linear {
                weight: up(&|module| weight(module, f, d, Rows)),
                bias: biases.then(|| up(&|module| bias(module, f, Rows))),
            },
            down: Linear {
                weight: down(&|module| weight(module, d, f, Cols)),
                // Each rank adds its own columns of the bias to its part of the sum over the ranks.
                bias: biases.then(|| down(&|module| bias(module, d, Rows))),
            },
        },
    }
}

pub fn head(model: &Model) -> Head<Vec<TensorSpec>> {
    let (d, v, names) = (model.hidden_size, model.vocab_size, model.tensor_names());
    let table = matrix(names.head, v, d, TpShard::Rows);
    Head {
        norm: norm(model.norm_kind(), names.final_norm, d),
        table: if model.tie_word_embeddings { vec![] } else { vec![table] },
    }
}

/// Notes how the tensors lie in a file that has them transposed: as parts of one tensor of the module `together`, or
/// each under its own name.
fn in_file(transposed: bool, together: Option<&str>, parts: Vec<TensorSpec>) -> Vec<TensorSpec> {
    if !transposed {
        return parts;
    }
    let of = parts.iter().map(|part| part.dims[0]).sum::<usize>();
    let mut first = 0;
    let stored = |part: TensorSpec| {
        let ending = part.name.rsplit('.').next().unwrap_or_default();
        let (name, of) = match together {
            Some(module) => (format!("{module}.{ending}"), of),
            None => (part.name.clone(), part.dims[0]),
        };
        let (dims, transposed) = match part.dims[..] {
            [_] => (vec![of], false),
            [_, cols] => (vec![cols, of], true),
            _ => panic!("{} has {} dimensions; only matrices are transposed", part.name, part.dims.len()),
        };
        let first_of = if together.is_some() { first } else { 0 };
        let stored = Stored { name, dims, matrix: 0, first: first_of, step: 1, transposed };
        first += part.dims[0];
        TensorSpec { stored: Some(stored), ..part }
    };
    parts.into_iter().map(stored).collect()
}

fn matrix(name: &str, rows: usize, cols: usize, tp_shard: TpShard) -> TensorSpec {
    let (name, dims) = (name.to_string(), vec![rows, cols]);
    TensorSpec { name, dims, tp_shard, update: Update::Decayed, init: Init::Normal, stored: None, packed: None }
}

fn weight(module: &str, rows: usize, cols: usize, tp_shard: TpShard) -> TensorSpec {
    matrix(&format!("{module}.weight"), rows, cols, tp_shard)
}

fn vector(name: &str, len: usize, tp_shard: TpShard, init: Init) -> TensorSpec {
    TensorSpec {
        name: name.to_string(),
        dims: vec![len],
        tp_shard,
        update: Update::Plain,
        init,
        stored: None,
        packed: None,
    }
}

fn bias(module: &str, len: usize, tp_shard: TpShard) -> TensorSpec {
    vector(&format!("{module}.bias"), len, tp_shard, Init::Zeros)
}

fn norm(kind: NormKind, module: &str, d: usize) -> Norm<Vec<TensorSpec>> {
    let init = if kind == NormKind::RmsPlusOne { Init::Zeros } else { Init::Ones };
    Norm {
        weight: vec![vector(&format!("{module}.weight"), d, TpShard::Whole, init)],
        bias: (kind == NormKind::Layer).then(|| vec![bias(module, d, TpShard::Whole)]),
    }
}

/// The units that a stage runs, in the order of the forward pass.
pub fn units(model: &Model) -> Vec<Unit> {
    let layers = (0..model.num_hidden_layers).map(Unit::Layer);
    std::iter::once(Unit::Embedding).chain(layers).chain([Unit::Head]).collect()
}

/// The units of parameters that make up a unit that a stage runs: a layer, and its experts.
pub fn with_experts(model: &Model, unit: Unit) -> impl Iterator<Item = Unit> {
    let experts = match unit {
        Unit::Layer(l) => model.layer(l).experts().map(|_| Unit::Experts(l)),
        _ => None,
    };
    std::iter::once(unit).chain(experts)
}

/// The tensors of one unit that a rank with this share of the experts holds, in the order in which a bucket packs them.
pub fn tensors(model: &Model, unit: Unit, share: ExpertShare) -> Vec<TensorSpec> {
    match unit {
        Unit::Embedding => embedding(model).all().concat(),
        Unit::Layer(l) => {
            let mut block = layer(model, l, share);
            if let FeedForward::Moe(moe) = block.feed_forward {
                let experts = moe.experts.map(&mut |_| Vec::new());
                block.feed_forward = FeedForward::Moe(Moe { experts, ..moe });
            }
            block.all().concat()
        }
        Unit::Experts(l) => match layer(model, l, share).feed_forward {
            FeedForward::Mlp(_) => Vec::new(),
            FeedForward::Moe(moe) => moe.experts.all().concat(),
        },
        Unit::Head => head(model).all().concat(),
    }
}

/// Every tensor of the model, in the order of the units.
pub fn all_tensors(model: &Model) -> Vec<TensorSpec> {
    let units = units(model).into_iter().flat_map(|unit| with_experts(model, unit));
    units.flat_map(|unit| tensors(model, unit, ExpertShare::ALL)).collect()
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
