//! Each family from end to end: random weights and a run on packed and masked data, export, import, another export of
//! the same bytes, text scored, the vocabulary expanded; its numbers against PyTorch's by `compare`; and what is
//! refused.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use crate::common::{Case, Outcome, checkout, engine, finish, metrics, read_tensors, write_tokens};

const SIZES: &str = "hidden_size = 32\nnum_hidden_layers = 2\nnum_attention_heads = 4\nvocab_size = 331\n\
    max_position_embeddings = 64\n";
const ROTARY: &str = "intermediate_size = 56\nnum_key_value_heads = 2\nrope_theta = 10000.0\nrms_norm_eps = 1e-5\n";

/// A folder with a family's run.
struct Desk(tempfile::TempDir);

impl Desk {
    /// Trains a random model of the family for two steps, on packed documents of which some tokens do not count.
    fn train(architecture: &str, more: &str) -> Desk {
        let desk = Desk(tempfile::tempdir().unwrap());
        let documents: Vec<Vec<u32>> =
            (0..40).map(|d| (0..5 + d * 7 % 40).map(|i| (d * 31 + i * 7) % 300).collect()).collect();
        write_tokens(&desk.path("text"), &documents);
        let tokens = documents.iter().map(Vec::len).sum::<usize>();
        let mask: Vec<u8> = (0..tokens).map(|i| u8::from(i % 5 != 0)).collect();
        std::fs::write(desk.path("text.mask.bin"), mask).unwrap();
        std::fs::write(desk.path("text.meta.json"), "{ \"mask\": true }\n").unwrap();
        let config = format!(
            "[model]\narchitecture = \"{architecture}\"\n{SIZES}{more}[train]\nseq_length = 48\nmicro_batch_size = 2\n\
             global_batch_size = 4\nsteps = 2\nbackend = \"cpu\"\n[optimizer]\nlr = 1e-3\n[data]\n\
             train = [ {{ prefix = \"{}\", pack = true }} ]\n[checkpoint]\ndir = \"{}\"\n",
            desk.path("text").display(),
            desk.path("run").display()
        );
        std::fs::write(desk.path("config.toml"), config).unwrap();
        finish(engine().args(["train", "--config"]).arg(desk.path("config.toml"))).succeeded();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `checkpoint export`, or another command between two folders.
    fn transfer(&self, command: &str, from: &str, to: &str, more: &[&str]) -> Outcome {
        let mut program = engine();
        program.args(["checkpoint", command, "--from"]).arg(self.path(from)).arg("--to").arg(self.path(to)).args(more);
        finish(&mut program)
    }

    fn config_json(&self, folder: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(folder).join("config.json")).unwrap()).unwrap()
    }

    fn loss(&self, folder: &str) -> f64 {
        let mut program = engine();
        std::fs::write(self.path("text.txt"), "The cat sat on the mat.\n").unwrap();
        program.args(["evaluate", "--model"]).arg(self.path(folder)).arg("--text").arg(self.path("text.txt"));
        let said = finish(&mut program).succeeded().stdout;
        let number = said.lines().flat_map(str::split_whitespace).find_map(|word| word.parse::<f64>().ok());
        number.unwrap_or_else(|| panic!("no number in {said}"))
    }
}

/// The way of a family.
fn goes_all_the_way(architecture: &str, more: &str) {
    let desk = Desk::train(architecture, more);
    assert_eq!(metrics(&desk.path("run")).len(), 2);
    let said = desk.transfer("export", "run", "one", &["--dtype", "f32"]).succeeded();
    assert_eq!(said.stderr.contains("embedding_scale = 2, which transformers does not read"), architecture == "llama");
    let tokenizer = checkout().join("tests/golden/tokenizers/tokenizer.json");
    std::fs::copy(&tokenizer, desk.path("one/tokenizer.json")).unwrap();

    // The same bytes come out of an import.
    desk.transfer("import", "one", "imported", &[]).succeeded();
    desk.transfer("export", "imported", "two", &[]).succeeded();
    let bytes = |folder: &str| std::fs::read(desk.path(folder).join("model.safetensors")).unwrap();
    assert!(bytes("one") == bytes("two"), "{architecture}: the weights changed on their way");
    assert_eq!(desk.config_json("one"), desk.config_json("two"));
    let loss = desk.loss("one");
    assert!((4.0..8.0).contains(&loss), "{architecture}: {loss}");

    // A vocabulary of the same pieces and more: the rows of the old ones stay, and the model trains on.
    let mut program = engine();
    program.args(["checkpoint", "expand-vocab", "--model"]).arg(desk.path("one"));
    program.arg("--tokenizer").arg(larger(&desk, &tokenizer)).arg("--output").arg(desk.path("wide"));
    finish(&mut program).succeeded();
    assert!(desk.config_json("wide")["vocab_size"].as_u64().unwrap() >= 350);
    let table = if architecture == "gpt2" { "transformer.wte.weight" } else { "model.embed_tokens.weight" };
    let [before, after] = ["one", "wide"].map(|name| {
        let rows = read_tensors(&desk.path(name).join("model.safetensors")).remove(table).unwrap();
        rows[..300 * 32].to_vec()
    });
    assert_eq!(before, after);
    let again = format!("train.load=hf:{}", desk.path("wide").display());
    let [hf, run] = ["wide", "again"].map(|name| desk.path(name).display().to_string());
    let config = std::fs::read_to_string(desk.path("config.toml")).unwrap();
    let (_, rest) = config.split_once("[train]").unwrap();
    std::fs::write(desk.path("again.toml"), format!("[model]\nhf = \"{hf}\"\n[train]{rest}")).unwrap();
    let mut program = engine();
    program.args(["train", "--config"]).arg(desk.path("again.toml")).args(["--set", &again]);
    finish(program.args(["--set", &format!("checkpoint.dir={run}")])).succeeded();
    assert!(metrics(&desk.path("again")).iter().all(|step| step["loss"].as_f64().unwrap() < 8.0));
}

