//! The angles of the rotary embedding (Su et al. 2021): theta_i = base^(-2i/d), and position t rotates pair i by t
//! theta_i. For contexts longer than those of pre-training, pairs are slowed down: all of them (Chen et al. 2023), or
//! the slow ones (Llama 3, Grattafiori et al. 2024; YaRN, Peng et al. 2023).

use crate::config::{Llama3, Model, RopeScaling, Yarn};

/// cos in the first d/2 columns, sin in the rest, for positions `0 .. rows`: `[rows, d]`. YaRN multiplies both by its
/// attention factor.
pub fn table(model: &Model, rows: usize) -> Vec<f32> {
    let frequencies = frequencies(model);
    let factor = match &model.rope_scaling {
        RopeScaling::Yarn(scaling) => scaling.attention() as f32,
        RopeScaling::Default | RopeScaling::Linear(_) | RopeScaling::Llama3(_) => 1.0,
    };
    let mut table = Vec::with_capacity(rows * model.head_dim);
    for t in 0..rows {
        // Computed in f32, as in the model's reference implementation.
        let angle = |f: &f32| t as f32 * f;
        table.extend(frequencies.iter().map(|f| factor * angle(f).cos()));
        table.extend(frequencies.iter().map(|f| factor * angle(f).sin()));
    }
    table
}

fn base(model: &Model) -> f64 {
    model.rope_theta.expect("a model with rotary positions")
}

/// theta_i for the d/2 pairs.
fn frequencies(model: &Model) -> Vec<f32> {
    let d = model.head_dim;
    (0..d / 2)
        .map(|i| {
            let f = 1.0 / (base(model) as f32).powf((2 * i) as f32 / d as f32);
            match &model.rope_scaling {
                RopeScaling::Default => f,
                RopeScaling::Linear(scaling) => (f as f64 / scaling.factor) as f32,
                RopeScaling::Llama3(scaling) => llama3(f as f64, scaling) as f32,
                RopeScaling::Yarn(scaling) => yarn(f as f64, i, model, scaling) as f32,
            }
        })
        .collect()
}

/// Pairs that make less than `low_freq_factor` turns over the original context are slowed by `factor`, those that make
/// more than `high_freq_factor` turns are kept, and those between are blended.
fn llama3(f: f64, scaling: &Llama3) -> f64 {
    let Llama3 { factor, low_freq_factor: low, high_freq_factor: high, .. } = *scaling;
    let turns = scaling.original_max_position_embeddings as f64 * f / std::f64::consts::TAU;
    if turns < low {
        f / factor
    } else if turns > high {
        f
    } else {
        let smooth = (turns - low) / (high - low);
        (1.0 - smooth) * f / factor + smooth * f
    }
}

/// Pair i is slowed by `factor` if it makes at most `beta_slow` turns over the original context, kept if it makes
/// `beta_fast` or more, and mixed in proportion to i between the two.
fn yarn(f: f64, i: usize, model: &Model, scaling: &Yarn) -> f64 {
    let d = model.head_dim as f64;
    // The pair that makes so many turns, from theta_i L = 2 pi turns.
    let pair = |turns: f64| {
        let context = scaling.original_max_position_embeddings as f64;
        d * (context / (turns * std::f64::consts::TAU)).ln() / (2.0 * base(model).ln())
    };
    let (mut low, mut high) = (pair(scaling.beta_fast), pair(scaling.beta_slow));
    if scaling.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    // transformers limits the upper end to d - 1, although the last pair is d/2 - 1.
    (low, high) = (low.max(0.0), high.min(d - 1.0));
    let width = if low == high { 0.001 } else { high - low };
    let slowed = ((i as f64 - low) / width).clamp(0.0, 1.0);
    slowed * f / scaling.factor + (1.0 - slowed) * f
}
