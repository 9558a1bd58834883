//! Times the algorithms that the library proposes, and picks the fastest.

use super::choice::Choice;
use super::library::{Algorithm, CublasLt, Error};
use super::plan::{Plan, Site, Views};
use crate::device::Device;
use crate::product::{Form, Key, Product};
use crate::tensor::View;

/// Timed runs per algorithm, of which the median counts, after one warm-up run.
const RUNS: usize = 5;

/// Alignment of a, b and out in bytes.
const ALIGN: usize = 256;

/// Bytes of the input data, which repeats.
const PATTERN: usize = 1 << 20;

/// Scratch in bytes to time these products one after another.
pub fn scratch_len(products: &[Product]) -> usize {
    let each = |product: &Product| product.bytes().map(|bytes| bytes.next_multiple_of(ALIGN)).iter().sum();
    products.iter().map(each).max().unwrap_or(0)
}

/// The views of a, b and out in the scratch. A bias shares the first elements of b: only its time matters.
pub(super) fn operands(product: Product, scratch: View) -> Views {
    assert!(
        scratch.at().is_multiple_of(ALIGN as u64),
        "scratch at an address of {} mod {ALIGN}",
        scratch.at() % ALIGN as u64
    );
    let mut at = 0;
    let (lens, bytes) = (product.lens(), product.bytes());
    let of: [View; 3] = std::array::from_fn(|i| {
        let part = scratch.part::<u8>(at..at + bytes[i]);
        at += bytes[i].next_multiple_of(ALIGN);
        // SAFETY: these are bytes of the scratch, whose view guarantees them, as many as the elements have.
        unsafe { View::new(part.at(), lens[i]) }
    });
    let bias = if product.form == Form::NtBias { of[1].part::<u16>(0..product.n) } else { View::NONE };
    Views { of, bias }
}

/// Random bf16 numbers of typical magnitude: the values affect power draw, and so the clock.
pub(super) fn input_data() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // A sign, an exponent of 2^-8 to 2^-1, and a mantissa.
        let bits = (state >> 40) as u16;
        (bits & 0x807f) | ((119 + (bits >> 7 & 7)) << 7)
    };
    (0..PATTERN / 2).flat_map(|_| next().to_le_bytes()).collect()
}

/// The fastest algorithm of a product.
pub(super) fn tune(
    device: &Device,
    lt: &CublasLt,
    product: Product,
    scratch: View,
    workspace: View,
) -> Result<Choice, Error> {
    let failed = |what| Error::Product(product.fault(what));
    let plan = Plan::new(lt, Key::aligned(product)).map_err(failed)?;
    let proposals = plan.propose(lt, workspace.len()).map_err(failed)?;
    let (views, site) = (operands(product, scratch), Site { workspace, stream: device.stream().raw().cast() });
    let mut refused = String::from("the library proposes no algorithm");
    let time = |algorithm: &Algorithm| -> Result<Option<f64>, Error> {
        device.log_product(product);
        let mut done = Ok(());
        // SAFETY: the views lie in the scratch, which like the workspace is only used on this stream.
        let seconds =
            device.seconds(|| done = unsafe { plan.start(lt, views, algorithm, site) }).map_err(Error::Device)?;
        Ok(match done {
            Ok(()) => Some(seconds),
            Err(why) => {
                refused = why;
                None
            }
        })
    };
    let algorithms: Vec<Algorithm> = proposals.iter().map(|proposal| proposal.algorithm).collect();
    match fastest(&algorithms, time)? {
        Some((algorithm, seconds)) => Ok(Choice { product, seconds, algorithm }),
        None => Err(failed(device.explain(&refused))),
    }
}

