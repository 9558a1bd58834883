//! MPI.
pub struct Comm;
