//! `data dedup`, `filter` and `classify` as a user runs them: from a crawl to a table of scores, and mistakes.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::common::{Case, Outcome, checkout, engine, finish, metrics, set, write_config};

struct Desk(tempfile::TempDir);

/// A text of sentences that no other number shares.
fn page(number: usize) -> String {
    let sentence = |i: usize| format!("第{number}の話の{i}番目の文は、{}という事から始まる。", number * 37 + i * 11);
    (0..12).map(|i| sentence(i) + if i % 4 == 3 { "\n" } else { "" }).collect()
}

/// A text of another kind, whose numbers no other one shares.
fn menu(number: usize) -> String {
    let goods = |i: usize| 10_000 + (20 * number + i) * 7919 % 90_001;
    (0..20).map(|i| format!("カート{}ログイン{}送料無料！\n", goods(i), goods(i + 9973))).collect()
}

impl Desk {
    fn new() -> Desk {
        Desk(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap();
    }

    fn write_lines(&self, name: &str, lines: impl IntoIterator<Item = Value>) {
        self.write(name, lines.into_iter().map(|line| format!("{line}\n")).collect::<String>());
    }

    /// `data` with these arguments, which the command finds in the desk's folder.
    fn data(&self, args: &str) -> Outcome {
        let mut command = engine();
        finish(command.arg("data").args(args.split(' ')).current_dir(self.0.path()))
    }

    fn lines(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn numbers(&self, name: &str) -> Vec<u64> {
        self.lines(name).iter().map(|line| line["n"].as_u64().unwrap()).collect()
    }
}

/// Pages, each twice with a small change, and menus.
fn crawl() -> Vec<Value> {
    let mut lines = Vec::new();
    for n in 0..12 {
        lines.push(json!({ "n": 10 * n, "text": page(n), "date": "2024-01-01", "url": "https://a.example/" }));
        let changed = page(n).replacen("という事", "といふ事", 1);
        lines.push(json!({ "n": 10 * n + 1, "text": changed, "date": "2024-02-01", "url": "https://b.example/" }));
        lines.push(json!({ "n": 10 * n + 2, "text": menu(n), "date": "2023-01-01", "url": "https://c.example/" }));
    }
    lines
}

const RULES: &str = "[below]\ncharacters = 100\n[above]\nkatakana = 0.5\n";

#[test]
fn from_a_crawl_to_scores() {
    let desk = Desk::new();
    desk.write_lines("crawl.jsonl", crawl());
    let said = desk.data("dedup --input crawl.jsonl --output unique.jsonl --report dedup.json").succeeded().stdout;
    assert!(said.contains("24 of 36 documents kept"), "{said}");
    assert!(desk.numbers("unique.jsonl").iter().all(|n| n % 10 != 1));
    desk.write("rules.toml", RULES);
    let filter = "filter --input unique.jsonl --rules rules.toml --output clean.jsonl.zst --report filter.json";
    let said = desk.data(filter).succeeded().stdout;
    assert!(said.contains("12 of 24 documents kept") && said.contains("katakana above 0.5: 12 documents"), "{said}");
    for (report, rule) in [("dedup", "near_duplicate"), ("filter", "katakana")] {
        let json = std::fs::read_to_string(desk.path(&format!("{report}.json"))).unwrap();
        let json: Value = serde_json::from_str(&json).unwrap();
        let rule = json["rules"].as_array().unwrap().iter().find(|of| of["name"] == rule).unwrap();
        assert_eq!((&rule["documents"], rule["examples"].as_array().unwrap().len()), (&json!(12), 10), "{rule}");
        let page = std::fs::read_to_string(desk.path(&format!("{report}.html"))).unwrap();
        assert!(page.contains(rule["name"].as_str().unwrap()) && page.contains("crawl") == (report == "dedup"));
    }
    desk.write_lines("good.jsonl", (100..130).map(|n| json!({ "text": page(n) })));
    desk.write_lines("bad.jsonl", (100..130).map(|n| json!({ "text": menu(n) })));
    desk.data("classify train --positive good.jsonl --negative bad.jsonl --output model.safetensors").succeeded();
    desk.data("classify score model.safetensors --input unique.jsonl --output scored.jsonl").succeeded();
    let said = desk.data("classify keep --top 0.5 --input scored.jsonl --output best.jsonl").succeeded().stdout;
    assert!(said.contains("12 of 24 documents kept"), "{said}");
    assert!(desk.numbers("best.jsonl").iter().all(|n| n % 10 == 0));

    let (model, run) = (desk.path("model"), desk.path("run"));
    std::fs::create_dir(&model).unwrap();
    for file in Case::open("parity").dir.join("init").read_dir().unwrap().map(|e| e.unwrap()) {
        std::fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    let tokenizer = checkout().join("tests/golden/tokenizers/tokenizer.json");
    std::fs::copy(tokenizer, model.join("tokenizer.json")).unwrap();
    desk.data("tokenize --input clean.jsonl.zst --tokenizer model/tokenizer.json --output tokens").succeeded();
    let mut config = Case::open("parity").config(&run);
    let source = toml::Table::from_iter([("prefix".into(), desk.path("tokens").to_str().unwrap().into())]);
    set(&mut config, "data.train", vec![toml::Value::from(source)]);
    set(&mut config, "train.load", format!("hf:{}", model.display()));
    set(&mut config, "train.steps", 2);
    let config = write_config(desk.0.path(), "run.toml", &config);
    finish(engine().args(["train", "--config"]).arg(config)).succeeded();
    assert_eq!(metrics(&run).len(), 2);
    desk.write(
        "task.toml",
        "name = \"next\"\ndata = \"clean.txt\"\nkind = \"choice\"\nprompt = \"{{ q }}\"\nchoices = [\"。\", \"、\"]\n\
         answer = \"0\"\nmetric = \"exact_match\"\n"
            .replace("clean.txt", "next.jsonl"),
    );
    desk.write_lines("next.jsonl", (0..4).map(|n| json!({ "q": page(n).split_once('。').unwrap().0 })));
    let evaluate = |model: &str, more: &[&str]| {
        let mut command = engine();
        command.args(["evaluate", "--model", model, "--tasks", "task.toml"]).args(more);
        finish(command.current_dir(desk.0.path())).succeeded().stdout
    };
    evaluate("model", &["--output", "before"]);
    finish(engine().args(["checkpoint", "export", "--from"]).arg(&run).arg("--to").arg(desk.path("export")))
        .succeeded();
    let said = evaluate("export", &["--output", "after", "--against", "before"]);
    assert!(said.contains("of 4 questions"), "{said}");
}

#[test]
fn another_number_of_threads_writes_the_same_bytes() {
    let desk = Desk::new();
    desk.write_lines("crawl.jsonl", crawl());
    desk.write("rules.toml", RULES);
    desk.write_lines("good.jsonl", (100..130).map(|n| json!({ "text": page(n) })));
    desk.write_lines("bad.jsonl", (100..130).map(|n| json!({ "text": menu(n) })));
    let made = |workers: usize| -> Vec<Vec<u8>> {
        let commands = [
            "dedup --input crawl.jsonl --keep longest --lines 8 --report r1.json --output".to_string(),
            "filter --input crawl.jsonl --rules rules.toml --report r2.json --output".into(),
            "classify train --positive good.jsonl --negative bad.jsonl --output m.safetensors".into(),
            "classify score m.safetensors --input crawl.jsonl --output".into(),
        ];
        for (i, command) in commands.iter().enumerate() {
            let output = if command.ends_with("--output") { format!(" o{i}.jsonl") } else { String::new() };
            desk.data(&format!("{command}{output} --workers {workers}")).succeeded();
        }
        let files = ["o0.jsonl", "o1.jsonl", "o3.jsonl", "m.safetensors", "r1.json", "r1.html", "r2.json"];
        files.map(|file| std::fs::read(desk.path(file)).unwrap()).into()
    };
    let one = made(1);
    assert!(made(1) == one && made(3) == one);
}

#[test]
fn of_near_duplicates_the_newest_stays() {
    let desk = Desk::new();
    desk.write_lines("crawl.jsonl", crawl());
    desk.data("dedup --input crawl.jsonl --keep newest --date-key date --output newest.jsonl").succeeded();
    assert!(desk.numbers("newest.jsonl").iter().all(|n| n % 10 != 0), "the older ones are gone");
    assert_eq!(desk.lines("newest.jsonl").len(), 24);
    let out = "--input crawl.jsonl --output o.jsonl";
    desk.data(&format!("dedup {out} --keep newest")).refused(2, &["--keep newest", "--date-key"]);
    desk.data(&format!("dedup {out} --date-key date")).refused(2, &["--date-key", "--keep newest"]);
    desk.data(&format!("dedup {out} --keep newest --date-key when")).refused(2, &["crawl.jsonl: line 1", "\"when\""]);
    desk.data(&format!("dedup {out} --threshold 1.5")).refused(2, &["--threshold", "at most 1"]);
    desk.data(&format!("dedup {out} --memory 1MB")).refused(2, &["memory"]);
    desk.data("dedup --input crawl.jsonl --output o.txt").refused(2, &["o.txt", ".jsonl"]);
    desk.data(&format!("dedup {out} --report r.txt")).refused(2, &["r.txt", ".json"]);
    assert!(!desk.path("o.jsonl").exists());
}

#[test]
fn mistakes_in_rules_are_named() {
    let desk = Desk::new();
    desk.write_lines("crawl.jsonl", crawl());
    desk.write("list.txt", b"fine\n\xe3\x81\n");
    let refused = |rules: &str, why: &[&str]| {
        desk.write("rules.toml", rules);
        desk.data("filter --input crawl.jsonl --rules rules.toml --output o.jsonl").refused(2, why);
    };
    refused("[above]\nrepeated_line = 0.3\n", &["rules.toml", "repeated_line", "repeated_lines"]);
    refused("[over]\nkatakana = 0.3\n", &["rules.toml", "over", "above"]);
    refused("[above]\nkatakana = \"much\"\n", &["rules.toml", "katakana"]);
    refused("[above]\nkatakana = nan\n", &["rules.toml", "katakana"]);
    refused("[above]\nexpressions = 0.1\n[lists]\nexpressions = [\"list.txt\"]\n", &["list.txt", "line 2", "UTF-8"]);
    refused("[above]\nexpressions = 0.1\n[lists]\nexpressions = [\"none.txt\"]\n", &["none.txt"]);
    refused("[above]\nexpressions = 0.1\n", &["rules.toml", "expressions"]);
    desk.write("rules.toml", RULES);
    desk.write("odd.jsonl", "{\"text\": \"a\"}\n{\"body\": \"b\"}\n");
    let odd = "filter --input odd.jsonl --rules rules.toml --output o.jsonl";
    desk.data(odd).refused(2, &["odd.jsonl: line 2", "no key \"text\""]);
    let said = desk.data(&format!("{odd} --skip-bad")).succeeded();
    assert!(said.stderr.contains("1 record left out") && said.stderr.contains("odd.jsonl: line 2"), "{}", said.stderr);
}

#[test]
fn mistakes_in_classifying_are_named() {
    let desk = Desk::new();
    desk.write_lines("crawl.jsonl", crawl());
    desk.write("model.safetensors", b"\x10\0\0\0\0\0\0\0{\"a\":1}         ");
    desk.data("classify score model.safetensors --input crawl.jsonl --output o.jsonl")
        .refused(2, &["model.safetensors", "classif"]);
    desk.data("classify keep --top 0.1 --input crawl.jsonl --output o.jsonl").refused(2, &["crawl.jsonl", "\"score\""]);
    desk.data("classify keep --top 0.1 --input - --output o.jsonl").refused(2, &["only once"]);
    desk.data("classify keep --top 0 --input crawl.jsonl --output o.jsonl").refused(2, &["--top", "above 0"]);
    desk.write("empty.jsonl", "");
    desk.data("classify train --positive empty.jsonl --negative crawl.jsonl --output m.safetensors")
        .refused(2, &["empty.jsonl"]);
}
