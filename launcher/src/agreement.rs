//! Before the first step all ranks agree on everything that decides the numbers of a run: the program, its command
//! line, the environment variables below, and the data. (Rank 0 reads the configuration and sends it to all ranks;
//! `resume.rs` adds the checkpoint or the initial weights.) A rank that differs from rank 0 ends the run with one
//! message that names it and its host: otherwise it would silently train on other numbers.

use data::feed::Feed;
use engine::error::{Error, Result};
use engine::mpi::{Comm, host};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The environment variables that change results, each with what it does. `*` stands for any text. Ranks may differ in
/// all others: paths, devices (`CUDA_VISIBLE_DEVICES`), network interfaces, `NCCL_HOSTID`, debug output.
const VARIABLES: [(&str, &str); 20] = [
    // Open MPI: components and algorithms of collectives, and with them the order of sums.
    ("OMPI_MCA_coll", "selects MPI's collective components"),
    ("OMPI_MCA_coll_*", "selects MPI's collective algorithms"),
    // UCC, which Open MPI may call for collectives.
    ("UCC_*_TUNE", "selects UCC's collective algorithms"),
    // MPICH and MPIs derived from it.
    ("MPIR_CVAR_*_ALGORITHM", "selects MPI's collective algorithms"),
    ("MPIR_CVAR_*_COLLECTIVES", "selects MPI's collective algorithms"),
    // NCCL: ring or tree, the protocol, and the plug-in that chooses both; all change the order of sums.
    ("NCCL_ALGO", "selects NCCL's algorithm"),
    ("NCCL_PROTO", "selects NCCL's protocol"),
    ("NCCL_TUNER_PLUGIN", "selects NCCL's algorithms"),
    // NCCL: the chunks that a reduction is split into.
    ("NCCL_M*_NCHANNELS", "sets NCCL's number of channels"),
    ("NCCL_M*_CTAS", "sets NCCL's number of channels"),
    ("NCCL_NTHREADS", "sets the threads of NCCL's reductions"),
    ("NCCL_BUFFSIZE", "sets the chunk size of NCCL's reductions"),
    // NCCL: reductions in the switches, which add in another order.
    ("NCCL_NVLS_ENABLE", "moves NCCL's reductions into NVSwitch"),
    ("NCCL_COLLNET_ENABLE", "moves NCCL's reductions into the network"),
    // cuBLAS: TF32 or emulated f32, and the workspace that limits the choice of algorithms.
    ("NVIDIA_TF32_OVERRIDE", "changes the precision of cuBLAS"),
    ("CUBLAS_EMULAT*", "changes the precision of cuBLAS"),
    ("CUBLAS_WORKSPACE_CONFIG", "changes which algorithms cuBLAS chooses"),
    // CUDA: kernels that the driver compiles from PTX instead of the machine code that was shipped.
    ("CUDA_FORCE_*JIT", "has the driver compile the kernels"),
    ("CUDA_DISABLE_*JIT", "changes which kernels the driver loads"),
    // glibc: `glibc.cpu.hwcaps` selects the variants of expf and others, which round differently.
    ("GLIBC_TUNABLES", "selects variants of the mathematical functions"),
];

/// The program, command line and environment of one rank.
#[derive(Serialize, Deserialize)]
struct Process {
    host: String,
    /// Identifies the executable.
    program: String,
    /// The command line after the program's name.
    arguments: Vec<String>,
    /// The variables of [`VARIABLES`] that are set.
    environment: BTreeMap<String, String>,
}

/// All ranks must run the same executable with the same command line and [`VARIABLES`]. Collective.
pub fn on_program(comm: &Comm) -> Result<()> {
    if comm.size() == 1 {
        return Ok(());
    }
    let environment = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok().filter(|name| effect(name).is_some())?;
        Some((name, value.to_string_lossy().into_owned()))
    });
    let arguments = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    let mine =
        program().map(|program| Process { host: host(), program, arguments, environment: environment.collect() });
    let mine = comm.agree(mine)?;
    let first: Process = from_first(comm, &mine);
    comm.agree(same_process(&mine, &first))
}

/// All ranks must have the same data. Collective.
pub fn on_data(feed: &Feed, comm: &Comm) -> Result<()> {
    if comm.size() == 1 {
        return Ok(());
    }
    let mine = feed.fingerprint(u64::MAX);
    let (first_host, first): (String, Vec<(String, String)>) = from_first(comm, &(host(), mine.clone()));
    let differs = mine.iter().zip(&first).find(|(mine, first)| mine != first);
    comm.agree(differs.map_or(Ok(()), |((key, mine), (_, first))| {
        Err(Error::user(format!(
            "{} is {mine}, but {first} on rank 0 ({first_host}): the ranks read different files; all ranks need the \
             same data",
            feed.spelled(key)
        )))
    }))
}

/// All ranks must have the files that rank 0 has where `name` says; `mine` identifies their contents. Collective.
pub fn on_files(name: &str, mine: &str, comm: &Comm) -> Result<()> {
    let (first_host, first): (String, String) = from_first(comm, &(host(), mine.to_string()));
    comm.agree(match mine == first {
        true => Ok(()),
        false => Err(Error::user(format!(
            "{name}: the files differ from those on rank 0 ({first_host}); all ranks need the same files"
        ))),
    })
}

