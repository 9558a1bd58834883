//! `data tokenize` beyond plain texts: which tokens end a document, control tokens in texts, pairs and chats, and the
//! mask of what counts.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Outcome, checkout, engine, finish};

/// A folder with the small tokenizer of the golden chats, and a chat template beside it.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Desk {
        let desk = Desk(tempfile::tempdir().unwrap());
        let chats = checkout().join("tests/golden/chats");
        std::fs::copy(chats.join("tokenizer.json"), desk.path("tokenizer.json")).unwrap();
        std::fs::copy(chats.join("qwen3.jinja"), desk.path("chat_template.jinja")).unwrap();
        desk.write("tokenizer_config.json", r#"{"bos_token": null, "eos_token": "<|im_end|>"}"#);
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = engine();
        command.current_dir(self.0.path()).args(["data", "tokenize", "--tokenizer", "tokenizer.json"]).args(args);
        command
    }

    /// Tokenizes into `out`.
    fn tokenize(&self, args: &[&str]) -> Outcome {
        finish(self.command(args).args(["--output", "out"]))
    }

    fn inspect(&self) -> String {
        let outcome = finish(engine().current_dir(self.0.path()).args(["data", "inspect", "out", "--documents", "9"]));
        outcome.succeeded().stdout
    }

    fn ids(&self) -> Vec<u16> {
        let bytes = std::fs::read(self.path("out.bin")).unwrap();
        bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
    }

    fn meta(&self) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.path("out.meta.json")).unwrap()).unwrap()
    }

    /// The names of all files that a tokenization wrote, or left.
    fn outputs(&self) -> Vec<String> {
        let names = self.0.path().read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name.starts_with("out")).collect();
        names.sort();
        names
    }
}

fn is_sound(prefix: &Path) {
    finish(engine().args(["data", "check"]).arg(prefix)).succeeded();
}

#[test]
fn the_token_that_ends_a_document_can_be_named() {
    let desk = Desk::new();
    desk.write("a.txt", "a</s>b");
    desk.tokenize(&["--input", "a.txt", "--eos"]).succeeded();
    let (own, text) = (desk.ids(), desk.ids().len());
    assert_eq!(
        (desk.meta()["eos"].as_u64(), &desk.meta()["special_tokens"]),
        (Some(u64::from(own[text - 1])), &"text".into())
    );
    assert!(text > 3, "the letters of </s> are text: {own:?}");
    desk.tokenize(&["--input", "a.txt", "--eos-token", "</s>", "--bos-token", "<|eot_id|>"]).succeeded();
    let named = desk.ids();
    assert_eq!((named.len(), named[named.len() - 1], desk.meta()["eos"].as_u64()), (text + 1, 1, Some(1)));
    assert_eq!(named[1..text], own[..text - 1], "only the ends differ");
    desk.tokenize(&["--input", "a.txt", "--special-tokens", "parse"]).succeeded();
    assert_eq!((desk.ids()[1], desk.ids().len(), &desk.meta()["special_tokens"]), (1, 3, &"parse".into()));
    desk.tokenize(&["--input", "a.txt", "--eos-token", "<eod>"])
        .refused(2, &["--eos-token \"<eod>\"", "has no token \"<eod>\"", "<|im_end|>"]);
    desk.tokenize(&["--input", "a.txt", "--bos"]).refused(2, &["--bos", "has no such token", "--bos-token"]);
}

