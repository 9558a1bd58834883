//! A vocabulary is expanded, and a model with it, from the command line; the real tokenizers where they are there.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::{Case, Outcome, checkout, engine, finish, read_tensors};

/// A folder with a small model and its tokenizer, of 300 pieces for 331 rows.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Desk {
        let desk = Desk(tempfile::tempdir().unwrap());
        std::fs::create_dir(desk.path("model")).unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(Case::open("parity").dir.join("init").join(file), desk.path("model").join(file)).unwrap();
        }
        let tokenizer = checkout().join("tests/golden/tokenizers/tokenizer.json");
        std::fs::copy(tokenizer, desk.path("model/tokenizer.json")).unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    /// A vocabulary of Japanese.
    fn train(&self, size: &str) -> PathBuf {
        let text = self.write("ja.txt", "東京の猫と京都の犬が、東京で会った。\n".repeat(40));
        let mut command = engine();
        command.args(["tokenizer", "train", "--vocab-size", size, "--input"]).arg(text).arg("--output");
        finish(command.arg(self.path("ja.json"))).succeeded();
        self.path("ja.json")
    }

    fn expand(&self, base: &Path, add: &Path, output: &str, more: &[&str]) -> Outcome {
        let mut command = engine();
        command.args(["tokenizer", "expand"]).arg(base).arg("--add").arg(add).arg("--output").arg(self.path(output));
        finish(command.args(more))
    }

    fn expand_vocab(&self, tokenizer: &str, output: &str, more: &[&str]) -> Outcome {
        let mut command = engine();
        command.args(["checkpoint", "expand-vocab", "--model"]).arg(self.path("model"));
        command.arg("--tokenizer").arg(self.path(tokenizer)).arg("--output").arg(self.path(output));
        finish(command.args(more))
    }
}

fn ids(tokenizer: &Path, text: &str) -> Vec<usize> {
    let mut command = engine();
    command.args(["tokenizer", "encode", "--text", text, "--tokenizer"]).arg(tokenizer);
    serde_json::from_str(&finish(&mut command).succeeded().stdout).unwrap()
}

/// From a vocabulary to a model that scores text with it.
#[test]
fn a_model_gets_new_pieces() {
    let desk = Desk::new();
    let add = desk.train("340");
    let held_out = desk.write("held.txt", "東京で猫と会った。\n");
    let said = desk.expand(&desk.path("model"), &add, "new", &["--held-out", held_out.to_str().unwrap()]).succeeded();
    let line = said.stdout.lines().find(|line| line.contains(" pieces, ")).unwrap();
    assert!(line.contains("300 old and ") && line.contains("for a multiple of 8"), "{}", said.stdout);
    assert!(said.stdout.contains("held.txt") && said.stdout.contains("characters a token"), "{}", said.stdout);

    let said = desk.expand_vocab("new", "bigger", &[]).succeeded();
    assert!(said.stdout.contains("rows of 64 in F32 instead of 331"), "{}", said.stdout);
    let config: Value = serde_json::from_slice(&std::fs::read(desk.path("bigger/config.json")).unwrap()).unwrap();
    let size = config["vocab_size"].as_u64().unwrap() as usize;
    assert!(size >= 331);
    for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
        let [from, to] = ["new", "bigger"].map(|folder| std::fs::read(desk.path(folder).join(file)).unwrap());
        assert_eq!(from, to, "{file}");
    }
    let (old, new) = (desk.path("model"), desk.path("bigger"));
    let [before, after] = [&old, &new].map(|dir| read_tensors(&dir.join("model.safetensors")));
    let decode = |id: usize| {
        let out = finish(engine().args(["tokenizer", "decode", "--tokenizer"]).arg(&new).arg(id.to_string()));
        out.succeeded().stdout.trim_end_matches('\n').to_string()
    };
    // A new piece of this text that is made of whole characters.
    let mut pieces = ids(&new, "東京で猫と会った。").into_iter().filter(|&id| id >= 300).map(|id| (id, decode(id)));
    let (id, text) = pieces.find(|(_, text)| !text.contains('\u{fffd}')).expect("new pieces apply");
    let parts = ids(&old, &text);
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        let (before, after) = (&before[name], &after[name]);
        assert_eq!((&after[..300 * 64], after.len()), (&before[..300 * 64], size * 64), "{name}");
        let mean = |c: usize| parts.iter().fold(0.0, |sum, p| sum + f64::from(before[p * 64 + c])) / parts.len() as f64;
        let wanted: Vec<f32> = (0..64).map(|c| mean(c) as f32).collect();
        assert_eq!(after[id * 64..(id + 1) * 64], wanted, "{name}");
    }
    finish(engine().args(["evaluate", "--model"]).arg(&new).arg("--text").arg(&held_out)).succeeded();
}

