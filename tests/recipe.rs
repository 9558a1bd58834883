//! The document of the recipe names what its configurations need; and the recipe on real data: stories260K, a trained
//! English model, learns Japanese from Aozora Bunko with a vocabulary of its own, replayed English and parallel
//! sentences, skipped where the data is not there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use engine::config::Config;
use serde_json::{Value, json};

use crate::common::{checkout, engine, finish, metrics};

/// Bytes of Japanese to train on.
const JAPANESE: usize = 1_200_000;
/// Sentence pairs to train on.
const PAIRS: usize = 5000;
const SEQ: usize = 256;
const BATCH: usize = 8;

/// Every token file that the configurations of the recipe name is made by one of its commands.
#[test]
fn the_recipe_makes_the_files_of_its_configurations() {
    let recipe = std::fs::read_to_string(checkout().join("docs/recipe.md")).unwrap();
    let chapter = |from: &str, to: &str| {
        let rest = &recipe[recipe.find(from).unwrap()..];
        rest[..rest.find(to).unwrap_or(rest.len())].to_string()
    };
    for (name, from, to) in [
        ("swallow-7b", "## Swallow 7B", "## Llama 3.1 8B"),
        ("llama-3.1-swallow-8b", "## Llama 3.1 8B", "## no further chapter"),
    ] {
        let (mut made, mut variable, mut values) = (BTreeSet::new(), String::new(), Vec::new());
        for line in chapter(from, to).lines() {
            if let Some((name, list)) = line.strip_prefix("for ").and_then(|rest| rest.split_once(" in ")) {
                variable = format!("${name}");
                values = list.trim_end_matches("; do").split(' ').map(str::to_string).collect();
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            for output in words.windows(2).filter(|words| words[0] == "--output").map(|words| words[1]) {
                match output.contains('$') {
                    true => made.extend(values.iter().map(|value| output.replace(&variable, value))),
                    false => _ = made.insert(output.to_string()),
                }
            }
        }
        let config =
            Config::read(&checkout().join(format!("configs/{name}.toml")), &[]).unwrap_or_else(|e| panic!("{e}"));
        let lists = config.data.lists();
        let sources = lists.iter().flat_map(|(_, sources)| sources.iter()).map(|s| s.prefix.display().to_string());
        let missing: Vec<String> = sources.filter(|prefix| !made.contains(prefix)).collect();
        assert!(missing.is_empty(), "{name}: no command makes {missing:?}");
    }
}

/// A folder with the texts, in which all commands run.
struct Desk {
    dir: tempfile::TempDir,
    model: PathBuf,
}

/// The shares of Japanese, parallel sentences and English in the tokens of the expanded vocabulary.
const SHARES: [f64; 3] = [0.75, 0.15, 0.10];

mod campaign {
    use super::*;

    #[test]
    fn an_english_model_learns_japanese() {
        let data = checkout().join("../shared/data");
        if !data.join("stories260K").exists() {
            eprintln!("skipped: {} is not there", data.display());
            return;
        }
        let desk = Desk::new(&data);
        desk.expand();
        for (vocabulary, tokenizer) in [("new", "expanded"), ("old", desk.model.to_str().unwrap())] {
            desk.tokenize(vocabulary, tokenizer);
        }
        let tokens = |vocabulary: &str| ["ja", "pairs", "en"].map(|name| desk.tokens(&format!("{vocabulary}-{name}")));
        let (new, old) = (tokens("new"), tokens("old"));
        let steps = |shares: f64| (shares * new[0] / SHARES[0] / (SEQ * BATCH) as f64).round() as usize;

        let paired = desk.train("paired", "new", "start", ["ja", "pairs", "en"], SHARES, steps(1.0));
        let apart = desk.train("apart", "new", "start", ["ja", "sentences", "en"], SHARES, steps(1.0));
        // The same bytes of each text, which are more tokens of the old vocabulary.
        let shares: [f64; 3] = std::array::from_fn(|i| SHARES[i] * old[i] / new[i]);
        let model = desk.model.to_str().unwrap();
        let unexpanded =
            desk.train("unexpanded", "old", model, ["ja", "pairs", "en"], shares, steps(shares.iter().sum()));

        let bits = |model: &str, text: &str| desk.evaluate(model, text)[1];
        let [before, after] = [model, "start"].map(|model| desk.evaluate(model, "ja-held.txt")[0]);
        eprintln!("Japanese characters a token: {before:.3} before, {after:.3} with the new pieces");
        let row = |model: &str| ["ja-held.txt", "en-held.txt"].map(|text| bits(model, text));
        let rows = [model, "start", "paired-hf", "apart-hf", "unexpanded-hf"].map(row);
        for (name, [ja, en]) in ["base", "start", "paired", "apart", "unexpanded"].iter().zip(rows) {
            eprintln!("{name:12} bits a byte: Japanese {ja:.3}, English {en:.3}");
        }
        eprintln!(
            "translations, bits a byte: {paired:.3} with pairs, {apart:.3} with their sides apart, \
                   {unexpanded:.3} with pairs in the old vocabulary"
        );
        assert!(after > 2.0 * before, "tokens a character fall by half");
        let [base, _, learned, _, old] = rows;
        assert!(learned[0] < old[0], "the new pieces help at equal text");
        assert!(learned[1] <= base[1], "English is not forgotten");
        assert!(paired < apart, "pairs teach to translate");
    }
}

impl Desk {
    /// Writes the texts: works, books and sentences to train on, and others that are held out.
    fn new(data: &Path) -> Desk {
        let desk = Desk { dir: tempfile::tempdir().unwrap(), model: data.join("stories260K/hf") };
        let works = texts(&data.join("aozora/ja_books.jsonl"));
        let held = works.iter().step_by(20).take(4).cloned().collect::<String>();
        let mut bytes = 0;
        let mut is_wanted = |work: &String| {
            bytes += work.len();
            bytes - work.len() < JAPANESE
        };
        let train = works.iter().enumerate().filter(|(i, _)| i % 20 != 0).map(|(_, work)| work.clone());
        let train: Vec<String> = train.take_while(|work| is_wanted(work)).collect();
        desk.write("ja-held.txt", &held);
        desk.write_documents("ja.jsonl", &train);
        let books = texts(&data.join("gutenberg_en/en_books.jsonl"));
        let parts = books.iter().map(|book| book.split_at(book.floor_char_boundary(book.len() - 20_000)));
        let (train, held): (Vec<String>, Vec<String>) = parts.map(|(a, b)| (a.to_string(), b.to_string())).unzip();
        desk.write("en-held.txt", &held.concat());
        desk.write_documents("en.jsonl", &train);
        let side = |part: &str, language: &str| {
            let text = std::fs::read_to_string(data.join(format!("small_parallel_enja/{part}.{language}"))).unwrap();
            // The Japanese of this corpus is split into words by spaces.
            let spaced = |line: &str| if language == "ja" { line.replace(' ', "") } else { line.to_string() };
            text.lines().take(PAIRS).map(spaced).collect::<Vec<_>>()
        };
        for part in ["train", "test"] {
            let [ja, en] = ["ja", "en"].map(|language| side(part, language));
            desk.write(&format!("{part}.ja"), &(ja.join("\n") + "\n"));
            desk.write(&format!("{part}.en"), &(en.join("\n") + "\n"));
            desk.write_documents(&format!("{part}.jsonl"), &[ja, en].concat());
        }
        desk
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn write_documents(&self, name: &str, documents: &[String]) {
        let line = |text: &String| json!({ "text": text }).to_string() + "\n";
        self.write(name, &documents.iter().map(line).collect::<String>());
    }

    /// Runs a command and returns its output.
    fn run(&self, args: &[&str]) -> String {
        finish(engine().current_dir(self.dir.path()).args(args)).succeeded().stdout
    }

    /// About a thousand Japanese pieces, and rows for them.
    fn expand(&self) {
        self.run(&[
            "tokenizer",
            "train",
            "--model-type",
            "bpe",
            "--vocab-size",
            "1300",
            "--character-coverage",
            "0.93",
            "--input",
            "ja.jsonl",
            "--output",
            "japanese",
        ]);
        let model = self.model.to_str().unwrap();
        self.run(&["tokenizer", "expand", model, "--add", "japanese", "--output", "expanded"]);
        self.run(&["checkpoint", "expand-vocab", "--model", model, "--tokenizer", "expanded", "--output", "start"]);
    }

    fn tokenize(&self, vocabulary: &str, tokenizer: &str) {
        let tokenize = |name: &str, input: &[&str]| {
            let output = format!("{vocabulary}-{name}");
            let args = ["data", "tokenize", "--tokenizer", tokenizer, "--output", &output, "--bos", "--eos"];
            self.run(&[&args, input].concat());
        };
        tokenize("ja", &["--input", "ja.jsonl"]);
        tokenize("en", &["--input", "en.jsonl"]);
        tokenize("sentences", &["--input", "train.jsonl"]);
        tokenize("pairs", &["--pairs", "train.ja", "train.en"]);
        tokenize("translations", &["--pairs", "test.ja", "test.en"]);
    }

    /// The tokens of a file of 16-bit ids.
    fn tokens(&self, prefix: &str) -> f64 {
        std::fs::metadata(self.dir.path().join(format!("{prefix}.bin"))).unwrap().len() as f64 / 2.0
    }

    /// Trains, exports, and returns the bits a byte of held-out translations.
    fn train(
        &self,
        name: &str,
        vocabulary: &str,
        model: &str,
        parts: [&str; 3],
        shares: [f64; 3],
        steps: usize,
    ) -> f64 {
        let sources = parts.iter().zip(shares);
        let sources = sources.map(|(part, share)| format!("{{ prefix = \"{vocabulary}-{part}\", weight = {share} }}"));
        let config = format!(
            "[data]\ntrain = [{}]\nvalid = [{{ prefix = \"{vocabulary}-translations\" }}]\n\
             [model]\nhf = \"{model}\"\n\
             [train]\nload = \"hf:{model}\"\nseq_length = {SEQ}\nmicro_batch_size = 4\nglobal_batch_size = {BATCH}\n\
             steps = {steps}\nseed = 1\neval_interval = {steps}\neval_steps = 8\n\
             [optimizer]\nlr = 4e-3\nmin_lr = 4e-4\nschedule = \"cosine\"\nwarmup_steps = 20\nbetas = [0.9, 0.95]\n\
             weight_decay = 0.1\nclip_grad = 1.0\n[checkpoint]\ndir = \"{name}\"\ninterval = 0\n",
            sources.collect::<Vec<_>>().join(", ")
        );
        self.write(&format!("{name}.toml"), &config);
        self.run(&["train", "--config", &format!("{name}.toml")]);
        self.run(&["checkpoint", "export", "--from", name, "--to", &format!("{name}-hf")]);
        let last = metrics(&self.dir.path().join(name)).pop().unwrap();
        last["valid"][format!("{vocabulary}-translations")]["bits_per_byte"].as_f64().unwrap()
    }

    /// Characters a token and bits a byte.
    fn evaluate(&self, model: &str, text: &str) -> [f64; 2] {
        let said = self.run(&["evaluate", "--model", model, "--text", text]);
        let value = |name: &str| -> f64 {
            let line = said.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().last().unwrap().parse().unwrap()
        };
        [value("characters") / value("tokens"), value("bits per byte")]
    }
}

/// The texts of JSON lines.
fn texts(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let of = |line: &str| serde_json::from_str::<Value>(line).unwrap()["text"].as_str().unwrap().to_string();
    text.lines().map(of).collect()
}
