//! Whole-program tests: the built `swallow-engine`, alone and under `mpirun`, compared with PyTorch's golden runs, with
//! itself, and on broken input; the engine's layers and checkpoints on ranks; and the rules of the source tree.
//!
//! Modules named `exhaustive` or `campaign` are left out of `make test`; `make test-all` runs everything.

mod abort;
mod agreement;
mod blas;
mod checkpoint_roundtrip;
mod common;
mod configs;
mod copies;
mod corpus;
mod cuda;
mod demo;
mod device;
mod disks;
mod divergence;
mod docs;
mod evaluation;
mod experts;
mod exports;
mod families;
mod faults;
mod floors;
mod gpu;
mod gradients;
mod hosts;
mod ideal;
mod invalid_input;
mod kernels;
mod launch;
mod layers;
mod layouts;
mod masks;
mod memory;
mod no_alloc;
mod operations;
mod parity;
mod plan;
mod real_model;
mod recipe;
mod report;
mod resume;
mod run_dir;
mod samples;
mod sass;
mod stages;
mod survey;
mod texts;
mod threads;
mod tokenize;
mod topology;
mod trajectories;
mod upcycling;
mod vocabulary;
