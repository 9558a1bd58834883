//! The weights and gradients of a stage: flat buckets, and the matrices inside them that layers see.
//! `params.layer(l)` waits for the bucket's all-gather and is the only way to read a weight.

use crate::backend::{Act, Backend, Pending, Tensor, TensorView, TensorViewMut};
use crate::layers::{attention, block, embedding, head, mlp};
use crate::layout::buckets::{Bucket, Span, Tie};
use crate::model::param_specs::Unit;
use std::rc::Rc;

/// The bucket plan of this rank.
pub struct ParamLayout {
    pub buckets: Vec<Bucket>,
    /// The head's matrix is the embedding's.
    tied: bool,
}

/// A matrix in a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ParamView {
    bucket: usize,
    at: usize,
    rows: usize,
    cols: usize,
}

/// Where the matrices of one layer are.
struct LayerViews {
    qkv: ParamView,
    out: ParamView,
    gate_up: ParamView,
    down: ParamView,
    norm1: ParamView,
    norm2: ParamView,
}

impl ParamLayout {
    pub fn new(buckets: Vec<Bucket>, tied: bool) -> Rc<ParamLayout> {
        Rc::new(ParamLayout { buckets, tied })
    }

    /// The bucket that holds `unit`.
    pub fn bucket_of(&self, unit: Unit) -> usize {
        self.buckets.iter().position(|b| b.units.contains(&unit)).unwrap_or_else(|| panic!("{unit:?} is not held here"))
    }

    /// The slots whose gradients are complete when those of `unit` are: a tied table that is only here for
    /// the head is finished by it.
    pub fn finished_by(&self, unit: Unit) -> impl Iterator<Item = Unit> {
        let lodger = unit == Unit::Head && self.buckets.iter().any(|bucket| bucket.tie == Tie::Last);
        std::iter::once(unit).chain(lodger.then_some(Unit::Embedding))
    }

    /// The bucket of the table that another stage holds too.
    pub fn tied_bucket(&self) -> Option<usize> {
        self.buckets.iter().position(|bucket| bucket.tie != Tie::Free)
    }

    fn layer(&self, l: usize) -> LayerViews {
        let unit = Unit::Layer(l);
        let view_of = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| format!("model.layers.{l}.{name}.weight")).collect();
            self.view_of(unit, &names)
        };
        LayerViews {
            qkv: view_of(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            out: view_of(&["self_attn.o_proj"]),
            gate_up: view_of(&["mlp.gate_proj", "mlp.up_proj"]),
            down: view_of(&["mlp.down_proj"]),
            norm1: view_of(&["input_layernorm"]),
            norm2: view_of(&["post_attention_layernorm"]),
        }
    }

    fn embedding(&self) -> (ParamView, usize) {
        let view_of = self.view_of(Unit::Embedding, &["model.embed_tokens.weight".into()]);
        (view_of, self.span(Unit::Embedding, "model.embed_tokens.weight").held.rows.start)
    }

    /// (norm, table, first id of the table).
    fn head(&self) -> (ParamView, ParamView, usize) {
        let norm = self.view_of(Unit::Head, &["model.norm.weight".into()]);
        if self.tied {
            let (table, first) = self.embedding();
            return (norm, table, first);
        }
        let table = self.view_of(Unit::Head, &["lm_head.weight".into()]);
        (norm, table, self.span(Unit::Head, "lm_head.weight").held.rows.start)
    }

    fn span(&self, unit: Unit, name: &str) -> &Span {
        self.buckets[self.bucket_of(unit)].span(name)
    }

    /// Tensors that stand one below the other, as one matrix.
    fn view_of(&self, unit: Unit, names: &[String]) -> ParamView {
        let spans: Vec<&Span> = names.iter().map(|name| self.span(unit, name)).collect();
        for pair in spans.windows(2) {
            assert_eq!(
                pair[0].range().end,
                pair[1].at,
                "{} does not follow {}",
                pair[1].tensor.name,
                pair[0].tensor.name
            );
        }
        ParamView {
            bucket: self.bucket_of(unit),
            at: spans[0].at,
            rows: spans.iter().map(|span| span.held.rows.len()).sum(),
            cols: spans[0].held.cols.len(),
        }
    }
}

/// The weights of a stage.
///
/// A bucket stays where it is from the first step to the last: each step writes it anew.
pub struct Params<B: Backend> {
    layout: Rc<ParamLayout>,
    buckets: Vec<Weights<B>>,
}

/// One bucket of weights, `[len, 1]`.
enum Weights<B: Backend> {
    Here(Act<B>),
    Gathering(Pending<B, B::Act>),
    /// Being written.
    Taken,
}