/// Rank 0's value on all ranks. Collective.
pub fn from_first<T: Serialize + DeserializeOwned>(comm: &Comm, mine: &T) -> T {
    let text = serde_json::to_vec(mine).expect("text and numbers are JSON");
    serde_json::from_slice(&comm.broadcast_bytes(text)).expect("rank 0 wrote it with this program")
}

fn same_process(mine: &Process, first: &Process) -> Result<()> {
    if mine.program != first.program {
        return Err(Error::user(format!(
            "this rank runs another build of swallow-engine than rank 0 on {}; all ranks need the same executable",
            first.host
        )));
    }
    if mine.arguments != first.arguments {
        return Err(Error::user(format!(
            "this rank was started as \"swallow-engine {}\", but rank 0 on {} as \"swallow-engine {}\"; all ranks need \
             the same command line",
            mine.arguments.join(" "),
            first.host,
            first.arguments.join(" ")
        )));
    }
    let names = mine.environment.keys().chain(first.environment.keys());
    let Some(name) = names.into_iter().find(|name| mine.environment.get(*name) != first.environment.get(*name)) else {
        return Ok(());
    };
    let show = |process: &Process| match process.environment.get(name) {
        Some(value) => format!("is {value:?}"),
        None => "is not set".to_string(),
    };
    Err(Error::user(format!(
        "the environment variable {name} {}, but on rank 0 ({}) it {}; it {}, so all ranks need the same value \
         (mpirun -x {name})",
        show(mine),
        first.host,
        show(first),
        effect(name).unwrap_or_default()
    )))
}

/// The effect of a variable on results; `None` if it has none.
fn effect(name: &str) -> Option<&'static str> {
    let matches = |pattern: &str| match pattern.split_once('*') {
        None => name == pattern,
        Some((start, end)) => name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end),
    };
    VARIABLES.into_iter().find(|(pattern, _)| matches(pattern)).map(|(_, effect)| effect)
}

/// Identifies this executable, also where its file was replaced after the start: the linker's build ID, which is a hash
/// of the whole program, or else such a hash.
fn program() -> Result<String> {
    let path = Path::new("/proc/self/exe");
    let io = |e| Error::io(path, e);
    let mut head = Vec::new();
    File::open(path).and_then(|file| file.take(4096).read_to_end(&mut head)).map_err(io)?;
    if let Some(id) = build_id(&head) {
        return Ok(hash(id));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update_mmap(path).map_err(io)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// The build ID in the first bytes of an ELF file: a note of type 3, which begins with the lengths of its name and of
/// its contents.
fn build_id(head: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
    let is_note = |at: &usize| word(*at) == Some(4) && word(at + 8) == Some(3) && head[at + 12..].starts_with(b"GNU\0");
    let at = (0..head.len()).step_by(4).find(is_note)?;
    head.get(at + 16..at + 16 + word(at + 4)? as usize)
}

fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..16].to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(program: &str, variables: &[(&str, &str)]) -> Process {
        let environment = variables.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        let arguments = vec!["train".into()];
        Process { host: "node1".into(), program: program.into(), arguments, environment: environment.collect() }
    }

    #[test]
    fn variables_that_change_results_are_known() {
        for name in ["NCCL_ALGO", "OMPI_MCA_coll_tuned_allreduce_algorithm", "NCCL_MAX_NCHANNELS"] {
            assert!(effect(name).is_some(), "{name}");
        }
        for name in ["NCCL_HOSTID", "CUDA_VISIBLE_DEVICES", "OMPI_MCA_ess_base_vpid", "NCCL_SOCKET_IFNAME", "PATH"] {
            assert!(effect(name).is_none(), "{name}");
        }
    }

    #[test]
    fn a_difference_names_the_variable_and_both_values() {
        let first = process("a", &[("NCCL_ALGO", "Ring")]);
        let message = |mine: Process| same_process(&mine, &first).unwrap_err().to_string();
        assert!(message(process("b", &[("NCCL_ALGO", "Ring")])).contains("another build"));
        let other = message(process("a", &[("NCCL_ALGO", "Tree")]));
        assert!(other.contains("NCCL_ALGO is \"Tree\"") && other.contains("rank 0 (node1) it is \"Ring\""), "{other}");
        assert!(message(process("a", &[])).contains("NCCL_ALGO is not set"));
        let flags = message(Process { arguments: vec!["train".into(), "--set".into()], ..process("a", &[]) });
        assert!(flags.contains("as \"swallow-engine train --set\", but rank 0 on node1 as"), "{flags}");
        assert!(same_process(&first, &first).is_ok());
    }

    #[test]
    fn the_build_id_is_the_contents_of_its_note() {
        let mut head = vec![0x7f, b'E', b'L', b'F', 4, 0, 0, 0, 16, 0, 0, 0, 1, 0, 0, 0];
        head.extend(b"GNU\0");
        assert_eq!(build_id(&head), None, "a note of another type");
        head.extend([&[4, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0], &b"GNU\0idx"[..]].concat());
        assert_eq!(build_id(&head), Some(&b"idx"[..]));
        assert_eq!(build_id(&head[..head.len() - 1]), None, "it is cut short");
        assert!(program().is_ok());
    }
}
