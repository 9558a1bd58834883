//! A small SentencePiece model and a small tokenizer.json, both made here; damaged ones; cuts.

use proptest::prelude::*;
use prost::Message;

use super::super::checkout;
use super::super::text::Inputs;
use super::model::{BPE, Kind as PieceKind, ModelProto, NormalizerSpec, Piece, TrainerSpec};
use super::*;

mod controls;

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
        normalizer: Some(NormalizerSpec { remove_extra_whitespaces: Some(false), ..Default::default() }),
        denormalizer: None,
    }
}

fn open(name: &str, bytes: &[u8]) -> Result<Tokenizer> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    Tokenizer::open(&path)
}

fn inputs(path: PathBuf) -> Inputs {
    Inputs { paths: vec![path], format: None, key: "text".into() }
}

fn small() -> Tokenizer {
    open("small.model", &small_model().encode_to_vec()).unwrap()
}

/// Trains a byte-level vocabulary; returns its size.
fn train_json(text: PathBuf, vocab_size: usize, output: &Path) -> Result<usize> {
    let plan = train::Plan {
        inputs: &inputs(text),
        model_type: train::ModelType::ByteBpe,
        segmenter: train::Segmenter::None,
        normalization: train::Normalization::None,
        vocab_size,
        sample_bytes: 1 << 20,
        character_coverage: 1.0,
        output,
    };
    train::train(&plan).map(|trained| trained.size)
}

/// A vocabulary trained on a little text.
fn trained() -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let (text, json) = (folder.path().join("a.txt"), folder.path().join("tokenizer.json"));
    std::fs::write(&text, "the cat and the hat\nthe rat and the bat\nああ、猫\n\n\n  the end.\n\n".repeat(20)).unwrap();
    let size = train_json(text, 280, &json).unwrap();
    assert_eq!(size, 280);
    let first = std::fs::read(&json).unwrap();
    std::fs::write(
        folder.path().join("b.txt"),
        "the cat and the hat\nthe rat and the bat\nああ、猫\n\n\n  the end.\n\n".repeat(20),
    )
    .unwrap();
    train_json(folder.path().join("b.txt"), 280, &json).unwrap();
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
    assert_eq!((tokenizer.vocab_size(), tokenizer.bos(), tokenizer.eos()), (267, Ok(1), Ok(2)));
    assert_eq!(tokenizer.encode("").unwrap(), [0u32; 0]);
    assert_eq!(tokenizer.decode(&[1, 2]).unwrap(), "");
    assert!(tokenizer.decode(&[267]).unwrap_err().to_string().contains("id 267 is outside its vocabulary of 267"));
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
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.piece(0).as_deref()), (Ok(1), Ok(2), Some("<unk>")));
}

