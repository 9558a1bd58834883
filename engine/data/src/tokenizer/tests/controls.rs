//! Control tokens that a text spells out, and the bytes of a text that each token holds.

use proptest::prelude::*;
use prost::Message;

use super::super::super::checkout;
use super::super::*;
use super::{small, small_model};

/// A tokenizer beside which `config` is `tokenizer_config.json`.
fn open_with(name: &str, bytes: &[u8], config: &str, controls: ControlTokens) -> Result<Tokenizer> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(name), bytes).unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    Tokenizer::open_with(&folder.path().join(name), controls)
}

fn pieces(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode(text).unwrap();
    let spans = tokenizer.encode_spans(text).unwrap();
    assert_eq!((&ids, spans.ids.len()), (&spans.ids, spans.bytes.len()));
    ids.iter().map(|&id| tokenizer.piece(id).unwrap()).collect()
}

/// Text that spells out a control token stays text unless that is asked for, in both kinds of tokenizers.
#[test]
fn control_tokens_in_a_text() {
    let model = small_model().encode_to_vec();
    let json = std::fs::read(checkout().join("tests/golden/chats/tokenizer.json")).unwrap();
    let of = |name: &str, bytes: &[u8], controls| pieces(&open_with(name, bytes, "{}", controls).unwrap(), "a</s>b");
    let [as_in_python, text, parsed] = [ControlTokens::AsInPython, ControlTokens::Text, ControlTokens::Parsed];
    let letters = ["\u{2581}a", "<0x3C>", "<0x2F>", "<0x73>", "<0x3E>", "b"];
    assert_eq!(of("a.model", &model, as_in_python), letters);
    assert_eq!(of("a.model", &model, text), letters);
    assert_eq!(of("a.model", &model, parsed), ["\u{2581}a", "</s>", "b"]);
    assert_eq!(of("a.json", &json, as_in_python), ["a", "</s>", "b"]);
    assert_eq!(of("a.json", &json, text), ["a", "<", "/", "s", ">", "b"]);
    assert_eq!(of("a.json", &json, parsed), ["a", "</s>", "b"]);
}

fn control_token(id: u32, text: &str) -> serde_json::Value {
    serde_json::json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true})
}

/// A `tokenizer.json` with the control tokens `<unk>` and `</s>` and nothing around its model.
fn bare(model: serde_json::Value) -> String {
    let json = serde_json::json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "added_tokens": [control_token(0, "<unk>"), control_token(1, "</s>")], "model": model});
    json.to_string()
}

/// A Unigram model has its control tokens among its pieces, with a score of 0: the library finds them as pieces.
#[test]
fn a_unigram_model_makes_no_control_tokens_of_text() {
    let vocab = [("<unk>", 0.0), ("</s>", 0.0), ("a", -3.0), ("<", -4.0), ("/", -4.0), ("s", -4.0), (">", -4.0)];
    let json = bare(serde_json::json!({"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": false}));
    let of = |controls, text: &str| pieces(&open_with("a.json", json.as_bytes(), "{}", controls).unwrap(), text);
    assert_eq!(of(ControlTokens::Parsed, "a</s>a"), ["a", "</s>", "a"]);
    assert_eq!(of(ControlTokens::Text, "a</s>a"), ["a", "<", "/", "s", ">", "a"]);
    assert_eq!(of(ControlTokens::Text, "猫a"), ["<unk>", "a"]);
}

/// A model without bytes has a control token for what it does not know, letters of control tokens among it.
#[test]
fn unknown_characters_are_no_letters_of_a_control_token() {
    let vocab = serde_json::json!({"<unk>": 0, "</s>": 1, "a": 2, "<": 3, ">": 4});
    let json = bare(serde_json::json!({"type": "BPE", "unk_token": "<unk>", "vocab": vocab, "merges": []}));
    let tokenizer = open_with("a.json", json.as_bytes(), "{}", ControlTokens::Text).unwrap();
    assert_eq!(pieces(&tokenizer, "a猫</s>"), ["a", "<unk>", "<", "<unk>", "<unk>", ">"]);
}