#[test]
fn pairs_of_two_files_are_documents_in_both_orders() {
    let desk = Desk::new();
    desk.write("t.ja", "猫がいる。\n犬\n");
    desk.write("t.en", "There is a cat.\nA dog\n");
    let outcome = desk.tokenize(&["--pairs", "t.ja", "t.en", "--eos-token", "</s>"]).succeeded();
    assert!(outcome.stdout.contains("out: 4 documents") && !outcome.stdout.contains("count"), "{}", outcome.stdout);
    let said = desk.inspect();
    for text in ["猫がいる。 There is a cat.\n", "There is a cat. 猫がいる。\n", "\n犬 A dog\n", "\nA dog 犬\n"]
    {
        assert!(said.contains(text), "{said}");
    }
    assert_eq!(desk.outputs(), ["out.bin", "out.idx", "out.meta.json"]);
    let translate =
        ["--pair-format", "translation", "--direction", "en-ja", "--bos-token", "<s>", "--eos-token", "</s>"];
    desk.tokenize(&[&["--pairs", "t.ja", "t.en"][..], &translate].concat()).succeeded();
    let said = desk.inspect();
    let expected = "[----] 0..";
    assert!(
        said.contains(expected) && said.contains("\"<s>Please translate the following English text into "),
        "{said}"
    );
    assert!(said.contains("Japanese.\\nA dog \"\n  [loss] ") && said.contains(": \"犬</s>\"\n"), "{said}");
    assert_eq!((&desk.meta()["mask"], &desk.meta()["records"]), (&true.into(), &"pairs".into()));
    let mask = std::fs::read(desk.path("out.mask.bin")).unwrap();
    assert_eq!((mask.len(), mask[0], mask[mask.len() - 1]), (desk.ids().len(), 0, 1));
    is_sound(&desk.path("out"));
    // A later tokenization without a mask leaves none behind.
    desk.tokenize(&["--pairs", "t.ja", "t.en"]).succeeded();
    assert_eq!(desk.outputs(), ["out.bin", "out.idx", "out.meta.json"]);
    assert!(desk.meta().get("mask").is_none());
}

#[test]
fn pairs_of_json_lines_take_a_template() {
    let desk = Desk::new();
    desk.write("p.jsonl", "{\"ja\": \"猫\", \"en\": \"cat\"}\n\n{\"ja\": \"\", \"en\": \"x\"}\n{\"ja\": \"犬\"}\n");
    desk.write("t.txt", "JA: {A}\nEN: {B}!\n");
    let args = ["--pairs", "p.jsonl", "--pair-keys", "ja,en", "--direction", "ja-en", "--template", "t.txt"];
    desk.tokenize(&args).refused(2, &["p.jsonl: line 3: the side \"ja\" of the pair is empty", "--skip-bad"]);
    assert!(desk.outputs().is_empty(), "{:?}", desk.outputs());
    let outcome = desk.tokenize(&[&args[..], &["--skip-bad"]].concat()).succeeded();
    assert!(
        outcome.stderr.contains("2 records left out") && outcome.stderr.contains("no key \"en\""),
        "{}",
        outcome.stderr
    );
    assert!(desk.inspect().contains("\"JA: 猫\\nEN: \"\n  [loss]"), "{}", desk.inspect());
    assert!(desk.inspect().contains("\"cat\"\n  [----]"), "{}", desk.inspect());
    desk.write("t.txt", "no sides");
    desk.tokenize(&args).refused(2, &["--template t.txt: has no {A}"]);
    desk.tokenize(&["--pairs", "p.jsonl", "--pair-keys", "ja"]).refused(2, &["--pair-keys ja: two keys"]);
    desk.tokenize(&["--pairs", "p.jsonl", "p.jsonl"]).refused(2, &["both sides in one file"]);
}

/// A flag that would have no effect is refused, and so is an output that is a folder.
#[test]
fn flags_of_other_records_are_refused() {
    let desk = Desk::new();
    desk.write("a.txt", "a");
    desk.write("t.ja", "一\n");
    let of_pairs =
        [["--pair-format", "translation"], ["--direction", "ja-en"], ["--pair-keys", "ja,en"], ["--template", "a.txt"]];
    for [flag, value] in of_pairs {
        for records in [&["--input", "a.txt"][..], &["--chat", "--input", "a.txt"]] {
            desk.tokenize(&[records, &[flag, value]].concat()).refused(2, &[flag, "cannot be used with"]);
        }
    }
    let keyed = ["--pairs", "t.ja", "t.ja", "--messages-key", "turns"];
    desk.tokenize(&keyed).refused(2, &["--messages-key", "cannot be used with"]);
    assert!(desk.outputs().is_empty(), "{:?}", desk.outputs());
    for folder in ["d/", "."] {
        let mut command = desk.command(&["--input", "a.txt", "--output", folder]);
        finish(&mut command).refused(2, &["a prefix needs a file name"]);
    }
}