/// The algorithm with the least median of `time`, the first among equals. Algorithms without a time are skipped.
fn fastest<A: Copy, E>(
    algorithms: &[A],
    mut time: impl FnMut(&A) -> Result<Option<f64>, E>,
) -> Result<Option<(A, f64)>, E> {
    let mut best: Option<(A, f64)> = None;
    for algorithm in algorithms {
        if time(algorithm)?.is_none() {
            continue;
        }
        let mut times = Vec::new();
        for _ in 0..RUNS {
            times.extend(time(algorithm)?);
        }
        times.sort_by(f64::total_cmp);
        if let Some(&median) = times.get(times.len() / 2)
            && best.is_none_or(|(_, least)| median < least)
        {
            best = Some((*algorithm, median));
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// The choice of `fastest`, given the seconds of each algorithm's runs.
    fn chosen(runs: &[(char, &[f64])]) -> Option<(char, f64)> {
        let mut count = HashMap::new();
        let names: Vec<char> = runs.iter().map(|(name, _)| *name).collect();
        let time = |name: &char| {
            let n = count.entry(*name).or_insert(0);
            *n += 1;
            let times = runs.iter().find(|(other, _)| other == name).unwrap().1;
            Ok::<_, ()>(times.get(*n - 1).copied())
        };
        fastest(&names, time).unwrap()
    }

    #[test]
    fn the_least_median_wins_and_the_first_of_equals() {
        let slow_at_first: &[f64] = &[99.0, 2.0, 1.0, 9.0, 2.0, 2.0];
        assert_eq!(chosen(&[('a', &[3.0; 6]), ('b', slow_at_first), ('c', &[2.0; 6])]), Some(('b', 2.0)));
        assert_eq!(chosen(&[('c', &[2.0; 6]), ('b', slow_at_first)]), Some(('c', 2.0)));
        // A single fast run does not count.
        assert_eq!(chosen(&[('a', &[2.0, 0.1, 5.0, 5.0, 5.0, 5.0]), ('b', &[4.0; 6])]), Some(('b', 4.0)));
    }

    #[test]
    fn unsupported_algorithms_are_skipped() {
        assert_eq!(chosen(&[('a', &[]), ('b', &[7.0; 6])]), Some(('b', 7.0)));
        assert_eq!(chosen(&[('a', &[]), ('b', &[])]), None);
        assert_eq!(chosen(&[]), None);
        assert_eq!(fastest(&['a', 'b'], |_| Err("lost")), Err("lost"));
    }

    #[test]
    fn the_scratch_holds_the_largest() {
        let small = Product::new(Form::Nt, 3, 5, 7);
        let large = Product::new(Form::TnAcc, 100, 50, 7);
        assert_eq!(scratch_len(&[]), 0);
        assert_eq!(scratch_len(&[small]), 3 * 256);
        assert_eq!(scratch_len(&[small, large]), 1536 + 768 + 20224);
        for product in [small, large, Product::new(Form::NtBias, 3, 5, 7)] {
            // SAFETY: nothing reads through this view.
            let scratch = unsafe { View::new(1 << 20, scratch_len(&[product])) };
            let views = operands(product, scratch);
            let [a_bytes, b_bytes, out_bytes] = product.bytes();
            views.check(product);
            assert_eq!(views.key(product), Key::aligned(product));
            let [a, b, out] = views.of;
            assert!(a.at() + a_bytes as u64 <= b.at() && b.at() + b_bytes as u64 <= out.at());
            assert!(out.at() + out_bytes as u64 <= scratch.at() + scratch.len() as u64);
        }
    }

    #[test]
    fn input_data_is_finite_and_of_both_signs() {
        let bytes = input_data();
        let number = |pair: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([pair[0], pair[1]])) << 16);
        let numbers: Vec<f32> = bytes.chunks(2).map(number).collect();
        assert!(numbers.iter().all(|x| (0.003..1.0).contains(&x.abs())), "{:?}", &numbers[..8]);
        let positive = numbers.iter().filter(|x| **x > 0.0).count() as f64 / numbers.len() as f64;
        assert!((0.49..0.51).contains(&positive), "{positive}");
    }
}
