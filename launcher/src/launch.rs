//! Reads what the process launcher (mpirun, mpiexec, srun) says about this process in its environment, before MPI is
//! initialized: the rank, the number of ranks, and whether MPI agrees with it.

use engine::error::{Error, Result, counted};
use engine::mpi;

/// The variables in which launchers pass the rank of a process, the innermost launcher first. A batch script of Slurm
/// has `SLURM_PROCID` = 0 too.
const RANK: [&str; 4] = ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"];

/// The variables in which launchers pass the number of processes, the innermost launcher first. `SLURM_NTASKS` is not
/// among them: a batch script that runs as one process has it too.
const SIZE: [&str; 4] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"];

/// The information from the launcher. It is read before MPI is initialized, because Open MPI then sets the variables of
/// rank 0 in a process that it believes to be alone.
pub struct Launch {
    is_first_rank: bool,
    /// The number of processes that the launcher started, and the variable that gives it.
    tasks: Option<(&'static str, usize)>,
}

impl Launch {
    pub fn of_this_process() -> Launch {
        let is_first_rank = RANK.into_iter().find_map(variable).is_none_or(|rank| rank == "0");
        Launch { is_first_rank, tasks: tasks_of(variable) }
    }

    /// Whether this is rank 0, which alone prints messages.
    pub fn is_first_rank(&self) -> bool {
        self.is_first_rank
    }

    /// Refuses a run of `ranks` = 1 whose launcher started several processes. Without this check each of them would be
    /// rank 0 of a run of its own, all in the same directory.
    pub fn check_world_size(&self, ranks: usize) -> Result<()> {
        match self.tasks {
            Some((name, tasks)) if ranks == 1 && tasks > 1 => Err(Error::user(format!(
                "{tasks} tasks were started ({name}), but MPI sees {}: the launcher does not work with the MPI library \
                 of this program, {}; start it with the mpirun of that library, or with an srun that supports it \
                 (srun --mpi=list, srun --mpi=pmix)",
                counted(ranks, "rank"),
                mpi::library()
            ))),
            _ => Ok(()),
        }
    }
}

/// Whether Open MPI's mpirun started this process.
pub fn under_mpirun() -> bool {
    variable("OMPI_COMM_WORLD_SIZE").is_some()
}

/// The number of ranks that mpirun started.
pub fn ranks_of_mpirun() -> Option<usize> {
    variable("OMPI_COMM_WORLD_SIZE")?.parse().ok()
}

/// The number of processes that the launcher started, and the variable that gives it.
fn tasks_of(variable: impl Fn(&str) -> Option<String>) -> Option<(&'static str, usize)> {
    let started = SIZE.into_iter().find_map(|name| Some((name, variable(name)?.parse().ok()?)));
    // A batch script is task 0 of SLURM_NTASKS though it runs once; another task number proves that srun started it.
    let by_srun = || {
        let task: usize = variable("SLURM_PROCID")?.parse().ok()?;
        let tasks = variable("SLURM_NTASKS")?.parse().ok()?;
        (task > 0).then_some(("SLURM_NTASKS", tasks))
    };
    started.or_else(by_srun)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tasks(variables: &[(&str, &str)]) -> Option<usize> {
        let find = |name: &str| Some(variables.iter().find(|(key, _)| *key == name)?.1.to_string());
        tasks_of(find).map(|(_, tasks)| tasks)
    }

    #[test]
    fn the_innermost_launcher_counts() {
        assert_eq!(tasks(&[("PMI_SIZE", "4"), ("SLURM_STEP_NUM_TASKS", "2")]), Some(4));
        // mpirun starts one daemon per node through srun.
        assert_eq!(tasks(&[("OMPI_COMM_WORLD_SIZE", "1"), ("SLURM_STEP_NUM_TASKS", "2")]), Some(1));
        assert_eq!(tasks(&[]), None);
    }

    #[test]
    fn a_batch_script_is_one_process() {
        assert_eq!(tasks(&[("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0")]), None);
        assert_eq!(tasks(&[("SLURM_NTASKS", "4"), ("SLURM_PROCID", "3")]), Some(4));
    }
}
