//! Files of rules: the shipped ones, and every mistake with its message.

use super::*;

/// Opens rules that stand beside a list of each kind.
fn open(rules: &str) -> Result<Rules> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("ng.txt", "悪\n"), ("hosts.txt", "example.com\n"), ("footers.txt", "Copyright\n")] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let path = folder.path().join("rules.toml");
    std::fs::write(&path, rules).unwrap();
    Rules::open(&path)
}

fn bounds(rules: &Rules) -> Vec<String> {
    rules.bounds.iter().map(|bound| format!("{} {}", bound.statistic.name, bound.threshold())).collect()
}

#[test]
fn rules_are_tried_in_the_order_of_the_statistics() {
    let rules = open(
        "[above]\nrepeated_10grams = 0.1\nmean_sentence = 90\ncharacters = 1_000_000\n\
         [below]\nmean_sentence = 20.0\ncharacters = 400\n",
    )
    .unwrap();
    let expected = [
        "characters below 400",
        "characters above 1000000",
        "mean_sentence below 20",
        "mean_sentence above 90",
        "repeated_10grams above 0.1",
    ];
    assert_eq!(bounds(&rules), expected);
    assert!(rules.expressions.is_none() && rules.hosts.is_none() && !rules.changes.nfkc);
}

#[test]
fn a_value_at_its_threshold_stays() {
    let rules = open("[above]\nrepeated_lines = 0.30\n[below]\nrepeated_lines = 0.1\n").unwrap();
    let [low, high] = &rules.bounds[..] else { panic!("{:?}", bounds(&rules)) };
    assert!(low.drops(0.0999) && !low.drops(1.0 / 10.0));
    assert!(high.drops(0.3001) && !high.drops(3.0 / 10.0));
}

#[test]
fn lists_are_found_beside_the_rules() {
    let rules = open(
        "[above]\nexpressions = 0.01\n[lists]\nexpressions = [\"ng.txt\"]\nhosts = [\"hosts.txt\"]\n\
         url_key = \"link\"\nfooters = [\"footers.txt\", \"ng.txt\"]\n[text]\npunctuation = true\nnfkc = true\n",
    )
    .unwrap();
    assert!(rules.expressions.is_some() && rules.changes.punctuation && rules.changes.nfkc);
    let hosts = rules.hosts.unwrap();
    assert_eq!(
        (hosts.key.as_str(), hosts.hosts.find("https://example.com/").as_deref()),
        ("link", Some("example.com"))
    );
    assert_eq!(rules.changes.footers.unwrap().cut("a\n悪\nCopyright\n"), "a\n");
}

#[test]
fn mistakes_are_named_with_their_remedy() {
    for (rules, expected) in [
        ("[below]\ncharacters = \n", "rules.toml: line 2: "),
        ("", "rules.toml: has no rule; write"),
        ("[below]\ncharacter = 4", "below.character is unknown; did you mean characters? The statistic is one of: "),
        ("[above]\ncharacters = 4\nzzzzzz = 5", "above.zzzzzz is unknown; The statistic is one of: characters, "),
        ("[abov]\ncharacters = 4", "[abov] is unknown; did you mean above? The table is one of: below, above"),
        ("[text]\nnfck = true", "text.nfck is unknown; did you mean nfkc? The key is one of: punctuation, nfkc"),
        ("[lists]\nhost = []", "lists.host is unknown; did you mean hosts? "),
        ("below = 4", "below = 4: must be a table; write [below]"),
        ("[above]\njapanese = nan", "above.japanese = nan: must be a number that is finite and not negative"),
        ("[above]\njapanese = -0.1", "above.japanese = -0.1: must be a number"),
        ("[above]\njapanese = \"0.5\"", "above.japanese = \"0.5\": must be a number"),
        ("[above]\njapanese = inf", "above.japanese = inf: must be a number"),
        ("[above]\nmean_sentence = 20\n[below]\nmean_sentence = 90", "below 90 and what is above 20 is everything"),
        ("[above]\nexpressions = 0.1", "expressions is bounded, but no list has any; write [lists] and"),
        ("[lists]\nexpressions = [\"ng.txt\"]", "lists.expressions has no use without a bound; write"),
        ("[lists]\nhosts = [\"hosts.txt\"]", "lists.hosts needs the key of a record's URL; write url_key"),
        ("[lists]\nurl_key = \"url\"", "lists.url_key has no use without lists.hosts; remove it"),
        ("[lists]\nurl_key = 7", "lists.url_key = 7: must be the key of a record"),
        ("[lists]\nfooters = \"footers.txt\"", "lists.footers = \"footers.txt\": must be an array of files"),
        ("[lists]\nfooters = [7]", "lists.footers = [7]: must be an array of files"),
        ("[lists]\nfooters = [\"absent.txt\"]", "absent.txt: it does not exist"),
        ("[text]\nnfkc = 1", "text.nfkc = 1: must be true or false"),
    ] {
        let error = open(rules).err().unwrap_or_else(|| panic!("{rules} is accepted"));
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(error.to_string().contains(expected), "{rules}: {error}");
    }
}

/// The thresholds of the paper, in the order in which they are tried.
#[test]
fn the_shipped_rules_are_those_of_the_paper() {
    let configs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/corpus");
    let first = Rules::open(&configs.join("swallow-v1.toml")).unwrap();
    let expected = [
        "characters below 400",
        "japanese_characters below 400",
        "japanese below 0.5",
        "hiragana below 0.2",
        "katakana above 0.5",
        "mean_sentence below 20",
        "mean_sentence above 90",
        "longest_sentence above 200",
        "ellipses above 0.2",
        "repeated_lines above 0.3",
        "repeated_line_characters above 0.2",
        "repeated_sentences above 0.3",
        "repeated_sentence_characters above 0.2",
        "top_2grams above 0.2",
        "top_3grams above 0.18",
        "top_4grams above 0.16",
        "repeated_5grams above 0.15",
        "repeated_6grams above 0.14",
        "repeated_7grams above 0.13",
        "repeated_8grams above 0.12",
        "repeated_9grams above 0.11",
        "repeated_10grams above 0.1",
    ];
    assert_eq!(bounds(&first), expected);
    assert!(first.changes.punctuation && !first.changes.nfkc && first.hosts.is_none());
    let second = Rules::open(&configs.join("swallow-v2.toml")).unwrap();
    let is_left = |bound: &&&str| {
        !(bound.starts_with("longest_sentence") || bound.starts_with("repeated_") && bound.contains("grams"))
    };
    assert_eq!(bounds(&second), expected.iter().filter(is_left).copied().collect::<Vec<_>>());
    assert!(second.changes.punctuation);
}
