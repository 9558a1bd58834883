//! The multiplication: D = alpha A B + beta C + bias, with f32 sums, the result rounded once.

use super::algorithms::{Algorithm, Opaque, Problem, problem};
use super::descriptors::{F32, Layout};
use super::{EXECUTION_FAILED, INVALID_VALUE, Outcome, Status, check_handle, reject, status_of};
use crate::code::ILLEGAL_ADDRESS;
use crate::driver::enqueue;
use crate::settings::settings;
use crate::{fault, memory};
use gemm::Parallelism;
use half::bf16;
use std::ffi::c_void;
use std::time::Duration;

/// The delay of all but the fastest algorithm, if a test names one.
const SLOWER: Duration = Duration::from_millis(5);

/// An enqueued multiplication.
struct Job {
    problem: Problem,
    algorithm: Algorithm,
    alpha: f32,
    beta: f32,
    /// Addresses of A, B and D, which is also C.
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
        check_handle(handle)?;
        fault::check().map_err(|_| EXECUTION_FAILED)?;
        let problem = problem(of, [a_layout, b_layout, c_layout, d_layout])?;
        if alpha.is_null() || beta.is_null() || opaque.is_null() || c != d {
            return reject(INVALID_VALUE, "a null alpha, beta or algorithm, or C that is not D");
        }
        // SAFETY: the caller passes a valid pointer.
        let algorithm = Algorithm::of(unsafe { &*opaque });
        let algorithm = algorithm.map_or_else(|| reject(INVALID_VALUE, "an algorithm of another library"), Ok)?;
        let at = [a as usize, b as usize, d as usize];
        let space = (workspace as usize, bytes);
        check(&problem, algorithm, at, space)?;
        // SAFETY: alpha and beta are in host memory, as the descriptor says.
        let (alpha, beta) = unsafe { (*alpha, *beta) };
        let job = Job { problem, algorithm, alpha, beta, at, workspace: space.0 };
        enqueue(stream, Box::new(move || job.run()));
        Ok(())
    };
    status_of(start())
}

/// Checks the addresses and the workspace that an algorithm requires.
fn check(problem: &Problem, algorithm: Algorithm, at: [usize; 3], (workspace, bytes): (usize, usize)) -> Outcome<()> {
    let [a, b, d] = at;
    if !algorithm.supports(problem, [a, b, d, d]) {
        return reject(INVALID_VALUE, &format!("{algorithm:?} at the addresses {at:x?}, or k = {}", problem.k));
    }
    let needed = algorithm.workspace(problem);
    if needed > bytes || (needed > 0 && (workspace == 0 || !workspace.is_multiple_of(16))) {
        return reject(
            INVALID_VALUE,
            &format!("{algorithm:?} with a workspace of {needed} bytes, not {bytes} at {workspace:#x}"),
        );
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
        let bias = self.problem.bias.map(|at| (at, self.problem.m * 2));
        for (at, bytes) in all.into_iter().chain([space]).chain(bias) {
            if bytes > 0 && memory::known(at as u64, bytes).is_err() {
                eprintln!("fake CUDA: a matmul accesses {bytes} bytes at {at:#x}, which lie in no block");
                return fault::set(ILLEGAL_ADDRESS);
            }
        }
        self.multiply();
    }

    /// Every algorithm adds in a different order, as on a device.
    fn multiply(&self) {
        let k = self.problem.k;
        let sums = match self.algorithm {
            Algorithm::Wide => self.sums(0..k),
            Algorithm::Narrow => {
                let (mut first, rest) = (self.sums(0..k.div_ceil(3)), self.sums(k.div_ceil(3)..k));
                first.iter_mut().zip(rest).for_each(|(x, y)| *x += y);
                first
            }
            Algorithm::Split | Algorithm::Rounded => self.split_sums(),
        };
        self.store(&sums);
    }

    /// The sum of two parts of k, the first of which is stored in the workspace.
    fn split_sums(&self) -> Vec<f32> {
        let Problem { m, n, k, d, .. } = self.problem;
        let round = |x: &mut f32| {
            if self.algorithm == Algorithm::Rounded && d.kind != F32 {
                *x = bf16::from_f32(*x).to_f32();
            }
        };
        let cut = if self.algorithm == Algorithm::Rounded { k.div_ceil(4) } else { k / 2 };
        let [mut first, mut second] = [self.sums(0..cut), self.sums(cut..k)];
        first.iter_mut().chain(&mut second).for_each(round);
        // SAFETY: the workspace was checked to lie in a block and has an f32 for every sum; only this stream's
        // multiplications use it.
        let space = unsafe { std::slice::from_raw_parts_mut(self.workspace as *mut f32, m * n) };
        space.copy_from_slice(&first);
        second.iter_mut().zip(space).for_each(|(x, y)| *x += *y);
        second
    }

    /// The sums over a range of k, `m` by `n`, column-major.
    fn sums(&self, k: std::ops::Range<usize>) -> Vec<f32> {
        let Problem { transposed, a, b, m, n, .. } = self.problem;
        let (a_data, b_data) = (self.widened(0, &a), self.widened(1, &b));
        // Column and row strides of the operands after transposition.
        let steps = |transposed: bool, rows: usize| if transposed { (1, rows as isize) } else { (rows as isize, 1) };
        let ((a_cs, a_rs), (b_cs, b_rs)) = (steps(transposed[0], a.rows), steps(transposed[1], b.rows));
        let mut sums = vec![0.0f32; m * n];
        let from = k.start as isize;
        // SAFETY: the strides are those of the f32 matrices, of which the k columns and rows from `from` on are read;
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

    /// An operand in f32, without gaps between columns.
    fn widened(&self, operand: usize, layout: &Layout) -> Vec<f32> {
        let first = self.at[operand] as *const bf16;
        let column = |col: usize| {
            // SAFETY: the span of the layout was checked to lie in a block; the caller guarantees that nothing writes
            // it.
            unsafe { std::slice::from_raw_parts(first.add(col * layout.ld), layout.rows) }
        };
        (0..layout.cols).flat_map(|col| column(col).iter().map(|x| x.to_f32())).collect()
    }

    /// The number that is added to row `row` of D; -0 changes none.
    fn bias(&self, row: usize) -> f32 {
        // SAFETY: the bias was checked to lie in a block; the caller guarantees that nothing writes it.
        self.problem.bias.map_or(-0.0, |at| unsafe { (at as *const bf16).add(row).read() }.to_f32())
    }

    fn store(&self, sums: &[f32]) {
        let Problem { m, d, .. } = self.problem;
        for (at, sum) in sums.iter().enumerate() {
            let element = at / m * d.ld + at % m;
            let bias = self.bias(at % m);
            // SAFETY: the span of the layout was checked to lie in a block; the caller guarantees that nothing else
            // uses it.
            unsafe {
                if d.kind == F32 {
                    let to = (self.at[2] as *mut f32).add(element);
                    to.write(self.value(*sum, || to.read()) + bias);
                } else {
                    let to = (self.at[2] as *mut bf16).add(element);
                    to.write(bf16::from_f32(self.value(*sum, || to.read().to_f32()) + bias));
                }
            }
        }
    }

    /// The old value is not read if beta is 0.
    fn value(&self, sum: f32, old: impl FnOnce() -> f32) -> f32 {
        let scaled = self.alpha * sum;
        if self.beta == 0.0 { scaled } else { scaled + self.beta * old() }
    }
}