/// The tokenizer with more pieces.
fn larger(desk: &Desk, tokenizer: &Path) -> PathBuf {
    let mut json: Value = serde_json::from_slice(&std::fs::read(tokenizer).unwrap()).unwrap();
    let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
    for id in vocabulary.len()..350 {
        vocabulary.insert(format!("piece{id}"), id.into());
    }
    let folder = desk.path("larger");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("tokenizer.json"), json.to_string()).unwrap();
    folder
}

#[test]
fn llama_with_biases() {
    goes_all_the_way("llama", &format!("{ROTARY}attention_bias = true\nmlp_bias = true\nembedding_scale = 2.0\n"));
}

#[test]
fn mistral() {
    goes_all_the_way("mistral", &format!("{ROTARY}sliding_window = 9\n"));
}

#[test]
fn qwen2() {
    let windows = "use_sliding_window = true\nsliding_window = 9\nmax_window_layers = 1\n";
    goes_all_the_way("qwen2", &format!("{ROTARY}{windows}"));
}

#[test]
fn qwen3() {
    goes_all_the_way("qwen3", &format!("{ROTARY}head_dim = 12\n"));
}

#[test]
fn gemma2() {
    let caps = "attn_logit_softcapping = 5.0\nfinal_logit_softcapping = 6.0\nquery_pre_attn_scalar = 9\n";
    let more = "sliding_window = 9\nhead_dim = 12\ntie_word_embeddings = true\n";
    goes_all_the_way("gemma2", &format!("{ROTARY}{caps}{more}"));
}

#[test]
fn gpt2() {
    goes_all_the_way("gpt2", "layer_norm_epsilon = 1e-5\ntie_word_embeddings = true\n");
}

/// The first batch of a golden case as a reference, with PyTorch's loss and gradients. A row has one token more than a
/// sample of the case, so that its last target is a label.
fn reference(case: &Case, to: &Path) {
    let config: Value = serde_json::from_slice(&std::fs::read(case.dir.join("expected.json")).unwrap()).unwrap();
    let train = &config["config"]["train"];
    let [seq, rows] = ["seq_length", "global_batch_size"].map(|key| train[key].as_u64().unwrap() as usize);
    let tokens = std::fs::read(case.dir.join("train.bin")).unwrap();
    let tokens: Vec<i64> = tokens.as_chunks().0.iter().map(|&bytes| u16::from_le_bytes(bytes) as i64).collect();
    let ids: Vec<u8> =
        (0..rows).flat_map(|row| tokens[row * seq..][..seq + 1].to_vec()).flat_map(i64::to_le_bytes).collect();
    let loss = (case.steps()[0]["loss"].as_f64().unwrap() as f32).to_le_bytes();
    let gradients = read_tensors(&case.dir.join("grads.safetensors"));
    let bytes: HashMap<String, Vec<u8>> = gradients
        .iter()
        .map(|(name, values)| (format!("grad.{name}"), values.iter().flat_map(|x| x.to_le_bytes()).collect()))
        .collect();
    let f32s = |bytes| TensorView::new(Dtype::F32, vec![<[u8]>::len(bytes) / 4], bytes).unwrap();
    let tokens = TensorView::new(Dtype::I64, vec![rows, seq + 1], &ids).unwrap();
    let mut all: Vec<(String, TensorView)> = bytes.iter().map(|(name, bytes)| (name.clone(), f32s(bytes))).collect();
    all.extend([
        ("input_ids".to_string(), tokens.clone()),
        ("labels".to_string(), tokens),
        ("loss".into(), f32s(&loss[..])),
    ]);
    std::fs::write(to, safetensors::serialize(all, None).unwrap()).unwrap();
}

fn compare(case: &Case, reference: &Path, tolerance: &str) -> Outcome {
    let mut program = engine();
    program.args(["compare", "--model"]).arg(case.dir.join("init")).arg("--reference").arg(reference);
    finish(program.args(["--tolerance", tolerance]))
}

