//! The page: one HTML file without scripts or external resources, for light, dark and print. The template escapes all
//! text.

use minijinja::value::{Serde, Value};
use minijinja::{Environment, context};

use super::Drops;

/// The ending of its name makes the environment escape HTML.
const NAME: &str = "drops.html";

pub fn render(drops: &Drops) -> String {
    let mut environment = Environment::new();
    environment.add_filter("thousands", thousands);
    environment.add_filter("counted", counted);
    environment.add_filter("percent", percent);
    environment.add_filter("share", |part: u64, whole: u64| format!("{:.1} %", percent(part, whole)));
    environment.add_template(NAME, include_str!("page.html")).expect("the template of this crate is right");
    let template = environment.get_template(NAME).expect("just added");
    template.render(context! { drops => Value::from(Serde(drops)) }).expect("the template names what drops have")
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}

/// `1 document`, `1,234 documents`.
fn counted(n: u64, noun: &str) -> String {
    format!("{} {noun}{}", thousands(n), if n == 1 { "" } else { "s" })
}

/// `1234567` as `1,234,567`.
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|g| std::str::from_utf8(g).expect("digits")).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let shown = [0, 7, 999, 1000, 1_234_567, 100_000].map(thousands);
        assert_eq!(shown, ["0", "7", "999", "1,000", "1,234,567", "100,000"]);
        assert_eq!([counted(1, "document"), counted(2000, "document")], ["1 document", "2,000 documents"]);
    }
}