/// Where no record can be used, the reasons are given.
#[test]
fn bad_records_alone_are_named() {
    let desk = Desk::new();
    desk.write("p.jsonl", "{\"ja\": \"猫\", \"en\": \"cat\"}\n".repeat(12));
    let args = ["--pairs", "p.jsonl", "--pair-keys", "x,y", "--skip-bad"];
    desk.tokenize(&args).refused(2, &["12 bad records left out", "p.jsonl: line 10:", "no key \"x\""]);
}

#[test]
fn files_that_are_no_pair_leave_nothing() {
    let desk = Desk::new();
    desk.write("t.ja", "一\n二\n三\n");
    desk.write("t.en", "one\ntwo\n");
    for more in [&[][..], &["--skip-bad"]] {
        let args = [&["--pairs", "t.ja", "t.en", "--pair-format", "translation"][..], more].concat();
        desk.tokenize(&args).refused(2, &["t.en: has 2 lines, but t.ja has 3"]);
        assert!(desk.outputs().is_empty(), "{:?}", desk.outputs());
    }
    desk.write("t.en", "one\n \nthree\n");
    desk.tokenize(&["--pairs", "t.ja", "t.en"])
        .refused(2, &["t.ja and t.en: line 2: the second side of the pair is empty"]);
}

#[test]
fn chats_are_documents_by_the_template() {
    let desk = Desk::new();
    let chat = |role: &str| {
        format!(
            "{{\"chat\": [{{\"role\": \"user\", \"content\": \"q\"}}, {{\"role\": \"{role}\", \"content\": \"a\"}}]}}\n"
        )
    };
    desk.write("c.jsonl", [chat("assistant"), chat("user"), chat("assistant")].concat());
    let args = ["--chat", "--input", "c.jsonl", "--messages-key", "chat"];
    desk.tokenize(&args)
        .refused(2, &["c.jsonl: line 2: \"chat\": has no turn of the role \"assistant\"", "--skip-bad"]);
    assert!(desk.outputs().is_empty(), "{:?}", desk.outputs());
    let outcome = desk.tokenize(&[&args[..], &["--skip-bad"]].concat()).succeeded();
    assert!(
        outcome.stdout.contains("out: 2 documents") && outcome.stdout.contains("% of which count"),
        "{}",
        outcome.stdout
    );
    let said = desk.inspect();
    assert!(said.contains("\"<|im_start|>user\\nq<|im_end|>\\n<|im_start|>assistant\\n\"\n  [loss] "), "{said}");
    assert!(said.contains("\"<think>\\n\\n</think>\\n\\na<|im_end|>\"\n  [----] "), "{said}");
    let meta = desk.meta();
    assert_eq!(
        (&meta["records"], &meta["special_tokens"], meta["template"].is_string()),
        (&"chats".into(), &"parse".into(), true)
    );
    is_sound(&desk.path("out"));
    for flag in [&["--bos"][..], &["--eos"], &["--eos-token", "</s>"], &["--special-tokens", "text"]] {
        desk.tokenize(&[&args[..], flag].concat()).refused(2, &[flag[0]]);
    }
    std::fs::remove_file(desk.path("chat_template.jinja")).unwrap();
    desk.tokenize(&args).refused(2, &["tokenizer.json: has no chat template"]);
}

/// The output does not depend on the number of threads, with masks too.
#[test]
fn masks_are_the_same_with_any_number_of_workers() {
    let desk = Desk::new();
    let lines = |side: &str| (0..30_000).map(|i| format!("{side} {i} 猫\n")).collect::<String>();
    desk.write("t.ja", lines("あ"));
    desk.write("t.en", lines("a cat"));
    let run = |workers: &str| {
        desk.tokenize(&["--pairs", "t.ja", "t.en", "--pair-format", "translation", "--workers", workers]).succeeded();
        ["out.bin", "out.idx", "out.mask.bin"].map(|name| std::fs::read(desk.path(name)).unwrap())
    };
    assert!(run("1") == run("4"), "other bytes");
}
