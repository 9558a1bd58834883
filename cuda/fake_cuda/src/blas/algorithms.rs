//! Four algorithms with different rounding, so that a result shows which one was used.

use super::descriptors::{BF16, Desc, F32, Layout, Preference, desc, layout, preference};
use super::{INVALID_VALUE, NOT_SUPPORTED, Outcome, SUCCESS, Status, check_handle, reject, status_of};
use cudarc::cublaslt::sys::cublasLtReductionScheme_t as Reduction;
use std::ffi::{c_int, c_void};

/// `cublasLtMatmulAlgo_t`.
pub type Opaque = [u64; 8];

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
pub struct Proposal {
    algorithm: Opaque,
    workspace: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

/// All algorithms, in the order of the heuristic.
const ALL: [Algorithm; 4] = [Algorithm::Rounded, Algorithm::Wide, Algorithm::Split, Algorithm::Narrow];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// Splits k in two; the partial sums are rounded to the result's type. Needs workspace.
    Rounded,
    /// Loads of 16 bytes.
    Wide,
    /// Splits k in two; the partial sums are f32. Needs workspace.
    Split,
    /// Loads of one element.
    Narrow,
}

/// The first word of this library's algorithms, without their number.
const OURS: u64 = 0x5ca1_ab1e << 8;

/// A multiplication with consistent shapes.
#[derive(Clone, Copy)]
pub(super) struct Problem {
    pub transposed: [bool; 2],
    pub a: Layout,
    pub b: Layout,
    pub d: Layout,
    /// The address of `m` numbers of D's type that are added to each of its columns.
    pub bias: Option<usize>,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

impl Problem {
    pub fn new(desc: Desc, [a, b, c, d]: [Layout; 4]) -> Outcome<Problem> {
        let turn = |transposed, Layout { rows, cols, .. }: Layout| if transposed { (cols, rows) } else { (rows, cols) };
        let ((m, k), (k_of_b, n)) = (turn(desc.transposed[0], a), turn(desc.transposed[1], b));
        if [a, b, c, d].map(|x| x.kind)[..2] != [BF16; 2] || ![BF16, F32].contains(&d.kind) {
            return reject(NOT_SUPPORTED, &format!("types of {a:?} x {b:?} = {d:?}"));
        }
        if k != k_of_b || (d.rows, d.cols) != (m, n) || m * n * k == 0 {
            return reject(
                INVALID_VALUE,
                &format!("shapes of {a:?} x {b:?} = {d:?}, transposed {:?}", desc.transposed),
            );
        }
        if c != d {
            return reject(INVALID_VALUE, &format!("C as {c:?} and D as {d:?}"));
        }
        if [a, b, d].iter().any(|x| x.ld < x.rows) {
            return reject(INVALID_VALUE, &format!("leading dimensions of {a:?} x {b:?} = {d:?}"));
        }
        let bias = desc.adds_bias.then_some(desc.bias);
        if bias == Some(0) || bias.is_some() && d.kind != BF16 {
            return reject(INVALID_VALUE, &format!("a bias at {:#x} of D as {d:?}", desc.bias));
        }
        Ok(Problem { transposed: desc.transposed, a, b, d, bias, m, n, k })
    }

    /// The alignment in bytes of all columns of all matrices at these addresses.
    fn aligned(&self, addresses: [usize; 4]) -> usize {
        let [a, b, c, d] = addresses;
        let of = |at: usize, x: Layout| at | (x.ld * x.size());
        let all = of(a, self.a) | of(b, self.b) | of(c, self.d) | of(d, self.d) | self.bias.unwrap_or(0);
        1 << all.trailing_zeros().min(8)
    }

    /// Whether the addresses are aligned to elements.
    fn element_aligned(&self, [a, b, c, d]: [usize; 4]) -> bool {
        let all = [(a, 2), (b, 2), (c, self.d.size()), (d, self.d.size()), (self.bias.unwrap_or(0), 2)];
        all.iter().all(|(at, size)| at.is_multiple_of(*size))
    }
}

impl Algorithm {
    pub fn of(opaque: &Opaque) -> Option<Algorithm> {
        let one = |number: u64| [OURS | number, 0, 0, 0, 0, 0, 0, 0];
        ALL.into_iter().zip(0..).find(|(_, number)| one(*number) == *opaque).map(|(algorithm, _)| algorithm)
    }

