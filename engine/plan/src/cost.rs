//! Seconds of an op, by its FLOPs and bytes and the rates that a cluster achieves.

use engine::backend::{Form, Op, Work};
use engine::config::{Achieved, Software};
use engine::time::OpClass;

/// The class that an op's time counts towards.
pub fn class(op: Op) -> OpClass {
    match op.work() {
        Work::Product(_) => OpClass::Matmul,
        Work::Attention { .. } => OpClass::Attention,
        Work::Rows { .. } => OpClass::Memory,
        Work::Flat { .. } => OpClass::Optimizer,
    }
}

/// Rows of a tile of grouped products, which belong to one expert, and the depth of a tile of their gradients.
const TILE_ROWS: f64 = 128.0;
const TILE_DEPTH: f64 = 64.0;

/// The work of a grouped product over that of its rows: of the tiles of each expert the last is half empty in the mean.
fn padding(op: Op, sizes: [usize; 3]) -> f64 {
    match op {
        Op::GroupedNt | Op::GroupedNn => 1.0 + TILE_ROWS / 2.0 / sizes[0] as f64,
        Op::GroupedTnAcc => 1.0 + TILE_DEPTH / 2.0 / sizes[2] as f64,
        _ => 1.0,
    }
}

/// Seconds of an op with activations of `act` bytes, at the rates `r`, in software with the properties `s`.
pub fn seconds(op: Op, sizes: [usize; 3], act: usize, r: &Achieved, s: &Software) -> f64 {
    let flops = op.flops(sizes) / 1e12 * padding(op, sizes);
    let moved = op.bytes(sizes, act) / 1e9 / memory_rate(op, r);
    let outputs = sizes[0] as f64 * sizes[1] as f64;
    let logits = outputs * s.logit_bytes / 1e9 / r.memory_gb_s;
    let busy = match (op, op.work()) {
        // Half of the traffic of the f32 sums does not hide behind the arithmetic.
        (_, Work::Product(Form::TnAcc)) => (flops / r.matmul_tflops + 4.0 * outputs / 1e9 / r.memory_gb_s).max(moved),
        (_, Work::Product(Form::Nt | Form::Nn)) => (flops / r.matmul_tflops).max(moved),
        // The forward pass has two products, the backward pass five.
        (Op::AttentionBwd, _) => {
            flops / r.attention_backward_tflops + s.attention_again * 0.4 * flops / r.attention_tflops
        }
        (_, Work::Attention { .. }) => flops / r.attention_tflops,
        (Op::Adamw | Op::SumSquares | Op::Checksum, _) => moved,
        // With `logit_bytes`, the op of the gradient has the cost of the whole loss.
        (Op::XentStats, _) if s.logit_bytes > 0.0 => 0.0,
        (Op::XentGrad, _) if s.logit_bytes > 0.0 => logits,
        (_, Work::Rows { .. } | Work::Flat { .. }) => s.elementwise * moved,
    };
    (busy + r.launch_us / 1e6) / s.efficiency
}

/// GB/s of an op where memory bounds it.
fn memory_rate(op: Op, r: &Achieved) -> f64 {
    match op {
        Op::Adamw => r.adamw_gb_s,
        Op::RmsnormBwd | Op::RmsnormBwdAdd => r.rmsnorm_backward_gb_s,
        Op::XentStats => r.xent_stats_gb_s,
        _ => r.memory_gb_s,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::config::Cluster;
    use std::path::Path;

    #[test]
    fn an_op_takes_as_long_as_what_bounds_it() {
        let clusters = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/clusters");
        let cluster = Cluster::load(&clusters.join("abci-a100-40.toml")).unwrap();
        let (r, own) = (cluster.achieved.as_ref().unwrap(), &cluster.software);
        let busy = |op, sizes| seconds(op, sizes, 2, r, own) - r.launch_us / 1e6;
        let near = |found: f64, wanted: f64| assert!((found / wanted - 1.0).abs() < 1e-9, "{found} s, not {wanted}");
        let (square, thin) = ([4096, 4096, 4096], [1, 4096, 4096]);
        near(busy(Op::MatmulNt, square), Op::MatmulNt.flops(square) / 1e12 / r.matmul_tflops);
        // A product with one row takes as long as reading its weights.
        near(busy(Op::MatmulNt, thin), Op::MatmulNt.bytes(thin, 2) / 1e9 / r.memory_gb_s);
        // 256 rows an expert fill two tiles and half of a third; gradients have tiles of 64 rows.
        let few = [256, 8 * 4096, 4096];
        near(busy(Op::GroupedNt, few), 1.25 * Op::GroupedNt.flops(few) / 1e12 / r.matmul_tflops);
        near(busy(Op::Rmsnorm, [4096, 4096, 1]), 2.0 * 2.0 * 4096.0 * 4096.0 / 1e9 / r.memory_gb_s);
        let own_rates =
            Achieved { adamw_gb_s: 100.0, rmsnorm_backward_gb_s: 200.0, xent_stats_gb_s: 300.0, ..r.clone() };
        for (op, rate) in [
            (Op::Adamw, 100.0),
            (Op::RmsnormBwd, 200.0),
            (Op::RmsnormBwdAdd, 200.0),
            (Op::XentStats, 300.0),
            (Op::XentGrad, r.memory_gb_s),
        ] {
            let found = seconds(op, [4096, 4096, 1], 2, &own_rates, own) - r.launch_us / 1e6;
            near(found, op.bytes([4096, 4096, 1], 2) / 1e9 / rate);
        }
        let others = Software { elementwise: 5.0, efficiency: 0.5, ..own.clone() };
        let slow = seconds(Op::Rmsnorm, [4096, 4096, 1], 2, r, &others);
        near(slow, (5.0 * busy(Op::Rmsnorm, [4096, 4096, 1]) + r.launch_us / 1e6) / 0.5);
    }
}
