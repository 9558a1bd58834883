//! Random inputs, and the comparison of a kernel's results with its op on the CPU.

use crate::alike::{self, Ran, Watched};
use cuda::machine::{Done, Machine, Target};
use emulator::device::{self, OnDevice};
use emulator::place::{Kind, Place, TensorView};
use emulator::{Emulator, SCHEDULES};
use engine::backend::{Act, Backend};
use engine::cpu::Cpu;
use half::bf16;
use std::panic::Location;

/// The emulator under every schedule, with the kernels of the shared library `EMULATED_KERNELS` if that is set.
pub fn emulators() -> [Emulator; 4] {
    let library = std::env::var_os("EMULATED_KERNELS");
    if library.is_some() {
        // The kernels have a planted bug, and one failed test is enough.
        std::panic::set_hook(Box::new(|_| std::process::exit(1)));
    }
    SCHEDULES.map(|schedule| match &library {
        // SAFETY: who sets the variable has built the library of the emulator and of kernels.
        Some(path) => unsafe { Emulator::of_library(path.as_ref(), schedule) }.unwrap(),
        None => Emulator::new(schedule),
    })
}

/// Everything that kernels run on: the emulator under every schedule and, if there is a device, the device twice.
/// `KERNELS_ON` asks for less: `emulator`; `device`; `both`, the emulator under one schedule and the device. With the
/// same inputs, all places must leave the same results.
pub fn places() -> Vec<&'static dyn Place> {
    alike::forget();
    let emulators = || emulators().map(|emulator| &*Box::leak(Box::new(emulator)) as &dyn Place);
    let device = || DEVICE.with(|d| *d);
    let must = || device().expect("KERNELS_ON asks for a device, and there is none here");
    match std::env::var("KERNELS_ON").as_deref() {
        Err(_) => emulators().into_iter().chain(device().into_iter().flatten()).collect(),
        Ok("emulator") => emulators().into(),
        Ok("device") => must().into(),
        Ok("both") => emulators().into_iter().take(1).chain(must()).collect(),
        Ok(other) => panic!("KERNELS_ON is emulator, device or both, not {other}"),
    }
}

/// The places that run kernels for this architecture: the emulator runs all.
pub fn places_for(target: Target) -> Vec<&'static dyn Place> {
    let runs = |place: &&dyn Place| place.kind() == Kind::Emulator || place.machine().target() == target;
    places().into_iter().filter(|place| target == Target::Sm80 || runs(place)).collect()
}

thread_local! {
    /// A device is usable only on the thread that opened it.
    static DEVICE: Option<[&'static dyn Place; 2]> = device::open().map(|device| {
        ["the device", "the device again"].map(|name| -> &'static dyn Place {
            Box::leak(Box::new(OnDevice::new(device, name.into())))
        })
    });
}

/// Runs an op on slices that are lent to `place`.
#[track_caller]
pub fn on<'a>(place: &'a dyn Place, op: impl FnOnce(&dyn Machine, &mut TensorView<'a>) -> Done) {
    let mut lent = TensorView::to(place);
    let watched = Watched::new(lent.machine());
    let done = op(&watched, &mut lent);
    let (given, left) = lent.end();
    done.unwrap_or_else(|fault| panic!("{}: {fault}", place.name()));
    alike::hold(place, Ran { at: Location::caller(), kernels: watched.kernels(), given, left });
}

/// Pseudo-random numbers from a seed; floats are about normal, times `scale`.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Words with random bits.
    pub fn bits(&mut self, n: usize) -> Vec<u32> {
        (0..n).map(|_| (self.next() >> 32) as u32).collect()
    }

    pub fn f32(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| (0..4).map(|_| self.uniform() - 0.5).sum::<f32>() * 1.7 * scale).collect()
    }

    pub fn bf16(&mut self, n: usize, scale: f32) -> Vec<bf16> {
        self.f32(n, scale).into_iter().map(bf16::from_f32).collect()
    }
}

/// The CPU backend in the kernels' precision, and in f32 as the reference for both.
pub fn cpus() -> (Cpu<bf16>, Cpu<f32>) {
    (Cpu::new(1), Cpu::new(1))
}

/// A matrix of activations on that CPU.
pub fn act<A: engine::cpu::Float>(cpu: &Cpu<A>, x: &[bf16], rows: usize, cols: usize) -> Act<Cpu<A>> {
    let host = x.iter().map(|x| A::store(x.to_f32())).collect::<Vec<_>>();
    cpu.upload(&host, rows, cols)
}

/// Every element of `got` has at most twice the error of the CPU's bf16 result, plus one rounding, plus the rounding of
/// f32 terms as large as the row's largest (`cols` elements a row) and of subnormal factors.
#[track_caller]
pub fn near(what: &str, got: &[bf16], plain: &[bf16], exact: &[f32], cols: usize) {
    assert_eq!((got.len(), plain.len()), (exact.len(), exact.len()), "{what}");
    for (row, exact) in exact.chunks(cols).enumerate() {
        let largest = exact.iter().fold(0.0f32, |m, e| m.max(e.abs()));
        for (col, &exact) in exact.iter().enumerate() {
            let (got, plain) = (got[row * cols + col].to_f32(), plain[row * cols + col].to_f32());
            let allowed = 2.0 * (plain - exact).abs() + exact.abs() / 256.0 + largest * 1e-6 + 1e-29;
            assert!((got - exact).abs() <= allowed, "{what}: ({row}, {col}) is {got}, not {exact}; bf16 gives {plain}");
        }
    }
}

/// The same for the 2-norm of the errors of a whole row, where the error of one element is a random sum of many
/// roundings. `lost` is the rounding error of f32 where large terms of a row cancel.
#[track_caller]
pub fn near_rows(what: &str, got: &[bf16], plain: &[bf16], exact: &[f32], cols: usize, lost: f64) {
    assert_eq!((got.len(), plain.len()), (exact.len(), exact.len()), "{what}");
    let size = |errors: &mut dyn Iterator<Item = f32>| errors.map(|e| e as f64 * e as f64).sum::<f64>().sqrt();
    for (row, exact) in exact.chunks(cols).enumerate() {
        let error = |x: &[bf16]| size(&mut x[row * cols..][..cols].iter().zip(exact).map(|(x, e)| x.to_f32() - e));
        let (ours, theirs, whole) = (error(got), error(plain), size(&mut exact.iter().copied()));
        let allowed = 2.0 * theirs + whole / 256.0 + lost;
        assert!(ours <= allowed, "{what}: row {row} of size {whole} is off by {ours}; bf16 is by {theirs}");
    }
}

/// The same for f32: within `relative` of the row's largest.
#[track_caller]
pub fn close(what: &str, got: &[f32], exact: &[f32], relative: f32) {
    assert_eq!(got.len(), exact.len(), "{what}");
    let largest = exact.iter().fold(0.0f32, |m, e| m.max(e.abs()));
    for (at, (got, exact)) in got.iter().zip(exact).enumerate() {
        let allowed = exact.abs().max(largest) * relative;
        assert!((got - exact).abs() <= allowed, "{what}: element {at} is {got}, not {exact}");
    }
}
