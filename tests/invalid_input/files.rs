//! Invalid token files, texts and tokenizers.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{is_refused, train};
use crate::common::{Case, Outcome, engine, finish, set, write_tokens};

fn train_on(tmp: &tempfile::TempDir, prefix: &Path) -> Outcome {
    let source = Table::from_iter([("prefix".to_string(), prefix.to_str().unwrap().into())]);
    train(tmp, |c| set(c, "data.train", vec![Value::from(source.clone())]), &[])
}

#[test]
fn an_id_beyond_the_vocabulary() {
    let tmp = tempfile::tempdir().unwrap();
    let prefix = tmp.path().join("big");
    write_tokens(&prefix, &[vec![7; 3000], vec![5, 131, 4], vec![9; 4000]]);
    is_refused(train_on(&tmp, &prefix), &tmp, &["vocab_size", "131", "big"]);
    write_tokens(&prefix, &[vec![u32::MAX; 6000]]);
    is_refused(train_on(&tmp, &prefix), &tmp, &["big"]);
}

#[test]
fn too_few_tokens_for_a_sample() {
    let tmp = tempfile::tempdir().unwrap();
    let prefix = tmp.path().join("short");
    for documents in [vec![], vec![vec![]], vec![vec![1; 48]]] {
        write_tokens(&prefix, &documents);
        is_refused(train_on(&tmp, &prefix), &tmp, &["short"]);
    }
}

/// Truncated and changed bytes of an index or its tokens: each is refused with the file's name.
#[test]
fn broken_token_files() {
    let good = Case::open("mha_odd_vocab").dir;
    let (bin, idx) = (std::fs::read(good.join("train.bin")).unwrap(), std::fs::read(good.join("train.idx")).unwrap());
    let bent = |at: usize, bytes: &[u8]| {
        let mut idx = idx.clone();
        idx[at..at + bytes.len()].copy_from_slice(bytes);
        idx
    };
    let n = u64::from_le_bytes(idx[18..26].try_into().unwrap()) as usize;
    let pointers = 34 + 4 * n;
    let wrong: Vec<(&str, Vec<u8>, Vec<u8>)> = vec![
        ("no bytes", vec![], bin.clone()),
        ("half a header", idx[..20].to_vec(), bin.clone()),
        ("cut lengths", idx[..40].to_vec(), bin.clone()),
        ("cut ends", idx[..idx.len() - 1].to_vec(), bin.clone()),
        ("magic", bent(0, b"XXIDIDX"), bin.clone()),
        ("version", bent(9, &2u64.to_le_bytes()), bin.clone()),
        ("dtype", bent(17, &[77]), bin.clone()),
        ("float tokens", bent(17, &[7]), bin.clone()),
        ("sequences without end", bent(18, &u64::MAX.to_le_bytes()), bin.clone()),
        ("too many sequences", bent(18, &(1u64 << 40).to_le_bytes()), bin.clone()),
        ("too many documents", bent(26, &(1u64 << 60).to_le_bytes()), bin.clone()),
        ("negative length", bent(34, &(-5i32).to_le_bytes()), bin.clone()),
        ("long length", bent(34, &i32::MAX.to_le_bytes()), bin.clone()),
        ("far pointer", bent(pointers + 8, &(1u64 << 50).to_le_bytes()), bin.clone()),
        ("negative pointer", bent(pointers + 8, &(-8i64).to_le_bytes()), bin.clone()),
        ("odd pointer", bent(pointers + 8, &1u64.to_le_bytes()), bin.clone()),
        ("cut tokens", idx.clone(), bin[..bin.len() / 2].to_vec()),
        ("no tokens", idx.clone(), vec![]),
    ];
    for (what, idx, bin) in wrong {
        let tmp = tempfile::tempdir().unwrap();
        let prefix = tmp.path().join("broken");
        std::fs::write(prefix.with_extension("idx"), idx).unwrap();
        std::fs::write(prefix.with_extension("bin"), bin).unwrap();
        println!("{what}");
        is_refused(train_on(&tmp, &prefix), &tmp, &["broken"]);
        finish(engine().args(["data", "check"]).arg(&prefix)).refused(2, &["broken"]);
        let seen = finish(engine().args(["data", "inspect"]).arg(&prefix));
        assert!(matches!(seen.status.code(), Some(0..=2)) && !seen.stderr.contains("panicked"), "{what}: {seen:?}");
    }
}

