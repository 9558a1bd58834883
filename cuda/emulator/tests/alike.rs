//! Every test checks this too: an op with the same inputs leaves the same bits, under every schedule of the emulator
//! and each time on a device; and a device leaves the emulator's bits where the arithmetic is exactly that of IEEE 754.

use cuda::kernels::{FILES, HEADERS};
use cuda::machine::{Geometry, Machine, Target};
use cuda::tensor::{TensorMap, Tiles};
use emulator::place::{Kind, Place};
use std::cell::RefCell;
use std::ffi::c_void;
use std::panic::Location;

/// Files of kernels whose results a device may round otherwise than the emulator: by instructions that approximate,
/// or by sums inside the tensor cores, whose order the PTX ISA leaves open. These are compared with the CPU's op only.
const APPROXIMATE: [&str; 15] = [
    "attention.cu",
    "attention_stats.cu",
    "attention_dkv.cu",
    "attention_dq.cu",
    "attention_sm90.cu",
    "attention_dkv_sm90.cu",
    "attention_dq_sm90.cu",
    "sinks.cu",
    "swiglu.cu",
    "gelu.cu",
    "router.cu",
    "grouped.cu",
    "grouped_sm90.cu",
    "grouped_acc_sm90.cu",
    "xent.cu",
];

/// Prefixes of the names of probes with such primitives.
const APPROXIMATE_PROBES: [&str; 5] = ["probe_ln", "probe_fast_", "probe_mma", "probe_wgmma_", "probe_proxy_fence"];

/// One op that ran: where the test called it, its kernels, a hash of its inputs, and its outputs.
#[derive(Debug, PartialEq, Eq)]
pub struct Ran {
    pub at: &'static Location<'static>,
    pub kernels: Vec<&'static str>,
    pub given: u64,
    pub left: Vec<Vec<u8>>,
}

thread_local! {
    /// The ops that ran on each place, by the place's name.
    static RAN: RefCell<Vec<(Kind, String, Vec<Ran>)>> = const { RefCell::new(Vec::new()) };
}

/// Forgets all ops that ran.
pub fn forget() {
    RAN.with_borrow_mut(Vec::clear);
}

/// Compares the op's outputs with those of the same call on every other place, if it had the same inputs there.
#[track_caller]
pub fn hold(place: &dyn Place, ran: Ran) {
    RAN.with_borrow_mut(|all| {
        let (kind, name) = (place.kind(), place.name());
        let mine = all.iter().position(|(_, n, _)| *n == name).unwrap_or_else(|| {
            all.push((kind, name.clone(), Vec::new()));
            all.len() - 1
        });
        let turn = all[mine].2.len();
        for (other, who, theirs) in &all[..mine] {
            let Some(theirs) = theirs.get(turn) else { continue };
            if comparable(*other == kind, theirs, &ran) {
                same_bits(&format!("{name} and {who}, {:?} of {}", ran.kernels, ran.at), &ran.left, &theirs.left);
            }
        }
        all[mine].2.push(ran);
    });
}

fn comparable(same_kind: bool, a: &Ran, b: &Ran) -> bool {
    (a.at, &a.kernels, a.given) == (b.at, &b.kernels, b.given) && (same_kind || a.kernels.iter().all(|k| exact(k)))
}

/// Whether the kernel's arithmetic is the same on every machine.
fn exact(kernel: &str) -> bool {
    !APPROXIMATE_PROBES.iter().any(|probe| kernel.starts_with(probe))
        && !FILES.iter().any(|f| f.kernels.contains(&kernel) && APPROXIMATE.contains(&f.name))
}

#[track_caller]
fn same_bits(what: &str, got: &[Vec<u8>], other: &[Vec<u8>]) {
    for (slice, (a, b)) in got.iter().zip(other).enumerate() {
        let apart = a.iter().zip(b).position(|(a, b)| a != b);
        assert!(apart.is_none(), "{what}: slice {slice} of those written differs from byte {} on", apart.unwrap_or(0));
    }
}

/// A machine that records which kernels were started through it.
pub struct Watched<'a> {
    machine: &'a dyn Machine,
    started: RefCell<Vec<&'static str>>,
}

impl<'a> Watched<'a> {
    pub fn new(machine: &'a dyn Machine) -> Self {
        Watched { machine, started: RefCell::default() }
    }

    pub fn kernels(self) -> Vec<&'static str> {
        self.started.into_inner()
    }
}

impl Machine for Watched<'_> {
    fn target(&self) -> Target {
        self.machine.target()
    }

    fn tensor_map(&self, tiles: Tiles) -> Result<TensorMap, String> {
        self.machine.tensor_map(tiles)
    }

    fn processors(&self) -> usize {
        self.machine.processors()
    }

    unsafe fn start(&self, kernel: &'static str, args: *const c_void, geometry: Geometry) -> Result<(), String> {
        self.started.borrow_mut().push(kernel);
        // SAFETY: this function's contract is that of the machine's own.
        unsafe { self.machine.start(kernel, args, geometry) }
    }
}

/// A file that approximates and is not listed would be compared with the emulator bit for bit.
#[test]
fn what_approximates_is_listed() {
    let words = ["fast_", "mma(", "wgmma<", "ln("];
    let approximate = FILES.iter().filter(|f| words.iter().any(|w| with_headers(f.text).contains(w))).map(|f| f.name);
    assert_eq!(approximate.collect::<Vec<_>>(), APPROXIMATE);
}

/// A file and the headers that it includes, without the headers of primitives.
fn with_headers(text: &str) -> String {
    let common = |name: &str| name.starts_with("prim") || name == "common.cuh";
    let included = HEADERS.iter().filter(|(name, _)| text.contains(&format!("#include \"{name}\"")) && !common(name));
    included.fold(text.to_string(), |all, (_, header)| all + &with_headers(header))
}

#[test]
fn bits_that_differ_are_seen() {
    let at = Location::caller();
    let ran = |kernel, given, left: u8| Ran { at, kernels: vec![kernel], given, left: vec![vec![1], vec![0, left]] };
    assert!(comparable(true, &ran("swiglu", 1, 0), &ran("swiglu", 1, 0)));
    assert!(!comparable(false, &ran("swiglu", 1, 0), &ran("swiglu", 1, 0)));
    assert!(comparable(false, &ran("rmsnorm", 1, 0), &ran("rmsnorm", 1, 0)));
    assert!(!comparable(true, &ran("rmsnorm", 1, 0), &ran("rmsnorm", 2, 0)));
    let differ = |a, b| std::panic::catch_unwind(|| same_bits("", &ran("", 0, a).left, &ran("", 0, b).left)).is_err();
    assert!(differ(3, 4) && !differ(4, 4));
}
