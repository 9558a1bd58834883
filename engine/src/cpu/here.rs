//! Copies to the host, which is where everything is.

use crate::backend::{Elem, Fault, Fetched};

/// A copy that was made at once.
pub struct Here<T>(pub(super) Vec<T>);

impl<T: Elem> Fetched<T> for Here<T> {
    fn wait(self) -> Result<Vec<T>, Fault> {
        Ok(self.0)
    }
}
