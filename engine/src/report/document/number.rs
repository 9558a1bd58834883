//! Numbers as people read them, the same each time.

/// `12,345`
pub fn count(x: f64) -> String {
    fixed(x, 0)
}

/// At least `n` digits that say something: `0.0686`, `2.57`, `1,234`.
pub fn digits(x: f64, n: i32) -> String {
    let magnitude = if x == 0.0 || !x.is_finite() { 0 } else { x.abs().log10().floor() as i32 };
    fixed(x, (n - 1 - magnitude).clamp(0, 9) as usize)
}

/// With so many decimals, and thousands apart.
pub fn fixed(x: f64, decimals: usize) -> String {
    if !x.is_finite() {
        return "not a number".into();
    }
    let text = format!("{:.decimals$}", x.abs());
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let sign = if x < 0.0 && text.bytes().any(|b| (b'1'..=b'9').contains(&b)) { "-" } else { "" };
    let first = (whole.len() - 1) % 3 + 1;
    let groups: Vec<&str> =
        [&whole[..first]].into_iter().chain((first..whole.len()).step_by(3).map(|at| &whole[at..at + 3])).collect();
    format!("{sign}{}{rest}", groups.join(","))
}

/// Of a share.
pub fn percent(share: f64) -> String {
    format!("{} %", fixed(100.0 * share, 1))
}

pub fn gib(bytes: u64) -> String {
    fixed(bytes as f64 / (1u64 << 30) as f64, 3)
}

/// `6.83 billion`
pub fn large(x: f64) -> String {
    let units = [(1e12, " trillion"), (1e9, " billion"), (1e6, " million")];
    match units.into_iter().find(|(unit, _)| x >= *unit) {
        Some((unit, name)) => format!("{}{name}", digits(x / unit, 3)),
        None => count(x),
    }
}

/// At a tick of an axis, where every digit counts: `0.0015`, `2.5`, `12k`.
pub fn tick(x: f64) -> String {
    let trimmed = |x: f64| {
        let text = format!("{x:.6}");
        text.trim_end_matches('0').trim_end_matches('.').to_string()
    };
    match x.abs() {
        0.0 => "0".into(),
        size if size < 1e-3 => {
            let text = format!("{x:.2e}");
            let (digits, exponent) = text.split_once('e').expect("written so");
            format!("{}e{exponent}", digits.trim_end_matches('0').trim_end_matches('.'))
        }
        size if size >= 1e6 => format!("{}M", trimmed(x / 1e6)),
        size if size >= 1e4 => format!("{}k", trimmed(x / 1e3)),
        _ => trimmed(x),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_whole() {
        assert_eq!([count(0.4), count(999.6), count(1234567.0)], ["0", "1,000", "1,234,567"]);
        assert_eq!([digits(0.06862, 3), digits(2571.6, 3), digits(0.0, 3)], ["0.0686", "2,572", "0.00"]);
        assert_eq!([fixed(-1234.5, 1), fixed(-0.01, 1), fixed(f64::NAN, 1)], ["-1,234.5", "0.0", "not a number"]);
        assert_eq!([percent(0.1234), gib(3 << 29), large(6.83e9)], ["12.3 %", "1.500", "6.83 billion"]);
        let ticks = [0.1 + 0.2, 3e-5, 1.25e-4, 12000.0, 2.5e6, 0.0, 60.0].map(tick);
        assert_eq!(ticks, ["0.3", "3e-5", "1.25e-4", "12k", "2.5M", "0", "60"]);
    }
}
