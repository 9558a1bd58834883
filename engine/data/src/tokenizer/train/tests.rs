//! Vocabularies in SentencePiece's form: their files, that both of them give the same ids, what bounds a piece, and
//! what is refused.

use std::collections::HashSet;
use std::path::PathBuf;

use super::super::super::text::Inputs;
use super::super::Tokenizer;
use super::super::model::{Kind, ModelProto};
use super::*;

const TEXT: &str = "the cat and the hat, the rat and the bat\n\
    「東京都に住む」東京都民は、東京都の民。\nＡＢＣ１２３ ｱｲｳ ㍿ か\u{3099}\n";

struct Made {
    _folder: tempfile::TempDir,
    at: PathBuf,
    trained: Trained,
}

fn inputs(paths: Vec<PathBuf>) -> Inputs {
    Inputs { paths, format: None, key: "text".into() }
}

fn plan<'a>(inputs: &'a Inputs, output: &'a Path) -> Plan<'a> {
    Plan {
        inputs,
        model_type: ModelType::Bpe,
        segmenter: Segmenter::None,
        normalization: Normalization::None,
        vocab_size: 340,
        sample_bytes: 1 << 20,
        character_coverage: 1.0,
        output,
    }
}

/// Trains on the text with a changed plan.
fn make(change: impl FnOnce(&mut Plan)) -> Made {
    let folder = tempfile::tempdir().unwrap();
    let (text, at) = (folder.path().join("a.txt"), folder.path().join("made"));
    std::fs::write(&text, TEXT.repeat(20)).unwrap();
    let inputs = inputs(vec![text]);
    let mut plan = plan(&inputs, &at);
    change(&mut plan);
    let trained = train(&plan).unwrap();
    Made { _folder: folder, at, trained }
}

fn refusal(change: impl FnOnce(&mut Plan), text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let (file, at) = (folder.path().join("a.txt"), folder.path().join("made"));
    std::fs::write(&file, text).unwrap();
    let inputs = inputs(vec![file]);
    let mut plan = plan(&inputs, &at);
    change(&mut plan);
    let error = train(&plan).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "something was left over");
    error.to_string()
}

impl Made {
    fn model(&self) -> ModelProto {
        ModelProto::parse(&std::fs::read(self.at.join("tokenizer.model")).unwrap()).unwrap()
    }

    /// The tokenizers by both files.
    fn both(&self) -> [Tokenizer; 2] {
        ["tokenizer.model", "tokenizer.json"].map(|name| Tokenizer::open(&self.at.join(name)).unwrap())
    }

    fn assert_agree(&self, texts: &[&str]) {
        let [model, json] = self.both();
        assert_eq!((model.bos(), model.eos(), model.vocab_size()), (Ok(1), Ok(2), json.vocab_size()));
        assert_eq!((json.bos(), json.eos()), (Ok(1), Ok(2)));
        for text in texts {
            let ids = model.encode(text).unwrap();
            assert_eq!(json.encode(text).unwrap(), ids, "{text:?}");
            assert_eq!(json.decode(&ids).unwrap(), model.decode(&ids).unwrap(), "{text:?}");
        }
        let long = texts.join("\n").repeat(400);
        for tokenizer in [model, json] {
            assert!(tokenizer.encode_long(&long).unwrap() == tokenizer.encode(&long).unwrap());
            assert!(tokenizer.cut(b"a line\nand more").is_some(), "no text can be cut");
        }
    }
}

const TEXTS: [&str; 12] = [
    "the cat and the bat",
    " the  hat",
    "",
    " ",
    "東京都民の「猫」、\n\n東京",
    "<s <0x41>",
    "😀 e\u{301} \t\r\n",
    "aaa aaaa ababab",
    "▁the▁cat",
    "ＡＢＣ１２３ ｱｲｳ ㍿　か\u{3099}は\u{309a}",
    "   leading and trailing   ",
    "ﬁ ½ Å Å \u{a0}x ㋿",
];

