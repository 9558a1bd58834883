//! The weights and gradients of a stage: flat buckets, and views of the matrices inside them that layers read.
//! `params.layer(l)` waits for the bucket's all-gather and is the only way to read a layer's weights.

use crate::backend::{Act, Backend, Pending, Tensor, TensorView, TensorViewMut};
use crate::config::Model;
use crate::layers::{block, embedding, head};
use crate::layout::buckets::{Bucket, Span, Tie};
use crate::model::param_specs::{self, Block, Embedding, ExpertShare, Head, TensorSpec, Unit};
use std::collections::BTreeMap;
use std::rc::Rc;

/// This rank's buckets, and the positions of each layer's matrices in them.
pub struct ParamLayout {
    pub buckets: Vec<Bucket>,
    embedding: Option<Embedding<ParamView>>,
    layers: BTreeMap<usize, Block<ParamView>>,
    /// With tied embeddings, the head's table is the embedding's.
    head: Option<Head<ParamView>>,
}

/// A matrix in a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ParamView {
    bucket: usize,
    /// First element in the bucket.
    at: usize,
    rows: usize,
    cols: usize,
}

impl ParamLayout {
    /// `buckets` hold whole units of `model`, with this share of the experts.
    pub fn new(model: &Model, share: ExpertShare, buckets: Vec<Bucket>) -> Rc<ParamLayout> {
        let held: Vec<Unit> = buckets.iter().flat_map(|bucket| bucket.units.iter().copied()).collect();
        let view = |unit| {
            let buckets = &buckets;
            move |tensors: Vec<TensorSpec>| view_of(buckets, unit, &tensors)
        };
        let has = |unit| held.contains(&unit);
        let embedding = has(Unit::Embedding).then(|| param_specs::embedding(model).map(&mut view(Unit::Embedding)));
        let layer = |l| {
            let view = |tensors: Vec<TensorSpec>| {
                let experts = !has_tensor(&buckets, Unit::Layer(l), &tensors[0]);
                view_of(&buckets, if experts { Unit::Experts(l) } else { Unit::Layer(l) }, &tensors)
            };
            (l, param_specs::layer(model, l, share).map(&mut { view }))
        };
        let layers = held.iter().filter_map(|unit| if let Unit::Layer(l) = unit { Some(layer(*l)) } else { None });
        let layers = layers.collect();
        let table = |tensors: Vec<TensorSpec>| match (tensors.is_empty(), embedding) {
            (false, _) => view_of(&buckets, Unit::Head, &tensors),
            (true, Some(Embedding { table, .. })) => table,
            (true, None) => panic!("a stage that holds a tied head holds the embedding's table"),
        };
        let head = has(Unit::Head).then(|| {
            let Head { norm, table: tensors } = param_specs::head(model);
            Head { norm: norm.map(&mut view(Unit::Head)), table: table(tensors) }
        });
        Rc::new(ParamLayout { embedding, layers, head, buckets })
    }

    /// The bucket that holds `unit`.
    pub fn bucket_of(&self, unit: Unit) -> usize {
        bucket_of(&self.buckets, unit)
    }

    /// The units whose gradients are complete when those of `unit` are: a layer completes its experts, and the head a
    /// tied table on the last stage, which only it uses there.
    pub fn finished_by(&self, unit: Unit) -> impl Iterator<Item = Unit> {
        let completes_table = unit == Unit::Head && self.buckets.iter().any(|bucket| bucket.tie == Tie::Last);
        let holds = |unit: &Unit| self.buckets.iter().any(|bucket| bucket.units.contains(unit));
        let experts = if let Unit::Layer(l) = unit { Some(Unit::Experts(l)).filter(holds) } else { None };
        std::iter::once(unit).chain(completes_table.then_some(Unit::Embedding)).chain(experts)
    }

    /// The bucket of the tied table, which another stage holds too.
    pub fn tied_bucket(&self) -> Option<usize> {
        self.buckets.iter().position(|bucket| bucket.tie != Tie::Free)
    }

    fn embedding(&self) -> Embedding<ParamView> {
        self.embedding.expect("the embedding is on this stage")
    }

    fn layer(&self, l: usize) -> Block<ParamView> {
        *self.layers.get(&l).unwrap_or_else(|| panic!("layer {l} is not on this stage"))
    }

    fn head(&self) -> Head<ParamView> {
        self.head.expect("the head is on this stage")
    }
}

fn bucket_of(buckets: &[Bucket], unit: Unit) -> usize {
    let found = buckets.iter().position(|bucket| bucket.units.contains(&unit));
    found.unwrap_or_else(|| panic!("{unit:?} is not held here"))
}

/// Whether the bucket of `unit` holds this tensor.
fn has_tensor(buckets: &[Bucket], unit: Unit, tensor: &TensorSpec) -> bool {
    buckets[bucket_of(buckets, unit)].spans.iter().any(|span| span.unit == unit && span.tensor.name == tensor.name)
}

/// The view of several tensors as one: matrices stacked along the rows, or vectors one after another.
fn view_of(buckets: &[Bucket], unit: Unit, tensors: &[TensorSpec]) -> ParamView {
    let bucket = bucket_of(buckets, unit);
    let spans: Vec<&Span> = tensors.iter().map(|tensor| buckets[bucket].span(&tensor.name)).collect();
    for pair in spans.windows(2) {
        assert_eq!(pair[0].range().end, pair[1].at, "{} does not follow {}", pair[1].tensor.name, pair[0].tensor.name);
    }
    let (at, held) = (spans[0].at, &spans[0].held);
    match tensors[0].dims[..] {
        [_] => ParamView { bucket, at, rows: 1, cols: spans.iter().map(|span| span.held.cols.len()).sum() },
        _ => ParamView { bucket, at, rows: spans.iter().map(|span| span.held.rows.len()).sum(), cols: held.cols.len() },
    }
}

