//! Every command reads texts alike, from files and pipes; token files appear whole, have one writer, and know their
//! tokenizer.

use std::path::{Path, PathBuf};
use std::process::Command;

use toml::{Table, Value};

use crate::common::{Case, Outcome, Running, engine, finish, mpirun, program, set, write_config};

/// A folder with the tiny tokenizers and a model whose vocabulary holds their ids.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Desk {
        let desk = Desk(tempfile::tempdir().unwrap());
        std::fs::create_dir(desk.path("model")).unwrap();
        for file in Case::open("parity").dir.join("init").read_dir().unwrap().map(|e| e.unwrap()) {
            std::fs::copy(file.path(), desk.path("model").join(file.file_name())).unwrap();
        }
        for name in ["tokenizer.model", "tokenizer.json"] {
            std::fs::copy(tokenizers().join(name), desk.path(name)).unwrap();
        }
        std::fs::copy(desk.path("tokenizer.json"), desk.path("model/tokenizer.json")).unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    fn tokenize(&self, input: &Path, tokenizer: &str, output: &str, more: &[&str]) -> Command {
        let mut command = engine();
        command.args(["data", "tokenize", "--input"]).arg(input).arg("--tokenizer").arg(self.path(tokenizer));
        command.arg("--output").arg(self.path(output)).args(more);
        command
    }

    /// Runs `evaluate` on a text.
    fn evaluate(&self, mut command: Command, text: &Path, more: &[&str]) -> Outcome {
        command.arg("evaluate").arg("--model").arg(self.path("model")).arg("--text").arg(text).args(more);
        finish(&mut command)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }
}

fn tokenizers() -> PathBuf {
    crate::common::checkout().join("tests/golden/tokenizers")
}

/// The numbers that `evaluate` prints, one a line.
fn numbers(stdout: &str) -> Vec<f64> {
    stdout.lines().map(|line| line.split_whitespace().last().unwrap().parse().unwrap()).collect()
}

/// `command` with `input` as its standard input.
fn with_stdin(command: &Command, input: &Path) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "input=$1; shift; cat \"$input\" | \"$@\"", "sh"]).arg(input).arg(command.get_program());
    shell.args(command.get_args());
    shell
}

#[test]
fn all_commands_read_the_same_texts() {
    let desk = Desk::new();
    let texts = ["Once upon a time.", "There was a cat,\nand it sat.", "猫がいた。"];
    let lines = |key: &str| texts.map(|text| serde_json::json!({ key: text, "id": 1 }).to_string() + "\r\n").concat();
    let text = desk.write("a.txt", texts.join(" <|endoftext|>\n"));
    let jsonl = desk.write("A.JSONL", lines("text"));
    let said = desk.evaluate(engine(), &text, &[]).succeeded().stdout;
    assert!(said.contains("bits per byte") && said.contains("characters          50"), "{said}");
    for outcome in [
        desk.evaluate(engine(), &jsonl, &[]),
        desk.evaluate(mpirun(2), &jsonl, &[]),
        desk.evaluate(engine(), &desk.write("keyed.jsonl", lines("body")), &["--key", "body"]),
        desk.evaluate(engine(), &desk.write("odd.ending", lines("text")), &["--input-format", "jsonl"]),
    ] {
        // Ranks score other texts together than one rank does, which changes the last digits of the sum.
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b.abs();
        let (found, wanted) = (numbers(&outcome.succeeded().stdout), numbers(&said));
        assert!(found.len() == 7 && found.iter().zip(&wanted).all(|(a, b)| near(*a, *b)), "{found:?}, not {wanted:?}");
    }
    desk.evaluate(engine(), &desk.path("odd.ending"), &[]).refused(2, &["odd.ending", "--input-format"]);

    finish(&mut desk.tokenize(&jsonl, "tokenizer.json", "a", &[])).succeeded();
    finish(&mut with_stdin(&desk.tokenize(Path::new("-"), "tokenizer.json", "b", &[]), &jsonl)).succeeded();
    assert_eq!((desk.bytes("a.bin"), desk.bytes("a.idx")), (desk.bytes("b.bin"), desk.bytes("b.idx")));
}

/// Windows do not overlap: each begins without context, so shorter ones score worse or alike, and differently.
#[test]
fn windows_of_an_evaluation() {
    let desk = Desk::new();
    let text = desk.write("a.txt", "Once upon a time there was a cat. ".repeat(3));
    let said = |more: &[&str]| desk.evaluate(engine(), &text, more).succeeded().stdout;
    assert_eq!(said(&["--window", "32"]), said(&[]), "32 are the model's positions");
    assert_ne!(said(&["--window", "8"]), said(&[]));
    desk.evaluate(engine(), &text, &["--window", "33"]).refused(2, &["--window 33", "max_position_embeddings", "32"]);
}

