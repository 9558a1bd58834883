//! Correctness first: a small version of each case runs on the device and in the emulator, with the same inputs.

use crate::case::{Case, Data, Pool, Role, Tensor};
use crate::set::Set;
use cuda::device::Device;
use cuda::machine::Done;
use cuda::tensor::View;
use emulator::{Emulator, Schedule};
use half::bf16;

/// Compares every tensor that the case writes with the emulator's, up to rounding. `on_host` is the case for the
/// emulator's number of multiprocessors, on which the length of scratch depends.
pub fn check(device: &Device, case: &Case, on_host: &Case, pool: &Pool) -> Result<(), String> {
    let set = Set::new(device, case, pool, 0).map_err(|e| e.to_string())?;
    set.prepare(case).and_then(|()| set.launch(case)).map_err(|e| e.to_string())?;
    let expected = emulated(on_host, pool).map_err(|e| e.to_string())?;
    for (i, tensor) in case.tensors.iter().enumerate().filter(|(_, t)| t.role == Role::Written) {
        let got = set.read(i).map_err(|e| e.to_string())?;
        let (apart, size) = difference(&numbers(tensor, &got), &numbers(tensor, &expected[i]));
        // Tolerance for another order of sums, approximate instructions, and one different rounding to bf16.
        let allowed = if element(tensor) == 2 { 4e-3 } else { 1e-4 };
        if apart.is_nan() || apart > allowed * size {
            return Err(format!("tensor {i} differs from the emulator's by {apart:e}, at a norm of {size:e}"));
        }
    }
    Ok(())
}

/// The emulator's result for each tensor.
fn emulated(case: &Case, pool: &Pool) -> Result<Vec<Vec<u8>>, cuda::machine::Fault> {
    // Blocks of u128 are aligned to 16 bytes, as on the device.
    let mut memory: Vec<Vec<u128>> = case
        .tensors
        .iter()
        .enumerate()
        .map(|(seed, tensor)| {
            let mut bytes = pool.fill(tensor, seed);
            bytes.resize(bytes.len().next_multiple_of(16), 0);
            bytes.chunks_exact(16).map(|b| u128::from_le_bytes(b.try_into().expect("sixteen bytes"))).collect()
        })
        .collect();
    let views: Vec<View> = memory
        .iter_mut()
        .zip(&case.tensors)
        // SAFETY: each block holds the tensor's elements, lives until the kernels have run, and is used only by them.
        .map(|(block, tensor)| unsafe { View::new(block.as_mut_ptr() as u64, tensor.len) })
        .collect();
    let emulator = Emulator::new(Schedule::Forward);
    run(case, &emulator, &views)?;
    let bytes = |(block, tensor): (&Vec<u128>, &Tensor)| {
        block.iter().flat_map(|w| w.to_le_bytes()).take(tensor.bytes()).collect()
    };
    Ok(memory.iter().zip(&case.tensors).map(bytes).collect())
}

fn run(case: &Case, emulator: &Emulator, views: &[View]) -> Done {
    (case.prepare)(emulator, views)?;
    (case.launch)(emulator, views)
}

fn element(tensor: &Tensor) -> usize {
    tensor.bytes() / tensor.len
}

fn numbers(tensor: &Tensor, bytes: &[u8]) -> Vec<f64> {
    match (element(tensor), tensor.data) {
        (2, _) => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        (4, Data::Ids(_) | Data::Starts { .. } | Data::Counts(_)) => unreachable!("no kernel writes indices"),
        (4, _) => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into()).collect(),
        (each, _) => unreachable!("a result of {each} bytes per element"),
    }
}

/// The Euclidean norms of the difference and of the expected result.
fn difference(got: &[f64], right: &[f64]) -> (f64, f64) {
    let length = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    (length(&mut got.iter().zip(right).map(|(a, b)| a - b)), length(&mut right.iter().copied()))
}
