//! Limits of the kernels, checked when a configuration is read.

use crate::ops::{HEAD_DIMS, NORM_COLUMNS};

/// The sizes of a model that kernels restrict.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub head_dim: usize,
    pub hidden_size: usize,
}

/// A message about the first unsupported size, with its key and the supported values.
pub fn refusal(shape: Shape) -> Option<String> {
    let Shape { head_dim, hidden_size } = shape;
    if !HEAD_DIMS.contains(&head_dim) {
        let [small, middle, large] = HEAD_DIMS;
        let dims = format!("{small}, {middle} and {large}");
        return Some(format!("model.head_dim = {head_dim}: attention on CUDA supports {dims}"));
    }
    if hidden_size > NORM_COLUMNS {
        return Some(format!("model.hidden_size = {hidden_size}: norms on CUDA support up to {NORM_COLUMNS}"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsupported_sizes_are_named_with_the_supported_ones() {
        let said = |head_dim, hidden_size| refusal(Shape { head_dim, hidden_size });
        for (head_dim, hidden_size) in [(64, 1), (128, 4096), (256, 3584), (128, NORM_COLUMNS)] {
            assert_eq!(said(head_dim, hidden_size), None);
        }
        for head_dim in [32, 96, 192, 512] {
            let said = said(head_dim, 4096).unwrap();
            assert!(said.contains(&format!("head_dim = {head_dim}: ")) && said.ends_with("64, 128 and 256"), "{said}");
        }
        assert!(said(64, NORM_COLUMNS + 1).unwrap().contains("16385: norms on CUDA support up to 16384"));
    }
}
