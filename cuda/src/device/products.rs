//! What products of matrices need of a device: its stream, and numbers to be timed on.

use super::trace::Launch;
use super::{Device, Result};
use crate::args::View;
use crate::blas::Product;
use crate::compile::Version;
use cudarc::driver::result;

impl Device {
    /// The CUDA version that its driver is made for.
    pub fn driver(&self) -> Version {
        self.version
    }

    /// Keeps in mind that a product was started on the stream.
    pub(crate) fn started(&self, product: Product) {
        self.trace.started(Launch::Product(product));
    }

    /// An error with where it was met and what was launched before it.
    pub(crate) fn explain(&self, error: &str) -> String {
        self.trace.explain(error)
    }

    /// Fills bytes of this device's memory with `pattern` over and over. Waits for the end.
    pub(crate) fn repeat(&self, pattern: &[u8], bytes: View) -> Result<()> {
        let (at, len) = (bytes.at(), bytes.len());
        let mut done = pattern.len().min(len);
        // SAFETY: the view answers for the memory, and the pattern is borrowed until the copy has ended.
        self.checked(unsafe { result::memcpy_htod_async(at, &pattern[..done], self.stream.raw()) })?;
        while done < len {
            let next = done.min(len - done);
            // SAFETY: the bytes before `done` are copied behind them, inside of the view.
            self.checked(unsafe { result::memcpy_dtod_async(at + done as u64, at, next, self.stream.raw()) })?;
            done += next;
        }
        self.sync()
    }
}
