//! Makes a mixture of experts of a dense Hugging Face checkpoint: every expert is a copy of the dense MLP, the router
//! is random, and every other tensor is carried over ("sparse upcycling", Komatsuzaki et al. 2023). A part of the
//! intermediate columns of each expert may be drawn anew (Drop-Upcycling, Nakamura et al. 2025, arXiv:2502.19261).
//!
//! An element of the result is a function of the checkpoint, the seed and its place alone, and tensors are read and
//! written in bands, so that memory does not grow with the model. Only the sums of one layer's columns are held beside
//! a band. This module decides which models are upcycled; [`super::export()`] writes the files.

use super::export::{Export, export};
use super::hf::HEAD;
use super::import::bands;
use super::{HuggingFace, source};
use crate::config::{Architecture, AttentionKind, MOST_CHOICES, MOST_EXPERTS, Model, Named, Precision, hf};
use crate::error::{Error, Result, counted};
use crate::model::flops;
use crate::model::init;
use crate::model::param_specs::{TensorSpec, all_tensors};
use crate::model::rect::Rect;
use crate::model::stored::Form;
use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

/// Elements in memory at a time while columns are summed.
const BAND: usize = 4 << 20;

/// Fields of `config.json` that mean the same in the dense and in the sparse family and that the engine does not write
/// itself. All others are left out, since the sparse family may give them another meaning.
const CARRIED: [&str; 8] = [
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "attention_dropout",
    "use_cache",
    "torch_dtype",
    "dtype",
    "transformers_version",
];

/// How a dense model becomes a mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Upcycle {
    /// E: the experts of each layer.
    pub experts: usize,
    /// k: the experts of a token.
    pub per_token: usize,
    /// r: the part of the F intermediate columns of each expert that is drawn anew.
    pub reinit_ratio: f64,
    pub seed: u32,
}

/// The result of an upcycling.
#[derive(Debug, Clone)]
pub struct Upcycled {
    pub model: Model,
    pub dtype: Dtype,
    /// The number of columns of each expert that were drawn anew.
    pub columns: usize,
}

