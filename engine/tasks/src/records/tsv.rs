//! Columns between tabs, without quotes and without a head line, as MGSM has them.

use engine::error::counted;

use super::{Fields, Record, lines};
use crate::names::shorten;

/// A record a line, its keys named by `columns`.
pub fn read(name: &str, bytes: &[u8], columns: &[String]) -> Vec<Record> {
    let record = |(index, (number, line)): (usize, (usize, Result<&str, String>))| Record {
        index,
        at: format!("{name}: line {number}"),
        fields: line.and_then(|line| fields(line, columns)),
    };
    lines(bytes).enumerate().map(record).collect()
}

fn fields(line: &str, columns: &[String]) -> Result<Fields, String> {
    let cells: Vec<&str> = line.split('\t').collect();
    if cells.len() != columns.len() {
        let (found, wanted) = (counted(cells.len(), "column"), columns.len());
        let names = shorten(&columns.join(", "));
        return Err(format!("{found} where `columns` names {wanted} ({names}); correct the line or `columns`"));
    }
    Ok(columns.iter().cloned().zip(cells.into_iter().map(Into::into)).collect())
}
