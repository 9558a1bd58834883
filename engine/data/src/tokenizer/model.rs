//! SentencePiece's `.model` file as protobuf (sentencepiece_model.proto), read before the C++ library sees it:
//! the library trusts a model's strings and its normalization trie, so what could make it read outside its memory
//! or hand back text that is not UTF-8 is refused here.

use std::collections::HashMap;

use prost::Message;

/// SentencePiece's stand-in for a space.
pub const ESCAPE: char = '\u{2581}';

use super::nfkc;

/// The fields that are checked, asked for, or written; the others pass through to the library unread.
#[derive(Clone, PartialEq, Message)]
pub struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pub pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    pub trainer: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    pub normalizer: Option<NormalizerSpec>,
    #[prost(message, optional, tag = "5")]
    pub denormalizer: Option<NormalizerSpec>,
}

/// prost refuses a `piece` that is not UTF-8.
#[derive(Clone, PartialEq, Message)]
pub struct Piece {
    #[prost(string, optional, tag = "1")]
    pub piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    pub score: Option<f32>,
    #[prost(enumeration = "Kind", optional, tag = "3")]
    pub kind: Option<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

#[derive(Clone, PartialEq, Message)]
pub struct TrainerSpec {
    #[prost(int32, optional, tag = "3")]
    pub model_type: Option<i32>,
    #[prost(int32, optional, tag = "4")]
    pub vocab_size: Option<i32>,
    #[prost(float, optional, tag = "10")]
    pub character_coverage: Option<f32>,
    #[prost(int32, optional, tag = "20")]
    pub max_sentencepiece_length: Option<i32>,
    #[prost(bool, optional, tag = "21")]
    pub split_by_unicode_script: Option<bool>,
    #[prost(bool, optional, tag = "24")]
    pub treat_whitespace_as_suffix: Option<bool>,
    #[prost(bool, optional, tag = "25")]
    pub split_digits: Option<bool>,
    #[prost(bool, optional, tag = "26")]
    pub allow_whitespace_only_pieces: Option<bool>,
    #[prost(bool, optional, tag = "35")]
    pub byte_fallback: Option<bool>,
    #[prost(string, optional, tag = "44")]
    pub unk_surface: Option<String>,
    #[prost(string, optional, tag = "45")]
    pub unk_piece: Option<String>,
    #[prost(string, optional, tag = "46")]
    pub bos_piece: Option<String>,
    #[prost(string, optional, tag = "47")]
    pub eos_piece: Option<String>,
    #[prost(string, optional, tag = "48")]
    pub pad_piece: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct NormalizerSpec {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    pub add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    pub remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    pub escape_whitespaces: Option<bool>,
}

impl NormalizerSpec {
    /// The name of its rule, `identity` for one that changes nothing.
    pub fn rule(&self) -> &str {
        match self.charsmap.as_deref() {
            None | Some([]) => "identity",
            Some(_) => self.name.as_deref().filter(|name| !name.is_empty()).unwrap_or("a custom one"),
        }
    }
}

/// `model_type` of byte-pair encoding.
pub const BPE: i32 = 2;
const UNIGRAM: i32 = 1;

impl ModelProto {
    /// Parses and checks. The error does not name the file.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let model = Self::decode(bytes).map_err(|e| format!("not a SentencePiece model: {e}"))?;
        if model.pieces.is_empty() {
            return Err("not a SentencePiece model: it has no pieces".into());
        }
        model.check_pieces()?;
        let model_type = model.model_type();
        if !(UNIGRAM..=4).contains(&model_type) {
            return Err(format!("model_type {model_type} is not known; 1 to 4 are"));
        }
        for (name, spec) in [("normalizer", &model.normalizer), ("denormalizer", &model.denormalizer)] {
            let charsmap = spec.as_ref().and_then(|s| s.charsmap.as_deref()).unwrap_or_default();
            check_charsmap(charsmap).map_err(|e| format!("{name}: {e}"))?;
        }
        Ok(model)
    }

    pub fn model_type(&self) -> i32 {
        self.trainer.as_ref().and_then(|t| t.model_type).unwrap_or(UNIGRAM)
    }

