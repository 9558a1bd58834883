//! What an op of the contract costs: its operations and bytes by its name and sizes, as the log of the dry backend
//! gives them, and the seconds that a cluster's figures make of them.

use engine::config::{Reached, Software};
pub use engine::time::OpClass as Class;

/// The class that an op's time counts to.
pub fn class(op: &str) -> Class {
    match op {
        "matmul_nt" | "matmul_nn" | "matmul_tn_acc" => Class::Matmul,
        "attention" | "attention_bwd" => Class::Attention,
        "adamw" | "sum_squares" | "clip_factor" | "pick" | "put" => Class::Optimizer,
        _ => Class::Memory,
    }
}

/// Operations of a product or of attention; of causal attention those of the positions that are seen.
pub fn flops(op: &str, [a, b, c]: [usize; 3]) -> f64 {
    let product = a as f64 * b as f64 * c as f64;
    match class(op) {
        // [m, n, k]
        Class::Matmul => 2.0 * product,
        // [T, s, H d]: two products forward, five backward, each of half the positions.
        Class::Attention if op == "attention" => 2.0 * product,
        Class::Attention => 5.0 * product,
        Class::Memory | Class::Optimizer => 0.0,
    }
}

/// Bytes that are read and written, where activations have `act` bytes an element.
pub fn bytes(op: &str, [rows, cols, depth]: [usize; 3], act: usize) -> f64 {
    if class(op) == Class::Matmul {
        // [m, n, k]: a, b, and out, which is bf16, or sums in f32 that are added to.
        let out = if op == "matmul_tn_acc" { 8 } else { act };
        return (depth * (rows + cols) * act + rows * cols * out) as f64;
    }
    let act = act as f64;
    let each = match op {
        "attention" | "attention_bwd" => 0.0,
        "rmsnorm" | "rmsnorm_recompute" | "rope" | "rope_bwd" | "embed" | "copy" | "xent_grad" => 2.0 * act,
        "add" | "rmsnorm_bwd" => 3.0 * act,
        "add_rmsnorm" | "rmsnorm_bwd_add" => 4.0 * act,
        // Over [gate | up], which is twice as wide as what is made of it.
        "swiglu" => 1.5 * act,
        "swiglu_bwd" => 2.5 * act,
        "xent_stats" => act,
        "embed_bwd" => act + 8.0,
        "round" | "widen" => act + 4.0,
        "xent_combine" | "pick" | "put" => 8.0,
        // g, master, m and v are read, the last three written; so are the weights.
        "adamw" => 28.0 + act,
        _ => 4.0,
    };
    each * rows as f64 * cols as f64
}

/// Seconds of an op on a device of which this is reached, as a program of these habits does it.
pub fn seconds(op: &str, sizes: [usize; 3], act: usize, r: &Reached, s: &Software) -> f64 {
    let flops = flops(op, sizes) / 1e12;
    let moved = bytes(op, sizes, act) / 1e9 / r.memory_gb_s;
    let outputs = sizes[0] as f64 * sizes[1] as f64;
    let logits = outputs * s.logit_bytes / 1e9 / r.memory_gb_s;
    let busy = match op {
        "matmul_nt" | "matmul_nn" => (flops / r.matmul_tflops).max(moved),
        // Half of the sums' traffic does not hide behind the arithmetic.
        "matmul_tn_acc" => (flops / r.matmul_tflops + 4.0 * outputs / 1e9 / r.memory_gb_s).max(moved),
        "attention" => flops / r.attention_tflops,
        // Forward has two products for backward's five.
        "attention_bwd" => flops / r.attention_backward_tflops + s.attention_again * 0.4 * flops / r.attention_tflops,
        "adamw" | "sum_squares" => moved,
        "xent_stats" if s.logit_bytes > 0.0 => 0.0,
        "xent_grad" if s.logit_bytes > 0.0 => logits,
        _ => s.elementwise * moved,
    };
    (busy + r.launch_us / 1e6) / s.efficiency
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::config::Cluster;
    use std::path::Path;

    fn cluster(name: &str) -> Cluster {
        Cluster::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/clusters").join(name)).unwrap()
    }

    #[test]
    fn operations_and_bytes_by_hand() {
        // y [8, 4] = x [8, 2] w [4, 2]^T: 2 x 8 x 4 x 2; x, w and y in bf16.
        assert_eq!(flops("matmul_nt", [8, 4, 2]), 128.0);
        assert_eq!(bytes("matmul_nt", [8, 4, 2], 2), (2 * (16 + 8 + 32)) as f64);
        // dw [4, 2] += dy^T x, in f32: read and written.
        assert_eq!(bytes("matmul_tn_acc", [4, 2, 8], 2), (2 * (32 + 16) + 8 * 8) as f64);
        // 16 positions of one sequence, 3 columns: q k^T and p v of half of the 16 x 16 scores, each 2 x 3 a score.
        assert_eq!(flops("attention", [16, 16, 3]), 2.0 * 2.0 * 3.0 * 128.0);
        assert_eq!(flops("attention_bwd", [16, 16, 3]), 2.5 * flops("attention", [16, 16, 3]));
        // x, r -> h, y; h in the place of r.
        assert_eq!(bytes("add_rmsnorm", [10, 10, 1], 2), 4.0 * 2.0 * 100.0);
        // [gate | up] of 10 columns each: both read, one written.
        assert_eq!(bytes("swiglu", [1, 20, 1], 2), 2.0 * 30.0);
        assert_eq!(bytes("adamw", [100, 1, 1], 2), 3000.0);
    }

    #[test]
    fn seconds_are_those_of_whatever_bounds() {
        let cluster = cluster("abci-a100-40.toml");
        let (r, own) = (cluster.reached.as_ref().unwrap(), &cluster.software);
        let of = |op, sizes| seconds(op, sizes, 2, r, own) - r.launch_us / 1e6;
        let near = |found: f64, wanted: f64| assert!((found / wanted - 1.0).abs() < 1e-9, "{found} s, not {wanted}");
        near(of("matmul_nt", [4096, 4096, 4096]), flops("matmul_nt", [4096, 4096, 4096]) / 1e12 / r.matmul_tflops);
        // A product with one row is as slow as its weights are read.
        near(of("matmul_nt", [1, 4096, 4096]), bytes("matmul_nt", [1, 4096, 4096], 2) / 1e9 / r.memory_gb_s);
        near(of("rmsnorm", [4096, 4096, 1]), 2.0 * 2.0 * 4096.0 * 4096.0 / 1e9 / r.memory_gb_s);
        let others = Software { elementwise: 5.0, efficiency: 0.5, ..own.clone() };
        let slow = seconds("rmsnorm", [4096, 4096, 1], 2, r, &others);
        near(slow, (5.0 * of("rmsnorm", [4096, 4096, 1]) + r.launch_us / 1e6) / 0.5);
    }
}
