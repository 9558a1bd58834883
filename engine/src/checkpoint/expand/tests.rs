//! Small checkpoints with random weights, against plain sums in f64.

use super::*;
use crate::checkpoint::hf::SINGLE;
use std::collections::HashMap;

const WIDTH: usize = 24;
/// Pieces of the old tokenizer, and rows of the checkpoint, two of which are padding.
const OLD: usize = 10;
const ROWS: usize = 12;

/// A checkpoint's directory and, beside it, a new tokenizer's.
struct Desk(tempfile::TempDir);

fn values(name: &str, n: usize) -> Vec<f32> {
    let mut out = vec![0.0; n];
    init::normal(7, name, 1.0, 0, &mut out);
    out
}

fn encode(values: &[f32], dtype: Dtype) -> Vec<u8> {
    if dtype == Dtype::I16 {
        return vec![0; values.len() * 2];
    }
    round::to_bytes(&values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>(), dtype)
}

fn decode(bytes: &[u8], dtype: Dtype) -> Vec<f64> {
    match dtype {
        Dtype::F32 => bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect(),
        Dtype::BF16 => bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        _ => bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
    }
}

impl Desk {
    /// Each file holds the tensors of these names, in this order.
    fn new(files: &[(&str, &[&str])], dtype: Dtype, tied: bool) -> Desk {
        let desk = Desk(tempfile::tempdir().unwrap());
        desk.write(
            "model/config.json",
            format!(r#"{{"z": 1e-5, "vocab_size": {ROWS}, "tie_word_embeddings": {tied}}}"#),
        );
        let mut map = serde_json::Map::new();
        for (file, names) in files {
            let metadata = Some(HashMap::from([("format".to_string(), "pt".to_string()), ("note".into(), "x".into())]));
            let path = desk.path("model").join(file);
            let mut writer = TensorWriter::create(&path, 4096).unwrap();
            for name in *names {
                writer.begin(name.to_string(), dtype, vec![ROWS, WIDTH]);
                writer.write(&encode(&values(name, ROWS * WIDTH), dtype)).unwrap();
                map.insert(name.to_string(), json!(file));
            }
            writer.finish(metadata).unwrap();
        }
        if files.len() > 1 {
            let bytes = map.len() * ROWS * WIDTH * dtype.bitsize() / 8;
            let index = json!({ "metadata": { "total_size": bytes, "own": 1 }, "weight_map": map });
            desk.write(&format!("model/{INDEX}"), index.to_string());
        }
        desk.write("model/tokenizer.json", "old");
        desk.write("model/README.md", "read me");
        desk.write("model/pytorch_model.bin", "stale");
        desk.write("new/tokenizer.model", "new");
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    fn expand(&self, new_size: usize, init: Init) -> Result<Rows> {
        let (from, to) = (self.path("model"), self.path("out"));
        let tokenizer = source::tokenizer_files(&self.path("new"));
        let what = ExpandVocab { from: &from, to: &to, old_size: OLD, new_size, init, tokenizer };
        let (mut last, mut sum) = (0, 0);
        let rows = expand_vocab(&what, &mut |done, total| (last, sum) = (done, total))?;
        assert_eq!(last, sum, "the progress ends at its total");
        Ok(rows)
    }

    /// A tensor of the output, as bytes.
    fn out(&self, file: &str, name: &str) -> (Vec<usize>, Vec<u8>) {
        let file = TensorFile::open(&self.path("out").join(file)).unwrap();
        assert_eq!(file.metadata().unwrap()["note"], "x");
        let info = file.info(name).unwrap();
        let mut bytes = vec![0; info.data_offsets.1 - info.data_offsets.0];
        file.read_bytes(info, 0, &mut bytes).unwrap();
        (info.shape.clone(), bytes)
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path("out").join(name)).unwrap()).unwrap()
    }
}

const LAYER: &str = "model.layers.0.mlp.up_proj.weight";

fn splits() -> Vec<Vec<u32>> {
    vec![vec![3], vec![1, 2, 9], vec![0, 0, 5, 7], vec![9, 8], vec![4, 4, 6]]
}

