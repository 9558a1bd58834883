//! How long a run may stand still: `watchdog.seconds`, else the environment variable, else ten minutes.

use engine::config::Config;
use engine::error::{Error, Result};
use engine::mpi::Comm;
use std::time::Duration;

const VARIABLE: &str = "SWALLOW_PATIENCE_S";
const DEFAULT: Duration = Duration::from_secs(600);

/// Rank 0's, on all ranks; zero: for ever. Collective.
pub fn of(config: &Config, comm: &Comm) -> Result<Duration> {
    let mine = comm.agree(config.watchdog.seconds.map_or_else(of_environment, |s| Ok(Duration::from_secs(s))))?;
    Ok(Duration::from_secs(crate::agreement::from_first(comm, &mine.as_secs())))
}

/// For the start of MPI, when no rank knows the configuration. A variable that is no number is refused later.
pub fn at_start() -> Duration {
    of_environment().unwrap_or(DEFAULT)
}

fn of_environment() -> Result<Duration> {
    let Some(value) = std::env::var_os(VARIABLE) else { return Ok(DEFAULT) };
    let seconds = value.to_str().and_then(|text| text.parse().ok()).filter(|&seconds| seconds > 0);
    seconds.map(Duration::from_secs).ok_or_else(|| {
        let remedy = "it must be a number of seconds, 1 or more; the default is 600";
        Error::user(format!("{VARIABLE} = {value:?}: {remedy}"))
    })
}
