//! Which of the algorithms that the library proposes is the fastest: each is timed on the device.

use super::choice::Choice;
use super::library::{Algorithm, CublasLt};
use super::plan::{Plan, Site};
use super::product::{Key, Product};
use super::{Error, Result, fault};
use crate::args::View;
use crate::device::Device;

/// Timed runs of an algorithm, of which the median counts; one more before them is not timed.
const RUNS: usize = 5;

/// Bytes of a, b and out begin at multiples of this.
const BLOCK: usize = 256;

/// Bytes of the numbers that are multiplied, which repeat.
const PATTERN: usize = 1 << 20;

/// Bytes of memory that all of these can be timed in, one after another.
pub fn scratch_len(products: &[Product]) -> usize {
    let each = |product: &Product| product.bytes().map(|bytes| bytes.next_multiple_of(BLOCK)).iter().sum();
    products.iter().map(each).max().unwrap_or(0)
}

/// The parts of the scratch that are a, b and out.
pub(super) fn parts(product: Product, scratch: View) -> [View; 3] {
    assert!(
        scratch.at().is_multiple_of(BLOCK as u64),
        "scratch at an address of {} mod {BLOCK}",
        scratch.at() % BLOCK as u64
    );
    let mut at = 0;
    let (lens, bytes) = (product.lens(), product.bytes());
    std::array::from_fn(|i| {
        let part = scratch.part::<u8>(at..at + bytes[i]);
        at += bytes[i].next_multiple_of(BLOCK);
        // SAFETY: these bytes are part of the scratch, whose view answers for them, as many as the elements have.
        unsafe { View::new(part.at(), lens[i]) }
    })
}

/// Random numbers of about a normal activation's size: what is multiplied draws power, and so has a say in the clock.
pub(super) fn numbers() -> Vec<u8> {
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
pub(super) fn tune(device: &Device, lt: &CublasLt, product: Product, scratch: View, workspace: View) -> Result<Choice> {
    let failed = |what| Error::Product(fault(product, what));
    let plan = Plan::new(lt, Key::aligned(product)).map_err(failed)?;
    let proposals = plan.propose(lt, workspace.len()).map_err(failed)?;
    let (views, site) = (parts(product, scratch), Site { workspace, stream: device.stream().raw().cast() });
    let mut refused = String::from("the library proposes no algorithm");
    let time = |algorithm: &Algorithm| -> Result<Option<f64>> {
        device.started(product);
        let mut done = Ok(());
        // SAFETY: the views are the product's parts of the scratch; all that uses it and the workspace is in this stream.
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

/// The algorithm with the least median of `time`, the first of equals; what gives no time is left out.
fn fastest<A: Copy, E>(
    algorithms: &[A],
    mut time: impl FnMut(&A) -> std::result::Result<Option<f64>, E>,
) -> std::result::Result<Option<(A, f64)>, E> {
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
    use super::super::product::Form;
    use super::*;
    use std::collections::HashMap;

    /// What `fastest` takes where the n-th run of each algorithm takes so long.
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
        // One outlier says nothing.
        assert_eq!(chosen(&[('a', &[2.0, 0.1, 5.0, 5.0, 5.0, 5.0]), ('b', &[4.0; 6])]), Some(('b', 4.0)));
    }

    #[test]
    fn what_is_refused_is_left_out() {
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
        for product in [small, large] {
            // SAFETY: nothing reads through this view.
            let scratch = unsafe { View::new(1 << 20, scratch_len(&[product])) };
            let [a, b, out] = parts(product, scratch);
            let [a_bytes, b_bytes, out_bytes] = product.bytes();
            product.hold([a, b, out]);
            assert_eq!(Key::new(product, [a, b, out]), Key::aligned(product));
            assert!(a.at() + a_bytes as u64 <= b.at() && b.at() + b_bytes as u64 <= out.at());
            assert!(out.at() + out_bytes as u64 <= scratch.at() + scratch.len() as u64);
        }
    }

    #[test]
    fn the_numbers_are_finite_and_of_both_signs() {
        let bytes = numbers();
        let number = |pair: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([pair[0], pair[1]])) << 16);
        let numbers: Vec<f32> = bytes.chunks(2).map(number).collect();
        assert!(numbers.iter().all(|x| (0.003..1.0).contains(&x.abs())), "{:?}", &numbers[..8]);
        let positive = numbers.iter().filter(|x| **x > 0.0).count() as f64 / numbers.len() as f64;
        assert!((0.49..0.51).contains(&positive), "{positive}");
    }
}
