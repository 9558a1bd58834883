//! Files that only inform, such as `timeline.json`. A run goes on where one cannot be written, and says so once for
//! each file.

use crate::output::to_stderr;
use engine::error::{Error, Result};

/// One such file: the warning about it, and whether it was given.
#[derive(Default)]
pub struct Informative {
    warned: bool,
}

impl Informative {
    /// The result of opening or writing the file, and a warning for its first failure.
    pub fn check<T>(&mut self, written: Result<T>) -> (Option<T>, Option<String>) {
        match written {
            Ok(value) => (Some(value), None),
            Err(error) => (None, (!std::mem::replace(&mut self.warned, true)).then(|| warning(&error))),
        }
    }
}

/// Prints a warning about a file that is written once.
pub fn warn_of_failure(written: Result<()>) {
    if let Err(error) = written {
        to_stderr(&format!("warning: {}", warning(&error)));
    }
}

fn warning(error: &Error) -> String {
    format!("{error}; this file only informs, and the run goes on without it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_of_a_file_is_reported() {
        let mut file = Informative::default();
        assert_eq!(file.check(Ok(1)), (Some(1), None));
        let first = file.check::<()>(Err(Error::run("timeline.json: no space"))).1.unwrap();
        assert_eq!(first, "timeline.json: no space; this file only informs, and the run goes on without it");
        assert_eq!(file.check::<()>(Err(Error::run("timeline.json: no space"))), (None, None));
        assert_eq!(file.check(Ok(2)), (Some(2), None));
    }
}
