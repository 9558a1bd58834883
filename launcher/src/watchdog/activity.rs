//! Long work that records nothing, such as loading weights, compiling kernels or writing a checkpoint: the kernel's
//! counters tell that it goes on.

use std::fs::read_to_string;

/// Clock ticks of a round in which a process that computes uses the processor. Its watchdog alone uses less.
const BUSY: u64 = 3;

/// The counters of this process in the last round.
#[derive(Default)]
pub struct Activity {
    cpu: u64,
    disk: u64,
}

/// The work that a rank may do without a record.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// To compute, and to read and write files: before the first step.
    Anything,
    /// To read and write files.
    Files,
    /// Nothing: it waits for another rank.
    Nothing,
}

impl Activity {
    /// Whether the process has done something of what it may since the last call.
    pub fn goes_on(&mut self, expected: Expected) -> bool {
        let (cpu, disk) = (cpu().unwrap_or_default(), disk().unwrap_or_default());
        let computed = cpu.saturating_sub(std::mem::replace(&mut self.cpu, cpu)) >= BUSY;
        let moved = disk > std::mem::replace(&mut self.disk, disk);
        match expected {
            Expected::Anything => computed || moved,
            Expected::Files => moved,
            Expected::Nothing => false,
        }
    }
}

/// Clock ticks that all threads of this process have used.
fn cpu() -> Option<u64> {
    let stat = read_to_string("/proc/self/stat").ok()?;
    // The 14th and the 15th field; the second is the program's name in parentheses, which may hold anything.
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// Bytes that this process has read from disks and written for them.
fn disk() -> Option<u64> {
    let io = read_to_string("/proc/self/io").ok()?;
    let bytes = |name: &str| io.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    Some(bytes("read_bytes:")? + bytes("write_bytes:")?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_process_that_computes_goes_on() {
        let mut activity = Activity::default();
        activity.goes_on(Expected::Nothing);
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(200) {
            std::hint::spin_loop();
        }
        assert!(cpu().unwrap() >= BUSY && disk().is_some());
        assert!(activity.goes_on(Expected::Anything));
        // The counters were taken over; what other tests do meanwhile is not this one's to judge.
        assert!(!activity.goes_on(Expected::Nothing));
    }
}
