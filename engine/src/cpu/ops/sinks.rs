//! Learned sinks of attention (Xiao et al. 2024; GPT-OSS): one more score s of each head's softmax, without a value.
//! lse' = log(e^lse + e^s), o' = o e^(lse - lse'); with P = e^(s - lse') and D = rowsum(do * o'): ds = -P D.

use super::task_rows;
use crate::cpu::float::Float;
use crate::cpu::workers::Workers;

/// Adds the sinks `[H]` to o `[T, H d]` and its logsumexp `[T, H]`.
pub fn add<A: Float>(workers: &Workers, o: &mut [A], lse: &mut [f32], sinks: &[A]) {
    let heads = sinks.len();
    let (width, rows) = (o.len() * heads / lse.len().max(1), lse.len() / heads);
    let each = task_rows(width).min(rows.max(1));
    let tasks = o.chunks_mut(each * width).zip(lse.chunks_mut(each * heads));
    workers.each(tasks, |(o, lse)| {
        for (o, (at, lse)) in o.chunks_exact_mut(width / heads).zip(lse.iter_mut().enumerate()) {
            let sink = sinks[at % heads].load();
            // `f32::max` would drop a NaN; here it reaches the result.
            let (large, small) = if *lse < sink { (sink, *lse) } else { (*lse, sink) };
            let with_sink = large + (small - large).exp().ln_1p();
            let share = (*lse - with_sink).exp();
            o.iter_mut().for_each(|o| *o = A::store(o.load() * share));
            *lse = with_sink;
        }
    });
}

/// dsinks `[H]` += the gradients of the sinks, from do and o `[T, H d]` and the logsumexp with sinks `[T, H]`.
pub fn backward<A: Float>(workers: &Workers, do_: &[A], o: &[A], lse: &[f32], sinks: &[A], dsinks: &mut [f32]) {
    let heads = sinks.len();
    let dim = o.len() / lse.len().max(1);
    workers.each(dsinks.iter_mut().enumerate(), |(head, dsink)| {
        for (row, lse) in lse.iter().skip(head).step_by(heads).enumerate() {
            let at = (row * heads + head) * dim..(row * heads + head + 1) * dim;
            let d: f32 = do_[at.clone()].iter().zip(&o[at]).map(|(do_, o)| do_.load() * o.load()).sum();
            *dsink -= (sinks[head].load() - lse).exp() * d;
        }
    });
}