#[test]
fn fixtures_open_if_they_are_there() {
    let folder = checkout().join("tests/golden/tokenizers");
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
    fn a_cut_changes_nothing(text in "[ab \u{2581}猫あ\u{3000}'.\t\n]{0,60}", end in 0usize..200) {
        for tokenizer in [&*SMALL, &*TRAINED] {
            let end = end.min(text.len());
            if let Some(at) = tokenizer.cut(&text.as_bytes()[..end]) {
                prop_assert!(at < end);
                let mut ids = tokenizer.encode(&text[..at]).unwrap();
                ids.extend(tokenizer.kind.encode_rest(&text[at..]).unwrap());
                prop_assert_eq!(ids, tokenizer.encode(&text).unwrap(), "{:?} cut at {}", text, at);
            }
            // The third time all fragments are known.
            for _ in 0..3 {
                prop_assert_eq!(tokenizer.encode_long(&text).unwrap(), tokenizer.encode(&text).unwrap(), "{:?}", text);
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
            let first = tokenizer.segment(&text, size).unwrap();
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
    let suffix = |m: &mut ModelProto| m.trainer.as_mut().unwrap().treat_whitespace_as_suffix = Some(true);
    assert_eq!(cut(&suffix), None, "the library's own space stands behind every text");
    let without_space = |m: &mut ModelProto| m.normalizer.as_mut().unwrap().add_dummy_prefix = Some(false);
    assert_eq!(cut(&|m| (suffix(m), without_space(m)).0), Some(2));
    assert_eq!(cut(&|m| m.pieces.push(piece("bb", -9.0, PieceKind::Unused))), None);
}

/// With every option of SentencePiece's trainer, the parts of a long text have the ids of the whole text.
#[test]
fn long_texts_have_the_ids_of_the_whole_with_every_option() {
    let text = "ab ba\nあ\n\n 猫\n".repeat(4000);
    let changes: [&dyn Fn(&mut ModelProto); 7] = [
        &|_| {},
        &|m| m.trainer.as_mut().unwrap().treat_whitespace_as_suffix = Some(true),
        &|m| m.normalizer.as_mut().unwrap().add_dummy_prefix = Some(false),
        &|m| m.normalizer.as_mut().unwrap().remove_extra_whitespaces = Some(true),
        &|m| m.trainer.as_mut().unwrap().model_type = Some(1),
        &|m| m.pieces.push(piece("\n", 0.0, PieceKind::UserDefined)),
        &|m| m.pieces.push(piece("\n\n", 0.0, PieceKind::UserDefined)),
    ];
    for (i, change) in changes.iter().enumerate() {
        let mut model = small_model();
        change(&mut model);
        let tokenizer = open("m.model", &model.encode_to_vec()).unwrap();
        assert_eq!(tokenizer.encode_long(&text).unwrap(), tokenizer.encode(&text).unwrap(), "option {i}");
    }
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
    assert!(refusal(&|m| m.pieces[0].kind = None).contains("0 pieces have the type \"unknown\""));
    assert!(refusal(&|m| m.pieces[5].kind = None).contains("byte_fallback = true, but 255 pieces are bytes"));
    let twice = |m: &mut ModelProto| m.pieces.push(m.pieces[260].clone());
    assert!(refusal(&twice).contains("is there twice, as piece 260 and as piece "));
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

/// This holds also for parts of the file that the engine does not read.
#[test]
fn a_byte_that_is_no_utf8_is_refused() {
    let json = std::fs::read(TRAINED_JSON.as_path()).unwrap();
    let decoder = json.windows(9).position(|text| text == b"\"decoder\"").expect("the golden file has a decoder");
    let kind = decoder + json[decoder..].windows(6).position(|text| text == b"\"type\"").unwrap();
    let mut broken = json.clone();
    broken[kind + 2] = 128;
    assert!(open("t.json", &broken).err().unwrap().to_string().contains("not JSON"));
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

static TRAINED_JSON: std::sync::LazyLock<PathBuf> =
    std::sync::LazyLock::new(|| checkout().join("tests/golden/tokenizers/tokenizer.json"));

#[test]
fn what_cannot_be_trained_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (text, json) = (folder.path().join("a.txt"), folder.path().join("out/tokenizer.json"));
    std::fs::write(&text, "").unwrap();
    for (size, message) in [(280, "no text to train on"), (100, "at least 259"), (99_999_999_999, "at most 16777216")] {
        let error = train_json(text.clone(), size, &json).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(message), "{error}");
    }
    assert!(!json.exists());
    std::fs::write(&text, "some text").unwrap();
    train_json(text, 280, &json).unwrap();
    let mut names: Vec<_> = json.parent().unwrap().read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["tokenizer.json", "tokenizer_config.json"]);
}

/// `tokenizer.json` with the merges of the golden one, this splitter, and these added tokens.
fn with_splitter(splitter: &serde_json::Value, normalizer: &str, added: serde_json::Value) -> Tokenizer {
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(TRAINED_JSON.as_path()).unwrap()).unwrap();
    json["pre_tokenizer"] = splitter.clone();
    json["normalizer"] = serde_json::from_str(normalizer).unwrap();
    json["added_tokens"] = added;
    open("tokenizer.json", json.to_string().as_bytes()).unwrap()
}

/// Splitters of models that are in use, their normalizer, and where they may be cut: before a space, before a newline,
/// after a newline, before a mark.
fn splitters() -> Vec<(&'static str, serde_json::Value, &'static str, [bool; 4])> {
    use serde_json::json;
    let split = |pattern: &str| {
        let pattern = json!({ "Regex": pattern });
        json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false})
    };
    let bytes =
        |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let then_bytes = |mut splitters: Vec<serde_json::Value>| {
        splitters.push(bytes(false));
        json!({"type": "Sequence", "pretokenizers": splitters})
    };
    let llama3 = concat!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|",
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    let gpt4o = concat!(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    let deepseek = vec![
        split(r"\p{N}{1,3}"),
        split("[一-龥぀-ゟ゠-ヿ]+"),
        split(concat!(
            r"[!\x22#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|",
            r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )),
    ];
    let digits = json!({"type": "Digits", "individual_digits": true});
    let sequence = json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]});
    let mut prefixed = bytes(true);
    prefixed["add_prefix_space"] = true.into();
    let (none, nfc) = ("null", "{\"type\": \"NFC\"}");
    let look_behind = split(r"(?<=a)b|\s+(?!\S)|\s+");
    vec![
        ("GPT-2", bytes(true), none, [true, true, false, true]),
        ("GPT-2 with a space before every text", prefixed, none, [true, false, false, false]),
        ("StarCoder", sequence, none, [true, true, false, true]),
        ("Llama 3", then_bytes(vec![split(llama3)]), none, [true, false, true, true]),
        ("Qwen", then_bytes(vec![split(&llama3.replace("{1,3}", ""))]), nfc, [true, false, true, true]),
        ("GPT-4o", then_bytes(vec![split(gpt4o)]), none, [true, false, true, true]),
        ("DeepSeek", then_bytes(deepseek), none, [true, false, true, true]),
        ("no words", bytes(false), none, [false; 4]),
        ("words that hold spaces", then_bytes(vec![split(r"\w+ \w+|\s+(?!\S)|\s+")]), none, [false, true, false, true]),
        ("words that look around", then_bytes(vec![look_behind]), none, [false; 4]),
        ("another normal form", bytes(true), "{\"type\": \"NFKC\"}", [false; 4]),
    ]
}