#[test]
fn mistakes_are_named() {
    let desk = Desk::new();
    let add = desk.train("340");
    let model = desk.path("model");
    let spm = checkout().join("tests/golden/tokenizers/tokenizer.model");
    desk.expand(&model, &spm, "new", &[]).refused(2, &["tokenizer.json", "tokenizer.model", "one kind"]);
    desk.expand(&model, &add, "new", &["--held-out", "absent.txt"]).refused(2, &["absent.txt", "does not exist"]);
    desk.expand(&model, &add, "new", &["--multiple-of", "0"]).refused(2, &["--multiple-of"]);
    let lines = desk.write("held.jsonl", "{\"text\": \"東京\"}\n");
    let other_key = ["--held-out", lines.to_str().unwrap(), "--key", "body"];
    desk.expand(&model, &add, "new", &other_key).refused(2, &["held.jsonl: line 1", "\"body\""]);
    assert!(!desk.path("new").exists(), "nothing is written");
    desk.expand(&model, &add, "new", &[]).succeeded();
    desk.expand(&model, &add, "new", &[]).refused(2, &["--output", "new", "not empty"]);
    desk.expand_vocab("ja.json", "bigger", &[]).refused(2, &["--tokenizer", "ja.json", "not a directory"]);
    desk.expand_vocab("model", "bigger", &[]).refused(2, &["does not extend", "tokenizer expand"]);
    desk.expand_vocab("new", "model", &[]).refused(2, &["--output", "model", "not empty"]);
    desk.expand_vocab("new", "bigger", &["--seed", "5"]).refused(2, &["--seed", "--init random"]);
    assert!(!desk.path("bigger").exists());
}

/// Llama 2's and Mistral's tokenizers with pieces of Mistral's and Llama 2's: `tokenizer.model` and `tokenizer.json`
/// agree on real text, and old ids stay.
#[test]
fn real_tokenizers_expand() {
    let data = checkout().join("../shared/data");
    let models =
        ["llama2_tokenizer/tokenizer.model", "mistral_tokenizer/tokenizer.model.v1"].map(|name| data.join(name));
    let text = data.join("rust_book_ja_en/book_ja.jsonl");
    if let Some(absent) = models.iter().chain([&text]).find(|path| !path.exists()) {
        return println!("skipped: no {}", absent.display());
    }
    let desk = Desk::new();
    let lines: String =
        std::fs::read_to_string(text).unwrap().lines().take(8).map(|line| format!("{line}\n")).collect();
    let input = desk.write("lines.jsonl", lines);
    for (i, (base, add)) in [(&models[0], &models[1]), (&models[1], &models[0])].into_iter().enumerate() {
        let out = format!("out{i}");
        desk.expand(base, add, &out, &[]).succeeded();
        let encode = |tokenizer: &Path| {
            let mut command = engine();
            command.args(["data", "tokenize", "--input"]).arg(&input).arg("--output").arg(desk.path("lines"));
            finish(command.arg("--tokenizer").arg(tokenizer)).succeeded();
            std::fs::read(desk.path("lines.bin")).unwrap()
        };
        let [model, json] = ["tokenizer.model", "tokenizer.json"].map(|name| encode(&desk.path(&out).join(name)));
        assert!(model == json, "the files of {out} disagree");
        assert!(model != encode(base), "no new piece applies");
    }
}
