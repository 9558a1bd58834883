//! One forward and backward pass of a whole model, with everything kept: the loss, the logits, and the gradient of
//! every tensor. `compare` holds them to another program's.

use crate::backend::{Backend, Tensor, Total};
use crate::batch::MicroBatch;
use crate::config::Model;
use crate::error::{Error, Result};
use crate::layout::buckets::Part;
use crate::model::param_specs::TensorSpec;
use crate::model::rect::Rect;
use crate::model::stored::{Form, file_tensors};
use crate::stage::Sums;
use crate::stage::grads::Grads;
use crate::stage::params::ParamLayout;
use crate::train::eval::whole;
use std::collections::BTreeMap;

/// Sequences of the same length, row-major `[sequences, seq]`.
pub struct Sequences {
    pub seq: usize,
    pub ids: Vec<u32>,
    /// The label of each id's own position, as in transformers: position i predicts label i + 1. `None`: it does not
    /// count.
    pub labels: Vec<Option<u32>>,
}

pub struct Probed {
    /// The mean over the labels that count.
    pub loss: f64,
    /// `[sequences seq, V]`.
    pub logits: Vec<f32>,
    /// Of the mean loss, by the name of the tensor in a Hugging Face checkpoint of the form asked for, row-major.
    pub gradients: BTreeMap<String, Vec<f32>>,
}

impl Sequences {
    /// The micro-batch of all sequences, each token predicting the next one's label.
    fn micro_batch(&self) -> MicroBatch {
        let rows = self.ids.len();
        let next = |row: usize| if (row + 1).is_multiple_of(self.seq) { None } else { self.labels[row + 1] };
        MicroBatch {
            seq: self.seq,
            ids: self.ids.clone(),
            targets: (0..rows).map(|row| next(row).unwrap_or_default()).collect(),
            weights: (0..rows).map(|row| if next(row).is_some() { 1.0 } else { 0.0 }).collect(),
            starts: vec![0; rows],
            positions: (0..rows as u32).map(|row| row % self.seq as u32).collect(),
        }
    }
}

/// Runs the model on all sequences at once. `read(tensor, rectangle, out)` gives its weights; the gradients are those
/// of the tensors of a file of this form.
pub fn probe<B: Backend>(
    b: B,
    model: &Model,
    of: &Sequences,
    form: Form,
    read: impl FnMut(&TensorSpec, &Rect, &mut [f32]) -> Result<()>,
) -> Result<Probed> {
    let (mut stage, layout) = whole(&b, model, of.seq, read)?;
    let host = of.micro_batch();
    let batch = stage.upload(&b, 0, &host);
    let logits = stage.logits(&b, &batch);
    let mut wide = b.alloc(logits.rows(), logits.cols());
    b.widen(&logits, &mut wide);
    let mut logits = fetch(&b, &wide)?;
    if let Some(cap) = model.final_logit_softcapping {
        logits.iter_mut().for_each(|x| *x = (cap * (*x as f64 / cap).tanh()) as f32);
    }
    let (mut grads, mut sums) = (Grads::new(&b, layout.clone()), Sums::new(&b, model, b.upload(&[0.0], 1, 1)));
    stage.forward(&b, 0, batch, None, &mut grads, &mut sums);
    stage.backward(&b, 0, None, &mut grads, &mut sums, None);
    let totals = fetch(&b, &sums.totals)?;
    let counted = f64::max(totals[Total::Weight as usize] as f64, 1.0);
    let loss = totals[Total::Loss as usize] as f64 / counted;
    Ok(Probed { loss, logits, gradients: files_of(model, form, &gradients(&b, &layout, &grads, counted)?)? })
}

fn fetch<B: Backend>(b: &B, x: &Tensor<B, f32>) -> Result<Vec<f32>> {
    b.wait_host(b.copy_to_host_async(x)).map_err(|fault| Error::run(fault.to_string()))
}

/// The gradients of the parameters, divided by the number of labels.
fn gradients<B: Backend>(
    b: &B,
    layout: &ParamLayout,
    grads: &Grads<B>,
    counted: f64,
) -> Result<BTreeMap<String, Vec<f32>>> {
    let mut own = BTreeMap::new();
    for (bucket, sum) in layout.buckets.iter().zip(grads.sums()) {
        let host = fetch(b, sum)?;
        for Part { at, tensor, rect, .. } in bucket.parts(&(0..bucket.len)) {
            own.entry(tensor.name.clone()).or_insert_with(|| vec![0.0; tensor.len()])[start(tensor, &rect)..]
                [..rect.len()]
                .iter_mut()
                .zip(&host[at..])
                .for_each(|(to, from)| *to = (*from as f64 / counted) as f32);
        }
    }
    Ok(own)
}

