//! The last number of a text, for arithmetic problems whose answers are worked out step by step.

/// 1 if the last numbers of both texts have the same value, else 0.
pub fn same_last_number(text: &str, answer: &str) -> f64 {
    let number = last_number(text);
    f64::from(number.is_some() && number == last_number(answer))
}

/// The last number, in one form for each value: `-12.5`. Commas before a digit are left out, full-width characters are
/// taken, and a point that no digit follows is none. A minus counts where no letter, digit or bracket is before it.
pub fn last_number(text: &str) -> Option<String> {
    let chars: Vec<char> = text.chars().map(narrow).collect();
    let digit = |at: usize| chars.get(at).is_some_and(char::is_ascii_digit);
    let (mut at, mut last) = (0, None);
    while at < chars.len() {
        if !digit(at) {
            at += 1;
            continue;
        }
        let start = at;
        let mut point = false;
        while digit(at) || digit(at + 1) && (chars[at] == ',' || chars[at] == '.' && !point) {
            point |= chars[at] == '.';
            at += 1;
        }
        last = Some(start..at);
    }
    last.map(|range| normal(is_negative(&chars[..range.start]), &chars[range]))
}

/// The ASCII character for a full-width one of a number.
fn narrow(c: char) -> char {
    match c {
        '０'..='９' => char::from(b'0' + (c as u32 - '０' as u32) as u8),
        '，' => ',',
        '．' => '.',
        '－' | '−' => '-',
        c => c,
    }
}

/// Whether the text in front of a number ends with a minus that is a sign, not a difference or a hyphen.
fn is_negative(before: &[char]) -> bool {
    match before {
        [.., c, '-'] => !(c.is_ascii_alphanumeric() || [')', ']', '-'].contains(c)),
        before => before == ['-'],
    }
}

/// One form for each value: no commas, no zeros that change nothing, no sign of zero.
fn normal(negative: bool, chars: &[char]) -> String {
    let text: String = chars.iter().filter(|&&c| c != ',').collect();
    let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
    let (whole, part) = (whole.trim_start_matches('0'), part.trim_end_matches('0'));
    let sign = if negative && !(whole.is_empty() && part.is_empty()) { "-" } else { "" };
    let whole = if whole.is_empty() { "0" } else { whole };
    let point = if part.is_empty() { "" } else { "." };
    format!("{sign}{whole}{point}{part}")
}
