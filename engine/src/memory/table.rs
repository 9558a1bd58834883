//! Tables of bytes, the same for `train --dry-run`, `plan` and `report`.

/// Bytes of a GiB.
pub const GIB: f64 = (1u64 << 30) as f64;

/// The unit that the numbers of a table have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ByteUnit {
    pub name: &'static str,
    bytes: f64,
}

impl ByteUnit {
    /// The largest of GiB, MiB and KiB in which the largest number, whatever its sign, is at least 1; else KiB.
    pub fn of(bytes: impl IntoIterator<Item = f64>) -> ByteUnit {
        let most = bytes.into_iter().map(f64::abs).fold(0.0, f64::max);
        let units =
            [("GiB", 30), ("MiB", 20), ("KiB", 10)].map(|(name, log2)| ByteUnit { name, bytes: 2f64.powi(log2) });
        let [.., smallest] = units;
        units.into_iter().find(|unit| most >= unit.bytes).unwrap_or(smallest)
    }

    /// The number alone, with two decimals.
    pub fn show(&self, bytes: f64) -> String {
        format!("{:.2}", bytes / self.bytes)
    }
}

/// Bytes of ranks by use: a row per rank, a column per use, all in one unit.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryTable {
    pub unit: &'static str,
    pub rows: Vec<Vec<String>>,
}

impl MemoryTable {
    pub fn new(rows: &[Vec<f64>]) -> MemoryTable {
        let unit = ByteUnit::of(rows.iter().flatten().copied());
        let cells = |row: &Vec<f64>| row.iter().map(|&bytes| unit.show(bytes)).collect();
        MemoryTable { unit: unit.name, rows: rows.iter().map(cells).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_number_chooses_the_unit() {
        let shown = |bytes: &[f64]| MemoryTable::new(&[bytes.to_vec()]).rows[0][0].clone();
        assert_eq!(shown(&[1.5 * 2f64.powi(30), 7.0]), "1.50");
        assert_eq!(shown(&[512.0, 2048.0]), "0.50");
        assert_eq!(shown(&[-3.0 * 2f64.powi(20), 0.0]), "-3.00");
        assert_eq!(MemoryTable::new(&[vec![0.0]]), MemoryTable { unit: "KiB", rows: vec![vec!["0.00".into()]] });
    }
}
