//! The expansion of byte-level BPE: NEW's merges are appended after BASE's, and their results get the ids after BASE's
//! last. The tokens that BASE adds to its vocabulary (Llama 3's 256, Qwen's 26) are written into the vocabulary itself:
//! `tokenizers` would number them after its end otherwise, which moves.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::super::merges::Merge;
use super::{Expand, Expanded, File, Source, files, json, kept, normalizer};
use engine::error::Result;

pub fn expand(request: &Expand, base: (&Source, &Value), new: (&Source, &Value)) -> Result<(Vec<File>, Expanded)> {
    for (source, json) in [base, new] {
        check(source, json)?;
    }
    normalizer::check_json(request, base, new)?;
    let ((base, old), (new, added)) = (base, new);
    let size = base.tokenizer.vocab_size();
    files::check_added(base, size)?;
    let mut json = old.clone();
    write_added_tokens(base, &mut json)?;
    let old_merges = json::merges(old).map_err(|e| base.error(e))?;
    let new_merges = json::merges(added).map_err(|e| new.error(e))?;
    let vocabulary = vocabulary(old);
    let Choice { merges, pieces, known, left_out } =
        choose(base, new, (&vocabulary, &old_merges, new_merges), request.multiple_of)?;
    let vocab = json["model"]["vocab"].as_object_mut().expect("it was checked");
    (size..).zip(&pieces).for_each(|(id, piece)| _ = vocab.insert(piece.clone(), json!(id)));
    json::set_merges(&mut json, old_merges.into_iter().chain(merges).collect());
    if request.nfkc {
        normalizer::set_nfkc(&mut json, [json!({ "type": "NFKC" })]);
    }
    let mut files = vec![("tokenizer.json".to_string(), json::bytes(&json))];
    files.extend(separate(base, &json));
    if request.nfkc {
        files.extend(files::with_own_normalizer(base)?);
    }
    let expanded = Expanded { base: size, size: size + pieces.len(), known, left_out, ..Expanded::default() };
    Ok((files, expanded))
}

fn check(source: &Source, json: &Value) -> Result<()> {
    if !json::is_byte_level(json) {
        return Err(source.error(
            "it is no byte-level BPE; a tokenizer.json that was converted from a SentencePiece model is expanded by \
             its folder with the tokenizer.model",
        ));
    }
    let affixes = ["continuing_subword_prefix", "end_of_word_suffix"];
    match affixes.iter().find(|key| json["model"][**key].as_str().is_some_and(|affix| !affix.is_empty())) {
        Some(key) => Err(source.error(format!("model.{key} = {} is not supported", json["model"][*key]))),
        None if !json["model"]["vocab"].is_object() => Err(source.error("model.vocab is not a map of pieces to ids")),
        None => Ok(()),
    }
}

/// The pieces of `model.vocab`.
fn vocabulary(json: &Value) -> HashSet<String> {
    json["model"]["vocab"].as_object().into_iter().flat_map(|vocab| vocab.keys().cloned()).collect()
}

/// Writes the added tokens into `model.vocab` under the ids that they have.
fn write_added_tokens(base: &Source, json: &mut Value) -> Result<()> {
    let tokens = json["added_tokens"].as_array().cloned().unwrap_or_default();
    let vocab = json["model"]["vocab"].as_object_mut().expect("it was checked");
    for token in tokens {
        let (content, id) = (token["content"].as_str().unwrap_or_default(), token["id"].as_u64().unwrap_or(u64::MAX));
        let has = u32::try_from(id).ok().and_then(|id| base.tokenizer.piece(id));
        if has.as_deref() != Some(content) {
            return Err(base.error(format!(
                "its token {content:?} should have the id {id} but gets another one when the file is read; save the \
                 tokenizer again with transformers"
            )));
        }
        vocab.insert(content.to_string(), json!(id));
    }
    Ok(())
}

struct Choice {
    merges: Vec<Merge>,
    /// The new pieces in the order of their ids.
    pieces: Vec<String>,
    known: usize,
    left_out: usize,
}

/// The merges to append, each with a result that is a new piece, or one of BASE's by another way.
fn choose(
    base: &Source,
    new: &Source,
    (vocabulary, old_merges, new_merges): (&HashSet<String>, &[Merge], Vec<Merge>),
    multiple_of: usize,
) -> Result<Choice> {
    let old: HashSet<&Merge> = old_merges.iter().collect();
    let mut index: HashMap<String, usize> = HashMap::new();
    let (mut merges, mut known) = (Vec::new(), HashSet::new());
    for merge in new_merges {
        let union = [merge.0.as_str(), &merge.1].concat();
        if vocabulary.contains(&union) {
            known.insert(union.clone());
        } else if let Some(kind) = added_as(base, &union) {
            let base = base.path().display();
            return Err(
                new.error(format!("its piece {union:?} is {kind} of {base}; train --add again without that text"))
            );
        }
        if old.contains(&merge) {
            continue;
        }
        let absent =
            [&merge.0, &merge.1].into_iter().find(|part| !vocabulary.contains(*part) && !index.contains_key(*part));
        if let Some(part) = absent {
            return Err(
                new.error(format!("its merge of {:?} and {:?} has a part {part:?} that is no piece", merge.0, merge.1))
            );
        }
        if !vocabulary.contains(&union) {
            let next = index.len();
            index.entry(union).or_insert(next);
        }
        // The number of new pieces after this merge.
        merges.push((merge, index.len()));
    }
    let kept = kept(base, index.len(), multiple_of)?;
    let left_out = index.len() - kept;
    let merges = merges.into_iter().take_while(|(_, pieces)| *pieces <= kept).map(|(merge, _)| merge).collect();
    let mut pieces: Vec<(usize, String)> = index.into_iter().map(|(piece, i)| (i, piece)).collect();
    pieces.sort_unstable();
    let pieces = pieces.into_iter().take(kept).map(|(_, piece)| piece).collect();
    Ok(Choice { merges, pieces, known: known.len(), left_out })
}

/// How BASE adds a token to its vocabulary, if it does.
fn added_as(base: &Source, token: &str) -> Option<&'static str> {
    let super::Kind::Json(json) = &base.kind else { return None };
    let token = json["added_tokens"].as_array()?.iter().find(|added| added["content"] == token)?;
    Some(if token["special"] == true { "a special token" } else { "an added token" })
}

/// GPT-2's `vocab.json` and `merges.txt`, where BASE has them.
fn separate(base: &Source, json: &Value) -> Vec<File> {
    let mut files = Vec::new();
    if base.beside("vocab.json").is_some() {
        files.push(("vocab.json".to_string(), json::bytes(&json["model"]["vocab"])));
    }
    if base.beside("merges.txt").is_some() {
        let merges = json::merges(json).expect("they were just written");
        let lines = merges.iter().map(|(left, right)| format!("{left} {right}\n"));
        let text: String = std::iter::once("#version: 0.2\n".to_string()).chain(lines).collect();
        files.push(("merges.txt".to_string(), text.into_bytes()));
    }
    files
}
