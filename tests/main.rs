//! Whole-program tests: the built `swallow-engine`, alone and under `mpirun`, held against PyTorch's
//! golden runs, against itself, and against broken input; and the rules of the house.

mod agreement;
mod blas;
mod common;
mod configs;
mod cuda;
mod device;
mod docs;
mod faults;
mod floors;
mod gpu;
mod gradients;
mod invalid_input;
mod kernels;
mod launch;
mod layouts;
mod memory;
mod parity;
mod plan;
mod real_model;
mod report;
mod resume;
mod run_dir;
mod survey;
mod texts;
mod threads;
mod topology;
mod trajectories;
