//! Asynchronous copies to the host, on a stream beside the compute stream: they see the values at the time when they
//! were requested, however far one stream is behind the other.

use cuda::Device;
use cuda::backend::{CommOptions, Cuda, CudaScratch, Tuning};
use cuda::compile::Places;
use engine::backend::{Acc, Backend, Scratch};
use engine::config::Nccl;
use engine::memory::arena::ArenaSpec;

use crate::common::on_fake_cuda;

/// Elements of a tensor that is large enough to be copied on the stream beside.
const LEN: usize = 1 << 16;

/// A single rank, with memory for a few such tensors.
fn alone() -> Cuda {
    let places = Places::of(|name| std::env::var_os(name), None);
    let (device, _) = Device::open(0, &places).unwrap_or_else(|e| panic!("{e}"));
    let options = CommOptions { nccl: None, ctas: Nccl::default() };
    let b = Cuda::open(device, None, options).unwrap();
    let fixed: usize = CudaScratch::of("any").fixed().iter().sum();
    let tuning = Tuning { search: places.search(), cache: None, products: &[] };
    b.allocate_arena(ArenaSpec { bytes: fixed + 8 * LEN * size_of::<f32>(), small: 0 }, &tuning)
        .unwrap_or_else(|e| panic!("{e}"));
    b
}

fn all(b: &Cuda, value: f32) -> Acc<Cuda> {
    b.upload(&vec![value; LEN], LEN, 1)
}

#[track_caller]
fn holds(got: Vec<f32>, value: f32) {
    let wrong = got.iter().filter(|&&x| x != value).count();
    assert!(got.len() == LEN && wrong == 0, "{wrong} of {} elements are not {value}", got.len());
}

#[test]
fn a_copy_sees_earlier_writes() {
    on_fake_cuda("cuda::copies::a_copy_sees_earlier_writes", &[("FAKE_CUDA_SLOW", "1@20")], || {
        let b = alone();
        let mut x = all(&b, 1.0);
        b.zero(&mut x);
        holds(b.wait_host(b.copy_to_host_async(&x)).unwrap(), 0.0);
    });
}

/// The pinned memory of a copy that is dropped is not used again before the copy is done.
#[test]
fn a_dropped_copy_writes_into_no_other() {
    on_fake_cuda("cuda::copies::a_dropped_copy_writes_into_no_other", &[("FAKE_CUDA_SLOW", "2@100")], || {
        let b = alone();
        let (x, y) = (all(&b, 1.0), b.upload(&vec![0.0; LEN], LEN, 1));
        drop(b.copy_to_host_async(&x));
        let mut z: Acc<Cuda> = y;
        // It is written by way of pinned memory of the same size.
        b.write(&vec![2.0; LEN], &mut z);
        holds(b.wait_host(b.copy_to_host_async(&z)).unwrap(), 2.0);
    });
}

#[test]
fn later_writes_wait_for_the_copy() {
    on_fake_cuda("cuda::copies::later_writes_wait_for_the_copy", &[("FAKE_CUDA_SLOW", "2@100")], || {
        let b = alone();
        let mut x = all(&b, 1.0);
        let first = b.copy_to_host_async(&x);
        b.write(&vec![2.0; LEN], &mut x);
        let second = b.copy_to_host_async(&x);
        drop(x);
        // It reuses the block of `x`.
        let y = all(&b, 3.0);
        let third = b.copy_to_host_async(&y);
        for (fetch, value) in [(first, 1.0), (second, 2.0), (third, 3.0)] {
            holds(b.wait_host(fetch).unwrap(), value);
        }
    });
}