#[test]
fn compare_finds_pytorchs_numbers() {
    let tmp = tempfile::tempdir().unwrap();
    let file = tmp.path().join("reference.safetensors");
    for name in ["mha_odd_vocab", "biased", "qwen3", "gemma2"] {
        let case = Case::open(name);
        reference(&case, &file);
        let said = compare(&case, &file, "1e-5").succeeded().stdout;
        assert!(said.contains("  loss\n") && said.contains("  grad.model."), "{name}: {said}");
        compare(&case, &file, "1e-12").refused(1, &["the relative error", "is above 1.0e-12"]);
    }
    // The reference is of another model.
    compare(&Case::open("biased"), &file, "1e-5").refused(2, &["reference.safetensors: ", "ids must be below"]);
}

#[test]
fn compare_refuses_what_is_no_reference() {
    let (tmp, case) = (tempfile::tempdir().unwrap(), Case::open("biased"));
    let file = tmp.path().join("reference.safetensors");
    let write = |ids: &[i64], labels: &[i64]| {
        let [ids, labels] = [ids, labels].map(|list| list.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
        let tensor = |bytes| TensorView::new(Dtype::I64, vec![1, <[u8]>::len(bytes) / 8], bytes).unwrap();
        let all = [("input_ids", tensor(&ids)), ("labels", tensor(&labels))];
        std::fs::write(&file, safetensors::serialize(all, None).unwrap()).unwrap();
    };
    write(&[1, 2, 111], &[1, 2, 3]);
    compare(&case, &file, "1e-5").refused(2, &["input_ids: it has 111; ids must be below the model's vocab_size, 111"]);
    write(&[1, 2, 3], &[1, 2]);
    compare(&case, &file, "1e-5").refused(2, &["labels: its shape is [1, 2]; it must have the shape of input_ids"]);
    write(&[1, 2, 3], &[1, -100, 3]);
    compare(&case, &file, "1e-5").refused(2, &["it has none of loss, logits and grad.NAME"]);
    compare(&case, &file, "0").refused(2, &["--tolerance 0: must be a positive number"]);
    std::fs::write(&file, "nothing").unwrap();
    compare(&case, &file, "1e-5").refused(2, &["reference.safetensors"]);
}

/// A model of random weights that was loaded guesses, which is told at its first step, or ends the run.
#[test]
fn a_loaded_model_that_guesses_is_told() {
    let case = Case::open("biased");
    let tmp = tempfile::tempdir().unwrap();
    let mut config = case.config(&tmp.path().join("run"));
    crate::common::set(&mut config, "train.steps", 2);
    let file = crate::common::write_config(tmp.path(), "config.toml", &config);
    let said = finish(engine().args(["train", "--config"]).arg(&file)).succeeded();
    let what = "step 1: the loss of the loaded model is 4.8";
    assert_eq!(said.stderr.matches(what).count(), 1, "{}", said.stderr);
    assert!(said.stderr.contains("no better than guessing among 111 tokens, 4.7095"), "{}", said.stderr);
    let run = format!("checkpoint.dir={}", tmp.path().join("refused").display());
    let mut program = engine();
    program.args(["train", "--config"]).arg(&file).args(["--set", "train.refuse_untrained=true", "--set", &run]);
    finish(&mut program).refused(2, &[what, "train.refuse_untrained = true ends the run here"]);
}

/// Tensors that config.json does not describe, or that it describes and the file lacks.
#[test]
fn a_bias_too_many_or_too_few_is_refused() {
    let (case, tmp) = (Case::open("biased"), tempfile::tempdir().unwrap());
    let dir = tmp.path().join("model");
    std::fs::create_dir(&dir).unwrap();
    std::fs::copy(case.dir.join("init/model.safetensors"), dir.join("model.safetensors")).unwrap();
    let refused = |change: &dyn Fn(&mut Value), needles: &[&str]| {
        let mut json: Value =
            serde_json::from_slice(&std::fs::read(case.dir.join("init/config.json")).unwrap()).unwrap();
        change(&mut json);
        std::fs::write(dir.join("config.json"), json.to_string()).unwrap();
        let mut program = engine();
        program.args(["checkpoint", "import", "--from"]).arg(&dir).arg("--to").arg(tmp.path().join("run"));
        finish(&mut program).refused(2, needles);
    };
    refused(
        &|json| json["attention_bias"] = false.into(),
        &["model.layers.0.self_attn.", "15 more: not part of the model"],
    );
    refused(&|json| json["mlp_bias"] = false.into(), &["mlp.", "11 more: not part of the model"]);
    let qwen = |json: &mut Value| {
        json["model_type"] = "qwen3".into();
        json["mlp_bias"] = false.into();
    };
    refused(&qwen, &["norm.weight and 7 more: missing"]);
}
