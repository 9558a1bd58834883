//! The report as Markdown: the words and tables, without charts.

use super::document::{Block, Document, Section, Table};
use std::fmt::Write;

/// All of it.
pub fn write(document: &Document) -> String {
    let sections = document.sections.iter().map(section);
    [head(document)].into_iter().chain(sections).collect::<Vec<_>>().join("\n")
}

/// What comes before the first section.
pub fn head(document: &Document) -> String {
    let mut out = format!("# {}\n\n{}.\n\n", text(&document.title), text(&document.lead));
    for headline in &document.headlines {
        let [label, value, of] = [&headline.label, &headline.value, &headline.of].map(|part| text(part));
        writeln!(out, "- {label}: **{value}** ({of})").expect("text has room");
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
        Block::Table(of) => table(of),
        Block::Charts(charts) => {
            let titles: Vec<String> = charts.iter().map(|chart| text(&chart.title)).collect();
            format!("Drawn on the page: {}.\n", titles.join("; "))
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

/// One line that Markdown takes for nothing else; what stands between two backticks is left alone.
fn text(of: &str) -> String {
    let line = of.replace(char::is_control, " ");
    let parts: Vec<&str> = line.split('`').collect();
    if parts.len().is_multiple_of(2) {
        // One is without its other: none of them is ours.
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
    fn what_files_say_makes_no_markup() {
        assert_eq!(text("a|b <b> *x*\ny"), "a\\|b &lt;b> \\*x\\* y");
        assert_eq!(text("run `plan > <x>` now"), "run `plan > <x>` now");
        assert_eq!(text("a`<img> [x](y)"), "a\\`&lt;img> \\[x](y)");
        assert_eq!(text("`a|b`"), "`a\\|b`");
    }

    #[test]
    fn a_table_names_its_rows_and_sets_figures_right() {
        let table = Table {
            caption: "Shares".into(),
            head: vec!["share".into(), "s".into()],
            rows: vec![vec!["bubble".into(), "0.1".into()]],
        };
        assert_eq!(super::table(&table), "Shares:\n\n| share | s |\n| --- | ---: |\n| bubble | 0.1 |\n");
    }
}
