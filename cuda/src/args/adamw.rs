//! AdamW, and the factor that clips gradients.

use super::{View, sized};

sized! { AdamW: 152, Clip: 56 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    pub g: View,
    pub factor: View,
    pub master: View,
    pub m: View,
    pub v: View,
    pub out: View,
    pub parts: View,
    pub decayed: u64,
    pub beta1: f32,
    pub fresh1: f32,
    pub beta2: f32,
    pub fresh2: f32,
    pub rate: f32,
    pub scale: f32,
    pub eps: f32,
    pub decay: f32,
}

/// AdamW's hyper-parameters, as the backend's contract has them.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub lr: f32,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f32,
    pub weight_decay: f32,
    pub correction1: f32,
    pub correction2: f32,
    pub decayed: usize,
}

impl Step {
    /// With the views of g, factor, master, m, v, the new weights and the parts of sums.
    pub fn args(&self, [g, factor, master, m, v, out, parts]: [View; 7]) -> AdamW {
        AdamW {
            g,
            factor,
            master,
            m,
            v,
            out,
            parts,
            decayed: self.decayed as u64,
            beta1: self.beta1 as f32,
            fresh1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            fresh2: (1.0 - self.beta2) as f32,
            rate: self.lr / self.correction1,
            scale: 1.0 / self.correction2,
            eps: self.eps,
            decay: self.lr * self.weight_decay,
        }
    }
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Clip {
    pub square: View,
    pub totals: View,
    pub out: View,
    pub clip: f32,
    /// Fills the struct to a multiple of eight bytes.
    pub unused: u32,
}