/// The bytes of a grown tensor whose new rows are means of old ones: rows of the old size, new ones, padding beyond.
fn by_hand(name: &str, dtype: Dtype, splits: &[Vec<u32>], rows: usize) -> Vec<u8> {
    let old = encode(&values(name, ROWS * WIDTH), dtype);
    let read = decode(&old, dtype);
    let mut out = old[..OLD * WIDTH * dtype.bitsize() / 8].to_vec();
    for split in splits {
        let mean = |c: usize| split.iter().fold(0.0, |sum, &r| sum + read[r as usize * WIDTH + c]) / split.len() as f64;
        out.extend(round::to_bytes(&(0..WIDTH).map(mean).collect::<Vec<_>>(), dtype));
    }
    let kept = out.len()..rows * WIDTH * dtype.bitsize() / 8;
    out.extend(old.get(kept).unwrap_or_default());
    out
}

#[test]
fn new_rows_are_means_of_pieces_in_every_dtype() {
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
        let names: &[&str] = &[HEAD, LAYER, EMBEDDING];
        let desk = Desk::new(&[(SINGLE, names)], dtype, false);
        let rows = desk.expand(15, Init::Pieces(splits())).unwrap();
        assert_eq!((rows.before, rows.after, rows.width, rows.dtype), (ROWS, 15, WIDTH, dtype));
        assert_eq!(
            (rows.tensors, rows.left_out),
            (vec![EMBEDDING.into(), HEAD.into()], vec!["pytorch_model.bin".into(), "tokenizer.json".into()])
        );
        for name in [EMBEDDING, HEAD] {
            assert_eq!(
                desk.out(SINGLE, name),
                (vec![15, WIDTH], by_hand(name, dtype, &splits(), 15)),
                "{name} {dtype}"
            );
        }
        assert_eq!(desk.out(SINGLE, LAYER).1, encode(&values(LAYER, ROWS * WIDTH), dtype));
        assert_eq!(desk.json("config.json"), json!({ "z": 1e-5, "vocab_size": 15, "tie_word_embeddings": false }));
        assert_eq!(fs::read(desk.path("out/tokenizer.model")).unwrap(), b"new");
        assert_eq!(fs::read(desk.path("out/README.md")).unwrap(), b"read me");
        assert!(!desk.path("out/pytorch_model.bin").exists() && !desk.path("out/tokenizer.json").exists());
    }
}

/// Padding that is not needed stays, and the vocabulary stays as large as the rows.
#[test]
fn rows_never_become_fewer() {
    let desk = Desk::new(&[(SINGLE, &[EMBEDDING])], Dtype::F32, true);
    let rows = desk.expand(11, Init::Pieces(splits()[..1].to_vec())).unwrap();
    assert_eq!((rows.before, rows.after, rows.tensors.len()), (ROWS, ROWS, 1));
    let wanted = by_hand(EMBEDDING, Dtype::F32, &splits()[..1], ROWS);
    assert_eq!(desk.out(SINGLE, EMBEDDING), (vec![ROWS, WIDTH], wanted));
    assert_eq!(desk.json("config.json")["vocab_size"], ROWS);
}

#[test]
fn shards_keep_their_tensors_and_the_index_its_sums() {
    let files: [(&str, &[&str]); 2] = [("a.safetensors", &[LAYER, HEAD]), ("b.safetensors", &[EMBEDDING])];
    let desk = Desk::new(&files, Dtype::BF16, false);
    desk.expand(15, Init::Pieces(splits())).unwrap();
    let index = desk.json(INDEX);
    assert_eq!(index["metadata"], json!({ "total_size": (ROWS + 15 + 15) * WIDTH * 2, "own": 1 }));
    assert_eq!(index["weight_map"][HEAD], "a.safetensors");
    assert_eq!(desk.out("a.safetensors", HEAD).1, by_hand(HEAD, Dtype::BF16, &splits(), 15));
    assert_eq!(desk.out("b.safetensors", EMBEDDING).1, by_hand(EMBEDDING, Dtype::BF16, &splits(), 15));
    let names = TensorFile::open(&desk.path("out/a.safetensors")).unwrap().names();
    assert_eq!(names, [LAYER, HEAD]);
}