/// A folder with the tiny tokenizers and a valid text.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Desk {
        let desk = Desk(tempfile::tempdir().unwrap());
        for name in ["tokenizer.model", "tokenizer.json"] {
            let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizers").join(name);
            std::fs::copy(from, desk.path(name)).unwrap();
        }
        std::fs::write(desk.path("good.txt"), "A text.\nAnother line: 日本語。\n").unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn tokenize(&self, input: &str, tokenizer: &str) -> Outcome {
        let mut command = engine();
        command
            .args(["data", "tokenize", "--input"])
            .arg(self.path(input))
            .arg("--tokenizer")
            .arg(self.path(tokenizer));
        finish(command.arg("--output").arg(self.path("out")))
    }

    /// Writes `bytes` as `input` and tokenizes it: this must be refused with all of `needles`, and leave no output.
    #[track_caller]
    fn refuses(&self, input: &str, bytes: &[u8], needles: &[&str]) {
        std::fs::write(self.path(input), bytes).unwrap();
        self.tokenize(input, "tokenizer.model").refused(2, needles);
        assert!(!self.path("out.idx").exists() && !self.path("out.bin").exists(), "{input}: output is left behind");
    }
}

#[test]
fn the_tiny_tokenizers_work() {
    let desk = Desk::new();
    desk.tokenize("good.txt", "tokenizer.model").succeeded();
    desk.tokenize("good.txt", "tokenizer.json").succeeded();
    finish(engine().args(["data", "check"]).arg(desk.path("out"))).succeeded();
}

#[test]
fn broken_texts() {
    let desk = Desk::new();
    // The second line is "日本" in Shift_JIS, from byte 6 on.
    desk.refuses("sjis.txt", b"first\n\x93\xfa\x96\x7b\n", &["sjis.txt", "UTF-8", "6"]);
    desk.refuses("bad.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"b\"}\n{\"text\": \"c\n", &["bad.jsonl", "3"]);
    desk.refuses("key.jsonl", b"{\"text\": \"a\"}\n{\"body\": \"b\"}\n", &["key.jsonl", "2", "text"]);
    desk.refuses("type.jsonl", b"{\"text\": 17}\n", &["type.jsonl", "1", "text"]);
    desk.refuses("sjis.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"\x93\xfa\"}\n", &["sjis.jsonl", "2"]);
    desk.refuses("cut.txt.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\x03K", &["cut.txt.gz"]);
    desk.refuses("not.txt.zst", b"plain text", &["not.txt.zst"]);
    desk.tokenize("missing.txt", "tokenizer.model").refused(2, &["missing.txt"]);
}

#[test]
fn broken_tokenizers() {
    let desk = Desk::new();
    for name in ["tokenizer.model", "tokenizer.json"] {
        let whole = std::fs::read(desk.path(name)).unwrap();
        for bytes in [&whole[..whole.len() / 2], &whole[..3], b"", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"] {
            std::fs::write(desk.path(name), bytes).unwrap();
            println!("{name}: {} bytes", bytes.len());
            desk.tokenize("good.txt", name).refused(2, &[name]);
        }
    }
    desk.tokenize("good.txt", "missing.model").refused(2, &["missing.model"]);
    std::fs::write(desk.path("tokenizer.txt"), "words").unwrap();
    desk.tokenize("good.txt", "tokenizer.txt").refused(2, &["tokenizer.txt"]);
}
