//! Values and keys from fixed lists: their names, and the nearest one to a wrong name.

/// A type whose values have names in a task file.
pub trait Named: Copy + PartialEq + 'static {
    const NAMES: &'static [(&'static str, Self)];

    fn name(self) -> &'static str {
        let named = Self::NAMES.iter().find(|(_, value)| *value == self);
        named.expect("every value has a name").0
    }
}

/// The value that `word` names; an error says which names are valid.
pub fn by_name<T: Named>(word: &str) -> Result<T, String> {
    if let Some((_, value)) = T::NAMES.iter().find(|(name, _)| *name == word) {
        return Ok(*value);
    }
    let words: Vec<&str> = T::NAMES.iter().map(|(name, _)| *name).collect();
    let known = format!("must be one of {}", words.join(", "));
    Err(match nearest(word, &words) {
        Some(near) => format!("{known}; did you mean {near:?}?"),
        None => known,
    })
}

/// The remedy for a key that is not one of `known`.
pub fn instead(key: &str, known: &[&str]) -> String {
    match nearest(key, known) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("known keys are {}", known.join(", ")),
    }
}

/// The known word that `word` was probably meant to be.
fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word: String = word.chars().take(80).collect();
    let likeness = |k: &str| strsim::normalized_damerau_levenshtein(&word, k);
    let best = known.iter().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) >= 0.5).then_some(best)
}

/// `text` on one line, or its beginning if it is long.
pub fn shorten(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_string(),
    }
}
