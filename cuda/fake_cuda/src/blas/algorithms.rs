//! Four ways to the same product, which leave different bits: what is chosen can be told from the result.

use super::descriptors::{BF16, Desc, F32, Layout, Preference, desc, layout, preference};
use super::{INVALID_VALUE, NOT_SUPPORTED, SUCCESS, Said, Status, answer, no, open};
use cudarc::cublaslt::sys::cublasLtReductionScheme_t as Reduction;
use std::ffi::{c_int, c_void};

/// An algorithm as the program keeps it.
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

/// The best first, as the heuristic sees it.
const ALL: [Algorithm; 4] = [Algorithm::Rounded, Algorithm::Wide, Algorithm::Split, Algorithm::Narrow];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// Sums over two parts of k, each rounded to the result's type, in the workspace.
    Rounded,
    /// Loads of 16 bytes.
    Wide,
    /// Sums over both halves of k in f32, in the workspace.
    Split,
    /// Loads of one element.
    Narrow,
}

/// What every algorithm of this library begins with.
const OURS: u64 = 0x5ca1_ab1e << 8;

/// A product whose shapes fit each other.
#[derive(Clone, Copy)]
pub(super) struct Problem {
    pub turned: [bool; 2],
    pub a: Layout,
    pub b: Layout,
    pub d: Layout,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

impl Problem {
    pub fn new(desc: Desc, [a, b, c, d]: [Layout; 4]) -> Said<Problem> {
        let turn = |turned, Layout { rows, cols, .. }: Layout| if turned { (cols, rows) } else { (rows, cols) };
        let ((m, k), (k_of_b, n)) = (turn(desc.turned[0], a), turn(desc.turned[1], b));
        if [a, b, c, d].map(|x| x.kind)[..2] != [BF16; 2] || ![BF16, F32].contains(&d.kind) {
            return no(NOT_SUPPORTED, &format!("types of {a:?} x {b:?} = {d:?}"));
        }
        if k != k_of_b || (d.rows, d.cols) != (m, n) || m * n * k == 0 {
            return no(INVALID_VALUE, &format!("shapes of {a:?} x {b:?} = {d:?}, transposed {:?}", desc.turned));
        }
        if c != d {
            return no(INVALID_VALUE, &format!("C as {c:?} and D as {d:?}"));
        }
        if [a, b, d].iter().any(|x| x.ld < x.rows) {
            return no(INVALID_VALUE, &format!("leading dimensions of {a:?} x {b:?} = {d:?}"));
        }
        Ok(Problem { turned: desc.turned, a, b, d, m, n, k })
    }

    /// Bytes that every column of every matrix begins at a multiple of, where addresses are so.
    fn aligned(&self, addresses: [usize; 4]) -> usize {
        let [a, b, c, d] = addresses;
        let of = |at: usize, x: Layout| at | (x.ld * x.size());
        let all = of(a, self.a) | of(b, self.b) | of(c, self.d) | of(d, self.d);
        1 << all.trailing_zeros().min(8)
    }

    /// Whether addresses are those of elements.
    fn whole(&self, [a, b, c, d]: [usize; 4]) -> bool {
        [(a, 2), (b, 2), (c, self.d.size()), (d, self.d.size())].iter().all(|(at, size)| at.is_multiple_of(*size))
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

    /// How it adds partial sums, as in `cublasLtReductionScheme_t`.
    fn reduction(self) -> u32 {
        match self {
            Algorithm::Rounded => Reduction::CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE as u32,
            Algorithm::Split => Reduction::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32,
            Algorithm::Wide | Algorithm::Narrow => Reduction::CUBLASLT_REDUCTION_SCHEME_NONE as u32,
        }
    }

    /// Bytes of workspace that it needs.
    pub fn workspace(self, problem: &Problem) -> usize {
        let each = problem.m * problem.n;
        match self {
            Algorithm::Rounded | Algorithm::Split => 4 * each,
            Algorithm::Wide | Algorithm::Narrow => 0,
        }
    }

    /// Whether it computes this from such addresses.
    pub fn takes(self, problem: &Problem, addresses: [usize; 4]) -> bool {
        match self {
            Algorithm::Rounded | Algorithm::Split => problem.k > 1 && problem.whole(addresses),
            Algorithm::Wide => problem.aligned(addresses) >= 16,
            Algorithm::Narrow => problem.whole(addresses),
        }
    }
}

/// Of handles.
pub(super) fn problem(of: *mut c_void, layouts: [*mut c_void; 4]) -> Said<Problem> {
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
        open(handle)?;
        let problem = problem(of, [a, b, c, d])?;
        let Preference { workspace, align, reductions } = preference(preferred)?;
        let fits = |one: &Algorithm| {
            let scheme = one.reduction();
            let allowed = scheme == 0 || scheme & reductions != 0;
            allowed && one.workspace(&problem) <= workspace && one.takes(&problem, align)
        };
        let mut n = 0;
        for algorithm in ALL.into_iter().filter(fits).take(asked.max(0) as usize) {
            // SAFETY: the caller gives room for as many as it asks for.
            unsafe { to.add(n).write(proposal(algorithm, &problem)) };
            n += 1;
        }
        // SAFETY: the caller gives a place for a number.
        unsafe { *count = n as c_int };
        if n == 0 { no(NOT_SUPPORTED, "no algorithm is as it is preferred") } else { Ok(()) }
    };
    answer(propose())
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
        open(handle)?;
        let problem = problem(of, [a, b, c, d])?;
        // SAFETY: the caller gives an algorithm.
        let Some(algorithm) = Algorithm::of(unsafe { &*opaque }) else {
            return no(INVALID_VALUE, "an algorithm that is none of this library's");
        };
        if !algorithm.takes(&problem, [256; 4]) {
            return no(NOT_SUPPORTED, &format!("{algorithm:?} for {:?} x {:?}", problem.a, problem.b));
        }
        // SAFETY: the caller gives a place for the result.
        unsafe { to.write(proposal(algorithm, &problem)) };
        Ok(())
    };
    answer(check())
}
