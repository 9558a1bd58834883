//! Expansions of small tokenizers that are made here; SentencePiece and `tokenizers` must agree on them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use prost::Message;

use super::super::super::text::Inputs;
use super::super::model::{BPE, Kind as PieceKind, ModelProto, NormalizerSpec, Piece, TrainerSpec};
use super::super::{Extension, convert, merges, train};
use super::*;

fn piece(text: &str, score: f32, kind: PieceKind) -> Piece {
    Piece { piece: Some(text.into()), score: Some(score), kind: Some(kind as i32) }
}

/// A model with byte fallback, as Llama 2's, with these pieces and scores after specials and bytes.
fn proto(pieces: &[(&str, f32)]) -> ModelProto {
    let specials = [("<unk>", PieceKind::Unknown), ("<s>", PieceKind::Control), ("</s>", PieceKind::Control)];
    let mut all: Vec<Piece> = specials.iter().map(|(text, kind)| piece(text, 0.0, *kind)).collect();
    all.extend((0..256).map(|b| piece(&format!("<0x{b:02X}>"), 0.0, PieceKind::Byte)));
    all.extend(pieces.iter().map(|(text, score)| piece(text, *score, PieceKind::Normal)));
    ModelProto {
        pieces: all,
        trainer: Some(TrainerSpec { model_type: Some(BPE), byte_fallback: Some(true), ..Default::default() }),
        normalizer: Some(NormalizerSpec { remove_extra_whitespaces: Some(false), ..Default::default() }),
        denormalizer: None,
    }
}

/// The base of most tests: 259 pieces and these.
const OLD: [(&str, f32); 6] =
    [("\u{2581}a", -1.0), ("ab", -2.0), ("a", -3.0), ("b", -4.0), ("\u{2581}", -5.0), ("東", -6.0)];

struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Desk {
        Desk(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Expands `base` by `add` and returns the numbers; the output is the folder `out`.
    fn expand(&self, base: &Path, add: &Path, multiple_of: usize) -> Result<Expanded> {
        expand(&Expand { base, add, output: &self.path("out"), multiple_of, nfkc: false }, |_| Ok(()))
            .map(|(of, ())| of)
    }

    fn models(&self, old: &ModelProto, new: &ModelProto, multiple_of: usize) -> Result<Expanded> {
        let [old, new] = [("base/tokenizer.model", old), ("new.model", new)]
            .map(|(name, model)| self.write(name, model.encode_to_vec()));
        self.expand(&old, &new, multiple_of)
    }

    fn refused(&self, result: Result<Expanded>, needles: &[&str]) {
        let error = result.expect_err("it should have been refused");
        assert_eq!(error.exit_code(), 2, "{error}");
        needles.iter().for_each(|needle| assert!(error.to_string().contains(needle), "{needle:?} in: {error}"));
        let left = std::fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("out")).collect();
        assert!(left.is_empty(), "nothing half-written stays: {left:?}");
    }

    fn out(&self, name: &str) -> Tokenizer {
        Tokenizer::open(&self.path("out").join(name)).unwrap()
    }
}

fn pieces_of(tokenizer: &Tokenizer, from: usize) -> Vec<String> {
    (from..tokenizer.vocab_size()).map(|id| tokenizer.piece(id as u32).unwrap()).collect()
}

