//! The report as Markdown: text and tables, without the charts.

use super::document::{Block, Document, Section, Table};
use std::fmt::Write;

/// The whole report.
pub fn write(document: &Document) -> String {
    let sections = document.sections.iter().map(section);
    [head(document)].into_iter().chain(sections).collect::<Vec<_>>().join("\n")
}

/// Everything before the first section.
pub fn head(document: &Document) -> String {
    let mut out = format!("# {}\n\n{}.\n\n", text(&document.title), text(&document.lead));
    for headline in &document.headlines {
        let [label, value, detail] = [&headline.label, &headline.value, &headline.detail].map(|part| text(part));
        writeln!(out, "- {label}: **{value}** ({detail})").expect("text has room");
    }
    for note in &document.notes {
        write!(out, "\nNote: {}\n", text(note)).expect("text has room");
    }
    out
}

fn section(section: &Section) -> String {
    let blocks: Vec<String> = section.blocks.iter().map(block).collect();
    format!("## {}\n\n{}", text(&section.title), blocks.join("\n"))
}

fn block(block: &Block) -> String {
    match block {
        Block::Text(words) => format!("{}\n", text(words)),
        Block::Note(words) => format!("Note: {}\n", text(words)),
        Block::Facts(facts) => facts.iter().map(|(name, fact)| format!("- {name}: {}\n", text(fact))).collect(),
        Block::Table(content) => table(content),
        Block::Charts(charts) => {
            let titles: Vec<String> = charts.iter().map(|chart| text(&chart.title)).collect();
            format!("Charts in the HTML report: {}.\n", titles.join("; "))
        }
    }
}

fn table(table: &Table) -> String {
    let row =
        |cells: &[String]| format!("| {} |\n", cells.iter().map(|cell| text(cell)).collect::<Vec<_>>().join(" | "));
    let rule = format!("| --- |{}\n", " ---: |".repeat(table.head.len() - 1));
    let rows: String = table.rows.iter().map(|cells| row(cells)).collect();
    format!("{}:\n\n{}{rule}{rows}", text(&table.caption), row(&table.head))
}

/// One line, escaped so that Markdown renders it as it is. Code between two backticks stays code.
fn text(raw: &str) -> String {
    let line = raw.replace(char::is_control, " ");
    let parts: Vec<&str> = line.split('`').collect();
    if parts.len().is_multiple_of(2) {
        // An unpaired backtick comes from a file, so none of them marks code.
        return plain(&line).replace('`', "\\`");
    }
    let part = |(at, part): (usize, &&str)| match at % 2 {
        0 => plain(part),
        _ => part.replace('|', "\\|"),
    };
    parts.iter().enumerate().map(part).collect::<Vec<_>>().join("`")
}

fn plain(text: &str) -> String {
    let escaped = |c: char| match c {
        '<' => "&lt;".to_string(),
        '\\' | '|' | '*' | '[' => format!("\\{c}"),
        c => c.to_string(),
    };
    text.chars().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_files_is_escaped() {
        assert_eq!(text("a|b <b> *x*\ny"), "a\\|b &lt;b> \\*x\\* y");
        assert_eq!(text("run `plan > <x>` now"), "run `plan > <x>` now");
        assert_eq!(text("a`<img> [x](y)"), "a\\`&lt;img> \\[x](y)");
        assert_eq!(text("`a|b`"), "`a\\|b`");
    }

    #[test]
    fn a_table_has_a_header_and_aligns_numbers_right() {
        let table = Table {
            caption: "Shares".into(),
            head: vec!["share".into(), "s".into()],
            rows: vec![vec!["bubble".into(), "0.1".into()]],
        };
        assert_eq!(super::table(&table), "Shares:\n\n| share | s |\n| --- | ---: |\n| bubble | 0.1 |\n");
    }
}
