//! The kernels of attention for sm_90a, over the cases of the others.

use crate::attention::Sight::{Documents, Past, Window};
use crate::attention::{CASES, Case, case};
use crate::common::emulators;
use cuda::ops::attention_sm90;

/// Beside the others' lengths those at which a ring of two tiles goes round twice, and a block has several items.
const LONG: [Case; 3] = [
    case(2, 1, 64, 700, 1, Past),
    case(1, 1, 128, 700, 1, Documents(&[140, 380, 30])),
    case(3, 1, 128, 400, 2, Window(200)),
];

#[test]
fn forward_over_shapes() {
    CASES.iter().chain(&LONG).for_each(|case| case.forward(attention_sm90));
}

#[test]
fn forward_over_sizes_of_numbers() {
    for (dim, scale) in [(64, 1e2), (64, 1e-4), (128, 1e2), (128, 1e-4), (128, 4.0)] {
        Case { scale, ..case(2, 1, dim, 150, 1, Past) }.forward(attention_sm90);
    }
}

#[test]
fn the_same_bits_under_every_order() {
    for dim in [64, 128] {
        let case = case(2, 1, dim, 300, 1, Window(100));
        let all = emulators().map(|place| case.ours(attention_sm90, &place));
        assert!(all.iter().all(|result| *result == all[0]), "{dim}");
    }
}