#[test]
fn pieces_are_appended_without_escapes_and_duplicates() {
    let desk = Desk::new();
    let new = [
        ("\u{2581}東京", -0.0),
        ("東京", -1.0),
        ("東", -2.0),
        ("ab", -3.0),
        ("aa", -4.0),
        ("京", -5.0),
        ("\u{2581}", -6.0),
    ];
    let expanded = desk.models(&proto(&OLD), &proto(&new), 1).unwrap();
    let wanted = Expanded { base: 265, size: 268, known: 2, repeated: 2, left_out: 0, notes: Vec::new() };
    assert_eq!(expanded, wanted);
    for name in ["tokenizer.model", "tokenizer.json"] {
        let tokenizer = desk.out(name);
        assert_eq!(pieces_of(&tokenizer, 265), ["東京", "aa", "京"], "{name}");
        let pieces: Vec<_> =
            tokenizer.encode("a東京aab\n").unwrap().into_iter().map(|id| tokenizer.piece(id)).collect();
        assert_eq!(
            pieces.into_iter().flatten().collect::<Vec<_>>(),
            ["\u{2581}a", "東京", "a", "ab", "<0x0A>"],
            "{name}"
        );
    }
    let model = ModelProto::parse(&std::fs::read(desk.path("out/tokenizer.model")).unwrap()).unwrap();
    let scores: Vec<_> = model.pieces[265..].iter().map(|piece| piece.score.unwrap()).collect();
    assert_eq!(scores, [0.0, -4.0, -5.0], "each piece keeps the score of its first spelling");
    for name in ["tokenizer_config.json", "special_tokens_map.json"] {
        let config = json::read(&desk.path("out").join(name)).unwrap();
        assert_eq!([&config["bos_token"], &config["eos_token"], &config["unk_token"]], ["<s>", "</s>", "<unk>"]);
    }
}

/// 265 + 4 pieces: the lowest are left out, but not a character of which a longer piece is made.
#[test]
fn the_lowest_scores_are_left_out_until_the_size_is_a_multiple() {
    let desk = Desk::new();
    let new = [("東京", -1.0), ("東西", -2.0), ("西", -7.0), ("北", -8.0), ("南", -9.0), ("京", -10.0)];
    let expanded = desk.models(&proto(&OLD), &proto(&new), 2).unwrap();
    assert_eq!((expanded.size, expanded.left_out), (270, 1));
    assert_eq!(pieces_of(&desk.out("tokenizer.model"), 265), ["東京", "東西", "西", "北", "京"]);
    let desk = Desk::new();
    let expanded = desk.models(&proto(&OLD), &proto(&new), 67).unwrap();
    assert_eq!((expanded.size, expanded.left_out), (268, 3));
    assert_eq!(pieces_of(&desk.out("tokenizer.model"), 265), ["東京", "西", "京"]);
}

#[test]
fn bad_models_are_named() {
    let (old, new) = (proto(&OLD), proto(&[("cd", -1.0), ("c", -2.0), ("d", -3.0)]));
    let with = |change: fn(&mut ModelProto)| {
        let mut model = new.clone();
        change(&mut model);
        model
    };
    let try_new = |new: &ModelProto, multiple: usize, needles: &[&str]| {
        let desk = Desk::new();
        let result = desk.models(&old, new, multiple);
        desk.refused(result, needles);
    };
    try_new(&proto(&[("ab", -1.0)]), 1, &["base/tokenizer.model", "nothing to add"]);
    try_new(&new, 100, &["265 pieces and 3 new ones", "--multiple-of 100"]);
    try_new(&proto(&[("<s>", -1.0)]), 1, &["new.model", "\"<s>\"", "Normal", "Control"]);
    try_new(&with(|m| m.trainer.as_mut().unwrap().model_type = Some(1)), 1, &["new.model", "byte-pair encoding"]);
    let map = || {
        // A trie of 256 empty units and one string.
        let mut map = 1024u32.to_le_bytes().to_vec();
        map.extend([0; 1024]);
        map.extend(b"x\0");
        map
    };
    let normalized = |name: &str| {
        let mut model = new.clone();
        let spec = model.normalizer.as_mut().unwrap();
        (spec.name, spec.charsmap) = (Some(name.into()), Some(map()));
        model
    };
    try_new(&normalized("nmt_nfkc"), 1, &["new.model", "nmt_nfkc", "identity"]);
    try_new(&normalized("nfkc"), 1, &["is nfkc", "--nfkc"]);
    let desk = Desk::new();
    desk.write("out/a", "");
    let error = desk.models(&old, &new, 1).unwrap_err().to_string();
    assert!(error.contains("--output") && error.contains("not empty"), "{error}");
    assert_eq!(std::fs::read_dir(desk.path("out")).unwrap().count(), 1);
}

