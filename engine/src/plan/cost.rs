//! What an op of the contract costs: its operations and bytes by its name and sizes, as the log of the dry backend
//! gives them, and the seconds that a cluster's figures make of them.

use crate::config::{Reached, Software};

/// Where a step's computation goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    Matmul,
    Attention,
    /// Norms, rotary, SwiGLU, residuals, embedding, loss: what memory bounds.
    Memory,
    Optimizer,
}

impl Class {
    pub const ALL: [Class; 4] = [Class::Matmul, Class::Attention, Class::Memory, Class::Optimizer];

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Class::Matmul => "matmul",
            Class::Attention => "attention",
            Class::Memory => "memory-bound ops",
            Class::Optimizer => "optimizer",
        }
    }

    /// Of an op.
    pub fn of(op: &str) -> Class {
        match op {
            "matmul_nt" | "matmul_nn" | "matmul_tn_acc" => Class::Matmul,
            "attention" | "attention_bwd" => Class::Attention,
            "adamw" | "sum_squares" | "clip_factor" | "pick" | "put" => Class::Optimizer,
            _ => Class::Memory,
        }
    }
}

/// Operations of a product or of attention; of causal attention those of the positions that are seen.
pub fn flops(op: &str, [a, b, c]: [usize; 3]) -> f64 {
    let product = a as f64 * b as f64 * c as f64;
    match Class::of(op) {
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
    if Class::of(op) == Class::Matmul {
        // [m, n, k]: a, b, and out, which is bf16, or sums in f32 that are added to.
        let out = if op == "matmul_tn_acc" { 8 } else { act };
        return (depth * (rows + cols) * act + rows * cols * out) as f64;
    }
    let act = act as f64;
    let each = match op {
        "attention" | "attention_bwd" => 0.0,
        "rmsnorm" | "rmsnorm_again" | "rope" | "rope_bwd" | "embed" | "copy" | "xent_grad" => 2.0 * act,
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