#[test]
fn a_folder_has_all_files_in_the_form_of_llama_2() {
    let made = make(|_| ());
    let mut names: Vec<_> = made.at.read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"]);
    let model = made.model();
    assert_eq!(made.trained, Trained { size: model.pieces.len(), taken: made.trained.taken, dictionary: None });
    let bytes = TEXT.len() as u64 * 20 - 60;
    assert_eq!(made.trained.taken, Taken { bytes, of: bytes });
    let text = |id: usize| model.pieces[id].piece.clone().unwrap();
    assert_eq!([0, 1, 2, 3, 258].map(text), ["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"]);
    let kinds: Vec<i32> = model.pieces.iter().map(|piece| piece.kind.unwrap()).collect();
    let runs = [(Kind::Unknown, 1), (Kind::Control, 2), (Kind::Byte, 256)];
    let reserved: Vec<i32> = runs.into_iter().flat_map(|(kind, n)| vec![kind as i32; n]).collect();
    assert_eq!(kinds[..259], reserved);
    assert!(kinds[259..].iter().all(|&kind| kind == Kind::Normal as i32));
    for (i, piece) in model.pieces[259..].iter().enumerate() {
        assert_eq!(piece.score, Some(-(i as f32)));
        let characters = piece.piece.as_deref().unwrap().chars().count();
        assert!((1..=16).contains(&characters));
    }
    let single = |id: usize| text(id).chars().count() == 1;
    let first = (259..model.pieces.len()).find(|&id| single(id)).unwrap();
    assert!(first > 280 && (first..model.pieces.len()).all(single), "characters come after the merges");
    made.assert_agree(&TEXTS);
}

#[test]
fn nfkc_is_in_the_training_and_in_both_files() {
    let made = make(|plan| plan.normalization = Normalization::Nfkc);
    made.assert_agree(&TEXTS);
    let [model, _] = made.both();
    let pieces = |text: &str| {
        model.encode(text).unwrap().into_iter().map(|id| model.piece(id).unwrap()).collect::<Vec<_>>().join("")
    };
    assert_eq!(pieces("ＡＢ㍿か\u{3099}　x"), "▁AB株式会社が▁x".replace('x', "<0x78>"));
    let learned: HashSet<String> = made.model().pieces.into_iter().filter_map(|piece| piece.piece).collect();
    assert!(learned.iter().any(|piece| piece.contains('ア')) && !learned.iter().any(|piece| piece.contains('Ａ')));
}

/// Characters below the coverage fall back to bytes, and nothing is joined across them.
#[test]
fn rare_characters_are_spelled_in_bytes() {
    let made = make(|plan| plan.character_coverage = 0.8);
    let [model, json] = made.both();
    let ids = model.encode("ㇿ東").unwrap();
    assert_eq!(json.encode("ㇿ東").unwrap(), ids);
    let text: String = made.model().pieces.into_iter().filter_map(|piece| piece.piece).collect();
    assert!(!text.contains('㍿') && text.contains('東'));
    made.assert_agree(&TEXTS);
}

#[test]
fn a_sample_is_drawn_from_all_of_the_text() {
    let made = make(|plan| (plan.sample_bytes, plan.vocab_size) = (1000, 320));
    let Taken { bytes, of } = made.trained.taken;
    assert!((900..=1000).contains(&bytes) && of > 2000, "{bytes} of {of}");
    made.assert_agree(&TEXTS);
}

#[test]
fn a_byte_level_vocabulary_takes_a_folder_too() {
    let made = make(|plan| (plan.model_type, plan.normalization) = (ModelType::ByteBpe, Normalization::Nfkc));
    let mut names: Vec<_> = made.at.read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]);
    let tokenizer = Tokenizer::open(&made.at).unwrap();
    assert_eq!(tokenizer.decode(&tokenizer.encode("ＡＢ㍿").unwrap()).unwrap(), "AB株式会社");
}

