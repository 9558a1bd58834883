//! The start of the program and its output for users: launchers that pass no ranks, help, progress in a log.

use crate::common::{Case, Outcome, engine, finish, mpirun_alone, program, set, write_config};

/// Another MPI's launcher starts several processes, each of which believes to be the only rank.
/// A process that never meets the others is started in the place of a rank.
#[test]
fn a_rank_that_never_starts_mpi_is_not_waited_for_without_end() {
    let mut command = mpirun_alone();
    command.env("SWALLOW_PATIENCE_S", "2").args(["-n", "1"]).arg(program());
    command.args(["train", "--config", "run.toml", ":", "-n", "1", "sleep", "60"]);
    finish(&mut command).refused(1, &["no progress for 2 s: MPI does not start on "]);
}

#[test]
fn tasks_that_mpi_does_not_see_are_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    let mut config = Case::open("mha_odd_vocab").config(&run);
    set(&mut config, "train.steps", 1);
    let config = write_config(tmp.path(), "config.toml", &config);
    let train = |variables: &[(&str, &str)]| -> Outcome {
        finish(engine().args(["train", "--config"]).arg(&config).envs(variables.iter().copied()))
    };
    for variables in [
        [("PMI_RANK", "0"), ("PMI_SIZE", "4")],
        [("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "4")],
        [("PMI_RANK", "0"), ("MV2_COMM_WORLD_SIZE", "4")],
    ] {
        let needles = ["4 tasks were started", variables[1].0, "MPI sees 1 rank", "mpirun", "srun --mpi"];
        train(&variables).refused(2, &needles);
    }
    // Only task 0 prints, and every task ends.
    let other = train(&[("SLURM_PROCID", "3"), ("SLURM_NTASKS", "4")]).refused(2, &[]);
    assert_eq!(other.stderr, "");
    assert!(!run.exists());
    // A batch script is one process, whatever the number of tasks that it may start.
    train(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")]).succeeded();
}

/// Every command's help, wrapped for a terminal of 80 columns.
#[test]
fn help_fits_the_terminal() {
    let mut open = vec![Vec::<String>::new()];
    let mut seen = 0;
    while let Some(command) = open.pop() {
        let help = finish(engine().args(&command).arg("--help").env("COLUMNS", "80")).succeeded().stdout;
        let wide: Vec<&str> = help.lines().filter(|line| line.chars().count() > 80).collect();
        assert!(wide.is_empty(), "{command:?}: {wide:#?}");
        let commands = help.split("Commands:\n").nth(1).unwrap_or_default().lines().take_while(|line| !line.is_empty());
        let names = commands.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        let names = names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
        open.extend(names.map(|name| [&command[..], &[name.to_string()]].concat()));
        seen += 1;
    }
    assert!(seen > 20, "{seen} commands");
}

/// A batch job's log shows at once that a long command works.
#[test]
fn a_log_shows_progress_at_once() {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    let mut config = Case::open("mha_odd_vocab").config(&run);
    set(&mut config, "train.steps", 1);
    let config = write_config(tmp.path(), "config.toml", &config);
    finish(engine().args(["train", "--config"]).arg(config)).succeeded();
    let outcome = finish(engine().args(["checkpoint", "verify"]).arg(&run)).succeeded();
    assert!(outcome.stderr.starts_with("verify: 0.0 of "), "{}", outcome.stderr);
}
