//! The angles of the rotary embedding (Su et al. 2021): theta_i = base^(-2i/d), and position t rotates pair i by t
//! theta_i. Llama 3's scaling slows down the slow pairs (Grattafiori et al. 2024).

use crate::config::{Llama3, Model, RopeScaling};

/// cos in the first d/2 columns, sin in the rest, for positions `0 .. rows`: `[rows, d]`.
pub fn table(model: &Model, rows: usize) -> Vec<f32> {
    let frequencies = frequencies(model);
    let mut table = Vec::with_capacity(rows * model.head_dim);
    for t in 0..rows {
        // Computed in f32, as in the model's reference implementation.
        let angle = |f: &f32| t as f32 * f;
        table.extend(frequencies.iter().map(|f| angle(f).cos()));
        table.extend(frequencies.iter().map(|f| angle(f).sin()));
    }
    table
}

/// theta_i for the d/2 pairs.
fn frequencies(model: &Model) -> Vec<f32> {
    let d = model.head_dim;
    (0..d / 2)
        .map(|i| {
            let f = 1.0 / (model.rope_theta as f32).powf((2 * i) as f32 / d as f32);
            match &model.rope_scaling {
                RopeScaling::Default => f,
                RopeScaling::Llama3(scaling) => llama3(f as f64, scaling) as f32,
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
