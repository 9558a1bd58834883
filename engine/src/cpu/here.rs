//! Copies to the host, which is where everything is.

use crate::backend::{Elem, Fault, HostCopy};

/// A copy that was made at once.
pub struct Here<T>(pub(super) Vec<T>);

impl<T: Elem> HostCopy<T> for Here<T> {
    fn wait(self) -> Result<Vec<T>, Fault> {
        Ok(self.0)
    }
}
