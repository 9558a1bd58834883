//! `topology`: the placement of ranks on the nodes of a cluster file, and on those of `mpirun`.

use std::path::Path;
use std::process::Command;

use crate::common::{engine, finish, mpirun};

/// The path of a file in `configs/`.
fn configs(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(name).to_str().unwrap().to_string()
}

fn topology(mut program: Command, config: &str, args: &[&str]) -> Command {
    program.args(["topology", "--config", &configs(config)]).args(args);
    program
}

/// The cells of the first row that begins with the cells `begins`.
#[track_caller]
fn row(text: &str, begins: &[&str]) -> Vec<String> {
    let cells = |line: &str| line.split(['│', '┆']).map(|cell| cell.trim().to_string()).collect::<Vec<_>>();
    let rows = text.lines().filter(|line| line.starts_with('│')).map(|line| cells(line)[1..].to_vec());
    let found = rows.into_iter().find(|row| begins.iter().zip(row).all(|(want, cell)| want == cell));
    found.unwrap_or_else(|| panic!("no row {begins:?} in:\n{text}"))
}

/// The paper's 70B model on 32 nodes of ABCI: a tensor-parallel group fills a node, a stage four nodes.
#[test]
fn seventy_billion_on_abci() {
    let abci = configs("clusters/abci-a100-40.toml");
    let outcome = finish(&mut topology(engine(), "swallow-70b.toml", &["--cluster", &abci])).succeeded();
    let text = outcome.stdout;
    assert_eq!(outcome.stderr, "");
    assert!(text.contains("256 ranks on 32 nodes, tensor 8 x context 1 x data 4 x pipeline 8"), "{text}");
    assert_eq!(row(&text, &["0"])[1..5], ["0-7", "0-7", "0", "0"]);
    assert_eq!(row(&text, &["31"])[1..5], ["248-255", "0-7", "3", "7"]);
    // Tensor parallelism stays on NVLink; with ranks assigned to nodes in turn, all of it crosses the network.
    assert_eq!(row(&text, &["this placement", "tensor parallelism"])[3..5], ["0 B", "0 B"]);
    assert_eq!(row(&text, &["round robin over nodes", "tensor parallelism"])[2], "0 B");
    // 7 stage boundaries x 2 directions x 8 tensor ranks x 1024 sequences x 512 rows x 8192 bf16.
    assert_eq!(row(&text, &["this placement", "pipeline"])[4], "962.07 GB");
}

#[test]
fn a_group_across_nodes_is_a_warning_with_its_remedy() {
    let abci = configs("clusters/abci-a100-40.toml");
    let args = ["--cluster", &abci, "--set", "parallel.tensor=16", "--set", "parallel.ranks=128"];
    let outcome = finish(&mut topology(engine(), "swallow-7b.toml", &args)).succeeded();
    assert!(outcome.stderr.starts_with("warning: 8 of 8 tensor-parallel groups span nodes"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("a node has room for 8; lower parallel.tensor (16)"), "{}", outcome.stderr);
}

#[test]
fn ranks_that_do_not_fit_the_nodes_are_refused() {
    let h200 = configs("clusters/h200.toml");
    finish(&mut topology(engine(), "swallow-7b.toml", &["--cluster", &h200]))
        .refused(2, &["64 ranks take 64 nodes with 1 a node, one H200 has 1"]);
    let config = configs("tiny.toml");
    finish(&mut topology(engine(), "tiny.toml", &["--cluster", &config])).refused(2, &["cluster is missing"]);
    finish(&mut topology(mpirun(2), "tiny.toml", &["--ranks", "3"])).refused(2, &["--ranks 3: mpirun started 2"]);
}

/// All ranks of one machine are on one node.
#[test]
fn four_ranks_at_hand_share_a_node() {
    let layout = ["--set", "parallel.tensor=2", "--set", "train.backend=cpu"];
    let outcome = finish(&mut topology(mpirun(4), "tiny.toml", &layout)).succeeded();
    let text = outcome.stdout;
    assert!(text.contains("the nodes of this mpirun: 4 ranks on 1 node, tensor 2"), "{text}");
    let node = format!("0 {}", nix::unistd::gethostname().unwrap().to_string_lossy());
    assert_eq!(row(&text, &[&node, "3"])[1..7], ["3", "3", "3", "1", "1", "0"]);
    assert_eq!(text.matches("bytes a step").count(), 1, "one table, not one a rank: {text}");
    assert_eq!(row(&text, &["this placement", "all"]).iter().filter(|cell| *cell == "0 B").count(), 1);
}