#[test]
fn the_rules_of_a_splitter_say_where_to_cut() {
    for (name, splitter, normalizer, [before_space, before_newline, after_newline, before_mark]) in splitters() {
        let json = serde_json::json!({
            "normalizer": serde_json::from_str::<serde_json::Value>(normalizer).unwrap(),
            "pre_tokenizer": splitter, "model": {"type": "BPE", "dropout": null},
        });
        let rules = serde_json::from_value(json).unwrap();
        let cuts = cuts::Cuts { before_space, before_newline, after_newline, before_mark };
        assert_eq!(cuts::Cuts::of(&rules), cuts, "{name}");
    }
}

/// Added tokens that would reach across a cut take the cut away.
#[test]
fn added_tokens_limit_the_cuts() {
    let cuts = |token: serde_json::Value| {
        let json = serde_json::json!({
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
            "model": {"type": "BPE"}, "added_tokens": [token],
        });
        let cuts = cuts::Cuts::of(&serde_json::from_value(json).unwrap());
        [cuts.before_space, cuts.before_newline, cuts.before_mark]
    };
    assert_eq!(cuts(serde_json::json!({"content": "<x>", "lstrip": true})), [true, true, true]);
    assert_eq!(cuts(serde_json::json!({"content": "  "})), [true, true, true]);
    assert_eq!(cuts(serde_json::json!({"content": "<x>", "rstrip": true})), [false, false, true]);
    assert_eq!(cuts(serde_json::json!({"content": "a b"})), [false, true, true]);
    assert_eq!(cuts(serde_json::json!({"content": "a\n"})), [true, false, true]);
    assert_eq!(cuts(serde_json::json!({"content": "猫。"})), [true, true, false]);
    assert_eq!(cuts(serde_json::json!({"content": ".x", "single_word": true})), [true, true, false]);
}

static SPLITTERS: std::sync::LazyLock<Vec<(&'static str, Tokenizer)>> = std::sync::LazyLock::new(|| {
    let token = |id: u32, content: &str, lstrip: bool| {
        serde_json::json!({
            "id": id, "content": content, "lstrip": lstrip, "rstrip": false,
            "special": id == 0, "single_word": false, "normalized": false,
        })
    };
    let added = serde_json::json!([token(0, "<s>", false), token(9000, "  ", false), token(9001, "<x>", true)]);
    let cut = splitters().into_iter().filter(|(.., cuts)| cuts.contains(&true));
    let mut all = Vec::new();
    for (name, splitter, normalizer, _) in cut {
        all.push((name, with_splitter(&splitter, normalizer, serde_json::json!([added[0]]))));
        all.push((name, with_splitter(&splitter, normalizer, added.clone())));
    }
    all.push(("Llama 2", open("tokenizer.json", llama2_json().to_string().as_bytes()).unwrap()));
    all
});

