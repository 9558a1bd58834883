//! The attention kernels for sm_90a, on the cases of those for sm_80 and some more.

use crate::attention::Sight::{Documents, Past, Window};
use crate::attention::{Case, LONG, Ops, case, cases, single_keys, sizes_of_numbers};
use crate::common::emulators;
use cuda::machine::Target;
use cuda::ops::{HEAD_DIMS_SM90, Shape, attention_bwd_sm90, attention_sm90};

pub const SM90: Ops = Ops { target: Target::Sm90a, forward: attention_sm90, backward: attention_bwd_sm90 };

/// Lengths at which the ring of tiles wraps around twice, and a block has several work items.
fn longer() -> Vec<Case> {
    let windowed = case(3, 1, 128, 400, 2, Window(200));
    vec![
        case(2, 1, 64, 700, 1, Past),
        case(1, 1, 128, 700, 1, Documents(&[140, 380, 30])),
        windowed,
        Case { shape: Shape { cap: Some(2.0), query: 2, sequences: 1, ..windowed.shape }, ..windowed },
    ]
}

fn all_cases() -> Vec<Case> {
    [longer(), cases(64), cases(128)].concat()
}

mod forward_over_shapes {
    use super::*;

    #[test]
    fn below_100_tokens() {
        all_cases().iter().filter(|case| case.shape.seq < LONG).for_each(|case| case.forward(&SM90));
    }

    mod exhaustive {
        use super::*;

        #[test]
        fn from_100_tokens_on() {
            all_cases().iter().filter(|case| case.shape.seq >= LONG).for_each(|case| case.forward(&SM90));
        }
    }
}

#[test]
fn forward_scores_are_exact() {
    single_keys(&HEAD_DIMS_SM90).for_each(|case| case.exact_scores(&SM90));
}

#[test]
fn forward_over_sizes_of_numbers() {
    sizes_of_numbers(&HEAD_DIMS_SM90).for_each(|case| case.forward(&SM90));
}

mod backward_over_shapes {
    use super::*;

    #[test]
    fn below_100_tokens() {
        all_cases().iter().filter(|case| case.shape.seq < LONG).for_each(|case| case.backward(&SM90));
    }

    mod exhaustive {
        use super::*;

        #[test]
        fn from_100_tokens_on() {
            let cases = [cases(64), cases(128)].concat();
            cases.iter().filter(|case| case.shape.seq >= LONG).for_each(|case| case.backward(&SM90));
        }
    }

    mod campaign {
        use super::*;

        #[test]
        fn rings_that_wrap_around() {
            longer().iter().for_each(|case| case.backward(&SM90));
        }
    }
}

#[test]
fn backward_over_sizes_of_numbers_exhaustive() {
    sizes_of_numbers(&HEAD_DIMS_SM90).for_each(|case| case.backward(&SM90));
}

#[test]
fn the_same_bits_under_every_order() {
    for (dim, cap) in [(64, None), (128, Some(2.0))] {
        let plain = case(2, 1, dim, 300, 1, Window(100));
        let case = Case { shape: Shape { cap, ..plain.shape }, ..plain };
        let all = emulators().map(|place| {
            let (o, lse) = case.ours(&SM90, &place);
            let gradients = [1, 2].map(|parts| case.our_gradients(&SM90, &place, &o, &lse, parts));
            (o, lse, gradients)
        });
        assert!(all.iter().all(|result| *result == all[0]), "{dim}");
    }
}
