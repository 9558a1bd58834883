//! The tables that commands print.

use comfy_table::{CellAlignment, Table, presets};

pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(header);
    table
}

/// The table with its columns from `first` on aligned right, as numbers are.
pub fn aligned(mut table: Table, first: usize) -> Table {
    table.column_iter_mut().skip(first).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table
}

/// The text of a table whose columns from `first` on hold numbers, with a line end.
pub fn render(header: &[&str], first: usize, rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = table(header);
    table.add_rows(rows);
    format!("{}\n", aligned(table, first))
}