/// A file like those converted from Llama 2's SentencePiece model: no words, and a space before every text.
fn llama2_json() -> serde_json::Value {
    use serde_json::json;
    let mut pieces: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    pieces.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    pieces.extend(["\u{2581}", "a", "b", "\u{2581}a", "ab", "\u{2581}ab", "あ", "ああ"].map(String::from));
    let vocab: serde_json::Map<_, _> = pieces.iter().zip(0..).map(|(piece, id)| (piece.clone(), json!(id))).collect();
    let merges = [["\u{2581}", "a"], ["a", "b"], ["\u{2581}", "ab"], ["あ", "あ"]];
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": merges},
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    /// Checks every place where a splitter may be cut, not only the last one.
    #[test]
    fn no_splitter_minds_its_cuts(
        before in "[ab1 .,'/#猫あ。」\u{3000}\u{301}\u{a0}\r\t\n\n  ]{0,40}(<x>|<s>)?",
        after in "[ab1 .,'/#猫あ。」\n\n  ]{0,20}",
    ) {
        let text = before + &after;
        for (name, tokenizer) in SPLITTERS.iter() {
            let whole = tokenizer.encode(&text).unwrap();
            for end in 1..=text.len() {
                let Some(at) = tokenizer.cut(&text.as_bytes()[..end]) else { continue };
                let mut ids = tokenizer.encode(&text[..at]).unwrap();
                ids.extend(tokenizer.kind.encode_rest(&text[at..]).unwrap());
                prop_assert_eq!(&ids, &whole, "{}: {:?} cut at {}", name, text, at);
            }
            for _ in 0..3 {
                prop_assert_eq!(&tokenizer.encode_long(&text).unwrap(), &whole, "{}: {:?}", name, text);
            }
        }
    }
}

/// Real texts are cut often enough to be encoded in parts.
#[test]
fn texts_of_both_scripts_are_cut() {
    let text = "The cat, and the hat.\nああ、猫が。\n「猫」\n".repeat(3000);
    for (name, tokenizer) in SPLITTERS.iter().filter(|(name, _)| *name != "words that hold spaces") {
        let first = tokenizer.segment(&text, 4096).unwrap();
        assert!(first < 8192, "{name}: {first}");
        assert_eq!(tokenizer.encode_long(&text).unwrap(), tokenizer.encode(&text).unwrap(), "{name}");
    }
}

/// The files beside a tokenizer decide BOS and EOS, and an ordinary piece with a usual name is neither.
#[test]
fn special_tokens_are_not_invented() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let mut json = llama2_json();
    json["added_tokens"] = serde_json::json!([]);
    std::fs::write(&path, json.to_string()).unwrap();
    let bos = || Tokenizer::open(&path).unwrap().bos();
    assert!(bos().unwrap_err().contains("none of its special tokens is <s>"));
    std::fs::write(&path, llama2_json().to_string()).unwrap();
    assert_eq!(bos(), Ok(1));
    for (config, expected) in [
        (r#"{"bos_token": null}"#, Err("tokenizer_config.json beside it has \"bos_token\": null")),
        (r#"{"bos_token": "<none>"}"#, Err("tokenizer_config.json beside it has \"bos_token\": \"<none>\"")),
        (r#"{"bos_token": {"content": "</s>"}}"#, Ok(2)),
        ("{}", Ok(1)),
    ] {
        std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        assert_eq!(bos(), expected.map_err(String::from), "{config}");
    }
    std::fs::write(folder.path().join("special_tokens_map.json"), r#"{"bos_token": "</s>"}"#).unwrap();
    assert_eq!(bos(), Ok(2));
}

#[test]
fn a_folder_gives_the_file_that_is_good() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Tokenizer::open(folder.path());
    assert!(open().err().unwrap().to_string().contains("has no tokenizer.model and no tokenizer.json"));
    std::fs::write(folder.path().join("tokenizer.model"), "AA== 0\nAQ== 1\n").unwrap();
    assert!(open().err().unwrap().to_string().contains("this is tiktoken's format"));
    std::fs::write(folder.path().join("tokenizer.json"), llama2_json().to_string()).unwrap();
    assert!(open().unwrap().path().ends_with("tokenizer.json"));
    std::fs::write(folder.path().join("tokenizer.model"), small_model().encode_to_vec()).unwrap();
    assert!(open().unwrap().path().ends_with("tokenizer.model"));
}

/// A file that was saved again is the same tokenizer; a different one with a vocabulary of the same size is not.
#[test]
fn identities_survive_another_spelling() {
    let of = |json: &serde_json::Value| Identity::of(json.to_string().as_bytes()).unwrap();
    let json = llama2_json();
    let mut respelled = json.clone();
    let merges = json["model"]["merges"].as_array().unwrap();
    let joined = merges.iter().map(|m| format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap()));
    respelled["model"]["merges"] = joined.collect();
    assert!(of(&json).agrees(&of(&respelled)));
    let mut other = json.clone();
    other["model"]["merges"].as_array_mut().unwrap().reverse();
    assert!(!of(&json).agrees(&of(&other)));
    let model = Identity::of(&small_model().encode_to_vec()).unwrap();
    let mut changed = small_model();
    changed.pieces.swap(260, 261);
    assert!(!model.agrees(&Identity::of(&changed.encode_to_vec()).unwrap()));
    assert!(!model.agrees(&of(&json)), "another vocabulary");
}
