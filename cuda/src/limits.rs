//! Shapes that the kernels do not take, to be told of when a configuration is read.

use crate::geometry::NORM_COLUMNS;
use crate::geometry::attention::HEAD_DIMS;

/// The numbers of a model that matter to kernels.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub head_dim: usize,
    pub hidden_size: usize,
}

/// The first number that does not fit, by its key, with those that do.
pub fn refusal(shape: Shape) -> Option<String> {
    let Shape { head_dim, hidden_size } = shape;
    if !HEAD_DIMS.contains(&head_dim) {
        let dims = HEAD_DIMS.map(|dim| dim.to_string()).join(" and ");
        return Some(format!("model.head_dim = {head_dim}: attention on CUDA takes {dims}"));
    }
    if hidden_size > NORM_COLUMNS {
        return Some(format!("model.hidden_size = {hidden_size}: RMSNorm on CUDA takes up to {NORM_COLUMNS}"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_named_with_what_does() {
        let said = |head_dim, hidden_size| refusal(Shape { head_dim, hidden_size });
        for (head_dim, hidden_size) in [(64, 1), (128, 4096), (128, NORM_COLUMNS)] {
            assert_eq!(said(head_dim, hidden_size), None);
        }
        for head_dim in [32, 96, 256] {
            assert!(said(head_dim, 4096).unwrap().contains(&format!("head_dim = {head_dim}: ")));
        }
        assert!(said(64, NORM_COLUMNS + 1).unwrap().contains("16385: RMSNorm on CUDA takes up to 16384"));
    }
}
