//! The command as a whole: which documents stay, what is written of them, and what is reported of the others.

use std::fs;
use std::path::Path;

use super::*;

/// Writes rules and inputs into a folder, and filters.
struct Case {
    folder: tempfile::TempDir,
    inputs: Inputs,
}

impl Case {
    fn new(rules: &str, files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("rules.toml"), rules).unwrap();
        files.iter().for_each(|(name, text)| fs::write(at(name), text).unwrap());
        let is_input = |name: &str| name.ends_with(".jsonl") || name.starts_with("input");
        let paths = files.iter().filter(|(name, _)| is_input(name)).map(|(name, _)| at(name)).collect();
        Self { inputs: Inputs { paths, format: None, key: "text".into() }, folder }
    }

    fn run(&self, bad: Bad, workers: usize) -> Result<(String, Done)> {
        let rules = Rules::open(&self.folder.path().join("rules.toml"))?;
        let output = self.folder.path().join("new/out.jsonl");
        let job = Job { inputs: &self.inputs, rules: &rules, output, bad, workers, memory: 1 << 20 };
        let mut last = 0;
        let done = filter(&job, |read| last = read)?;
        let size = |path: &PathBuf| fs::metadata(path).unwrap().len();
        assert_eq!(last, self.inputs.paths.iter().map(size).sum::<u64>(), "all bytes are counted");
        Ok((fs::read_to_string(&job.output).unwrap(), done))
    }
}

fn place(example: &Example) -> (&str, u64, Option<&str>) {
    (Path::new(&example.file).file_name().unwrap().to_str().unwrap(), example.line, example.value.as_deref())
}

#[test]
fn a_document_counts_under_the_first_rule_that_drops_it() {
    let rules = "[below]\ncharacters = 4\njapanese = 0.5\n[above]\nrepeated_lines = 0.4\n";
    let lines = "{\"id\":1,\"text\":\"あいう\"}\n{\"id\": 2, \"text\": \"あいうえ\"}\n\n{\"text\": \"abcdeあい\"}\r\n\
                 {\"text\": \"あ\\nあ\\nあ\"}\n{\"text\": \"ab\"}\n";
    let case = Case::new(rules, &[("a.jsonl", lines), ("input.txt", "長いテキスト\n")]);
    let (written, done) = case.run(Bad::Refuse, 2).unwrap();
    assert_eq!(written, "{\"id\": 2, \"text\": \"あいうえ\"}\n{\"text\": \"長いテキスト\\n\"}\n");
    let Drops { command, documents, characters, kept, kept_characters, rules, .. } = &done.drops;
    let counts = (command.as_str(), *documents, *characters, *kept, *kept_characters, done.changed);
    assert_eq!(counts, ("data filter", 6, 28, 2, 11, 0));
    let found: Vec<_> = rules.iter().map(|rule| (rule.name.as_str(), rule.documents, rule.characters)).collect();
    assert_eq!(found, [("characters", 2, 5), ("japanese", 1, 7), ("repeated_lines", 1, 5)]);
    assert_eq!(
        rules[0].examples.iter().map(place).collect::<Vec<_>>(),
        [("a.jsonl", 1, Some("3")), ("a.jsonl", 6, Some("2"))]
    );
    assert_eq!(place(&rules[1].examples[0]), ("a.jsonl", 4, Some("0.2857")));
    assert_eq!(place(&rules[2].examples[0]), ("a.jsonl", 5, Some("0.6667")));
    assert_eq!(rules[0].threshold.as_deref(), Some("below 4"));
}

#[test]
fn hosts_are_asked_first_and_records_without_a_url_pass() {
    let rules = "[below]\ncharacters = 2\n[lists]\nhosts = [\"hosts.txt\"]\nurl_key = \"url\"\n";
    let lines = "{\"url\": \"https://www.EXAMPLE.com/\", \"text\": \"a\"}\n{\"url\": null, \"text\": \"two\"}\n\
                 {\"text\": \"three\"}\n{\"url\": \"https://example.org\", \"text\": \"four\"}\n";
    let case = Case::new(rules, &[("a.jsonl", lines), ("hosts.txt", "example.com\n"), ("input.txt", "five")]);
    let (written, done) = case.run(Bad::Refuse, 1).unwrap();
    assert_eq!(written.lines().count(), 4);
    let [hosts, characters] = &done.drops.rules[..] else { panic!("{:?}", done.drops.rules) };
    assert_eq!((hosts.name.as_str(), hosts.threshold.as_ref(), characters.documents), ("hosts", None, 0));
    assert_eq!(place(&hosts.examples[0]), ("a.jsonl", 1, Some("www.example.com")));
}

