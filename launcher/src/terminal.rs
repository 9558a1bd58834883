//! Whether a person sees the standard output of this process as it is written.

use std::io::IsTerminal;

/// Programs that start the ranks of a run, and pass on what these print.
const LAUNCHERS: [&str; 8] = ["mpirun", "mpiexec", "orterun", "prterun", "orted", "prted", "hydra_pmi_proxy", "srun"];

/// Whether stdout is a terminal that a person sees. Under mpirun a rank's stdout is a pseudo-terminal even where mpirun
/// writes to a file, so mpirun's own stdout must be a terminal, too. Scripts between mpirun and a rank have the rank's.
pub fn is_shown() -> bool {
    std::io::stdout().is_terminal() && launchers_stdout(std::process::id(), &Process::of).is_none_or(is_terminal)
}

fn is_terminal(stdout: String) -> bool {
    ["/dev/pts/", "/dev/tty", "/dev/console"].iter().any(|terminal| stdout.starts_with(terminal))
}

struct Process {
    name: String,
    parent: u32,
    /// The file that is its standard output.
    stdout: String,
}

impl Process {
    fn of(pid: u32) -> Option<Process> {
        let stdout = std::fs::read_link(format!("/proc/{pid}/fd/1")).ok()?.to_string_lossy().into_owned();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| Some(status.lines().find_map(|line| line.strip_prefix(name))?.trim().to_string());
        Some(Process { name: field("Name:")?, parent: field("PPid:")?.parse().ok()?, stdout })
    }
}

/// The standard output of the launcher that started the process `pid`; `None` if none did.
fn launchers_stdout(pid: u32, process: &dyn Fn(u32) -> Option<Process>) -> Option<String> {
    let own = process(pid)?;
    let mut above = process(own.parent)?;
    while above.stdout == own.stdout && !LAUNCHERS.contains(&above.name.as_str()) {
        above = process(above.parent)?;
    }
    LAUNCHERS.contains(&above.name.as_str()).then_some(above.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The processes of a list have the numbers 1, 2, ... and the one before as parent.
    fn shown(processes: &[(&str, &str)]) -> bool {
        let process = |pid: u32| {
            let (name, stdout) = *processes.get((pid as usize).checked_sub(1)?)?;
            Some(Process { name: name.into(), parent: pid - 1, stdout: stdout.into() })
        };
        launchers_stdout(processes.len() as u32, &process).is_none_or(is_terminal)
    }

    #[test]
    fn the_launchers_stdout_decides() {
        let (shell, rank) = (("bash", "/dev/pts/0"), ("swallow-engine", "/dev/pts/5"));
        assert!(shown(&[("sshd", "/dev/null"), shell, ("swallow-engine", "/dev/pts/0")]));
        assert!(shown(&[shell, ("mpirun", "/dev/pts/0"), rank]));
        assert!(!shown(&[shell, ("mpirun", "/tmp/log"), rank]));
        assert!(!shown(&[
            shell,
            ("mpirun", "pipe:[7]"),
            ("wrapper.sh", "/dev/pts/5"),
            ("numactl", "/dev/pts/5"),
            rank
        ]));
        assert!(shown(&[shell, ("mpirun", "/dev/pts/0"), ("wrapper.sh", "/dev/pts/5"), rank]));
        assert!(!shown(&[("orted", "/dev/null"), rank]), "a rank on another host");
        assert!(!shown(&[shell, ("mpirun", "/dev/shm/log"), rank]));
    }
}
