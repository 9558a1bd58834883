//! The program's `parity` command, on the models made for it: every layout trains as one rank does.

use std::collections::BTreeSet;

use crate::common::{Case, Outcome, engine, finish, finish_long, mpirun, write_config};

/// One model has nine layers, enough for every layout; another has four, and tied embeddings; the third has experts.
const MODELS: [&str; 3] = ["configs/parity.toml", "configs/parity-tied.toml", "configs/parity-experts.toml"];

fn parity(config: &str, args: &[&str]) -> Outcome {
    finish_long(mpirun(8).args(["parity", "--config", config]).args(args))
}

/// The rows of the table with this verdict.
fn lines<'a>(outcome: &'a Outcome, verdict: &str) -> Vec<&'a str> {
    outcome.stdout.lines().filter(|line| line.starts_with('│') && line.contains(verdict)).collect()
}

mod exhaustive {
    use super::*;

    #[test]
    fn representative_layouts_agree() {
        // Eight ranks have twice as many layouts as four, and the other models differ by few ops.
        for (model, ranks, expected) in [(MODELS[0], "8", 12..40), (MODELS[1], "4", 8..20), (MODELS[2], "4", 8..20)] {
            let outcome = parity(model, &["--verbose", "--ranks", ranks]).succeeded();
            println!("{}", outcome.stdout);
            let agree = lines(&outcome, "agrees").len();
            assert!(expected.contains(&agree), "{agree} layouts");
            assert!(outcome.stdout.contains(&format!("{agree} of {agree} layouts train like one rank")));
            // One stage cannot interleave, and four layers are not enough for eight chunks.
            let skipped =
                |why: &str| outcome.stdout.lines().any(|line| line.starts_with("skipped") && line.contains(why));
            assert!(skipped(": parallel.virtual_pipeline = 2: interleaving needs parallel.pipeline > 1"));
            assert!(!outcome.stdout.contains(".toml"), "the layouts are in no file: {}", outcome.stdout);
            assert_eq!(skipped("more chunks than model.num_hidden_layers"), model != MODELS[0]);
            // Experts on one, two and four ranks.
            let ways = lines(&outcome, "agrees").iter().map(|line| line.split('┆').nth(4)).collect::<BTreeSet<_>>();
            assert_eq!(ways.len(), if model == MODELS[2] { 3 } else { 1 }, "{}", outcome.stdout);
        }
    }

    /// The gradients of its key biases are zero but for rounding, so `parity` leaves their weights out.
    #[test]
    fn layouts_of_a_gpt2_agree() {
        let (case, tmp) = (Case::open("gpt2"), tempfile::tempdir().unwrap());
        let config = write_config(tmp.path(), "config.toml", &case.config(&tmp.path().join("run")));
        let outcome = parity(config.to_str().unwrap(), &["--ranks", "4"]).succeeded();
        assert!(lines(&outcome, "agrees").len() > 5, "{}", outcome.stdout);
    }

    /// A learning rate that diverges magnifies the rounding of a sum until no layout has the losses of another.
    #[test]
    fn layouts_that_disagree_fail_with_the_step() {
        let args = ["--ranks", "2", "--set", "optimizer.lr=30", "--set", "optimizer.warmup_steps=0"];
        let outcome = parity(MODELS[0], &args).refused(1, &["layouts do not train like one rank"]);
        let fail = lines(&outcome, "FAILS");
        assert!(!fail.is_empty() && fail.iter().all(|line| line.contains("from step")), "{}", outcome.stdout);
    }
}

#[test]
fn fewer_ranks_try_fewer_layouts() {
    let outcome = parity(MODELS[0], &["--ranks", "3", "--set", "train.steps=1"]).succeeded();
    let of_two = |line: &str| line.split('┆').take(4).filter(|cell| cell.contains('2')).count() <= 2;
    let agree = lines(&outcome, "agrees");
    assert!(agree.len() > 5 && agree.iter().all(|line| of_two(line) && !line.contains("│  4")), "{}", outcome.stdout);
}

#[test]
fn ignored_settings_are_noted_once() {
    let args = ["--ranks", "2", "--set", "train.steps=1", "--set", "train.precision=bf16"];
    let layers = ["--set", "parallel.layers=[9]"];
    let Outcome { stderr, .. } = parity(MODELS[0], &[&args[..], &layers].concat()).succeeded();
    for note in ["note: train.precision = \"bf16\": parity trains in f32", "note: parallel.layers: "] {
        assert_eq!(stderr.matches(note).count(), 1, "{stderr}");
    }
    let Outcome { stderr, .. } = parity(MODELS[0], &args[..4]).succeeded();
    assert!(!stderr.contains("note: "), "{stderr}");
}

#[test]
fn missing_ranks_are_refused() {
    finish(engine().args(["parity", "--config", MODELS[0]])).refused(2, &["mpirun -n 8", MODELS[0]]);
    finish(mpirun(2).args(["parity", "--ranks", "4", "--config", MODELS[0]])).refused(2, &["--ranks 4", "2 to 2"]);
    finish(mpirun(2).args(["parity", "--ranks", "1", "--config", MODELS[0]])).refused(2, &["--ranks 1", "2 to 2"]);
    finish(mpirun(1).args(["parity", "--config", MODELS[0]])).refused(2, &["mpirun -n 1", "compared with itself"]);
    finish(mpirun(2).args(["parity", "--config", "configs/none.toml"])).refused(2, &["configs/none.toml"]);
}
