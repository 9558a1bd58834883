//! The attention kernels for sm_90a, on the cases of those for sm_80 and some more.

use crate::attention::Sight::{Documents, Past, Window};
use crate::attention::{CASES, Case, LONG, Ops, SCALES, case};
use crate::common::emulators;
use cuda::machine::Target;
use cuda::ops::{attention_bwd_sm90, attention_sm90};

const SM90: Ops = Ops { target: Target::Sm90a, forward: attention_sm90, backward: attention_bwd_sm90 };

/// Lengths at which the ring of tiles wraps around twice, and a block has several work items.
const LONGER: [Case; 3] = [
    case(2, 1, 64, 700, 1, Past),
    case(1, 1, 128, 700, 1, Documents(&[140, 380, 30])),
    case(3, 1, 128, 400, 2, Window(200)),
];

#[test]
fn forward_over_shapes() {
    LONGER.iter().chain(&CASES).for_each(|case| case.forward(&SM90));
}

#[test]
fn forward_over_sizes_of_numbers() {
    for (dim, scale) in SCALES {
        Case { scale, ..case(2, 1, dim, 150, 1, Past) }.forward(&SM90);
    }
}

mod backward_over_shapes {
    use super::*;

    #[test]
    fn below_100_tokens() {
        CASES.iter().filter(|case| case.shape.seq < LONG).for_each(|case| case.backward(&SM90));
    }

    mod exhaustive {
        use super::*;

        #[test]
        fn from_100_tokens_on() {
            let long = LONGER.iter().chain(&CASES).filter(|case| case.shape.seq >= LONG);
            long.for_each(|case| case.backward(&SM90));
        }
    }
}

#[test]
fn backward_over_sizes_of_numbers_exhaustive() {
    for (dim, scale) in SCALES {
        Case { scale, ..case(2, 1, dim, 150, 1, Past) }.backward(&SM90);
    }
}

#[test]
fn the_same_bits_under_every_order() {
    for dim in [64, 128] {
        let case = case(2, 1, dim, 300, 1, Window(100));
        let all = emulators().map(|place| {
            let (o, lse) = case.ours(&SM90, &place);
            let gradients = [1, 2].map(|parts| case.our_gradients(&SM90, &place, &o, &lse, parts));
            (o, lse, gradients)
        });
        assert!(all.iter().all(|result| *result == all[0]), "{dim}");
    }
}
