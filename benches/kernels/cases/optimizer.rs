//! AdamW and elementwise kernels: norms, casts, adds, copies.

use super::{BF16, F32, NEW_BF16, NEW_F32};
use crate::case::{Case, Data, Tensor, Work};
use cuda::ops::{self, Norms, State, Step};
use engine::backend::CHECKSUM_PARTS;
use half::bf16;

pub fn cases(n: usize) -> Vec<Case> {
    vec![
        adamw(n),
        adamw_norms(n),
        sum_squares(n),
        checksum(n),
        checksum_bf16(n),
        round(n),
        add(n),
        scale(n),
        copy(n),
        zero(n),
        pick(n),
        put(n),
    ]
}

fn step(n: usize) -> Step {
    Step {
        lr: 3e-4,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        correction1: 0.5,
        correction2: 0.2,
        decayed: n,
    }
}

/// g, the factor, master, m, v, and the new weights.
fn shard(n: usize) -> Vec<Tensor> {
    vec![
        Tensor::read(n, F32),
        Tensor::read(2, F32),
        Tensor::written(n, F32),
        Tensor::written(n, Data::F32(0.1)),
        Tensor::written(n, Data::Positive(0.01)),
        Tensor::written(n, NEW_BF16),
    ]
}

fn adamw(n: usize) -> Case {
    Case::new("adamw", n.to_string(), Work::Bytes(30 * n), shard(n), move |m, v| {
        ops::adamw(m, v[0], v[1], State { master: v[2], m: v[3], v: v[4] }, v[5], step(n))
    })
}

fn adamw_norms(n: usize) -> Case {
    let mut tensors = shard(n);
    tensors.extend([Tensor::written(ops::NORMS, F32), Tensor::scratch(ops::adamw_parts(n), 8)]);
    Case::new("adamw_norms", n.to_string(), Work::Bytes(30 * n), tensors, move |m, v| {
        let norms = Norms { squares: v[6], parts: v[7] };
        ops::adamw_norms(m, v[0], v[1], State { master: v[2], m: v[3], v: v[4] }, v[5], step(n), norms)
    })
}

fn sum_squares(n: usize) -> Case {
    let parts = Tensor::scratch(ops::squares_parts(n), 8);
    let tensors = vec![Tensor::read(n, F32), Tensor::written(1, F32), parts];
    Case::new("sum_squares", n.to_string(), Work::Bytes(4 * n), tensors, |m, v| ops::sum_squares(m, v[0], v[1], v[2]))
}

fn checksum(n: usize) -> Case {
    let tensors = vec![Tensor::read(n, F32), Tensor::scratch(CHECKSUM_PARTS, 4)];
    Case::new("checksum_f32", n.to_string(), Work::Bytes(4 * n), tensors, |m, v| ops::checksum::<f32>(m, v[0], v[1]))
}

fn checksum_bf16(n: usize) -> Case {
    let tensors = vec![Tensor::read(n, BF16), Tensor::scratch(CHECKSUM_PARTS, 4)];
    Case::new("checksum_bf16", n.to_string(), Work::Bytes(2 * n), tensors, |m, v| ops::checksum::<bf16>(m, v[0], v[1]))
}

fn round(n: usize) -> Case {
    let tensors = vec![Tensor::read(n, F32), Tensor::written(n, NEW_BF16)];
    Case::new("round", n.to_string(), Work::Bytes(6 * n), tensors, |m, v| ops::round(m, v[0], v[1]))
}

fn add(n: usize) -> Case {
    let tensors = vec![Tensor::written(n, BF16), Tensor::read(n, BF16)];
    Case::new("add", n.to_string(), Work::Bytes(6 * n), tensors, |m, v| ops::add(m, v[0], v[1]))
}

fn scale(n: usize) -> Case {
    // Close to 1, since it is applied again and again.
    Case::new("scale", n.to_string(), Work::Bytes(4 * n), vec![Tensor::written(n, BF16)], |m, v| {
        ops::scale(m, v[0], 0.999)
    })
}

fn copy(n: usize) -> Case {
    let tensors = vec![Tensor::read(n, F32), Tensor::written(n, NEW_F32)];
    Case::new("copy_f32", n.to_string(), Work::Bytes(8 * n), tensors, |m, v| ops::copy(m, v[0], v[1]))
}

fn zero(n: usize) -> Case {
    Case::new("zero", n.to_string(), Work::Bytes(4 * n), vec![Tensor::written(n, NEW_F32)], |m, v| ops::zero(m, v[0]))
}

fn pick(n: usize) -> Case {
    let tensors = vec![Tensor::read(n, F32), Tensor::written(n / 2, NEW_F32)];
    Case::new("pick", n.to_string(), Work::Bytes(4 * (n / 2 * 2)), tensors, move |m, v| {
        ops::pick(m, v[0], &ranges(n), v[1])
    })
}

fn put(n: usize) -> Case {
    let tensors = vec![Tensor::read(n / 2, F32), Tensor::written(n, F32)];
    Case::new("put", n.to_string(), Work::Bytes(4 * (n / 2 * 2)), tensors, move |m, v| {
        ops::put(m, v[0], &ranges(n), v[1])
    })
}

/// Two runs of a quarter each.
fn ranges(n: usize) -> [std::ops::Range<usize>; 2] {
    let each = n / 4;
    [each..2 * each, 3 * each..3 * each + (n / 2 - each)]
}
