//! The identity of a tokenizer, which stays the same if its file is saved again.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::is_json;
use super::model::ModelProto;

/// BLAKE3 hashes of everything that decides the ids of a text. Added tokens are left out: a copy may have more of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Hash of the pieces in the order of their ids.
    pub vocabulary: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merges: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scores: Option<String>,
}

#[derive(Deserialize)]
struct Json {
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    vocab: Vocabulary,
    merges: Option<Vec<Merge>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Vocabulary {
    Ids(HashMap<String, u32>),
    Scores(Vec<(String, f32)>),
}

/// Older files have the two parts of a merge in one string.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Joined(String),
}

impl Identity {
    /// The identity of a tokenizer file with these bytes. The error does not name the file.
    pub fn of(bytes: &[u8]) -> Result<Self, String> {
        if is_json(bytes) { Self::of_json(bytes) } else { Self::of_model(bytes) }
    }

    fn of_model(bytes: &[u8]) -> Result<Self, String> {
        let model = ModelProto::parse(bytes)?;
        let pieces = model.pieces.iter().map(|p| p.piece.as_deref().unwrap_or_default());
        let scores = model.pieces.iter().map(|p| p.score.unwrap_or_default());
        Ok(Self { vocabulary: hash_pieces((0..).zip(pieces)), merges: None, scores: Some(hash_scores(scores)) })
    }

    fn of_json(bytes: &[u8]) -> Result<Self, String> {
        let Json { model } = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let (vocabulary, scores) = match &model.vocab {
            Vocabulary::Scores(pieces) => {
                let scores = hash_scores(pieces.iter().map(|p| p.1));
                (hash_pieces((0..).zip(pieces.iter().map(|p| p.0.as_str()))), Some(scores))
            }
            Vocabulary::Ids(ids) => {
                let mut pieces: Vec<(u32, &str)> = ids.iter().map(|(piece, &id)| (id, piece.as_str())).collect();
                pieces.sort_unstable();
                (hash_pieces(pieces.into_iter()), None)
            }
        };
        Ok(Self { vocabulary, merges: model.merges.as_deref().map(hash_merges), scores })
    }

    /// Whether both give a text the same ids, as far as is known: a `.model` has scores where the `tokenizer.json` that
    /// was converted from it has merges.
    pub fn agrees(&self, other: &Identity) -> bool {
        let differ = |a: &Option<String>, b: &Option<String>| a.as_ref().zip(b.as_ref()).is_some_and(|(a, b)| a != b);
        self.vocabulary == other.vocabulary
            && !differ(&self.merges, &other.merges)
            && !differ(&self.scores, &other.scores)
    }
}

fn hash_pieces<'a>(pieces: impl Iterator<Item = (u32, &'a str)>) -> String {
    let mut hasher = blake3::Hasher::new();
    for (id, piece) in pieces {
        hasher.update(&id.to_le_bytes()).update(&(piece.len() as u64).to_le_bytes()).update(piece.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

fn hash_scores(scores: impl Iterator<Item = f32>) -> String {
    let mut hasher = blake3::Hasher::new();
    scores.for_each(|score| _ = hasher.update(&score.to_bits().to_le_bytes()));
    hasher.finalize().to_hex().to_string()
}

fn hash_merges(merges: &[Merge]) -> String {
    let mut hasher = blake3::Hasher::new();
    for merge in merges {
        match merge {
            Merge::Pair(a, b) => hasher.update(a.as_bytes()).update(b" ").update(b.as_bytes()),
            Merge::Joined(both) => hasher.update(both.as_bytes()),
        };
        hasher.update(b"\n");
    }
    hasher.finalize().to_hex().to_string()
}
