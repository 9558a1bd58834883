//! Control pieces of a SentencePiece model, found where a text spells them out. Google's library reads them as text.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};
use prost::Message;
use sentencepiece::SentencePieceProcessor;

use super::config::DummySpace;
use super::model::{Kind, ModelProto, NormalizerSpec};

/// Finds control pieces, and encodes the text between them.
pub struct Controls {
    search: AhoCorasick,
    ids: Vec<u32>,
    /// Encodes the text after a control piece, where that gets no dummy space; else the model itself does.
    pub rest: Option<SentencePieceProcessor>,
    /// Encodes the beginning of a text, where that gets no dummy space either.
    pub first: Option<SentencePieceProcessor>,
}

/// The fields of a model that make it put no dummy space before a text.
#[derive(Clone, PartialEq, Message)]
struct NoDummySpace {
    #[prost(message, optional, tag = "3")]
    normalizer: Option<NormalizerSpec>,
}

impl Controls {
    /// `bytes` are those of `model`.
    pub fn new(model: &ModelProto, bytes: &[u8], dummy: DummySpace) -> Result<Self, String> {
        let of_kind = |(id, piece): (u32, &super::model::Piece)| {
            let is_control = [Kind::Control as i32, Kind::Unknown as i32].contains(&piece.kind.unwrap_or(1));
            Some((id, piece.piece.clone()?)).filter(|_| is_control)
        };
        let (ids, pieces): (Vec<u32>, Vec<String>) = (0..).zip(&model.pieces).filter_map(of_kind).unzip();
        let search = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(pieces);
        let without = || without_dummy_space(bytes).map(Some);
        let (first, rest) = match dummy {
            DummySpace::EveryPart => (None, None),
            DummySpace::TextOnly => (None, without()?),
            DummySpace::Never => (without()?, without()?),
        };
        Ok(Self { search: search.map_err(|e| e.to_string())?, ids, rest, first })
    }

    /// The text in parts: control pieces with their ids, and the text between them.
    pub fn split(&self, text: &str) -> Vec<(Range<usize>, Option<u32>)> {
        let mut parts = Vec::new();
        let mut at = 0;
        for found in self.search.find_iter(text) {
            parts.push((at..found.start(), None));
            parts.push((found.range(), Some(self.ids[found.pattern()])));
            at = found.end();
        }
        parts.push((at..text.len(), None));
        parts.retain(|(bytes, _)| !bytes.is_empty());
        parts
    }
}

/// The model with `add_dummy_prefix` set to false. In protobuf the fields of a message that follows take the place of
/// the earlier ones, so all others stay as they are.
fn without_dummy_space(bytes: &[u8]) -> Result<SentencePieceProcessor, String> {
    let normalizer = NormalizerSpec { add_dummy_prefix: Some(false), ..Default::default() };
    let changed = [bytes, &NoDummySpace { normalizer: Some(normalizer) }.encode_to_vec()].concat();
    SentencePieceProcessor::from_serialized_proto(&changed).map_err(|e| e.to_string())
}