/// The weights of a stage. A bucket keeps its address from the first step to the last: each step overwrites it.
pub struct Params<B: Backend> {
    layout: Rc<ParamLayout>,
    buckets: Vec<Weights<B>>,
}

/// One bucket of weights, `[len, 1]`.
enum Weights<B: Backend> {
    Here(Act<B>),
    Gathering(Pending<B, B::Act>),
    /// The bucket was taken out to be written.
    Taken,
}

impl<B: Backend> Params<B> {
    /// Buckets with unspecified contents; the optimizer writes them.
    pub fn new(b: &B, layout: Rc<ParamLayout>) -> Self {
        let buckets = layout.buckets.iter().map(|bucket| Weights::Here(b.alloc(bucket.len, 1))).collect();
        Params { layout, buckets }
    }

    /// Takes a bucket out to be written; [`Params::finish_write`] brings it back.
    pub fn begin_write(&mut self, i: usize) -> Act<B> {
        match std::mem::replace(&mut self.buckets[i], Weights::Taken) {
            Weights::Here(bucket) => bucket,
            Weights::Gathering(pending) => pending.wait(),
            Weights::Taken => panic!("bucket {i} is being written already"),
        }
    }

    /// Brings a bucket back whose all-gather is in flight.
    pub fn finish_write(&mut self, i: usize, weights: Pending<B, B::Act>) {
        self.buckets[i] = Weights::Gathering(weights);
    }

    /// The weights of a bucket, `[len, 1]`, once they are here.
    pub fn bucket(&mut self, i: usize) -> &Act<B> {
        let weights = self.begin_write(i);
        self.buckets[i] = Weights::Here(weights);
        match &self.buckets[i] {
            Weights::Here(weights) => weights,
            _ => unreachable!("it was just put there"),
        }
    }

    pub fn embedding(&mut self) -> embedding::Weights<'_, B> {
        let views = self.layout.embedding();
        self.wait_for(&views.all());
        views.map(&mut |view| self.view(view))
    }

    pub fn layer(&mut self, l: usize) -> block::Weights<'_, B> {
        let views = self.layout.layer(l);
        self.wait_for(&views.all());
        views.map(&mut |view| self.view(view))
    }

    pub fn head(&mut self) -> head::Weights<'_, B> {
        let views = self.layout.head();
        self.wait_for(&views.all());
        views.map(&mut |view| self.view(view))
    }

    /// Waits for the all-gathers of these views' buckets if they are still in flight.
    fn wait_for(&mut self, views: &[ParamView]) {
        for view in views {
            if let Weights::Gathering(_) = self.buckets[view.bucket] {
                self.buckets[view.bucket] = Weights::Here(self.begin_write(view.bucket));
            }
        }
    }

    fn view(&self, view: ParamView) -> TensorView<'_, B, B::Act> {
        match &self.buckets[view.bucket] {
            Weights::Here(bucket) => bucket.view(view.at, view.rows, view.cols),
            _ => panic!("bucket {} is read before its weights are here", view.bucket),
        }
    }
}

/// The gradients inside flat buckets `[len, 1]`; `None` if a bucket's reduction has begun.
pub struct GradViews<'a, B: Backend> {
    pub layout: &'a ParamLayout,
    pub buckets: Vec<Option<&'a mut Tensor<B, f32>>>,
}

impl<'a, B: Backend> GradViews<'a, B> {
    pub fn embedding(mut self) -> embedding::Grads<'a, B> {
        let views = self.layout.embedding();
        assert_disjoint(&views.all());
        // SAFETY: as `view_mut` says; `self` is consumed, so no second set of views can be made.
        views.map(&mut |view| unsafe { self.view_mut(view) })
    }

    pub fn layer(mut self, l: usize) -> block::Grads<'a, B> {
        let views = self.layout.layer(l);
        assert_disjoint(&views.all());
        // SAFETY: as in `embedding`.
        views.map(&mut |view| unsafe { self.view_mut(view) })
    }

    pub fn head(mut self) -> head::Grads<'a, B> {
        let views = self.layout.head();
        assert_disjoint(&views.all());
        // SAFETY: as in `embedding`.
        views.map(&mut |view| unsafe { self.view_mut(view) })
    }

    /// # Safety
    /// No two views that are made of one `GradViews` may overlap. The buckets stay mutably borrowed for 'a.
    unsafe fn view_mut(&mut self, view: ParamView) -> TensorViewMut<'a, B, f32> {
        let bucket = self.buckets[view.bucket].as_mut();
        let bucket = bucket.unwrap_or_else(|| panic!("the reduction of bucket {} has begun already", view.bucket));
        // SAFETY: by this function's contract.
        unsafe { TensorViewMut::of(bucket, view.at, view.rows, view.cols) }
    }
}

fn assert_disjoint(views: &[ParamView]) {
    for (i, a) in views.iter().enumerate() {
        for b in &views[..i] {
            let apart = a.bucket != b.bucket || a.at >= b.at + b.rows * b.cols || b.at >= a.at + a.rows * a.cols;
            assert!(apart, "{a:?} overlaps {b:?}");
        }
    }
}