/// The tensors of a file, made of the parameters' by name.
fn files_of(model: &Model, form: Form, own: &BTreeMap<String, Vec<f32>>) -> Result<BTreeMap<String, Vec<f32>>> {
    let mut files = BTreeMap::new();
    for file in file_tensors(model, form) {
        let mut whole = vec![0.0; file.spec.len()];
        let part = |spec: &TensorSpec, rect: &Rect, out: &mut [f32]| {
            let (width, from) = (spec.shape()[1], &own[&spec.name]);
            let at = rect.rows.clone().flat_map(|row| rect.cols.clone().map(move |col| row * width + col));
            out.iter_mut().zip(at).for_each(|(out, at)| *out = from[at]);
            Ok(())
        };
        file.read_rows(&Rect::whole(file.spec.shape()), &mut whole, part)?;
        files.insert(file.spec.name, whole);
    }
    Ok(files)
}

/// The index of a rectangle of whole rows, or of a part of one row, in its tensor.
fn start(tensor: &TensorSpec, rect: &Rect) -> usize {
    rect.rows.start * tensor.shape()[1] + rect.cols.start
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::model::init;

    /// The logits are those of the loss, also behind a soft-cap, and labels that do not count are left out.
    #[test]
    fn the_loss_is_the_cross_entropy_of_the_logits() {
        let tiny = Model::tiny();
        let capped = Model { final_logit_softcapping: Some(0.05), initializer_range: 0.3, ..tiny.clone() };
        let (seq, ids) = (4, vec![3, 1, 4, 1, 5, 9, 2, 6]);
        let labels = ids.iter().map(|&id| Some(id).filter(|id| *id != 4)).collect();
        let of = Sequences { seq, ids, labels };
        for model in [tiny, capped] {
            let probed = probe(Cpu::<f32>::new(1), &model, &of, Form::PerExpert, |tensor, rect, out| {
                init::fill(&model, 5, tensor, rect, out);
                Ok(())
            });
            let Probed { loss, logits, gradients } = probed.unwrap();
            let batch = of.micro_batch();
            let of_row = |(row, logits): (usize, &[f32])| {
                let z = logits.iter().map(|x| (*x as f64).exp()).sum::<f64>().ln();
                batch.weights[row] as f64 * (z - logits[batch.targets[row] as usize] as f64)
            };
            let sum: f64 = logits.chunks(model.vocab_size).enumerate().map(of_row).sum();
            let counted = batch.weights.iter().sum::<f32>();
            assert_eq!(counted, 5.0);
            assert!((sum / counted as f64 - loss).abs() < 1e-6, "{loss}, not {}", sum / counted as f64);
            assert_eq!(gradients.len(), file_tensors(&model, Form::PerExpert).len());
        }
    }

    /// The gradients are the same numbers under the names of either form.
    #[test]
    fn gradients_have_the_form_that_is_asked_for() {
        let text = "[model]\narchitecture = \"mixtral\"\nhidden_size = 8\nintermediate_size = 5\n\
            num_hidden_layers = 1\nnum_attention_heads = 2\nnum_key_value_heads = 1\nvocab_size = 11\n\
            max_position_embeddings = 8\nnum_local_experts = 3\nnum_experts_per_tok = 2\nrope_theta = 10000.0\n\
            rms_norm_eps = 1e-5\ninitializer_range = 0.3\n";
        let model = Model::from_toml("mixtral".into(), text).unwrap();
        let ids = vec![3, 1, 4, 1, 5, 9, 2, 6];
        let of = Sequences { seq: 4, labels: ids.iter().map(|&id| Some(id)).collect(), ids };
        let [one, packed] = [Form::PerExpert, Form::Packed].map(|form| {
            let weights = |tensor: &TensorSpec, rect: &Rect, out: &mut [f32]| {
                init::fill(&model, 5, tensor, rect, out);
                Ok(())
            };
            probe(Cpu::<f32>::new(1), &model, &of, form, weights).unwrap().gradients
        });
        let own = |e: usize, w: &str| &one[&format!("model.layers.0.block_sparse_moe.experts.{e}.{w}.weight")][..];
        let stacked = |ws: &[&str]| (0..3).flat_map(|e| ws.iter().flat_map(move |w| own(e, w).to_vec())).collect();
        let up: Vec<f32> = stacked(&["w1", "w3"]);
        assert!(up.iter().any(|x| *x != 0.0));
        assert_eq!(packed["model.layers.0.mlp.experts.gate_up_proj"], up);
        assert_eq!(packed["model.layers.0.mlp.experts.down_proj"], stacked(&["w2"]));
        assert_eq!(packed["model.layers.0.mlp.gate.weight"], one["model.layers.0.block_sparse_moe.gate.weight"]);
        assert_eq!(packed.len(), file_tensors(&model, Form::Packed).len());
    }
}
