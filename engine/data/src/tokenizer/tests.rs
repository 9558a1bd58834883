//! A small SentencePiece model and a small tokenizer.json, both made here; damaged ones; cuts.

use proptest::prelude::*;
use prost::Message;

use super::model::{BPE, Kind as PieceKind, ModelProto, NormalizerSpec, Piece, TrainerSpec};
use super::*;

fn piece(text: &str, score: f32, kind: PieceKind) -> Piece {
    Piece { piece: Some(text.into()), score: Some(score), kind: Some(kind as i32) }
}

/// Byte-pair encoding with byte fallback, as Llama 2's: three specials, 256 bytes, then a few merges.
fn small_model() -> ModelProto {
    let specials = [("<unk>", PieceKind::Unknown), ("<s>", PieceKind::Control), ("</s>", PieceKind::Control)];
    let mut pieces: Vec<_> = specials.iter().map(|(text, kind)| piece(text, 0.0, *kind)).collect();
    pieces.extend((0..256).map(|b| piece(&format!("<0x{b:02X}>"), 0.0, PieceKind::Byte)));
    let words = ["\u{2581}a", "ab", "\u{2581}ab", "a", "b", "\u{2581}", "あ", "ああ"];
    pieces.extend(words.iter().enumerate().map(|(i, text)| piece(text, -(i as f32), PieceKind::Normal)));
    ModelProto {
        pieces,
        trainer: Some(TrainerSpec { model_type: Some(BPE), byte_fallback: Some(true), ..Default::default() }),
        normalizer: Some(NormalizerSpec {
            remove_extra_whitespaces: Some(false),
            add_dummy_prefix: Some(true),
            ..Default::default()
        }),
        denormalizer: None,
    }
}

fn open(name: &str, bytes: &[u8]) -> Result<Tokenizer> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    Tokenizer::open(&path)
}

fn small() -> Tokenizer {
    open("small.model", &small_model().encode_to_vec()).unwrap()
}

/// A vocabulary trained on a little text.
fn trained() -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let (text, json) = (folder.path().join("a.txt"), folder.path().join("tokenizer.json"));
    std::fs::write(&text, "the cat and the hat\nthe rat and the bat\nああ、猫\n\n\n  the end.\n\n".repeat(20)).unwrap();
    let size = train::train(&[text], "text", 280, &json).unwrap();
    assert_eq!(size, 280);
    let first = std::fs::read(&json).unwrap();
    std::fs::write(
        folder.path().join("b.txt"),
        "the cat and the hat\nthe rat and the bat\nああ、猫\n\n\n  the end.\n\n".repeat(20),
    )
    .unwrap();
    train::train(&[folder.path().join("b.txt")], "text", 280, &json).unwrap();
    assert_eq!(std::fs::read(&json).unwrap(), first, "training is deterministic");
    assert!(folder.path().join("tokenizer_config.json").exists());
    Tokenizer::open(&json).unwrap()
}

#[test]
fn a_sentencepiece_model_encodes_and_decodes() {
    let tokenizer = small();
    let ids = tokenizer.encode("ab ああ猫\n").unwrap();
    let pieces: Vec<_> = ids.iter().map(|&id| tokenizer.piece(id).unwrap()).collect();
    assert_eq!(pieces, ["\u{2581}ab", "\u{2581}", "ああ", "<0xE7>", "<0x8C>", "<0xAB>", "<0x0A>"]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "ab ああ猫\n");
    assert_eq!((tokenizer.vocab_size(), tokenizer.bos(), tokenizer.eos()), (267, Some(1), Some(2)));
    assert_eq!(tokenizer.encode("").unwrap(), [0u32; 0]);
    assert_eq!(tokenizer.decode(&[1, 2]).unwrap(), "");
    assert!(tokenizer.decode(&[267]).unwrap_err().to_string().contains("id 267 is outside its 267"));
}

#[test]
fn runs_of_white_space_are_kept_whole() {
    let whole = TRAINED.encode("a\n\nb").unwrap();
    let apart = [TRAINED.encode("a\n\n").unwrap(), TRAINED.encode("b").unwrap()].concat();
    assert_ne!(whole, apart, "this vocabulary has merges of newlines, or the test of cuts shows nothing");
    assert_eq!(TRAINED.cut(b"a\n\nb"), Some(1));
}

#[test]
fn a_trained_tokenizer_encodes_and_decodes() {
    let tokenizer = trained();
    let text = "the hat\n\n 猫 never seen: é";
    assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
    assert!(tokenizer.encode("the").unwrap().len() == 1);
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.piece(0).as_deref()), (Some(1), Some(2), Some("<unk>")));
}

#[test]
fn fixtures_open_if_they_are_there() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tokenizers");
    for name in ["tokenizer.model", "tokenizer.json"] {
        let tokenizer = Tokenizer::open(&folder.join(name)).unwrap();
        let text = "Once upon a time, 昔々。\n";
        let ids = tokenizer.encode(text).unwrap();
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn a_cut_changes_nothing(text in "[ab 猫あ\u{3000}'.\t\n]{0,60}", end in 0usize..200) {
        for tokenizer in [&*SMALL, &*TRAINED] {
            let end = end.min(text.len());
            if let Some(at) = tokenizer.cut(&text.as_bytes()[..end]) {
                prop_assert!(at < end);
                let mut ids = tokenizer.encode(&text[..at]).unwrap();
                ids.extend(tokenizer.encode_rest(&text[at..]).unwrap());
                prop_assert_eq!(ids, tokenizer.encode(&text).unwrap(), "{:?} cut at {}", text, at);
            }
        }
    }
}