#[test]
fn documents_that_stay_are_mended_in_order() {
    let rules = "[lists]\nfooters = [\"footers.txt\"]\n[text]\npunctuation = true\nnfkc = true\n";
    let lines = "{\"n\": 1.0, \"text\": \"はい，そう．ＡＢＣ\\nフッタ，\\n\", \"url\":null}\n{\"text\":\"そのまま。\"}\n\
                 {\"text\": \"フッタ，\\n\"}\n{\"text\": \"\"}\n";
    let files = [("a.jsonl", lines), ("footers.txt", "フッタ，\n"), ("input.txt", "ｶﾞ。\n")];
    let (written, done) = Case::new(rules, &files).run(Bad::Refuse, 1).unwrap();
    let expected = "{\"n\": 1.0, \"text\": \"はい、そう。ABC\\n\", \"url\":null}\n{\"text\":\"そのまま。\"}\n\
                    {\"text\": \"\"}\n{\"text\": \"ガ。\\n\"}\n";
    assert_eq!(written, expected);
    assert_eq!((done.changed, done.drops.kept, done.drops.kept_characters), (2, 4, 24));
    let [footers] = &done.drops.rules[..] else { panic!("{:?}", done.drops.rules) };
    assert_eq!((footers.name.as_str(), footers.documents, footers.examples[0].line), ("footers", 1, 3));
}

#[test]
fn bad_records_end_it_or_are_counted() {
    let lines = "{\"text\": \"one\"}\n{\"body\": 1}\n{\"text\": \"two\"}\n[]\n";
    let case = Case::new("[below]\ncharacters = 1\n", &[("a.jsonl", lines)]);
    let error = case.run(Bad::Refuse, 2).unwrap_err().to_string();
    assert!(error.contains("a.jsonl: line 2: no key \"text\""), "{error}");
    assert_eq!(fs::read_dir(case.folder.path().join("new")).unwrap().count(), 0, "nothing half-written is left");
    let (written, done) = case.run(Bad::Skip, 2).unwrap();
    assert_eq!((written.lines().count(), done.skipped.count, done.drops.skipped, done.drops.documents), (2, 2, 2, 2));
    assert!(done.skipped.first[1].contains("a.jsonl: line 4: "), "{:?}", done.skipped.first);
}

#[test]
fn no_document_is_an_empty_output() {
    let case = Case::new("[below]\ncharacters = 1\n", &[("a.jsonl", "\n")]);
    let (written, done) = case.run(Bad::Refuse, 3).unwrap();
    assert_eq!((written.as_str(), done.drops.documents, done.drops.rules[0].documents), ("", 0, 0));
}

#[test]
fn the_output_is_the_same_with_any_number_of_workers() {
    let text = |i: usize| format!("文書 {i}。{}\\n同じ行\\n同じ行\\n", "繰り返す、".repeat(i % 29));
    let lines: String = (0..6000).map(|i| format!("{{\"id\": {i}, \"text\": \"{}\"}}\n", text(i))).collect();
    let rules =
        "[below]\ncharacters = 60\n[above]\nrepeated_5grams = 0.3\ntop_2grams = 0.18\n[text]\npunctuation = true\n";
    let case = Case::new(rules, &[("a.jsonl", &lines)]);
    let (expected, first) = case.run(Bad::Refuse, 1).unwrap();
    assert!((1000..5000).contains(&first.drops.kept), "{} documents stay", first.drops.kept);
    for workers in [2, 5] {
        let (written, done) = case.run(Bad::Refuse, workers).unwrap();
        assert!(written == expected && done.drops == first.drops, "{workers} workers");
    }
}