    /// The library refuses most of it too, but without naming the piece.
    fn check_pieces(&self) -> Result<(), String> {
        let (mut unknown, mut bytes, mut seen) = (0, 0, HashMap::new());
        for (id, piece) in self.pieces.iter().enumerate() {
            let text = piece.piece.as_deref().unwrap_or_default();
            if text.is_empty() || text.contains('\0') {
                return Err(format!("piece {id} is empty or has a NUL byte"));
            }
            if !piece.score.unwrap_or(0.0).is_finite() {
                return Err(format!("piece {id} has the score {}", piece.score.unwrap_or(0.0)));
            }
            if Kind::try_from(piece.kind.unwrap_or(1)).is_err() {
                return Err(format!("piece {id} has the unknown type {}", piece.kind.unwrap_or(1)));
            }
            // Control pieces, bytes and the unknown piece may be spelled as a piece of text is.
            let is_text = matches!(piece.kind(), Kind::Normal | Kind::UserDefined | Kind::Unused);
            if let Some(other) = seen.insert((text, is_text), id) {
                return Err(format!("{text:?} is there twice, as piece {other} and as piece {id}; train it again"));
            }
            unknown += usize::from(piece.kind() == Kind::Unknown);
            bytes += usize::from(piece.kind() == Kind::Byte);
        }
        let falls_back = self.trainer.as_ref().and_then(|trainer| trainer.byte_fallback) == Some(true);
        if bytes != if falls_back { 256 } else { 0 } {
            return Err(format!("byte_fallback = {falls_back}, but {bytes} pieces are bytes; train it again"));
        }
        if unknown != 1 {
            return Err(format!("{unknown} pieces have the type \"unknown\"; there must be one"));
        }
        Ok(())
    }

    /// Whether every newline is a piece of its own, and the pieces on one side of it do not depend on the other side.
    /// This holds for byte-pair encoding if no longer piece holds a newline, the text is not normalized or only by
    /// NFKC, in which a newline joins nothing, and the library puts its dummy space before a text and not after it.
    pub fn keeps_newlines_apart(&self) -> bool {
        let longer = |p: &Piece| p.piece.as_deref().is_some_and(|s| s.len() > 1 && s.contains('\n'));
        // The library splits an unused piece like its last occurrence in the whole text.
        let unused = |p: &Piece| p.kind == Some(Kind::Unused as i32);
        let (trainer, normalizer) = (self.trainer.as_ref(), self.normalizer.as_ref());
        let suffix = trainer.and_then(|t| t.treat_whitespace_as_suffix) == Some(true)
            && normalizer.and_then(|n| n.add_dummy_prefix) != Some(false);
        self.model_type() == BPE
            && trainer.and_then(|t| t.byte_fallback) == Some(true)
            && !suffix
            && normalizer.and_then(|n| n.remove_extra_whitespaces) == Some(false)
            && normalizer.is_none_or(|n| n.is_identity() || n.charsmap == Some(nfkc::charsmap()))
            && !self.pieces.iter().any(|p| longer(p) || unused(p))
    }
}

impl NormalizerSpec {
    /// Whether it changes nothing but white space.
    fn is_identity(&self) -> bool {
        self.charsmap.as_deref().unwrap_or_default().is_empty()
    }
}

/// `<u32 size of trie><trie><strings, each ended by NUL>`. The trie is a Darts double array of 32-bit units; a
/// step goes from unit `i` to `i ^ offset ^ byte`, so it stays inside if the block of 256 around `i ^ offset` does.
fn check_charsmap(blob: &[u8]) -> Result<(), String> {
    if blob.is_empty() {
        return Ok(());
    }
    let damaged = |what: &str| Err(format!("the precompiled character map is damaged: {what}"));
    let Some((size, rest)) = blob.split_first_chunk::<4>() else { return damaged("no size") };
    let size = u32::from_le_bytes(*size) as usize;
    if size == 0 || !size.is_multiple_of(1024) || size >= rest.len() {
        return damaged("the size of its trie");
    }
    let (trie, strings) = rest.split_at(size);
    if std::str::from_utf8(strings).is_err() || strings.last() != Some(&0) {
        return damaged("its strings");
    }
    let units: Vec<u32> = trie.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    for (i, &unit) in units.iter().enumerate() {
        // Bit 31 marks a value: an index into the strings.
        if unit >> 31 == 1 {
            let at = (unit & 0x7fff_ffff) as usize;
            if at < strings.len() && (strings[at] as i8) < -64 {
                return damaged("a value points into a character");
            }
            continue;
        }
        let offset = (unit >> 10) << ((unit & (1 << 9)) >> 6);
        if (i ^ offset as usize) | 0xff >= units.len() {
            return damaged("an offset leaves the trie");
        }
    }
    Ok(())
}
