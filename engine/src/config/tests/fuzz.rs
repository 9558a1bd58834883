//! No text makes the loader panic, and a configuration that loads is sound.

use super::{LEAST, MOST, read};
use proptest::prelude::*;

/// A valid file with some of its bytes or lines changed.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let pieces = prop::sample::select(vec![
        "0",
        "-1",
        "9223372036854775807",
        "1e308",
        "nan",
        "\"\"",
        "[]",
        "{}",
        "=",
        "\n",
        "true",
        "[[data]]",
        "1979-05-27",
        "日",
    ]);
    let edit = (any::<prop::sample::Index>(), 0usize..12, pieces);
    (prop::sample::select(vec![LEAST, MOST]), prop::collection::vec(edit, 1..5)).prop_map(|(text, edits)| {
        let mut bytes = text.as_bytes().to_vec();
        for (at, cut, piece) in edits {
            let at = at.index(bytes.len());
            let end = (at + cut).min(bytes.len());
            bytes.splice(at..end, piece.bytes());
        }
        bytes
    })
}

/// A valid file with some values replaced: the text stays TOML, so that the checks are reached.
/// Half of the time a number only becomes another likely one.
fn revalued() -> impl Strategy<Value = String> {
    let wild = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|x| toml::Value::from(x).to_string()),
        Just("[1, 2]".to_string()),
        Just("\"wsd\"".to_string()),
    ];
    let change = (any::<prop::sample::Index>(), any::<bool>(), wild, 0u32..4, 1e-9..1.0);
    prop::collection::vec(change, 1..4).prop_map(|changes| {
        let mut lines: Vec<String> = MOST.lines().map(str::to_string).collect();
        let keyed: Vec<usize> = (0..lines.len()).filter(|&i| lines[i].contains(" = ")).collect();
        for (at, likely, wild, doublings, fraction) in changes {
            let line = &mut lines[keyed[at.index(keyed.len())]];
            let (key, old) = line.split_once(" = ").unwrap();
            let near = match (old.parse::<u64>(), old.parse::<f64>()) {
                (Ok(old), _) => (old << doublings).to_string(),
                (_, Ok(old)) => toml::Value::from(old * fraction).to_string(),
                _ => old.to_string(),
            };
            *line = format!("{key} = {}", if likely { near } else { wild });
        }
        lines.join("\n")
    })
}

proptest! {
    #[test]
    fn no_text_panics_the_loader(text in mutated(), flag in "([a-z_.]{0,12}=)?.{0,8}") {
        if let Err(e) = read(&text, &[]) {
            prop_assert_eq!(e.exit_code(), 2);
        }
        let _ = read(LEAST.as_bytes(), &[&flag]);
    }

    #[test]
    fn what_loads_loads_back_and_meets_any_ranks(text in revalued(), ranks in 0usize..100) {
        if let Ok(config) = read(text.as_bytes(), &[]) {
            prop_assert_eq!(&read(config.to_toml().as_bytes(), &[]).unwrap(), &config);
            let _ = config.mesh(ranks);
            crate::model::flops::parameters(&config.model);
            for step in [1, config.train.steps] {
                let rate = crate::train::lr::learning_rate(&config.optimizer, config.train.steps, step);
                prop_assert!(rate >= 0.0 && rate <= config.optimizer.lr * (1.0 + 1e-12));
            }
        }
    }
}
