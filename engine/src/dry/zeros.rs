//! Copies to the host of what is not there.

use crate::backend::{Elem, Fault, HostCopy};
use std::marker::PhantomData;

/// As many zeros as would have come.
pub struct Zeros<T>(pub(super) usize, pub(super) PhantomData<fn() -> T>);

impl<T: Elem> HostCopy<T> for Zeros<T> {
    fn wait(self) -> Result<Vec<T>, Fault> {
        Ok(vec![T::default(); self.0])
    }
}
