//! The product itself: D = alpha A B + beta C, sums in f32, the result rounded once.

use super::algorithms::{Algorithm, Opaque, Problem, problem};
use super::descriptors::{F32, Layout};
use super::{EXECUTION_FAILED, INVALID_VALUE, Said, Status, answer, no, open};
use crate::code::ILLEGAL_ADDRESS;
use crate::driver::enqueue;
use crate::settings::settings;
use crate::{fault, memory};
use gemm::Parallelism;
use half::bf16;
use std::ffi::c_void;
use std::time::Duration;

/// How much longer than the fastest the others take, where a test says which is the fastest.
const SLOWER: Duration = Duration::from_millis(5);

/// A product on its way to a stream.
struct Job {
    problem: Problem,
    algorithm: Algorithm,
    alpha: f32,
    beta: f32,
    /// Addresses of A, B and of C, which is D.
    at: [usize; 3],
    workspace: usize,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmul(
    handle: *mut c_void,
    of: *mut c_void,
    alpha: *const f32,
    a: *const c_void,
    a_layout: *mut c_void,
    b: *const c_void,
    b_layout: *mut c_void,
    beta: *const f32,
    c: *const c_void,
    c_layout: *mut c_void,
    d: *mut c_void,
    d_layout: *mut c_void,
    opaque: *const Opaque,
    workspace: *mut c_void,
    bytes: usize,
    stream: *mut c_void,
) -> Status {
    let start = || {
        open(handle)?;
        fault::check().map_err(|_| EXECUTION_FAILED)?;
        let problem = problem(of, [a_layout, b_layout, c_layout, d_layout])?;
        if alpha.is_null() || beta.is_null() || opaque.is_null() || c != d {
            return no(INVALID_VALUE, "a factor or an algorithm that is missing, or C that is not D");
        }
        // SAFETY: the caller gives an algorithm.
        let algorithm = Algorithm::of(unsafe { &*opaque });
        let algorithm = algorithm.map_or_else(|| no(INVALID_VALUE, "an algorithm of another library"), Ok)?;
        let at = [a as usize, b as usize, d as usize];
        let space = (workspace as usize, bytes);
        hold(&problem, algorithm, at, space)?;
        // SAFETY: both factors are in the host's memory, as the descriptor says.
        let (alpha, beta) = unsafe { (*alpha, *beta) };
        let job = Job { problem, algorithm, alpha, beta, at, workspace: space.0 };
        enqueue(stream, Box::new(move || job.run()));
        Ok(())
    };
    answer(start())
}

/// What an algorithm needs of addresses and workspace.
fn hold(problem: &Problem, algorithm: Algorithm, at: [usize; 3], (workspace, bytes): (usize, usize)) -> Said<()> {
    let [a, b, d] = at;
    if !algorithm.takes(problem, [a, b, d, d]) {
        return no(INVALID_VALUE, &format!("{algorithm:?} at the addresses {at:x?}, or k = {}", problem.k));
    }
    let needed = algorithm.workspace(problem);
    if needed > bytes || (needed > 0 && (workspace == 0 || !workspace.is_multiple_of(16))) {
        return no(INVALID_VALUE, &format!("{algorithm:?} wants {needed} bytes, not {bytes} at {workspace:#x}"));
    }
    Ok(())
}

impl Job {
    fn run(&self) {
        if let Some(fastest) = settings().fastest.as_deref()
            && fastest != format!("{:?}", self.algorithm).to_lowercase()
        {
            std::thread::sleep(SLOWER);
        }
        let Problem { a, b, d, .. } = &self.problem;
        let all = [(self.at[0], a.span() * 2), (self.at[1], b.span() * 2), (self.at[2], d.span() * d.size())];
        let space = (self.workspace, self.algorithm.workspace(&self.problem));
        for (at, bytes) in all.into_iter().chain([space]) {
            if bytes > 0 && memory::known(at as u64, bytes).is_err() {
                eprintln!("stand-in: a product uses {bytes} bytes at {at:#x}, which are of no block");
                return fault::set(ILLEGAL_ADDRESS);
            }
        }
        self.multiply();
    }

