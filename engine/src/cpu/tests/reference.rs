//! The specification of the ops: plain loops in f64, as the formulas are written. A backward is specified by the
//! central differences of its forward.

use crate::backend::Heads;

/// `[m, k]` times `[k, n]`.
pub fn matmul(a: &[f64], b: &[f64], m: usize, n: usize) -> Vec<f64> {
    let k = a.len() / m;
    let element = |i: usize, j: usize| (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
    (0..m * n).map(|at| element(at / n, at % n)).collect()
}

pub fn transpose(x: &[f64], rows: usize) -> Vec<f64> {
    let cols = x.len() / rows;
    (0..x.len()).map(|at| x[at % rows * cols + at / rows]).collect()
}

/// (y, rstd) of x with rows as long as w.
pub fn rmsnorm(x: &[f64], w: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
    let rows = x.chunks(w.len());
    let rstd: Vec<f64> =
        rows.clone().map(|x| 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / w.len() as f64 + eps).sqrt()).collect();
    let y = rows.zip(&rstd).flat_map(|(x, r)| x.iter().zip(w).map(move |(x, w)| x * r * w)).collect();
    (y, rstd)
}

pub fn layernorm(x: &[f64], w: &[f64], bias: &[f64], eps: f64) -> Vec<f64> {
    let n = w.len() as f64;
    let row = |x: &[f64]| -> Vec<f64> {
        let mean = x.iter().sum::<f64>() / n;
        let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        x.iter().zip(w).zip(bias).map(|((x, w), bias)| (x - mean) / (var + eps).sqrt() * w + bias).collect()
    };
    x.chunks(w.len()).flat_map(row).collect()
}

/// The tanh form.
pub fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

pub fn geglu(gate_up: &[f64], f: usize) -> Vec<f64> {
    gate_up.chunks(2 * f).flat_map(|row| (0..f).map(|j| gelu(row[j]) * row[f + j]).collect::<Vec<_>>()).collect()
}

/// RMSNorm of each head of q with `w[0]` and of k with `w[1]`.
pub fn head_norms(qkv: &[f64], w: [&[f64]; 2], eps: f64, h: Heads) -> Vec<f64> {
    let mut y = qkv.to_vec();
    for row in y.chunks_mut(h.qkv_cols()) {
        for (n, head) in row.chunks_mut(h.dim).take(h.query + h.kv).enumerate() {
            head.copy_from_slice(&rmsnorm(head, w[(n >= h.query) as usize], eps).0);
        }
    }
    y
}

pub fn swiglu(gate_up: &[f64], f: usize) -> Vec<f64> {
    let row = |row: &[f64]| -> Vec<f64> { (0..f).map(|j| row[j] / (1.0 + (-row[j]).exp()) * row[f + j]).collect() };
    gate_up.chunks(2 * f).flat_map(row).collect()
}

/// Rotates q and k by the rows `positions` of the table; `sign` is -1 to rotate back.
pub fn rope(qkv: &[f64], table: &[f64], positions: &[u32], h: Heads, sign: f64) -> Vec<f64> {
    let mut y = qkv.to_vec();
    let half = h.dim / 2;
    for (row, position) in y.chunks_mut(h.qkv_cols()).zip(positions) {
        let angles = &table[*position as usize * h.dim..];
        for head in row.chunks_mut(h.dim).take(h.query + h.kv) {
            for j in 0..half {
                let (x1, x2, cos, sin) = (head[j], head[j + half], angles[j], sign * angles[j + half]);
                head[j] = x1 * cos - x2 * sin;
                head[j + half] = x2 * cos + x1 * sin;
            }
        }
    }
    y
}

/// (o, logsumexp).
pub fn attention(qkv: &[f64], starts: &[u32], h: Heads) -> (Vec<f64>, Vec<f64>) {
    let (cols, d) = (h.qkv_cols(), h.dim);
    let (mut o, mut lse) = (Vec::new(), Vec::new());
    for (t, &start) in starts.iter().enumerate() {
        let sequence = t / h.seq * h.seq;
        for head in 0..h.query {
            let kv = h.query + head / (h.query / h.kv);
            let part = |row: usize, head: usize| &qkv[row * cols + head * d..][..d];
            let seen = sequence + start as usize..=t;
            let score = |s| super::dot(part(t, head), part(s, kv)) * h.scale as f64;
            let capped = |s: f64| h.cap.map_or(s, |cap| cap as f64 * (s / cap as f64).tanh());
            let scores: Vec<f64> = seen.clone().map(score).map(capped).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let z: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            lse.push(max + z.ln());
            o.extend((0..d).map(|j| {
                seen.clone().zip(&scores).map(|(s, score)| (score - max).exp() / z * part(s, kv + h.kv)[j]).sum::<f64>()
            }));
        }
    }
    (o, lse)
}

/// The sum over the rows of w (loss + z log(Z)^2).
pub fn cross_entropy(logits: &[f64], targets: &[u32], weights: &[f64], z_loss: f64) -> f64 {
    let cols = logits.len() / targets.len();
    let row = |((x, &target), w): ((&[f64], &u32), &f64)| {
        let log_z = x.iter().map(|x| x.exp()).sum::<f64>().ln();
        w * (log_z - x[target as usize] + z_loss * log_z * log_z)
    };
    logits.chunks(cols).zip(targets).zip(weights).map(row).sum()
}
