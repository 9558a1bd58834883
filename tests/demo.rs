//! `make demo` in a short form, on this project's own README in both languages.

use std::path::Path;
use std::process::Command;

use crate::common::{checkout, finish, program};

/// The sections of a document, each closed as the demo expects, repeated until some of them can be held out.
fn sections(file: &str) -> String {
    let text = std::fs::read_to_string(checkout().join(file)).unwrap();
    (text.replace("\n## ", "\n<|endoftext|>\n## ") + "<|endoftext|>\n").repeat(12)
}

mod exhaustive {
    use super::*;

    #[test]
    fn the_demo_ends_in_a_table() {
        let tmp = tempfile::tempdir().unwrap();
        let out = tmp.path().join("out");
        for (name, file) in [("ja.txt", "README.ja.md"), ("en.txt", "README.md")] {
            std::fs::write(tmp.path().join(name), sections(file)).unwrap();
        }
        let mut command = Command::new("bash");
        command.arg(checkout().join("scripts/demo.sh")).env("ENGINE", program()).env("OUT", &out);
        command.env("CORPUS", tmp.path()).envs([("PIECES", "700"), ("STEPS", "4"), ("EPOCHS", "0.5")]);
        command.envs(["OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"].map(|name| (name, "1")));
        finish(&mut command).succeeded();
        let rows = rows(&out.join("table.txt"));
        assert_eq!(rows.len(), 4);
        assert!(rows.iter().flatten().all(|value| value.is_finite() && *value > 0.0), "{rows:?}");
        let [japanese, english] = [0, 1].map(|column| (rows[0][column], rows[3][column]));
        assert!(japanese.1 > 1.3 * japanese.0, "characters a token: {japanese:?}");
        assert!((english.1 / english.0 - 1.0).abs() < 0.05, "characters a token: {english:?}");
        assert!(out.join("expanded/efficiency.html").exists());
    }
}

/// The numbers of each row: characters a token in Japanese and English, bits a byte in both.
fn rows(table: &Path) -> Vec<Vec<f64>> {
    let text = std::fs::read_to_string(table).unwrap();
    let numbers = |line: &str| line.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<f64>>();
    text.lines().map(numbers).filter(|row| row.len() == 4).collect()
}