/// The second writer of a prefix is refused while the first still reads, and the first comes out whole.
#[test]
fn a_prefix_has_one_writer() {
    let desk = Desk::new();
    let pipe = desk.path("pipe.txt");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let text = desk.write("a.txt", "Once upon a time.");
    let mut first = Running::start(&mut desk.tokenize(&pipe, "tokenizer.json", "out", &[]));
    let partial = desk.path("out.bin.partial");
    assert_eq!(first.wait_until(|_| partial.exists()), None);
    finish(&mut desk.tokenize(&text, "tokenizer.json", "out", &[])).refused(2, &["out.bin", "another process"]);
    std::fs::write(&pipe, "There was a cat.").unwrap();
    first.outcome().succeeded();
    finish(engine().args(["data", "check"]).arg(desk.path("out"))).succeeded();
    finish(&mut desk.tokenize(&text, "tokenizer.json", "out", &[])).succeeded();
}

#[test]
fn bad_records_are_counted_and_named() {
    let desk = Desk::new();
    let lines = "{\"text\": \"one\"}\n{\"text\": \"cut \\ud83d\"}\n{\"text\": 3}\n";
    let input = desk.write("a.jsonl", lines.repeat(6));
    finish(&mut desk.tokenize(&input, "tokenizer.json", "out", &[]))
        .refused(2, &["a.jsonl: line 2", "lone surrogate", "--skip-bad"]);
    let outcome = finish(&mut desk.tokenize(&input, "tokenizer.json", "out", &["--skip-bad"])).succeeded();
    assert!(outcome.stdout.contains("out: 6 documents"), "{}", outcome.stdout);
    for needle in ["12 records left out", "a.jsonl: line 3: ", "and 2 more"] {
        assert!(outcome.stderr.contains(needle), "{}", outcome.stderr);
    }
}

/// If the disk is full, the command fails and leaves no incomplete file.
#[test]
fn a_full_disk_leaves_nothing() {
    let desk = Desk::new();
    let text = desk.write("a.txt", "Once upon a time.\n".repeat(10_000));
    let tokenize = desk.tokenize(&text, "tokenizer.json", "new/out", &[]);
    let mut train = engine();
    train.args(["tokenizer", "train", "--vocab-size", "300", "--input"]).arg(&text);
    train.arg("--output").arg(desk.path("new/tokenizer.json"));
    for command in [tokenize, train] {
        // Blocks of 512 bytes; the signal of a write beyond them is ignored.
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$@\"", "sh"]).arg(program()).args(command.get_args());
        finish(&mut shell).refused(1, &["new/"]);
        assert_eq!(desk.path("new").read_dir().unwrap().count(), 0, "{command:?}");
    }
}

fn sources(desk: &Desk, names: &[&str]) -> Value {
    let prefix = |name: &str| ("prefix".to_string(), desk.path(name).to_str().unwrap().into());
    let source = |name: &&str| Value::from(Table::from_iter([prefix(name)]));
    names.iter().map(source).collect::<Vec<_>>().into()
}

/// Sources made by two tokenizers, or by another than the model's, are refused by name; a run that has begun only gets
/// a warning.
#[test]
fn tokenizers_are_not_mixed_unseen() {
    let desk = Desk::new();
    let text = desk.write("a.txt", "Once upon a time there was a cat, and a hat. ".repeat(100));
    // Its ids fit the model's vocabulary, so that only its recorded tokenizer shows the difference.
    let mut train = engine();
    train.args(["tokenizer", "train", "--vocab-size", "270", "--input"]).arg(&text).arg("--output");
    finish(train.arg(desk.path("small.json"))).succeeded();
    for (tokenizer, output) in [("tokenizer.json", "ours"), ("small.json", "other")] {
        finish(&mut desk.tokenize(&text, tokenizer, output, &[])).succeeded();
    }
    // The model's folder has a copy of the tokenizer that was saved again.
    let json: serde_json::Value = serde_json::from_slice(&desk.bytes("tokenizer.json")).unwrap();
    desk.write("model/tokenizer.json", json.to_string());
    let config = |names: &[&str], allowed: bool, steps: i64| {
        let mut config = Case::open("parity").config(&desk.path("run"));
        let model = desk.path("model");
        set(&mut config, "model.hf", model.to_str().unwrap());
        set(&mut config, "train.load", format!("hf:{}", model.display()));
        set(&mut config, "train.steps", steps);
        set(&mut config, "train.eval_interval", 0);
        set(&mut config, "data.train", sources(&desk, names));
        set(&mut config, "data.allow_mixed_tokenizers", allowed);
        write_config(desk.0.path(), "run.toml", &config)
    };
    let run = |command: &[&str], config: PathBuf| finish(engine().args(command).arg("--config").arg(config));
    for command in [&["train"][..], &["data", "preview"]] {
        run(command, config(&["ours", "other"], false, 2))
            .refused(2, &["data.train[1]", "other", "small.json", "data.allow_mixed_tokenizers"]);
        run(command, config(&["other"], false, 2)).refused(2, &["data.train[0]", "train.load", "tokenizer.json"]);
    }
    run(&["data", "preview"], config(&["ours"], false, 2)).succeeded();
    run(&["data", "preview"], config(&["ours", "other"], true, 2)).succeeded();
    run(&["train"], config(&["ours", "other"], true, 1)).succeeded();
    let resumed = run(&["train"], config(&["ours", "other"], false, 2)).succeeded();
    assert!(resumed.stderr.contains("warning: data.train[1]"), "{}", resumed.stderr);
}