    /// Every algorithm adds in an order of its own, as on a device.
    fn multiply(&self) {
        let k = self.problem.k;
        let sums = match self.algorithm {
            Algorithm::Wide => self.sums(0..k),
            Algorithm::Narrow => {
                let (mut first, rest) = (self.sums(0..k.div_ceil(3)), self.sums(k.div_ceil(3)..k));
                first.iter_mut().zip(rest).for_each(|(x, y)| *x += y);
                first
            }
            Algorithm::Split | Algorithm::Rounded => self.parts(),
        };
        self.store(&sums);
    }

    /// The sums of two parts of k, of which the first waits in the workspace.
    fn parts(&self) -> Vec<f32> {
        let Problem { m, n, k, d, .. } = self.problem;
        let round = |x: &mut f32| {
            if self.algorithm == Algorithm::Rounded && d.kind != F32 {
                *x = bf16::from_f32(*x).to_f32();
            }
        };
        let cut = if self.algorithm == Algorithm::Rounded { k.div_ceil(4) } else { k / 2 };
        let [mut first, mut second] = [self.sums(0..cut), self.sums(cut..k)];
        first.iter_mut().chain(&mut second).for_each(round);
        // SAFETY: the workspace was found to be a block's, with an f32 for every sum; only this stream's
        // products use it.
        let space = unsafe { std::slice::from_raw_parts_mut(self.workspace as *mut f32, m * n) };
        space.copy_from_slice(&first);
        second.iter_mut().zip(space).for_each(|(x, y)| *x += *y);
        second
    }

    /// Sums over these k, `m` by `n`, column by column.
    fn sums(&self, k: std::ops::Range<usize>) -> Vec<f32> {
        let Problem { turned, a, b, m, n, .. } = self.problem;
        let (a_data, b_data) = (self.widened(0, &a), self.widened(1, &b));
        // Elements from column to column, and from row to row, of the operands as they are multiplied.
        let steps = |turned: bool, rows: usize| if turned { (1, rows as isize) } else { (rows as isize, 1) };
        let ((a_cs, a_rs), (b_cs, b_rs)) = (steps(turned[0], a.rows), steps(turned[1], b.rows));
        let mut sums = vec![0.0f32; m * n];
        let from = k.start as isize;
        // SAFETY: the strides are those of the widened matrices, of which k columns and rows from `from` on are read;
        // the sums are m by n.
        unsafe {
            gemm::gemm(
                m,
                n,
                k.len(),
                sums.as_mut_ptr(),
                m as isize,
                1,
                false,
                a_data.as_ptr().offset(from * a_cs),
                a_cs,
                a_rs,
                b_data.as_ptr().offset(from * b_rs),
                b_cs,
                b_rs,
                0.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
        sums
    }

    /// An operand in f32, without gaps.
    fn widened(&self, operand: usize, layout: &Layout) -> Vec<f32> {
        let first = self.at[operand] as *const bf16;
        let column = |col: usize| {
            // SAFETY: the span of the layout was found to be a block's; who started this answers for nobody writing it.
            unsafe { std::slice::from_raw_parts(first.add(col * layout.ld), layout.rows) }
        };
        (0..layout.cols).flat_map(|col| column(col).iter().map(|x| x.to_f32())).collect()
    }

    fn store(&self, sums: &[f32]) {
        let Problem { m, d, .. } = self.problem;
        for (at, sum) in sums.iter().enumerate() {
            let element = at / m * d.ld + at % m;
            // SAFETY: the span of the layout was found to be a block's; who started this answers for nobody else using
            // it.
            unsafe {
                if d.kind == F32 {
                    let to = (self.at[2] as *mut f32).add(element);
                    to.write(self.value(*sum, || to.read()));
                } else {
                    let to = (self.at[2] as *mut bf16).add(element);
                    to.write(bf16::from_f32(self.value(*sum, || to.read().to_f32())));
                }
            }
        }
    }

    /// What was there is not looked at where it counts for nothing.
    fn value(&self, sum: f32, old: impl FnOnce() -> f32) -> f32 {
        let scaled = self.alpha * sum;
        if self.beta == 0.0 { scaled } else { scaled + self.beta * old() }
    }
}
