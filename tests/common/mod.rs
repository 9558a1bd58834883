//! Shared by the whole-program tests: running the program, the golden cases, and reading the files of a run.

mod fake_cuda;
mod files;
mod golden;
mod process;
mod shared;
mod site;

pub use fake_cuda::{FakeCuda, fake_cuda, on_fake_cuda};
pub use files::{Tensors, distance, export, metrics, read_tensors, write_tokens};
pub use golden::{CASES, Case, EXPERT_CASES, set, write_config};
pub use process::{
    Outcome, Running, checkout, engine, finish, finish_long, is_inside, kill_process, locally, mpirun, mpirun_alone,
    mpirun_this_test, on_ranks, program,
};
pub use shared::{Shared, copy};
pub use site::Site;