impl<B: Backend> Params<B> {
    /// Buckets whose weights are still to be written.
    pub fn new(b: &B, layout: Rc<ParamLayout>) -> Self {
        let buckets = layout.buckets.iter().map(|bucket| Weights::Here(b.alloc(bucket.len, 1))).collect();
        Params { layout, buckets }
    }

    /// A bucket to be written, which [`Params::finish_write`] brings back.
    pub fn begin_write(&mut self, i: usize) -> Act<B> {
        match std::mem::replace(&mut self.buckets[i], Weights::Taken) {
            Weights::Here(bucket) => bucket,
            Weights::Gathering(pending) => pending.wait(),
            Weights::Taken => panic!("bucket {i} is being written already"),
        }
    }

    pub fn finish_write(&mut self, i: usize, weights: Pending<B, B::Act>) {
        self.buckets[i] = Weights::Gathering(weights);
    }

    pub fn layer(&mut self, l: usize) -> block::Weights<'_, B> {
        let layout = self.layout.clone();
        let p = layout.layer(l);
        self.arrive(p.qkv.bucket);
        block::Weights {
            norm1: self.view(p.norm1),
            attention: attention::Weights { qkv: self.view(p.qkv), out: self.view(p.out) },
            norm2: self.view(p.norm2),
            mlp: mlp::Weights { gate_up: self.view(p.gate_up), down: self.view(p.down) },
        }
    }

    pub fn embedding(&mut self) -> embedding::Weights<'_, B> {
        let (table, first) = self.layout.embedding();
        self.arrive(table.bucket);
        embedding::Weights { table: self.view(table), first }
    }

    pub fn head(&mut self) -> head::Weights<'_, B> {
        let (norm, table, first) = self.layout.head();
        self.arrive(norm.bucket);
        self.arrive(table.bucket);
        head::Weights { norm: self.view(norm), table: self.view(table), first }
    }

    /// Waits for a bucket's all-gather where it is still under way.
    fn arrive(&mut self, i: usize) {
        if let Weights::Gathering(_) = self.buckets[i] {
            self.buckets[i] = Weights::Here(self.begin_write(i));
        }
    }

    fn view(&self, p: ParamView) -> TensorView<'_, B, B::Act> {
        match &self.buckets[p.bucket] {
            Weights::Here(bucket) => bucket.view(p.at, p.rows, p.cols),
            _ => panic!("bucket {} is read before its weights are here", p.bucket),
        }
    }
}

/// The gradients inside flat buckets `[len, 1]`.
pub struct GradViews<'a, B: Backend> {
    pub layout: &'a ParamLayout,
    pub buckets: Vec<Option<&'a mut Tensor<B, f32>>>,
}

impl<'a, B: Backend> GradViews<'a, B> {
    pub fn layer(mut self, l: usize) -> block::Grads<'a, B> {
        let p = self.layout.layer(l);
        let [qkv, out, gate_up, down, norm1, norm2] = self.views([p.qkv, p.out, p.gate_up, p.down, p.norm1, p.norm2]);
        block::Grads { norm1, attention: attention::Grads { qkv, out }, norm2, mlp: mlp::Grads { gate_up, down } }
    }

    /// The table's gradient and its first id.
    pub fn embedding(mut self) -> (TensorViewMut<'a, B, f32>, usize) {
        let (table, first) = self.layout.embedding();
        let [table] = self.views([table]);
        (table, first)
    }

    pub fn head(mut self) -> head::Grads<'a, B> {
        let (norm, table, _) = self.layout.head();
        let [norm, table] = self.views([norm, table]);
        head::Grads { norm, table }
    }

    fn views<const N: usize>(&mut self, views: [ParamView; N]) -> [TensorViewMut<'a, B, f32>; N] {
        for (i, a) in views.iter().enumerate() {
            for b in &views[..i] {
                let apart = a.bucket != b.bucket || a.at >= b.at + b.rows * b.cols || b.at >= a.at + a.rows * a.cols;
                assert!(apart, "{a:?} overlaps {b:?}");
            }
        }
        views.map(|p| {
            let bucket =
                self.buckets[p.bucket].as_mut().unwrap_or_else(|| panic!("bucket {} was sent already", p.bucket));
            // SAFETY: the places are disjoint (asserted above), the buckets stay mutably borrowed for 'a, and
            // `self` is consumed by the callers, so no second set of views can be made.
            unsafe { TensorViewMut::of(bucket, p.at, p.rows, p.cols) }
        })
    }
}
