//! Compares a layout's run with the one-rank run: losses, gradient norms and final weights must be within bounds.
//! Values that several ranks hold must be equal bit for bit.

use super::assemble::assemble;
use crate::config::{Config, Model};
use crate::error::Result;
use crate::layout::mesh::Mesh;
use crate::model::param_specs::all_tensors;
use crate::mpi::Comm;
use serde::{Deserialize, Serialize};

/// The largest differences from the one-rank run that count as agreement.
pub mod bounds {
    /// Relative difference of a step's loss.
    pub const LOSS: f64 = 1e-5;
    /// Relative difference of a step's gradient norm.
    pub const GRAD_NORM: f64 = 1e-4;
    /// L2 distance of a tensor after the last step, as a share of the L2 distance that training moved it.
    pub const WEIGHTS: f64 = 1e-3;
}

/// The result of one rank.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Loss and gradient norm of each step.
    pub steps: Vec<[f64; 2]>,
    /// The rank's shards of the master weights after the last step, bucket after bucket.
    pub masters: Vec<f32>,
}

/// The one-rank run; its tensors are in the order of [`all_tensors`].
pub struct Reference {
    /// Loss and gradient norm of each step.
    pub steps: Vec<[f64; 2]>,
    /// The master weights before the first step.
    pub first: Vec<Vec<f32>>,
    /// The master weights after the last step.
    pub last: Vec<Vec<f32>>,
}

/// The largest differences of a layout from the one-rank run, and a sentence for each fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub loss: f64,
    pub grad_norm: f64,
    pub weights: f64,
    pub faults: Vec<String>,
}

impl Run {
    /// Serializes the number of steps, the steps, and the weights, in this order.
    pub fn to_bytes(&self) -> Vec<u8> {
        let steps = (self.steps.len() as u64).to_le_bytes();
        [&steps, bytemuck::cast_slice(&self.steps), bytemuck::cast_slice(&self.masters)].concat()
    }

    pub fn from_bytes(bytes: &[u8]) -> Run {
        let (steps, rest) = bytes.split_at(8);
        let steps = u64::from_le_bytes(steps.try_into().expect("eight bytes were split off")) as usize;
        let (steps, masters) = rest.split_at(16 * steps);
        Run { steps: bytemuck::pod_collect_to_vec(steps), masters: bytemuck::pod_collect_to_vec(masters) }
    }
}

impl Reference {
    /// Broadcasts the reference to all ranks of `comm` from rank 0's `one`: the master weights before the one-rank run
    /// of `config`, and that run. Collective.
    pub fn broadcast(comm: &Comm, config: &Config, one: Option<(Vec<f32>, Run)>) -> Result<Reference> {
        let bytes = |one: (Vec<f32>, Run)| (bytemuck::cast_slice(&one.0).to_vec(), one.1.to_bytes());
        let (first, run) = one.map(bytes).unwrap_or_default();
        let first: Vec<f32> = bytemuck::pod_collect_to_vec(&comm.broadcast_bytes(first));
        let Run { steps, masters } = Run::from_bytes(&comm.broadcast_bytes(run));
        let mesh = config.mesh(1)?;
        let [first, last] = [first, masters].map(|masters: Vec<f32>| assemble(config, &mesh, &[&masters[..]]).values);
        Ok(Reference { steps, first, last })
    }
}

/// Compares the runs of all ranks of `mesh` with the reference.
pub fn outcome(config: &Config, mesh: &Mesh, runs: &[Run], reference: &Reference) -> Outcome {
    let mut faults = Vec::new();
    let [loss, grad_norm] = [("loss", bounds::LOSS), ("gradient norm", bounds::GRAD_NORM)];
    let loss = steps(runs, reference, 0, loss, &mut faults);
    let grad_norm = steps(runs, reference, 1, grad_norm, &mut faults);
    let masters: Vec<&[f32]> = runs.iter().map(|run| &run.masters[..]).collect();
    let held = assemble(config, mesh, &masters);
    faults.extend(held.fault);
    let weights = weights(config, &held.values, reference, &mut faults);
    Outcome { loss, grad_norm, weights, faults }
}

/// The largest relative difference of one number of the steps (`which`: 0 loss, 1 gradient norm). A fault names the
/// first step beyond the bound.
fn steps(
    runs: &[Run],
    reference: &Reference,
    which: usize,
    (name, bound): (&str, f64),
    faults: &mut Vec<String>,
) -> f64 {
    let offs = runs[0].steps.iter().zip(&reference.steps).map(|(got, want)| off(got[which] - want[which], want[which]));
    let offs: Vec<f64> = offs.collect();
    if let Some(step) = offs.iter().position(|off| *off > bound) {
        faults.push(format!("{name} from step {}", step + 1));
    }
    let bits = |run: &Run| run.steps.iter().map(|step| step[which].to_bits()).collect::<Vec<_>>();
    if let Some(rank) = runs.iter().position(|run| bits(run) != bits(&runs[0])) {
        faults.push(format!("{name} on rank {rank} differs from rank 0's"));
    }
    offs.into_iter().fold(0.0, f64::max)
}

/// The largest difference of a tensor. A fault gives the number of tensors beyond the bound, and names the worst.
fn weights(config: &Config, got: &[Vec<f32>], reference: &Reference, faults: &mut Vec<String>) -> f64 {
    let tensor =
        |i: usize| off(distance(&got[i], &reference.last[i]), distance(&reference.first[i], &reference.last[i]));
    let specs = all_tensors(&config.model);
    let counted = |i: usize| if is_noise(&config.model, &specs[i].name) { 0.0 } else { tensor(i) };
    let offs: Vec<f64> = (0..got.len()).map(counted).collect();
    let wrong = offs.iter().filter(|off| **off > bounds::WEIGHTS).count();
    let worst = (0..offs.len()).max_by(|&a, &b| offs[a].total_cmp(&offs[b])).expect("a model has tensors");
    if wrong > 0 {
        faults.push(format!("weights of {wrong} tensors, worst {}", specs[worst].name));
    }
    offs[worst]
}

/// Whether a tensor's gradient is 0 but for rounding, of which AdamW makes full steps: the bias of keys shifts all
/// scores of a query alike, which the softmax does not see, unless a rotation comes between.
fn is_noise(model: &Model, name: &str) -> bool {
    let of_keys = format!("{}.bias", model.tensor_names().qkv[1]);
    model.learned_positions().is_some() && name.ends_with(&of_keys)
}

/// |difference / size|; infinite if that is not a number.
fn off(difference: f64, size: f64) -> f64 {
    match difference == 0.0 {
        true => 0.0,
        false => Some((difference / size).abs()).filter(|off| !off.is_nan()).unwrap_or(f64::INFINITY),
    }
}

/// |a - b|
fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum::<f64>().sqrt()
}