/// `--nfkc` takes the character map of the model that is added, and `tokenizer.json` gets Unicode's. A model without a
/// normalizer gets SentencePiece's map.
#[test]
fn nfkc_is_set_in_all_files() {
    let desk = Desk::new();
    let plain = [
        desk.write("plain.model", proto(&OLD).encode_to_vec()),
        desk.write("add.model", proto(&[("cd", -1.0), ("c", -2.0), ("d", -3.0)]).encode_to_vec()),
    ];
    let with_nfkc = |base, add, output| expand(&Expand { base, add, output, multiple_of: 1, nfkc: true }, |_| Ok(()));
    with_nfkc(&plain[0], &plain[1], &desk.path("own")).unwrap();
    let both = ["tokenizer.model", "tokenizer.json"].map(|name| Tokenizer::open(&desk.path("own").join(name)).unwrap());
    let ids = both.map(|tokenizer| tokenizer.encode("ａｂ㋿").unwrap());
    assert_eq!((&ids[0], ids[0].len() < 9), (&ids[1], true));
    let old = desk.write("base/tokenizer.model", proto(&OLD).encode_to_vec());
    desk.write("base/tokenizer_config.json", r#"{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}"#);
    let mut new = proto(&[("cd", -1.0), ("c", -2.0), ("d", -3.0)]);
    let mut map = 1024u32.to_le_bytes().to_vec();
    map.extend([0; 1024]);
    map.extend(b"x\0");
    let spec = new.normalizer.as_mut().unwrap();
    (spec.name, spec.charsmap) = (Some("nfkc".into()), Some(map.clone()));
    let new = desk.write("new.model", new.encode_to_vec());
    let request = Expand { base: &old, add: &new, output: &desk.path("out"), multiple_of: 1, nfkc: true };
    expand(&request, |_| Ok(())).unwrap();
    let model = ModelProto::parse(&std::fs::read(desk.path("out/tokenizer.model")).unwrap()).unwrap();
    let spec = model.normalizer.unwrap();
    assert_eq!(
        (spec.name.as_deref(), spec.charsmap, spec.remove_extra_whitespaces),
        (Some("nfkc"), Some(map), Some(false))
    );
    let json = json::read(&desk.path("out/tokenizer.json")).unwrap();
    let steps = json["normalizer"]["normalizers"].as_array().unwrap();
    assert!(steps.iter().any(|step| step["type"] == "NFKC"), "{steps:?}");
    let config = json::read(&desk.path("out/tokenizer_config.json")).unwrap();
    assert_eq!((&config["tokenizer_class"], &config["bos_token"]), (&"PreTrainedTokenizerFast".into(), &"<s>".into()));
}

/// Fields that nobody here reads stay, bit for bit; the self-test goes, which the expanded model would fail.
#[test]
fn unread_fields_of_a_model_survive() {
    let mut bytes = proto(&OLD).encode_to_vec();
    let unread = [0x9a, 0x06, 2, b'h', b'i']; // field 99: "hi"
    let self_test = [0x22, 2, 0x0a, 0]; // field 4 with an empty sample
    bytes.extend(unread);
    let without = bytes.clone();
    bytes.splice(0..0, self_test);
    let added = model::append(&bytes, &[piece("c", -1.0, PieceKind::Normal)], None).unwrap();
    assert_eq!(added[..without.len()], without);
    assert_eq!(ModelProto::decode(&added[..]).unwrap().pieces.len(), 266);
    assert!(model::without_self_test(&[0x0a, 200]).is_err(), "a message that is cut short");
}

/// The merges of a `tokenizer.json` beside the model keep their order.
#[test]
fn a_tokenizer_json_beside_the_model_is_extended() {
    let desk = Desk::new();
    let model = proto(&OLD);
    let path = desk.write("base/tokenizer.model", model.encode_to_vec());
    let mut json = convert::tokenizer_json(&model).unwrap();
    json["truncation"] =
        serde_json::json!({ "direction": "Left", "max_length": 512, "strategy": "LongestFirst", "stride": 0 });
    json["model"]["merges"] = serde_json::json!(["\u{2581} a", "a b"]);
    let beside = desk.write("base/tokenizer.json", json::bytes(&json));
    let new = proto(&[("abab", -0.5), ("東京", -1.5), ("京", -3.0)]);
    let new = desk.write("new.model", new.encode_to_vec());
    desk.expand(&path, &new, 1).unwrap();
    let json = json::read(&desk.path("out/tokenizer.json")).unwrap();
    assert_eq!(json["truncation"]["max_length"], 512);
    assert_eq!(json["model"]["merges"], serde_json::json!(["ab ab", "\u{2581} a", "東 京", "a b"]));
    std::fs::write(&beside, json::bytes(&json)).unwrap();
    std::fs::remove_dir_all(desk.path("out")).unwrap();
    let mut other = json.clone();
    other["model"]["vocab"]["ab"] = 7.into();
    std::fs::write(&beside, json::bytes(&other)).unwrap();
    desk.refused(desk.expand(&path, &new, 1), &["tokenizer.json", "\"ab\"", "id 260", "move it away"]);
    other = json.clone();
    other["added_tokens"].as_array_mut().unwrap().push(serde_json::json!({ "id": 265, "content": "<pad>" }));
    std::fs::write(&beside, json::bytes(&other)).unwrap();
    desk.refused(desk.expand(&path, &new, 1), &["\"<pad>\"", "id 265"]);
}

/// A user-defined piece with a space has no counterpart in a `tokenizer.json`, which would give it another id.
#[test]
fn what_a_tokenizer_json_cannot_express_is_named() {
    let desk = Desk::new();
    let mut old = proto(&OLD);
    old.pieces.push(piece("\u{2581}x", 0.0, PieceKind::UserDefined));
    let result = desk.models(&old, &proto(&[("京", -1.0)]), 1);
    desk.refused(result, &["base/tokenizer.model", "tokenizer.json", "beyond the 267 pieces"]);
}

/// Both libraries on one model.
struct Both(Tokenizer, Tokenizer);

impl Both {
    fn of(model: &ModelProto) -> Both {
        let desk = Desk::new();
        let sentencepiece = Tokenizer::open(&desk.write("a.model", model.encode_to_vec())).unwrap();
        let json = convert::tokenizer_json(model).unwrap();
        let json = Tokenizer::open(&desk.write("a.json", json::bytes(&json))).unwrap();
        Both(sentencepiece, json)
    }

    fn agree_on(&self, text: &str) {
        assert_eq!(self.0.encode(text).unwrap(), self.1.encode(text).unwrap(), "{text:?}");
    }
}

/// All runs of spaces have one score, as in Llama 2's and Mistral's models: the leftmost grows first.
#[test]
fn runs_of_spaces_agree() {
    let runs: Vec<String> = (1..=16).map(|n| "\u{2581}".repeat(n)).collect();
    let mut pieces: Vec<(&str, f32)> = runs.iter().map(|run| (run.as_str(), -1e9)).collect();
    pieces.extend([("a", -5.0), ("\u{2581}a", -2.0)]);
    let both = Both::of(&proto(&pieces));
    (0..60).for_each(|n| both.agree_on(&format!("a{}a", " ".repeat(n))));
}

/// Two pieces of one score that overlap: the left one wins, whichever is older.
#[test]
fn ties_go_to_the_left() {
    for pieces in [[("ab", -1.0), ("bc", -1.0)], [("bc", -1.0), ("ab", -1.0)]] {
        let letters = [("a", -9.0), ("b", -8.0), ("c", -7.0)];
        let both = Both::of(&proto(&[&pieces[..], &letters[..]].concat()));
        ["abc", "aabcc", "cabcab"].iter().for_each(|text| both.agree_on(text));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Any pieces with scores of their own.
    #[test]
    fn scores_and_merges_agree(pieces in proptest::collection::btree_set("[ab\u{2581}東]{2,5}", 1..30),
                               order in any::<u64>(), texts in proptest::collection::vec("[ab 東京\n]{0,30}", 8)) {
        let letters = ["a", "b", "\u{2581}", "東"].map(String::from);
        let mut all: Vec<String> = pieces.into_iter().chain(letters).collect();
        let len = all.len();
        (0..len).for_each(|i| all.swap(i, (order.rotate_left(i as u32 * 7) % len as u64) as usize));
        let scored: Vec<(&str, f32)> = all.iter().zip(0..).map(|(piece, i)| (piece.as_str(), -(i as f32))).collect();
        let both = Both::of(&proto(&scored));
        texts.iter().for_each(|text| both.agree_on(text));
    }

    /// A text to which no new piece applies keeps its ids.
    #[test]
    fn old_texts_keep_their_ids(text in "[ab 東\n]{0,40}") {
        prop_assert_eq!(EXPANDED.0.encode(&text).unwrap(), EXPANDED.1.encode(&text).unwrap());
        prop_assert_eq!(EXPANDED.0.encode(&text).unwrap(), EXPANDED.2.encode(&text).unwrap());
    }
}

/// A model, its expansion by pieces that only texts with other letters have, and the latter's `tokenizer.json`.
static EXPANDED: std::sync::LazyLock<(Tokenizer, Tokenizer, Tokenizer)> = std::sync::LazyLock::new(|| {
    let desk = Desk::new();
    let new = proto(&[("東京", -0.0), ("ac", -1.0), ("abc", -2.5), ("c", -3.0), ("京", -4.0)]);
    desk.models(&proto(&OLD), &new, 1).unwrap();
    let base = Tokenizer::open(&desk.path("base/tokenizer.model")).unwrap();
    (base, desk.out("tokenizer.model"), desk.out("tokenizer.json"))
});

#[test]
fn given_merges_keep_their_order() {
    let scores = |pieces: &[(&str, f32)]| -> HashMap<String, f32> {
        pieces.iter().map(|(piece, score)| (piece.to_string(), *score)).collect()
    };
    let all =
        scores(&[("a", -9.0), ("b", -9.0), ("ba", -2.0), ("ab", -2.5), ("baa", -1.0), ("bb", -2.0), ("aa", -2.0)]);
    let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
    let given = vec![pair("a", "a"), pair("b", "a"), pair("a", "b")];
    let extended = merges::extended(given, &all, |piece| ["baa", "bb"].contains(&piece));
    // ("b", "b") comes before ("b", "a"), to whose left it may lie; the given ones keep their order.
    let wanted = [pair("ba", "a"), pair("b", "aa"), pair("b", "b"), pair("a", "a"), pair("b", "a"), pair("a", "b")];
    assert_eq!(extended, wanted);
    // transformers writes such a list: the first merge has the lowest score of all.
    let all = HashMap::from_iter(all.into_iter().chain(scores(&[("c", -9.0), ("cc", -100.0), ("bab", -5.0)])));
    let given = vec![pair("c", "c"), pair("a", "a"), pair("b", "a"), pair("a", "b")];
    let extended = merges::extended(given.clone(), &all, |piece| piece == "bab");
    assert_eq!(extended, [given, vec![pair("ba", "b"), pair("b", "ab")]].concat());
}

// -- byte-level BPE --

impl Desk {
    fn trained(&self, name: &str, text: &str, size: usize) -> PathBuf {
        let text = self.write(&format!("{name}.txt"), text.repeat(20));
        let inputs = Inputs { paths: vec![text], format: None, key: "text".into() };
        let json = self.path(&format!("{name}/tokenizer.json"));
        std::fs::create_dir_all(json.parent().unwrap()).unwrap();
        let plan = train::Plan {
            inputs: &inputs,
            model_type: train::ModelType::ByteBpe,
            segmenter: train::Segmenter::None,
            normalization: train::Normalization::None,
            vocab_size: size,
            sample_bytes: 1 << 20,
            character_coverage: 1.0,
            output: &json,
        };
        train::train(&plan).unwrap();
        json
    }

    /// Adds a token after the vocabulary's end, as Llama 3's and Qwen's.
    fn add_token(&self, json: &Path, id: usize, content: &str) {
        let mut value = json::read(json).unwrap();
        let token = serde_json::json!({ "id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true });
        value["added_tokens"].as_array_mut().unwrap().push(token);
        std::fs::write(json, json::bytes(&value)).unwrap();
    }
}

const ENGLISH: &str = "the cat and the hat\nthe rat and the bat\n";
const JAPANESE: &str = "東京の猫、東京の犬。\n";

#[test]
fn merges_are_appended_and_ids_stay() {
    let desk = Desk::new();
    let (old, new) = (desk.trained("old", ENGLISH, 270), desk.trained("new", JAPANESE, 280));
    desk.add_token(&old, 270, "<|user|>");
    let vocab = desk.write("old/vocab.json", "{}");
    desk.write("old/merges.txt", "");
    let expanded = desk.expand(vocab.parent().unwrap(), &new, 8).unwrap();
    assert_eq!((expanded.base, expanded.size % 8), (271, 0));
    assert!(expanded.left_out < 8, "{expanded:?}");
    let (old, new) = (Tokenizer::open(&old).unwrap(), desk.out("tokenizer.json"));
    assert_eq!((new.piece(270).as_deref(), new.vocab_size()), (Some("<|user|>"), expanded.size));
    assert_eq!(new.encode("a<|user|>b").unwrap(), old.encode("a<|user|>b").unwrap());
    assert_eq!(new.encode(ENGLISH).unwrap(), old.encode(ENGLISH).unwrap());
    assert!(new.encode(JAPANESE).unwrap().len() < old.encode(JAPANESE).unwrap().len());
    assert_eq!(new.decode(&new.encode(JAPANESE).unwrap()).unwrap(), JAPANESE);
    let json = json::read(&desk.path("out/tokenizer.json")).unwrap();
    assert_eq!(json::read(&desk.path("out/vocab.json")).unwrap(), json["model"]["vocab"]);
    let lines = std::fs::read_to_string(desk.path("out/merges.txt")).unwrap();
    assert_eq!(lines.lines().count(), 1 + json["model"]["merges"].as_array().unwrap().len());
}

/// Qwen's class in `transformers` would set NFC.
#[test]
fn nfkc_is_left_to_the_json() {
    let desk = Desk::new();
    let (old, new) = (desk.trained("old", ENGLISH, 270), desk.trained("new", JAPANESE, 280));
    desk.write("old/tokenizer_config.json", r#"{"tokenizer_class": "Qwen2Tokenizer", "eos_token": "</s>"}"#);
    let request = Expand { base: &old, add: &new, output: &desk.path("out"), multiple_of: 1, nfkc: true };
    expand(&request, |_| Ok(())).unwrap();
    let config = json::read(&desk.path("out/tokenizer_config.json")).unwrap();
    assert_eq!((&config["tokenizer_class"], &config["eos_token"]), (&"PreTrainedTokenizerFast".into(), &"</s>".into()));
    let tokenizer = desk.out("tokenizer.json");
    assert_eq!(tokenizer.encode("ｔｈｅ").unwrap(), tokenizer.encode("the").unwrap());
}

#[test]
fn bad_byte_level_tokenizers_are_named() {
    let desk = Desk::new();
    let (old, new) = (desk.trained("old", ENGLISH, 270), desk.trained("new", JAPANESE, 280));
    let model = desk.write("a.model", proto(&OLD).encode_to_vec());
    desk.refused(desk.expand(&model, &new, 1), &["a.model (a SentencePiece model)", "(byte-level BPE)", "one kind"]);
    desk.refused(desk.expand(&new, &model, 1), &["one kind"]);
    let json = convert::tokenizer_json(&proto(&OLD)).unwrap();
    let converted = desk.write("converted.json", json::bytes(&json));
    desk.refused(desk.expand(&converted, &new, 1), &["converted.json", "tokenizer.model"]);
    desk.refused(desk.expand(&old, &old, 1), &["nothing to add"]);
    let mut lower = json::read(&new).unwrap();
    lower["normalizer"] = serde_json::json!({ "type": "Lowercase" });
    let lower = desk.write("lower.json", json::bytes(&lower));
    desk.refused(desk.expand(&old, &lower, 1), &["lower.json", "Lowercase", "normalizer"]);
    // The first merge of `new` that `old` lacks is the text of a token of `old`.
    let vocabulary = json::read(&old).unwrap();
    let merges = json::merges(&json::read(&new).unwrap()).unwrap();
    let results = merges.iter().map(|(a, b)| format!("{a}{b}"));
    let text = results.into_iter().find(|piece| vocabulary["model"]["vocab"].get(piece).is_none()).unwrap();
    desk.add_token(&old, 270, &text);
    desk.refused(desk.expand(&old, &new, 1), &["tokenizer.json", &text, "a special token"]);
}

/// Held-out text by file.
#[test]
fn held_out_text_is_counted() {
    let desk = Desk::new();
    let (old, new) = (desk.trained("old", ENGLISH, 270), desk.trained("new", JAPANESE, 280));
    desk.expand(&old, &new, 1).unwrap();
    let files =
        [desk.write("ja.jsonl", "{\"text\": \"東京\"}\n{\"text\": \"の猫\"}\n"), desk.write("en.txt", "the cat")];
    let inputs = Inputs { paths: files.to_vec(), format: None, key: "text".into() };
    let counted = count(&old, &desk.path("out"), &inputs, &|_| {}).unwrap();
    assert_eq!(counted.iter().map(|file| file.characters).collect::<Vec<_>>(), [4, 7]);
    assert!(counted[0].tokens[1] < counted[0].tokens[0], "{counted:?}");
    assert_eq!(counted[1].tokens[0], counted[1].tokens[1]);
}

// -- what a model needs to know of the new pieces --

#[test]
fn new_pieces_are_split_without_a_prefix() {
    let desk = Desk::new();
    let old = proto(&OLD);
    let mut new = old.clone();
    new.pieces.extend(["aab", "\u{2581}ab", "京", "東a"].map(|text| piece(text, -7.0, PieceKind::Normal)));
    desk.write("old/tokenizer.model", old.encode_to_vec());
    desk.write("new/tokenizer.model", new.encode_to_vec());
    let id = |text: &str| old.pieces.iter().position(|p| p.piece.as_deref() == Some(text)).unwrap() as u32;
    let bytes: Vec<u32> = "京".bytes().map(|b| u32::from(b) + 3).collect();
    let wanted = [vec![id("a"), id("ab")], vec![id("\u{2581}a"), id("b")], bytes, vec![id("東"), id("a")]];
    let extension = Extension::open(&desk.path("old"), &desk.path("new")).unwrap();
    assert_eq!((extension.old_size, extension.new_size, &extension.splits[..]), (265, 269, &wanted[..]));
    // A model's folder may have the converted file alone.
    let json = convert::tokenizer_json(&old).unwrap();
    desk.write("json/tokenizer.json", json::bytes(&json));
    assert_eq!(Extension::open(&desk.path("json"), &desk.path("new")).unwrap().splits, wanted);

    new.pieces.swap(260, 261);
    desk.write("new/tokenizer.model", new.encode_to_vec());
    let error = Extension::open(&desk.path("old"), &desk.path("new")).err().unwrap();
    assert_eq!(error.exit_code(), 2);
    for needle in ["new/tokenizer.model", "id 260", "\"a\" instead of \"ab\"", "tokenizer expand"] {
        assert!(error.to_string().contains(needle), "{error}");
    }
    let same = Extension::open(&desk.path("old"), &desk.path("old")).err().unwrap().to_string();
    assert!(same.contains("the same 265 pieces"), "{same}");
}

/// Pieces of byte-level BPE may be a part of a character, which is no text.
#[test]
fn pieces_of_bytes_are_split_too() {
    let desk = Desk::new();
    let (old, new) = (desk.trained("old", ENGLISH, 270), desk.trained("new", JAPANESE, 300));
    desk.expand(&old, &new, 1).unwrap();
    let (old, new) = (Tokenizer::open(&old).unwrap(), desk.out("tokenizer.json"));
    let extension = Extension::open(&desk.path("old"), &desk.path("out")).unwrap();
    let mut partial = 0;
    for (id, split) in (extension.old_size as u32..).zip(&extension.splits) {
        let [whole, parts] = [new.piece(id).unwrap(), split.iter().map(|&id| old.piece(id).unwrap()).collect()];
        assert_eq!(whole, parts);
        partial += usize::from(new.decode(&[id]).unwrap().contains('\u{fffd}'));
    }
    assert!(partial > 0, "the vocabulary should have parts of characters");
}
