//! Which pieces of one SentencePiece model are appended to another: normal and user-defined ones, without their
//! whitespace escapes, that the other lacks. Those of the lowest scores are left out until the size is a multiple.

use std::collections::{HashMap, HashSet};

use super::super::model::{ESCAPE, Kind, ModelProto, Piece};
use super::{Expanded, Source, kept};
use engine::error::{Result, counted};

/// The pieces to append, in the order of `new`, each once.
pub fn choose(
    (base, model): (&Source, &ModelProto),
    (new, added): (&Source, &ModelProto),
    multiple_of: usize,
) -> Result<(Vec<Piece>, Expanded)> {
    let old: HashMap<&str, Kind> = model.pieces.iter().map(|piece| (text(piece), piece.kind())).collect();
    let (mut chosen, mut seen, mut known, mut repeated) = (Vec::new(), HashSet::new(), 0, 0);
    for piece in added.pieces.iter().filter(|piece| is_text(piece.kind())) {
        let bare = text(piece).replace(ESCAPE, "");
        match old.get(bare.as_str()) {
            _ if bare.is_empty() || seen.contains(&bare) => repeated += 1,
            Some(kind) if *kind != piece.kind() => return Err(conflict(new, &bare, piece.kind(), base, *kind)),
            Some(_) => known += 1,
            None => chosen.push(Piece { piece: Some(bare.clone()), ..piece.clone() }),
        }
        seen.insert(bare);
    }
    let mut notes: Vec<String> = control_note(&old, added).into_iter().collect();
    notes.extend(drop_unreachable(&old, &mut chosen));
    let offered = chosen.len();
    leave_out(&old, &mut chosen, kept(base, offered, multiple_of)?);
    let size = model.pieces.len() + chosen.len();
    let left_out = offered - chosen.len();
    Ok((chosen, Expanded { base: model.pieces.len(), size, known, repeated, left_out, notes }))
}

fn text(piece: &Piece) -> &str {
    piece.piece.as_deref().unwrap_or_default()
}

fn is_text(kind: Kind) -> bool {
    matches!(kind, Kind::Normal | Kind::UserDefined)
}

fn conflict(new: &Source, piece: &str, kind: Kind, base: &Source, other: Kind) -> engine::error::Error {
    new.error(format!(
        "its piece {piece:?} is of the type {kind:?}, but {} has it as {other:?}; train --add again without that text",
        base.path().display()
    ))
}

/// Control pieces are a matter of BASE, since its model was trained with them.
fn control_note(old: &HashMap<&str, Kind>, added: &ModelProto) -> Option<String> {
    let control = |piece: &&Piece| piece.kind() == Kind::Control && !old.contains_key(text(piece));
    let names: Vec<&str> = added.pieces.iter().filter(control).map(text).collect();
    (!names.is_empty()).then(|| format!("control pieces of --add are not taken over: {}", names.join(", ")))
}

/// A piece with a character that is no piece itself is out of `tokenizer.json`'s reach, which knows only merges of
/// pieces. Models that SentencePiece trains have none.
fn drop_unreachable(old: &HashMap<&str, Kind>, chosen: &mut Vec<Piece>) -> Option<String> {
    let single: HashSet<char> = chosen.iter().filter_map(|piece| only_char(text(piece))).collect();
    let reachable = |c: char| single.contains(&c) || old.contains_key(c.encode_utf8(&mut [0; 4]) as &str);
    const NAMED: usize = 5;
    let is_reached = |piece: &mut Piece| piece.kind() == Kind::UserDefined || text(piece).chars().all(reachable);
    let dropped: Vec<Piece> = chosen.extract_if(.., |piece| !is_reached(piece)).collect();
    let names: Vec<&str> = dropped.iter().take(NAMED).map(text).collect();
    let more = if dropped.len() > NAMED { ", ..." } else { "" };
    let of = counted(dropped.len(), "piece");
    (!dropped.is_empty())
        .then(|| format!("{of} of --add left out for a character that is no piece: {}{more}", names.join(", ")))
}

/// Leaves out the pieces of the lowest scores, later ones first, until `n` are left. A character that a longer piece
/// needs stays as long as that piece does.
fn leave_out(old: &HashMap<&str, Kind>, chosen: &mut Vec<Piece>, n: usize) {
    let mut uses: HashMap<char, usize> = HashMap::new();
    let needs = |piece: &Piece| -> HashSet<char> {
        let longer = only_char(text(piece)).is_none() && piece.kind() == Kind::Normal;
        text(piece).chars().filter(|_| longer).collect()
    };
    chosen.iter().flat_map(needs).filter(|c| !old.contains_key(c.encode_utf8(&mut [0; 4]) as &str)).for_each(|c| {
        *uses.entry(c).or_default() += 1;
    });
    let mut order: Vec<usize> = (0..chosen.len()).collect();
    let score = |i: &usize| chosen[*i].score.unwrap_or_default();
    order.sort_by(|a, b| score(a).total_cmp(&score(b)).then(b.cmp(a)));
    while order.len() > n {
        let is_free =
            |i: &usize| only_char(text(&chosen[*i])).is_none_or(|c| uses.get(&c).is_none_or(|&uses| uses == 0));
        // A piece that no other one needs is always left: the longest.
        let next = order.iter().position(is_free).expect("not every piece is a part of another");
        let left_out = order.remove(next);
        needs(&chosen[left_out]).iter().for_each(|c| _ = uses.get_mut(c).map(|uses| *uses -= 1));
    }
    order.sort_unstable();
    *chosen = order.into_iter().map(|i| chosen[i].clone()).collect();
}

fn only_char(text: &str) -> Option<char> {
    let mut chars = text.chars();
    chars.next().filter(|_| chars.next().is_none())
}