/// Upcycles the checkpoint in the directory `from` into the directory `to`, which appears whole or not at all: see
/// [`export()`]. `progress` gets the bytes of weights done and those of all weights.
pub fn upcycle(what: &Upcycle, from: &Path, to: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Upcycled> {
    what.check()?;
    if let (Ok(from), Ok(to)) = (from.canonicalize(), to.canonicalize())
        && from == to
    {
        let what = "this is the directory of --model, which would be replaced; name another";
        return Err(Error::user(format!("--output {}: {what}", to.display())));
    }
    let dense = hf::read_model(from)?;
    let model = what.model(&dense, from)?;
    let width = dense.intermediate_size;
    if what.reinit_ratio > 0.0 && what.columns(width) == 0 {
        let ratio = what.reinit_ratio;
        let remedy = format!("give 0, or at least {:.4}", 1.0 / width as f64);
        return Err(Error::user(format!("--reinit-ratio {ratio}: is less than one of {width} columns; {remedy}")));
    }
    let hf = HuggingFace::open(from, &dense)?;
    let dtype = dtype(&hf, &dense);
    let request = Export {
        model: &model,
        form: Form::PerExpert,
        config: config(&model, &hf::read_source(from)?, dtype),
        dtype,
        files: source::carried(from),
        origin: from.canonicalize().map_err(|e| Error::io(from, e))?.display().to_string(),
        checkpoint: hf.fingerprint()?,
    };
    let weights = Weights::new(what, &hf, &dense, &model, BAND);
    let size = dtype.bitsize() as u64 / 8;
    let (mut done, total) = (0, flops::parameters(&model) * size);
    export(&|tensor, rect, out| weights.read(tensor, rect, out), &request, to, &mut |elements| {
        done += elements * size;
        progress(done, total);
    })?;
    Ok(Upcycled { columns: what.columns(dense.intermediate_size), model, dtype })
}

impl Upcycle {
    /// Refuses numbers that no model has.
    fn check(&self) -> Result<()> {
        let Upcycle { experts, per_token, reinit_ratio, .. } = *self;
        let refuse = |what: String| Err(Error::user(what));
        if !(1..=MOST_EXPERTS as usize).contains(&experts) {
            return refuse(format!("--experts {experts}: must lie in 1 ..= {MOST_EXPERTS}, such as 8"));
        }
        let most = experts.min(MOST_CHOICES as usize);
        if !(1..=most).contains(&per_token) {
            return refuse(format!(
                "--top-k {per_token}: must lie in 1 ..= {most}: at most the number of experts, and at most \
                 {MOST_CHOICES}"
            ));
        }
        if !(0.0..=1.0).contains(&reinit_ratio) {
            return refuse(format!(
                "--reinit-ratio {reinit_ratio}: must lie between 0 (copies) and 1 (every column is drawn anew)"
            ));
        }
        Ok(())
    }

    /// The model that the dense one in the directory `from` becomes.
    fn model(&self, dense: &Model, from: &Path) -> Result<Model> {
        let refuse = |key: &str, value: &str, what: &str| {
            Error::user(format!("{}: {key} = {value}: {what}", from.join("config.json").display()))
        };
        let sparse = match dense.architecture {
            Architecture::Llama if dense.attention_bias || dense.mlp_bias => {
                let key = if dense.attention_bias { "attention_bias" } else { "mlp_bias" };
                return Err(refuse(key, "true", "a Mixtral has no such biases; upcycle a model without them"));
            }
            Architecture::Llama | Architecture::Mistral => self.mixtral(dense),
            Architecture::Qwen3 => {
                let windows = windows(dense);
                let alike = windows.iter().all(|&window| window == windows[0]);
                let alike = alike.then_some(windows[0]);
                let window = alike.ok_or_else(|| refuse("use_sliding_window", "true", &unlike(&windows)))?;
                self.qwen3_moe(dense, window)
            }
            other => {
                let what = match other.has("num_local_experts") {
                    true => "this model has experts already; upcycle the dense model that it was made from",
                    false => "no family here has its layers with experts; upcycle a llama, a mistral or a qwen3",
                };
                return Err(refuse("model_type", &format!("{:?}", other.name()), what));
            }
        };
        // Keeps the keys that its family has, and applies the checks of every model.
        let checked = Model::from_toml("the upcycled model".into(), &sparse.to_toml());
        checked.map_err(|e| e.map(|what| format!("--experts {} --top-k {}: {what}", self.experts, self.per_token)))
    }

    fn mixtral(&self, dense: &Model) -> Model {
        let (num_local_experts, num_experts_per_tok) = (self.experts, self.per_token);
        let architecture = Architecture::Mixtral;
        Model { hf: None, architecture, num_local_experts, num_experts_per_tok, ..dense.clone() }
    }

    fn qwen3_moe(&self, dense: &Model, window: Option<usize>) -> Model {
        Model {
            architecture: Architecture::Qwen3Moe,
            use_sliding_window: window.is_some(),
            sliding_window: window,
            moe_intermediate_size: dense.intermediate_size,
            norm_topk_prob: true,
            decoder_sparse_step: 1,
            ..self.mixtral(dense)
        }
    }

    /// The number of columns, of `width`, that are drawn anew: floor(r F), where a product that is whole but for
    /// rounding counts as whole.
    fn columns(&self, width: usize) -> usize {
        (self.reinit_ratio * width as f64 + 1e-9).floor() as usize
    }

    /// S: the columns of an expert, of `width`, that are drawn anew, ascending. They are those with the smallest of
    /// `width` random numbers, so that every set is equally likely. `module` names the expert.
    fn chosen(&self, module: &str, width: usize) -> Vec<usize> {
        let count = self.columns(width);
        if count == 0 || count == width {
            return (0..count).collect();
        }
        let mut numbers = vec![0.0; width];
        init::normal(self.seed, &format!("{module}.reinitialized"), 1.0, 0, &mut numbers);
        let mut columns: Vec<usize> = (0..width).collect();
        columns.select_nth_unstable_by(count, |&a, &b| numbers[a].total_cmp(&numbers[b]).then(a.cmp(&b)));
        columns.truncate(count);
        columns.sort_unstable();
        columns
    }
}

/// The window of each layer.
fn windows(model: &Model) -> Vec<Option<usize>> {
    let window = |attention| match attention {
        AttentionKind::Full => None,
        AttentionKind::Window(window) => Some(window),
    };
    model.layers().map(|layer| window(layer.attention)).collect()
}

/// The remedy for windows that differ.
fn unlike(windows: &[Option<usize>]) -> String {
    format!(
        "{} of {} have a window, but a Qwen 3 MoE has one in all layers or in none; write false if no text is longer \
         than the window, or a layer_types of one kind",
        windows.iter().flatten().count(),
        counted(windows.len(), "layer")
    )
}

/// The type of the weights: that of the checkpoint's tensors. f32 holds tensors of several types as they are.
fn dtype(hf: &HuggingFace, dense: &Model) -> Dtype {
    let info = |tensor: TensorSpec| hf.info(&tensor.name).or(hf.info(HEAD)).map(|info| info.dtype);
    let found: BTreeSet<Dtype> = all_tensors(dense).into_iter().filter_map(info).collect();
    match found.first() {
        Some(&only) if found.len() == 1 => only,
        _ => Dtype::F32,
    }
}

/// The `config.json` of the upcycled model; `dense` are the fields of the dense one.
fn config(model: &Model, dense: &Map<String, Value>, dtype: Dtype) -> Value {
    let carried = dense.iter().filter(|(key, _)| CARRIED.contains(&key.as_str()));
    let carried = carried.map(|(key, value)| (key.clone(), value.clone())).collect();
    let precision = if dtype == Dtype::F32 { Precision::F32 } else { Precision::Bf16 };
    let mut config = hf::config_json(model, Some(carried), precision);
    if dtype == Dtype::F16 {
        for key in ["torch_dtype", "dtype"] {
            config.get_mut(key).into_iter().for_each(|name| *name = json!("float16"));
        }
    }
    config
}

/// The origin of a tensor that is not carried over.
enum Origin {
    Router,
    Expert(Copied),
}

/// A matrix of an expert.
struct Copied {
    layer: usize,
    /// The module of the expert, which is the same for its three matrices.
    module: String,
    /// The dense matrix.
    source: String,
    /// Where the matrix has its intermediate columns.
    columns: Columns,
}

/// The side of a stored matrix `[out, in]` on which the F intermediate columns of an MLP are.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Columns {
    /// Gate and up: `[F, D]`.
    Rows,
    /// Down: `[D, F]`.
    Cols,
}