/// With MeCab no piece crosses one of its words; without it some do.
#[test]
fn words_of_mecab_bound_the_pieces() {
    if let Err(e) = mecab::Mecab::find() {
        assert!(e.to_string().contains("there is no program"), "{e}");
        eprintln!("skipped: {e}");
        return;
    }
    let learned =
        |made: &Made| -> HashSet<String> { made.model().pieces.into_iter().filter_map(|piece| piece.piece).collect() };
    let (plain, cut) = (make(|_| ()), make(|plan| plan.segmenter = Segmenter::Mecab));
    // MeCab's words: 「 東京 都 に 住む 」 東京 都民 は 、 東京 都 の 民 。
    let crossing = |piece: &String| ["都に", "に住", "民は", "の民", "都の"].iter().any(|over| piece.contains(over));
    assert!(learned(&plain).iter().any(crossing));
    assert!(!learned(&cut).iter().any(crossing), "{:?}", learned(&cut));
    assert!(learned(&cut).contains("住む") && cut.trained.dictionary.is_some());
    cut.assert_agree(&TEXTS);
    let bytes = make(|plan| (plan.segmenter, plan.model_type) = (Segmenter::Mecab, ModelType::ByteBpe));
    let tokenizer = Tokenizer::open(&bytes.at).unwrap();
    let ids = tokenizer.encode("東京都に住む").unwrap();
    let pieces: Vec<String> = ids.iter().map(|&id| tokenizer.decode(&[id]).unwrap()).collect();
    assert_eq!(pieces, ["東京", "都", "に", "住む"]);
}

#[test]
fn bad_plans_are_refused() {
    let of = |change: fn(&mut Plan)| refusal(change, TEXT);
    let too_small = of(|plan| plan.vocab_size = 280);
    assert!(too_small.starts_with("--vocab-size 280: must be at least 2"), "{too_small}");
    assert!(too_small.contains("characters that make up 100 % of the text; raise it, or lower"), "{too_small}");
    assert!(of(|plan| plan.vocab_size = 258).contains("at least 259"));
    assert!(of(|plan| plan.sample_bytes = 0).contains("--sample-bytes 0: must lie in 1 ..="));
    assert!(of(|plan| plan.character_coverage = 1.1).contains("--character-coverage 1.1: must be more than 0"));
    assert!(of(|plan| plan.output = Path::new("x.json")).contains("name a folder"));
    assert!(of(|plan| plan.output = Path::new("src")).contains("--output src: this directory is not empty"));
    assert!(of(|plan| plan.output = Path::new("Cargo.toml")).contains("does not end in .json"));
    assert!(refusal(|_| (), "").contains("there is no text to train on"));
    assert!(refusal(|_| (), "\n\n\n").contains("there is no text to train on"));
}

/// Google's library and Hugging Face's give real lines the same ids, with and without NFKC.
#[test]
fn both_files_agree_on_real_text() {
    let data = crate::checkout().join("../shared/data");
    let files = ["aozora/ja_books.jsonl", "gutenberg_en/en_books.jsonl"].map(|name| data.join(name));
    if let Some(missing) = files.iter().find(|path| !path.exists()) {
        eprintln!("skipped: there is no {}", missing.display());
        return;
    }
    let mut lines = Vec::new();
    for (file, most) in files.iter().zip([1 << 20, 300_000]) {
        let mut bytes = 0;
        let all = inputs(vec![file.clone()]);
        // An error ends the reading, which is meant here.
        let _ = all.for_each_document(|text| {
            bytes += text.len();
            lines.extend(text.lines().map(String::from));
            if bytes > most { Err(Error::run("enough")) } else { Ok(()) }
        });
    }
    let folder = tempfile::tempdir().unwrap();
    let texts = inputs(files.to_vec());
    for (i, normalization) in [Normalization::None, Normalization::Nfkc].into_iter().enumerate() {
        let at = folder.path().join(i.to_string());
        let (vocab_size, sample_bytes) = (4000, 600_000);
        let plan = Plan { vocab_size, sample_bytes, normalization, character_coverage: 0.9995, ..plan(&texts, &at) };
        assert_eq!(train(&plan).unwrap().size, vocab_size);
        let [model, json] = ["tokenizer.model", "tokenizer.json"].map(|name| Tokenizer::open(&at.join(name)).unwrap());
        let differ = |line: &&String| model.encode(line).unwrap() != json.encode(line).unwrap();
        let differing: Vec<&String> = lines.iter().filter(differ).collect();
        assert!(differing.is_empty(), "{} of {} lines, such as {:?}", differing.len(), lines.len(), differing[0]);
    }
}
