//! What the whole-program tests share: running the program, the golden cases, and reading what a run leaves.

mod fake_cuda;
mod files;
mod golden;
mod process;

pub use fake_cuda::{FakeCuda, fake_cuda, on_fake_cuda};
pub use files::{Tensors, distance, export, metrics, read_tensors, write_tokens};
pub use golden::{CASES, Case, set, write_config};
pub use process::{Outcome, Running, checkout, engine, finish, mpirun, program, slay};
