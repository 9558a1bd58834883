//! Files that a disk, a copy or an editor has changed.

use super::*;
use proptest::prelude::*;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

/// Reads everything; an error must name the damaged file.
fn read_all(dir: &Path) -> crate::error::Result<()> {
    let saved = Saved::open(dir)?;
    saved.verify(&mut |_| ())?;
    for tensor in all_tensors(&model()) {
        let mut out = vec![0.0; tensor.len()];
        for kind in KINDS {
            saved.read(&tensor.name, kind, &Rect::whole(tensor.shape()), &mut out)?;
        }
    }
    Ok(())
}

fn two_checkpoints(run: &Path) -> (PathBuf, PathBuf) {
    save_whole(run, 1);
    let dir = save_whole(run, 2);
    let file = dir.join("rank-00000-0.safetensors");
    (dir, file)
}

#[test]
fn a_damaged_shard_is_named_and_refused() {
    let run = tempfile::tempdir().unwrap();
    let (dir, file) = two_checkpoints(run.path());
    let good = fs::read(&file).unwrap();
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 4;
        bytes
    };
    let cases = [
        (
            flipped(good.len() - 1),
            "v of model.norm.weight, rows 0..1, columns 0..12: its bytes do not match the manifest",
        ),
        (flipped(8 + (64 << 10)), "master of model.embed_tokens.weight, rows 0..23, columns 0..12"),
        (good[..good.len() - 1].to_vec(), "cut short"),
        (good[..1000].to_vec(), "cut short"),
        (Vec::new(), "cut short"),
        ([&good[..], b"x"].concat(), "damaged"),
    ];
    for (bytes, message) in cases {
        fs::write(&file, bytes).unwrap();
        let what = refusal(read_all(&dir));
        assert!(what.contains(&*file.to_string_lossy()) && what.contains(message), "{what}");
        assert!(what.contains("; written by rank 0 on a test; "), "{what}");
        assert!(
            what.ends_with("--from-step N, N of 1, or train --fall-back for the newest that is not damaged"),
            "{what}"
        );
        // There is no automatic fallback to an older checkpoint.
        assert_eq!(Saved::latest(run.path()).unwrap().unwrap().header().position.step, 2);
    }
    fs::remove_file(&file).unwrap();
    assert!(refusal(read_all(&dir)).contains("rank-00000-0.safetensors"));
    read_all(Saved::at_step(run.path(), 1).unwrap().dir()).unwrap();
}

/// All missing shards are named, with the ranks that wrote them, not the first one only.
#[test]
fn missing_shards_are_named_with_their_writers() {
    let run = tempfile::tempdir().unwrap();
    save_whole(run.path(), 1);
    let dirs = on_ranks(12, |comm| {
        let mine = whole_pieces().skip(comm.rank()).step_by(12);
        save(run.path(), comm, &header(2), mine, None).unwrap()
    });
    let file = |rank: usize| dirs[0].join(format!("rank-{rank:05}-0.safetensors"));
    let line = |rank| format!("{}: the file is missing; written by rank {rank} on a test", file(rank).display());
    fs::remove_file(file(3)).unwrap();
    let hint = "; to continue from another complete checkpoint: train --from-step N, N of 1, or train --fall-back for \
                the newest that is not damaged";
    assert_eq!(refusal(read_all(&dirs[0])), format!("{}{hint}", line(3)));
    (4..12).for_each(|rank| fs::remove_file(file(rank)).unwrap());
    let lines: Vec<String> = (3..11).map(line).collect();
    assert_eq!(refusal(read_all(&dirs[0])), format!("{}\nand 1 file more{hint}", lines.join("\n")));
}

/// The format of older checkpoints, which do not record who wrote the files.
#[test]
fn the_first_format_is_still_read() {
    let run = tempfile::tempdir().unwrap();
    let (dir, file) = two_checkpoints(run.path());
    forged(&dir, |m| {
        m["format"] = "swallow-engine checkpoint 1".into();
        assert!(m.as_object_mut().unwrap().remove("writers").is_some());
    })
    .unwrap();
    let text = fs::read_to_string(dir.join("manifest.json")).unwrap();
    assert!(text.contains("checkpoint 1") && !text.contains("writer"), "{text}");
    fs::write(&file, "").unwrap();
    assert!(!refusal(read_all(&dir)).contains("written by"));
}

/// Damage elsewhere does not keep a rank from reading the pieces that it needs.
#[test]
fn only_what_is_read_is_verified() {
    let run = tempfile::tempdir().unwrap();
    let (dir, file) = two_checkpoints(run.path());
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let saved = Saved::open(&dir).unwrap();
    let mut out = [0.0; 12];
    saved.read("model.norm.weight", StateKind::M, &Rect::whole([1, 12]), &mut out).unwrap();
    refusal(saved.read("model.norm.weight", StateKind::V, &Rect::whole([1, 12]), &mut out));
}

/// A manifest that is wrong but has the right checksum.
fn forged(dir: &Path, change: impl FnOnce(&mut Value)) -> crate::error::Result<()> {
    let path = dir.join("manifest.json");
    let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    if let Ok(manifest) = serde_json::from_value::<Manifest>(value.clone()) {
        value["checksum"] = Value::String(manifest.digest());
    }
    fs::write(&path, value.to_string()).unwrap();
    read_all(dir)
}

