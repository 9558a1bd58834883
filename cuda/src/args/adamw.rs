//! AdamW.

use super::{View, sized};

sized! { AdamW: 136 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    pub g: View,
    pub factor: View,
    pub master: View,
    pub m: View,
    pub v: View,
    pub out: View,
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
    /// With the views of g, factor, master, m, v and the new weights.
    pub fn args(&self, [g, factor, master, m, v, out]: [View; 6]) -> AdamW {
        AdamW {
            g,
            factor,
            master,
            m,
            v,
            out,
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