#[test]
fn the_mean_leaves_padding_out() {
    let desk = Desk::new(&[(SINGLE, &[EMBEDDING])], Dtype::F16, true);
    desk.expand(15, Init::Mean).unwrap();
    let all = (0..OLD as u32).collect::<Vec<_>>();
    assert_eq!(desk.out(SINGLE, EMBEDDING).1, by_hand(EMBEDDING, Dtype::F16, &vec![all; 5], 15));
}

/// A tied model's head is initialised as its embedding.
#[test]
fn random_rows_are_those_of_training_from_scratch() {
    for (name, tied, known_as) in [(EMBEDDING, false, EMBEDDING), (HEAD, false, HEAD), (HEAD, true, EMBEDDING)] {
        let names: &[&str] = if tied { &[HEAD] } else { &[EMBEDDING, HEAD] };
        let desk = Desk::new(&[(SINGLE, names)], Dtype::F32, tied);
        desk.expand(15, Init::Random { seed: 5 }).unwrap();
        let mut wanted = vec![0.0; 5 * WIDTH];
        init::normal(5, known_as, 0.02, OLD * WIDTH, &mut wanted);
        assert_eq!(desk.out(SINGLE, name).1[OLD * WIDTH * 4..], encode(&wanted, Dtype::F32));
    }
}

/// More new rows than one band holds, on one thread and on several.
#[test]
fn the_number_of_threads_changes_nothing() {
    let splits: Vec<Vec<u32>> =
        (0..BAND / WIDTH + 50).map(|i| vec![i as u32 % 10, i as u32 % 7, i as u32 % 3]).collect();
    let bytes = [1, 3].map(|threads| {
        let desk = Desk::new(&[(SINGLE, &[EMBEDDING])], Dtype::BF16, true);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| desk.expand(OLD + splits.len(), Init::Pieces(splits.clone()))).unwrap();
        desk.out(SINGLE, EMBEDDING).1
    });
    assert!(bytes[0] == bytes[1]);
    assert!(bytes[0] == by_hand(EMBEDDING, Dtype::BF16, &splits, 0));
}

#[test]
fn bad_input_is_named_and_leaves_nothing() {
    let refused = |desk: &Desk, needles: &[&str]| {
        let error = desk.expand(15, Init::Pieces(splits())).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        needles.iter().for_each(|needle| assert!(error.to_string().contains(needle), "{needle:?} in: {error}"));
        let left = fs::read_dir(desk.0.path()).unwrap().map(|e| e.unwrap().file_name());
        assert!(left.into_iter().all(|name| name == "model" || name == "new" || name == "out"));
    };
    let usual = || Desk::new(&[(SINGLE, &[EMBEDDING, HEAD])], Dtype::F32, false);
    let desk = usual();
    desk.write("out/a", "");
    refused(&desk, &["--output", "not empty"]);
    let desk = usual();
    desk.write("model/config.json", r#"{"vocab_size": 13}"#);
    refused(&desk, &["\"vocab_size\": 13", "12 rows"]);
    refused(&Desk::new(&[(SINGLE, &[LAYER])], Dtype::F32, false), &[EMBEDDING]);
    refused(&Desk::new(&[(SINGLE, &[EMBEDDING])], Dtype::I16, true), &[EMBEDDING, "I16"]);
    refused(&Desk::new(&[(SINGLE, &[EMBEDDING])], Dtype::F32, false), &[HEAD, "\"tie_word_embeddings\": false"]);
    let desk = usual();
    fs::remove_file(desk.path("model/config.json")).unwrap();
    refused(&desk, &["config.json", "does not exist"]);
    // A file that is cut short is found after others were written.
    let files: [(&str, &[&str]); 2] = [("a.safetensors", &[LAYER, HEAD]), ("b.safetensors", &[EMBEDDING])];
    let desk = Desk::new(&files, Dtype::F32, false);
    let path = desk.path("model/b.safetensors");
    fs::write(&path, &fs::read(&path).unwrap()[..4500]).unwrap();
    refused(&desk, &["b.safetensors", "cut short"]);
    assert!(!desk.path("out").exists());
}
