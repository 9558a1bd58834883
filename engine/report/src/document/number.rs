//! Numbers as text.

use engine::error;

/// From here on a number is written with an exponent.
const LONG: f64 = 1e12;

/// `12,345`
pub fn count(x: f64) -> String {
    fixed(x, 0)
}

/// A step, or a number of things.
pub fn whole(n: u64) -> String {
    count(n as f64)
}

/// [`engine::error::counted`] with thousands separators.
pub fn counted(n: u64, noun: &str) -> String {
    error::counted(n as usize, noun).replacen(&n.to_string(), &whole(n), 1)
}

/// At least `n` significant digits: `0.0686`, `2.57`, `1,234`.
pub fn digits(x: f64, n: i32) -> String {
    let magnitude = if x == 0.0 || !x.is_finite() { 0 } else { x.abs().log10().floor() as i32 };
    fixed(x, (n - 1 - magnitude).clamp(0, 9) as usize)
}

/// A number with this many decimals and with thousands separators.
pub fn fixed(x: f64, decimals: usize) -> String {
    if !x.is_finite() {
        return "not a number".into();
    }
    if x.abs() >= LONG {
        return exponent(x);
    }
    let text = format!("{:.decimals$}", x.abs());
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let sign = if x < 0.0 && text.bytes().any(|b| (b'1'..=b'9').contains(&b)) { "-" } else { "" };
    let first = (whole.len() - 1) % 3 + 1;
    let groups: Vec<&str> =
        [&whole[..first]].into_iter().chain((first..whole.len()).step_by(3).map(|at| &whole[at..at + 3])).collect();
    format!("{sign}{}{rest}", groups.join(","))
}

/// `share` in percent.
pub fn percent(share: f64) -> String {
    format!("{} %", fixed(100.0 * share, 1))
}

/// `6.83 billion`
pub fn large(x: f64) -> String {
    let units = [(1e12, " trillion"), (1e9, " billion"), (1e6, " million")];
    match units.into_iter().find(|(unit, _)| x >= *unit) {
        Some((unit, name)) => format!("{}{name}", digits(x / unit, 3)),
        None => count(x),
    }
}

/// Three significant digits, but none below a microsecond.
pub fn seconds(x: f64) -> String {
    if x.abs() < 1e-3 { fixed(x, 6) } else { digits(x, 3) }
}

/// A tick of an axis that reaches to `most`, in short: `2.5`, `1,000`, `12k`, and `1.5e-4` on an axis of small numbers.
pub fn tick(x: f64, most: f64) -> String {
    match x {
        0.0 => "0".into(),
        _ if !(1e-2..LONG).contains(&most) => exponent(x),
        _ if most >= 1e6 => format!("{}M", trimmed(fixed(x / 1e6, 3))),
        _ if most >= 1e4 => format!("{}k", trimmed(fixed(x / 1e3, 3))),
        _ => trimmed(fixed(x, 4)),
    }
}

/// `1.5e-4`
fn exponent(x: f64) -> String {
    let text = format!("{x:.2e}");
    let (digits, exponent) = text.split_once('e').expect("the format has an exponent");
    format!("{}e{exponent}", trimmed(digits.into()))
}

/// The number without trailing zeros in its decimals.
fn trimmed(text: String) -> String {
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!([count(0.4), count(999.6), count(1234567.0)], ["0", "1,000", "1,234,567"]);
        assert_eq!([digits(0.06862, 3), digits(2571.6, 3), digits(0.0, 3)], ["0.0686", "2,572", "0.00"]);
        assert_eq!([fixed(-1234.5, 1), fixed(-0.01, 1), fixed(f64::NAN, 1)], ["-1,234.5", "0.0", "not a number"]);
        assert_eq!([percent(0.1234), large(6.83e9)], ["12.3 %", "6.83 billion"]);
        assert_eq!([fixed(1.75e308, 3), count(-1e12), digits(1e30, 3)], ["1.75e308", "-1e12", "1e30"]);
        assert_eq!([counted(1, "step"), counted(1234, "token")], ["1 step", "1,234 tokens"]);
        assert_eq!([seconds(1.28e-6), seconds(0.05312), seconds(123.4)], ["0.000001", "0.0531", "123"]);
        let ticks =
            [(0.1 + 0.2, 1.0), (3e-5, 1e-4), (1e-3, 1.5e-3), (12000.0, 2e4), (2.5e6, 3e6), (0.0, 1.0), (1000.0, 2e3)];
        let ticks = ticks.map(|(x, most)| tick(x, most));
        assert_eq!(ticks, ["0.3", "3e-5", "1e-3", "12k", "2.5M", "0", "1,000"]);
    }
}
