//! Cases run in a process of their own, a worker, which is this program again: what ends it (a panic, a signal, a
//! limit) ends nothing else. The worker answers each case with a line, so that the campaign knows which one it was in.

use crate::case::{Case, seeds};
use crate::mutate::Cases;
use crate::targets::{Parser, Target};
use crate::{Args, Which};
use engine::error::{Error, Result};
use nix::sys::resource::{Resource, UsageWho, getrusage, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// The processor time of a case. Waiting for a busy machine does not count.
const SECONDS: u64 = 2;
/// A case that takes longer waits for something that never happens.
const PATIENCE: Duration = Duration::from_secs(60);
/// Memory that a process may write to.
const BYTES: u64 = 1 << 30;

const ACCEPTED: &str = "accepted";

/// What a worker did.
#[derive(Debug, Default)]
pub struct Done {
    pub accepted: u64,
    /// Cases with an error of the parser; the error of the last one is kept.
    pub refused: u64,
    pub refusal: String,
    /// Why the case after those did not end as it must.
    pub wrong: Option<String>,
}

/// Runs cases of a target in a worker, in a folder below `tmp`.
pub fn run(args: &Args, target: &str, which: &Which, tmp: &Path) -> io::Result<Done> {
    let errors = tmp.join("stderr");
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--worker", "--target", target]).arg("--engine").arg(&args.engine);
    command.arg("--seed").arg(args.seed.to_string()).args(which.flags());
    let folder = tmp.join("case");
    std::fs::create_dir_all(&folder)?;
    // Open MPI and others leave files behind where a process is killed.
    command.current_dir(folder).env("TMPDIR", tmp).process_group(0);
    let mut worker = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&errors)?).spawn()?;
    let (answers, mut done) = (answers(&mut worker), Done::default());
    let timed_out = loop {
        match answers.recv_timeout(PATIENCE) {
            Ok(answer) if answer == ACCEPTED => done.accepted += 1,
            Ok(refusal) => (done.refused, done.refusal) = (done.refused + 1, refusal),
            Err(end) => break end == RecvTimeoutError::Timeout,
        }
    };
    if timed_out {
        killpg(Pid::from_raw(worker.id() as i32), Signal::SIGKILL)?;
    }
    let status = worker.wait()?;
    let text = std::fs::read(&errors)?;
    done.wrong = match timed_out {
        true => Some(format!("no end after {} s", PATIENCE.as_secs())),
        false if status.success() => None,
        false => Some(reason(status, &String::from_utf8_lossy(&text))),
    };
    Ok(done)
}

/// The lines of the worker.
fn answers(worker: &mut Child) -> Receiver<String> {
    let (send, receive) = channel();
    let lines = BufReader::new(worker.stdout.take().expect("it is piped")).lines();
    std::thread::spawn(move || lines.map_while(std::result::Result::ok).try_for_each(|line| send.send(line)));
    receive
}

fn reason(status: ExitStatus, errors: &str) -> String {
    let lines: Vec<&str> = errors.lines().collect();
    // Without the thread's number, so that equal reasons are equal.
    let place = |line: &&str| line.find("panicked at").map(|at| line[at..].to_string());
    let panicked = lines.iter().enumerate().find_map(|(i, line)| Some((place(line)?, lines.get(i + 1)?)));
    let no_memory = lines.iter().find(|line| line.contains("memory allocation of") || line.contains("bad_alloc"));
    match (panicked, no_memory, status.signal()) {
        (Some((place, message)), ..) => format!("{place} {message}"),
        (_, Some(line), _) => format!("more than {} MiB of memory: {line}", BYTES >> 20),
        (.., Some(signal)) if signal == Signal::SIGXCPU as i32 => format!("more than {SECONDS} s of processor time"),
        _ => format!("{status}: {}", lines.last().unwrap_or(&"no message")),
    }
}

/// The worker's side: runs the cases in the current directory, one line of standard output each.
pub fn work(args: &Args, target: &Target, which: &Which) -> io::Result<()> {
    die_of_panics();
    setrlimit(Resource::RLIMIT_DATA, BYTES, BYTES)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let cases = Cases::new(target, seeds(target.name)?, args.seed);
    let one = |case: Case| {
        case.write(Path::new("."))?;
        setrlimit(Resource::RLIMIT_CPU, used()? + SECONDS + 1, nix::sys::resource::RLIM_INFINITY)?;
        let answer = match parse(args, target) {
            Ok(()) => ACCEPTED.to_string(),
            Err(error) => format!("refused: {error}").replace(['\n', '\r'], " "),
        };
        writeln!(io::stdout(), "{answer}")
    };
    match which {
        Which::Given(folder) => one(Case::read(folder)?),
        Which::Numbers { first, most, seconds } => {
            let end = Instant::now() + Duration::from_secs_f64(*seconds);
            let numbers = (*first..).take(*most as usize).take_while(|_| Instant::now() < end);
            numbers.map(|number| cases.get(number)).try_for_each(one)
        }
    }
}

/// A panic on any thread is wrong, so it ends the worker, with its message.
fn die_of_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
}

/// Whole seconds of processor time that this process has taken.
fn used() -> io::Result<u64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    Ok((usage.user_time().tv_sec() + usage.system_time().tv_sec()) as u64)
}

fn parse(args: &Args, target: &Target) -> Result<()> {
    match target.parser {
        Parser::Library(parse) => parse(),
        Parser::Program(commands) => {
            let run = |command: &&str| program(&args.engine, command);
            let all: Vec<Result<()>> = commands.iter().map(run).collect();
            all.into_iter().collect()
        }
    }
}

/// Runs a command of the program, which must end with a code that it documents.
fn program(engine: &Path, command: &str) -> Result<()> {
    let output = Command::new(engine).args(command.split(' ')).output().map_err(|e| Error::io(engine, e))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    let is_documented = matches!(output.status.code(), Some(0..=2)) && !errors.contains("panicked at");
    if !is_documented {
        eprintln!("{command}: {}", reason(output.status, &errors));
        std::process::abort();
    }
    match output.status.success() {
        true => Ok(()),
        false => Err(Error::user(errors)),
    }
}