/// The dummy space of a text with control tokens is where `transformers` puts it.
#[test]
fn the_dummy_space_follows_the_configuration() {
    let model = small_model().encode_to_vec();
    let of =
        |config: &str, text: &str| pieces(&open_with("a.model", &model, config, ControlTokens::Chat).unwrap(), text);
    assert_eq!(of("{}", "ab</s>ab"), ["\u{2581}ab", "</s>", "ab"]);
    assert_eq!(of("{}", "</s>ab"), ["</s>", "ab"]);
    assert_eq!(of(r#"{"legacy": true}"#, "</s>ab</s>"), ["</s>", "\u{2581}ab", "</s>"]);
    assert_eq!(of(r#"{"add_prefix_space": false}"#, "ab</s>ab"), ["ab", "</s>", "ab"]);
    let added = r#"{"added_tokens_decoder": {"267": {"content": "<|im_end|>"}}}"#;
    let error = open_with("a.model", &model, added, ControlTokens::Chat).err().unwrap().to_string();
    assert!(error.contains("adds the token \"<|im_end|>\" with the id 267"), "{error}");
}

/// Every byte of a text is a token's, in both kinds, also where a character is several tokens.
#[test]
fn tokens_have_their_bytes() {
    let text = "ab ああ猫\n";
    let spans = small().encode_spans(text).unwrap();
    let bytes: Vec<_> = spans.bytes.iter().map(|bytes| &text[bytes.clone()]).collect();
    assert_eq!(bytes, ["ab", " ", "ああ", "猫", "猫", "猫", "\n"]);
    let alone = small().encode_spans("猫").unwrap();
    assert_eq!(alone.bytes, [0..0, 0..3, 0..3, 0..3], "the dummy space has no byte");
    let json = Tokenizer::open(&checkout().join("tests/golden/chats/tokenizer.json")).unwrap();
    let text = " the  猫\n\n</s> a";
    let spans = json.encode_spans(text).unwrap();
    assert_eq!(spans.ids, json.encode(text).unwrap());
    let of_cat = spans.bytes.iter().filter(|bytes| &text[(*bytes).clone()] == "猫").count();
    assert_eq!(of_cat, 3);
    let mut covered = vec![false; text.len()];
    spans.bytes.iter().for_each(|bytes| covered[bytes.clone()].fill(true));
    assert_eq!(covered, vec![true; text.len()]);
}

#[test]
fn tokens_are_found_by_their_spelling() {
    let tokenizer = small();
    assert_eq!((tokenizer.id("</s>"), tokenizer.is_control(2), tokenizer.is_control(3)), (Ok(2), true, false));
    assert!(tokenizer.id("<|eot_id|>").unwrap_err().contains("its control tokens are <s>, </s>"));
    assert_eq!(tokenizer.decode_with_controls(&[1, 261, 2]).unwrap(), "<s>ab</s>");
}

proptest! {
    /// A text with control tokens may be cut where one without may.
    #[test]
    fn a_cut_beside_control_tokens_changes_nothing(text in "([ab あ\n]{0,6}(<s>|</s>)?){0,6}", end in 0usize..60) {
        let tokenizer = &*PARSING;
        let end = end.min(text.len());
        if let Some(at) = tokenizer.cut(&text.as_bytes()[..end]) {
            let mut ids = tokenizer.encode(&text[..at]).unwrap();
            ids.extend(tokenizer.kind.encode_rest(&text[at..]).unwrap());
            prop_assert_eq!(ids, tokenizer.encode(&text).unwrap(), "{:?} cut at {}", text, at);
        }
    }
}

static PARSING: std::sync::LazyLock<Tokenizer> = std::sync::LazyLock::new(|| {
    open_with("a.model", &small_model().encode_to_vec(), "{}", ControlTokens::Parsed).unwrap()
});