#[test]
fn forged_manifests_are_refused() {
    let run = tempfile::tempdir().unwrap();
    let (dir, _) = two_checkpoints(run.path());
    let good = fs::read(dir.join("manifest.json")).unwrap();
    forged(&dir, |_| ()).unwrap();
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 11] = [
        (|m| m["tensors"][0]["dims"] = vec![u64::MAX, 2].into(), "not one to three sizes"),
        (|m| m["tensors"][0]["dims"] = vec![1u64 << 62].into(), "not one to three sizes"),
        (|m| m["tensors"][0]["dims"] = vec![2, 2, 2, 2].into(), "not one to three sizes"),
        (|m| m["tensors"][0]["dims"] = vec![0; 0].into(), "not one to three sizes"),
        (|m| m["tensors"][0]["dims"] = vec![24, 12].into(), "276 of 288"),
        (|m| m["tensors"][0]["pieces"][0]["rows"] = vec![5, 2].into(), "does not lie in"),
        (|m| m["tensors"][0]["pieces"][0]["cols"] = vec![0, u64::MAX].into(), "does not lie in"),
        (|m| m["tensors"][0]["pieces"][0]["file"] = "../x.safetensors".into(), "cannot be a file of a checkpoint"),
        (|m| m["tensors"][0]["pieces"][0]["blake3"] = "00".into(), "checksum"),
        (|m| m["tensors"][1]["name"] = m["tensors"][0]["name"].clone(), "twice"),
        (|m| m["format"] = "swallow-engine checkpoint 9".into(), "checkpoint 2"),
    ];
    for (change, message) in cases {
        fs::write(dir.join("manifest.json"), &good).unwrap();
        let what = refusal(forged(&dir, change));
        assert!(what.contains(message), "{what} should say {message}");
    }
    fs::write(dir.join("manifest.json"), String::from_utf8(good).unwrap().replace("\"step\": 2", "\"step\": 3"))
        .unwrap();
    assert!(refusal(read_all(&dir)).contains("does not have its own checksum"));
}

#[derive(Debug, Clone)]
enum Mutation {
    Flip(usize, u8),
    Cut(usize),
    Insert(usize, Vec<u8>),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        (any::<usize>(), 0u8..8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        any::<usize>().prop_map(Mutation::Cut),
        (any::<usize>(), proptest::collection::vec(b'0'..=b'9', 1..12)).prop_map(|(at, s)| Mutation::Insert(at, s)),
    ]
}

/// Flips a bit of, cuts off at, or inserts digits before one of the first `within` bytes.
fn mutate(bytes: &mut Vec<u8>, within: usize, mutation: Mutation) {
    let within = within.min(bytes.len());
    match mutation {
        Mutation::Flip(at, bit) => bytes[at % within] ^= 1 << bit,
        Mutation::Cut(at) => bytes.truncate(at % within),
        Mutation::Insert(at, new) => drop(bytes.splice(at % within..at % within, new)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn mutated_files_never_give_wrong_data(mutation in mutation(), manifest in any::<bool>()) {
        thread_local!(static SAVED: (tempfile::TempDir, PathBuf, PathBuf) = {
            let run = tempfile::tempdir().unwrap();
            let (dir, file) = two_checkpoints(run.path());
            (run, dir, file)
        });
        SAVED.with(|(_, dir, file)| {
            let path = if manifest { dir.join("manifest.json") } else { file.clone() };
            let good = fs::read(&path).unwrap();
            // For a shard this is mostly the header, whose reserved space is longer than its text.
            let within = if manifest { good.len() } else { 9000 };
            let mut bad = good.clone();
            mutate(&mut bad, within, mutation);
            fs::write(&path, &bad).unwrap();
            let result = Saved::open(dir).and_then(|saved| {
                saved.verify(&mut |_| ())?;
                assert_holds_the_state(&saved);
                Ok(())
            });
            fs::write(&path, &good).unwrap();
            prop_assert!(!matches!(result, Err(Error::Run(_))), "{:?}", result);
            Ok(())
        })?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn mutated_huggingface_files_never_panic(mutation in mutation(), index in any::<bool>()) {
        thread_local!(static EXPORTED: tempfile::TempDir = {
            let dir = tempfile::tempdir().unwrap();
            super::huggingface::export_small_shards(&dir.path().join("hf"));
            dir
        });
        EXPORTED.with(|dir| {
            let dir = dir.path().join("hf");
            let name = if index { "model.safetensors.index.json" } else { "model-00001-of-00005.safetensors" };
            let good = fs::read(dir.join(name)).unwrap();
            let header = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
            let mut bad = good.clone();
            mutate(&mut bad, if index { good.len() } else { 8 + header }, mutation);
            fs::write(dir.join(name), &bad).unwrap();
            let result = HuggingFace::open(&dir, &model());
            fs::write(dir.join(name), &good).unwrap();
            prop_assert!(!matches!(result, Err(Error::Run(_))));
            Ok(())
        })?;
    }
}