static SMALL: std::sync::LazyLock<Tokenizer> = std::sync::LazyLock::new(small);
static TRAINED: std::sync::LazyLock<Tokenizer> = std::sync::LazyLock::new(trained);

#[test]
fn long_texts_are_encoded_in_parts() {
    let text = "ab ba\nあ\n\n 猫\n".repeat(4000);
    for tokenizer in [&*SMALL, &*TRAINED] {
        for size in [10, 999, 4096] {
            let first = tokenizer.segment(&text, size);
            assert!(first < text.len());
            let mut ids = tokenizer.encode(&text[..first]).unwrap();
            tokenizer.extend(&mut ids, &text[first..], size).unwrap();
            assert_eq!(ids, tokenizer.encode(&text).unwrap());
        }
        assert_eq!(tokenizer.encode_long(&text).unwrap(), tokenizer.encode(&text).unwrap());
    }
}

#[test]
fn models_that_must_not_be_cut_are_not() {
    let cut = |change: &dyn Fn(&mut ModelProto)| {
        let mut model = small_model();
        change(&mut model);
        open("m.model", &model.encode_to_vec()).unwrap().cut(b"a\nb")
    };
    assert_eq!(cut(&|_| {}), Some(2));
    assert_eq!(cut(&|m| m.pieces.push(piece("\na", -9.0, PieceKind::Normal))), None);
    assert_eq!(cut(&|m| m.trainer.as_mut().unwrap().model_type = Some(1)), None);
    assert_eq!(cut(&|m| m.normalizer.as_mut().unwrap().remove_extra_whitespaces = None), None);
}

#[test]
fn damaged_models_are_named() {
    let refusal = |change: &dyn Fn(&mut ModelProto)| {
        let mut model = small_model();
        change(&mut model);
        let error = open("m.model", &model.encode_to_vec()).err().expect("refused");
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    };
    assert!(refusal(&|m| m.pieces.clear()).contains("it has no pieces"));
    assert!(refusal(&|m| m.pieces[260].score = Some(f32::NAN)).contains("piece 260 has the score NaN"));
    assert!(refusal(&|m| m.pieces[260].piece = None).contains("piece 260 is empty"));
    assert!(refusal(&|m| m.pieces[0].kind = None).contains("0 pieces stand for the unknown"));
    assert!(refusal(&|m| m.pieces[5].kind = None).contains("m.model"));
    let map = |map: Vec<u8>| move |m: &mut ModelProto| m.normalizer.as_mut().unwrap().charsmap = Some(map.clone());
    assert!(refusal(&map(vec![0; 3])).contains("character map is damaged"));
    assert!(refusal(&map([&1024u32.to_le_bytes()[..], &[0xff; 1024], b"a"].concat())).contains("its strings"));
    let far = [&1024u32.to_le_bytes()[..], &0x0400_0000u32.to_le_bytes(), &[0; 1020], b"a\0"].concat();
    assert!(refusal(&map(far)).contains("leaves the trie"));
    for (name, bytes, what) in [
        ("a.model", &b"nonsense"[..], "not a SentencePiece model"),
        ("a.model", b"", "it has no pieces"),
        ("a.json", b"{\"model\": ", "not JSON: EOF"),
        ("a.json", b"{\"version\": \"1.0\"}", "not a tokenizer"),
    ] {
        let error = open(name, bytes).err().expect("refused").to_string();
        assert!(error.contains(name) && error.contains(what), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn mutated_models_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let json = std::fs::read(TRAINED_JSON.as_path()).unwrap();
        for (name, mut bytes) in [("m.model", small_model().encode_to_vec()), ("t.json", json)] {
            for (at, value) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            if let Some(cut) = &cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            if let Ok(tokenizer) = open(name, &bytes) {
                let ids = tokenizer.encode("ab ああ\n<s>猫").unwrap_or_default();
                tokenizer.decode(&ids).ok();
                tokenizer.encode_long("a\nb").ok();
                tokenizer.decode(&[tokenizer.vocab_size() as u32 - 1]).ok();
            }
        }
    }
}

static TRAINED_JSON: std::sync::LazyLock<PathBuf> = std::sync::LazyLock::new(|| {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tokenizers/tokenizer.json")
});

#[test]
fn what_cannot_be_trained_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (text, json) = (folder.path().join("a.txt"), folder.path().join("out/tokenizer.json"));
    std::fs::write(&text, "").unwrap();
    for (size, message) in [(280, "no text to train on"), (100, "at least 259"), (99_999_999_999, "at most 16777216")] {
        let error = train::train(std::slice::from_ref(&text), "text", size, &json).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(message), "{error}");
    }
    assert!(!json.exists());
    std::fs::write(&text, "some text").unwrap();
    train::train(&[text], "text", 280, &json).unwrap();
    let mut names: Vec<_> = json.parent().unwrap().read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["tokenizer.json", "tokenizer_config.json"]);
}