    fn opaque(self) -> Opaque {
        let number = ALL.iter().position(|one| *one == self).expect("all of them are listed") as u64;
        [OURS | number, 0, 0, 0, 0, 0, 0, 0]
    }

    /// Its `cublasLtReductionScheme_t`.
    fn reduction(self) -> u32 {
        match self {
            Algorithm::Rounded => Reduction::CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE as u32,
            Algorithm::Split => Reduction::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32,
            Algorithm::Wide | Algorithm::Narrow => Reduction::CUBLASLT_REDUCTION_SCHEME_NONE as u32,
        }
    }

    /// Required bytes of workspace.
    pub fn workspace(self, problem: &Problem) -> usize {
        let each = problem.m * problem.n;
        match self {
            Algorithm::Rounded | Algorithm::Split => 4 * each,
            Algorithm::Wide | Algorithm::Narrow => 0,
        }
    }

    /// Whether it supports this multiplication at these addresses.
    pub fn supports(self, problem: &Problem, addresses: [usize; 4]) -> bool {
        match self {
            Algorithm::Rounded | Algorithm::Split => problem.k > 1 && problem.element_aligned(addresses),
            Algorithm::Wide => problem.aligned(addresses) >= 16,
            Algorithm::Narrow => problem.element_aligned(addresses),
        }
    }
}

/// The problem described by these handles.
pub(super) fn problem(of: *mut c_void, layouts: [*mut c_void; 4]) -> Outcome<Problem> {
    let [a, b, c, d] = layouts.map(layout);
    Problem::new(desc(of)?, [a?, b?, c?, d?])
}

fn proposal(algorithm: Algorithm, problem: &Problem) -> Proposal {
    let (opaque, workspace) = (algorithm.opaque(), algorithm.workspace(problem));
    Proposal { algorithm: opaque, workspace, state: SUCCESS, waves: 1.0, reserved: [0; 4] }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulAlgoGetHeuristic(
    handle: *mut c_void,
    of: *mut c_void,
    a: *mut c_void,
    b: *mut c_void,
    c: *mut c_void,
    d: *mut c_void,
    preferred: *mut c_void,
    asked: c_int,
    to: *mut Proposal,
    count: *mut c_int,
) -> Status {
    let propose = || {
        check_handle(handle)?;
        let problem = problem(of, [a, b, c, d])?;
        let Preference { workspace, align, reductions } = preference(preferred)?;
        let fits = |one: &Algorithm| {
            let scheme = one.reduction();
            let allowed = scheme == 0 || scheme & reductions != 0;
            allowed && one.workspace(&problem) <= workspace && one.supports(&problem, align)
        };
        let mut n = 0;
        for algorithm in ALL.into_iter().filter(fits).take(asked.max(0) as usize) {
            // SAFETY: the caller provides room for the requested number.
            unsafe { to.add(n).write(proposal(algorithm, &problem)) };
            n += 1;
        }
        // SAFETY: the caller passes a valid pointer.
        unsafe { *count = n as c_int };
        if n == 0 { reject(NOT_SUPPORTED, "these preferences: no algorithm meets them") } else { Ok(()) }
    };
    status_of(propose())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulAlgoCheck(
    handle: *mut c_void,
    of: *mut c_void,
    a: *mut c_void,
    b: *mut c_void,
    c: *mut c_void,
    d: *mut c_void,
    opaque: *const Opaque,
    to: *mut Proposal,
) -> Status {
    let check = || {
        check_handle(handle)?;
        let problem = problem(of, [a, b, c, d])?;
        // SAFETY: the caller passes a valid pointer.
        let Some(algorithm) = Algorithm::of(unsafe { &*opaque }) else {
            return reject(INVALID_VALUE, "an algorithm of another library");
        };
        if !algorithm.supports(&problem, [256; 4]) {
            return reject(NOT_SUPPORTED, &format!("{algorithm:?} for {:?} x {:?}", problem.a, problem.b));
        }
        // SAFETY: the caller passes a valid pointer.
        unsafe { to.write(proposal(algorithm, &problem)) };
        Ok(())
    };
    status_of(check())
}