/// Sum and sum of squares of the elements of each intermediate column.
type Sums = Vec<[f64; 2]>;

/// The weights of the upcycled model, any rectangle of them.
struct Weights<'a> {
    what: &'a Upcycle,
    hf: &'a HuggingFace,
    model: &'a Model,
    /// F
    width: usize,
    /// The new tensors by their names.
    origins: HashMap<String, Origin>,
    /// The sums of the matrices of the layer that was read last, by their names. All experts of a layer use them.
    sums: RefCell<(usize, HashMap<String, Sums>)>,
    /// Elements that are summed at a time.
    band: usize,
}

impl<'a> Weights<'a> {
    fn new(what: &'a Upcycle, hf: &'a HuggingFace, dense: &Model, model: &'a Model, band: usize) -> Weights<'a> {
        let mut origins = HashMap::new();
        let (from, to) = (dense.tensor_names(), model.tensor_names());
        for l in 0..model.num_hidden_layers {
            origins.insert(format!("{}.weight", to.of_layer(l, to.router)), Origin::Router);
            let up = from.up.iter().zip(to.expert_up).map(|(from, to)| (*from, *to, Columns::Rows));
            let matrices: Vec<_> = up.chain([(from.down, to.expert_down, Columns::Cols)]).collect();
            for (e, (dense, sparse, columns)) in (0..what.experts).flat_map(|e| matrices.iter().map(move |m| (e, *m))) {
                let module = to.of_layer(l, &format!("{}.{e}", to.experts));
                let source = format!("{}.weight", from.of_layer(l, dense));
                let copied = Copied { layer: l, module, source, columns };
                origins.insert(format!("{}.weight", to.of_expert(l, e, sparse)), Origin::Expert(copied));
            }
        }
        let sums = RefCell::new((0, HashMap::new()));
        Weights { what, hf, model, width: dense.intermediate_size, origins, sums, band }
    }

    /// Fills `out` with a rectangle of a tensor of the upcycled model.
    fn read(&self, tensor: &TensorSpec, rect: &Rect, out: &mut [f32]) -> Result<()> {
        match self.origins.get(&tensor.name) {
            None => self.hf.read_parameter(tensor, rect, out),
            Some(Origin::Router) => {
                init::fill(self.model, self.what.seed, tensor, rect, out);
                Ok(())
            }
            Some(Origin::Expert(copied)) => {
                let dense = TensorSpec { name: copied.source.clone(), ..tensor.clone() };
                self.hf.read_parameter(&dense, rect, out)?;
                let chosen = self.what.chosen(&copied.module, self.width);
                match chosen.is_empty() {
                    true => Ok(()),
                    false => self.redraw(copied, &dense, &tensor.name, &chosen, rect, out),
                }
            }
        }
    }

    /// Replaces the elements of the columns `chosen` in a rectangle of the matrix `name`, a copy of `dense`. Its new
    /// elements are those of a random matrix of `chosen` columns alone, `[S, D]` or `[D, S]`.
    fn redraw(
        &self,
        copied: &Copied,
        dense: &TensorSpec,
        name: &str,
        chosen: &[usize],
        rect: &Rect,
        out: &mut [f32],
    ) -> Result<()> {
        let [mean, deviation] = self.moments(copied, dense, chosen)?;
        let draw = |first: usize, len: usize| {
            let mut drawn = vec![0.0; len];
            init::normal(self.what.seed, name, 1.0, first, &mut drawn);
            drawn.iter_mut().for_each(|z| *z = (mean + deviation * f64::from(*z)) as f32);
            drawn
        };
        let width = rect.cols.len();
        let within = |side: &std::ops::Range<usize>| {
            chosen.partition_point(|&c| c < side.start)..chosen.partition_point(|&c| c < side.end)
        };
        if copied.columns == Columns::Rows {
            let (wanted, full) = (within(&rect.rows), dense.shape()[1]);
            let drawn = draw(wanted.start * full, wanted.len() * full);
            for (row, new) in chosen[wanted].iter().zip(drawn.chunks_exact(full)) {
                let at = (row - rect.rows.start) * width;
                out[at..at + width].copy_from_slice(&new[rect.cols.clone()]);
            }
        } else {
            let (wanted, full) = (within(&rect.cols), chosen.len());
            let drawn = draw(rect.rows.start * full, rect.rows.len() * full);
            for (row, new) in out.chunks_exact_mut(width).zip(drawn.chunks_exact(full)) {
                wanted.clone().for_each(|i| row[chosen[i] - rect.cols.start] = new[i]);
            }
        }
        Ok(())
    }

    /// Mean and standard deviation of the dense matrix's elements in the columns `chosen`.
    fn moments(&self, copied: &Copied, dense: &TensorSpec, chosen: &[usize]) -> Result<[f64; 2]> {
        let (layer, sums) = &mut *self.sums.borrow_mut();
        if *layer != copied.layer {
            sums.clear();
            *layer = copied.layer;
        }
        if !sums.contains_key(&copied.source) {
            sums.insert(copied.source.clone(), self.sums(copied, dense)?);
        }
        let of_columns = &sums[&copied.source];
        let [sum, squares] = chosen.iter().map(|&c| of_columns[c]).fold([0.0; 2], |[a, b], [x, y]| [a + x, b + y]);
        let n = (dense.len() / self.width * chosen.len()) as f64;
        let mean = sum / n;
        Ok([mean, (squares / n - mean * mean).max(0.0).sqrt()])
    }

    /// The sums of every intermediate column of a dense matrix, each over its elements in their order.
    fn sums(&self, copied: &Copied, dense: &TensorSpec) -> Result<Sums> {
        let mut sums = vec![[0.0; 2]; self.width];
        let mut band = Vec::new();
        let add = |[sum, squares]: &mut [f64; 2], x: f32| {
            *sum += f64::from(x);
            *squares += f64::from(x) * f64::from(x);
        };
        for rect in bands(dense, self.band) {
            band.resize(rect.len(), 0.0);
            self.hf.read_parameter(dense, &rect, &mut band)?;
            for (row, values) in rect.rows.clone().zip(band.chunks_exact(rect.cols.len())) {
                match copied.columns {
                    Columns::Rows => values.iter().for_each(|&x| add(&mut sums[row], x)),
                    Columns::Cols => sums.iter_mut().zip(values).for_each(|(sums, &x)| add(sums, x)),
                }
            }
        }
        Ok(sums)
    }
}

#[cfg(test)]
mod tests;
