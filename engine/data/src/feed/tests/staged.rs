//! Stages, epochs over all stages, and validation sets.

use proptest::prelude::*;

use super::*;

/// A configuration whose stages end after these steps, the last at the end, with these sources.
fn staged(stages: Vec<(u64, Vec<Source>)>, order: Order) -> Config {
    let last = stages.len() - 1;
    let mut config = config(vec![], order);
    let stage =
        |(i, (until, train)): (usize, (u64, Vec<Source>))| DataStage { until_step: (i < last).then_some(until), train };
    config.data.stage = stages.into_iter().enumerate().map(stage).collect();
    config
}

/// The first ids of all samples of the run.
fn firsts(feed: &Feed) -> Vec<u32> {
    let all = feed.samples(Split::Train);
    (0..all).map(|i| feed.micro_batch(Split::Train, i..i + 1).unwrap().ids[0]).collect()
}

#[test]
fn a_source_goes_on_where_the_stage_before_left_it() {
    let folder = tempfile::tempdir().unwrap();
    let a = |weight| source(folder.path(), "a", &[100], 0, weight);
    let b = |weight| source(folder.path(), "b", &[100], 1000, weight);
    let c = |weight| source(folder.path(), "c", &[100], 2000, weight);
    let one = vec![a(Some(1.0)), b(Some(1.0))];
    let two = vec![c(Some(1.0)), b(Some(3.0))];
    let feed = Feed::open(&staged(vec![(2, one), (5, two)], Order::Sequential)).unwrap();
    // Two steps of two samples from a and b in turn, then three steps from c and b, whose next sample is its third.
    assert_eq!(firsts(&feed), [0, 1000, 4, 1004, 1008, 2000, 1012, 1016, 2004, 1020]);
    assert_eq!(feed.steps_of_stages(), [1..3, 3..6]);
    let shown: Vec<_> = feed.sources().iter().map(|s| (s.stage, s.key.clone(), s.samples)).collect();
    let keys = ["data.stage[0].train[0]", "data.stage[0].train[1]", "data.stage[1].train[0]", "data.stage[1].train[1]"];
    let want = [(Some(0), 2), (Some(0), 2), (Some(1), 2), (Some(1), 4)];
    assert_eq!(shown, keys.iter().zip(want).map(|(key, (s, n))| (s, key.to_string(), n)).collect::<Vec<_>>());
    assert_eq!(feed.totals().iter().map(|s| s.samples).collect::<Vec<_>>(), [2, 6, 2]);
    // A range over the border is the samples of both sides.
    let across = feed.micro_batch(Split::Train, 3..5).unwrap();
    assert_eq!((across.ids[0], across.ids[4]), (1004, 1008));
    let places = feed.places(Split::Train, 3..6).unwrap();
    assert_eq!(places.iter().map(|place| place.0).collect::<Vec<_>>(), [1, 3, 2], "indices into the listed sources");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, ..ProptestConfig::default() })]

    /// In every order and with any stages, the samples of a source, in the order in which the run takes them, are its
    /// first ones; and the order is that of one run which asks for as much.
    #[test]
    fn the_samples_of_each_source_continue_across_stages(
        ends in proptest::collection::btree_set(1u64..30, 1..4),
        weights in proptest::collection::vec((1u32..9, 1u32..9), 4),
        lengths in proptest::collection::vec(1usize..40, 3..20),
        megatron in any::<bool>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let order = if megatron { Order::Megatron } else { Order::Sequential };
        let stage = |(a, b): (u32, u32)| vec![
            source(folder.path(), "a", &lengths, 0, Some(f64::from(a))),
            source(folder.path(), "b", &[400], 5000, Some(f64::from(b))),
        ];
        let ends: Vec<u64> = ends.into_iter().chain([30]).collect();
        let stages = ends.iter().zip(&weights).map(|(&end, &weights)| (end, stage(weights)));
        let mut config = staged(stages.collect(), order);
        config.train.steps = 30;
        let feed = Feed::open(&config).unwrap();
        let choices = feed.train.choices(0..60);
        for part in 0..2 {
            let of_part = choices.iter().filter(|c| feed.train.stages[c.stage].members[c.member] == part);
            let samples: Vec<u64> = of_part.map(|c| c.sample).collect();
            prop_assert_eq!(samples, (0..feed.train.taken()[part]).collect::<Vec<_>>());
        }
        prop_assert_eq!(feed.train.taken().iter().sum::<u64>(), 60);
    }
}

/// One stage is `train`, bit for bit, with weights and without, in both orders.
#[test]
fn one_stage_is_the_plain_mixture() {
    let folder = tempfile::tempdir().unwrap();
    for order in [Order::Megatron, Order::Sequential] {
        for weights in [[None, None], [Some(0.3), Some(0.7)]] {
            for n in [1, 2] {
                let mut sources = vec![
                    source(folder.path(), "a", &[30, 8, 9], 0, weights[0]),
                    source(folder.path(), "b", &[15], 1000, weights[1]),
                ];
                sources.truncate(n);
                let plain = Feed::open(&config(sources.clone(), order)).unwrap();
                let one = Feed::open(&staged(vec![(5, sources)], order)).unwrap();
                let all = |feed: &Feed| feed.micro_batch(Split::Train, 0..10).unwrap();
                assert_eq!(all(&plain), all(&one));
                assert_eq!(plain.fingerprint(5), one.fingerprint(5));
                assert_eq!(plain.epochs(), one.epochs());
            }
        }
    }
}

/// Stages cut from one mixture ask for as much as it does where rounding allows, and a source keeps one order.
#[test]
fn a_source_is_ordered_once_for_all_its_stages() {
    let folder = tempfile::tempdir().unwrap();
    let lone = || vec![source(folder.path(), "a", &[6; 7], 0, None)];
    let whole = Feed::open(&config(lone(), Order::Megatron)).unwrap();
    let cut = Feed::open(&staged(vec![(2, lone()), (5, lone())], Order::Megatron)).unwrap();
    assert_eq!(firsts(&whole), firsts(&cut));
    // Each stage of a blend asks for half a percent more than it takes, rounded up.
    let blended = || vec![source(folder.path(), "a", &[6; 7], 0, Some(1.0))];
    let cut = Feed::open(&staged(vec![(2, blended()), (5, blended())], Order::Megatron)).unwrap();
    assert_eq!(cut.totals()[0].plan.samples, 20, "5 + 7 samples are asked for, which are two epochs");
    let mut unique = firsts(&cut);
    unique.sort_unstable();
    unique.dedup();
    assert!(unique.len() > 5);
}

/// Without weights the sources of a stage are read in proportion to their size.
#[test]
fn unweighted_stages() {
    let folder = tempfile::tempdir().unwrap();
    let a = || source(folder.path(), "a", &[41], 0, None);
    let b = || source(folder.path(), "b", &[21], 1000, None);
    let feed = Feed::open(&staged(vec![(2, vec![a()]), (5, vec![a(), b()])], Order::Megatron)).unwrap();
    assert_eq!(feed.totals().iter().map(|s| s.samples).collect::<Vec<_>>(), [8, 2]);
    let mut long = staged(vec![(1, vec![a()]), (5, vec![b(), a()])], Order::Megatron);
    long.train.steps = 20;
    assert!(refusal(&long).starts_with("data.stage[1].train: the sources together hold 15 samples"));
}

#[test]
fn a_stage_beyond_the_steps_takes_nothing_and_changes_no_order() {
    let folder = tempfile::tempdir().unwrap();
    let a = |weight| source(folder.path(), "a", &[6; 7], 0, weight);
    let b = |weight| source(folder.path(), "b", &[60], 1000, weight);
    for weight in [None, Some(1.0)] {
        let plain = Feed::open(&config(vec![a(weight)], Order::Megatron)).unwrap();
        let more = staged(vec![(9, vec![a(weight)]), (0, vec![a(weight), b(weight)])], Order::Megatron);
        let more = Feed::open(&more).unwrap();
        assert_eq!(firsts(&plain), firsts(&more));
        assert_eq!(plain.epochs(), more.epochs()[..1]);
        assert_eq!(plain.fingerprint(5), more.fingerprint(5));
        assert!(more.steps_of_stages()[1].is_empty());
        assert_eq!(more.sources()[1].share, 0.0);
    }
}

/// A resume compares the stages that have begun.
#[test]
fn the_fingerprint_is_of_the_stages_that_have_begun() {
    let folder = tempfile::tempdir().unwrap();
    let a = |weight| source(folder.path(), "a", &[100], 0, Some(weight));
    let b = |weight| source(folder.path(), "b", &[100], 1000, Some(weight));
    let at = |step: u64, config: &Config| Feed::open(config).unwrap().fingerprint(step);
    let (first, second) = (vec![a(0.5), b(0.5)], vec![b(1.0), a(2.0)]);
    let plain = at(3, &config(first.clone(), Order::Megatron));
    let appended = staged(vec![(3, first.clone()), (5, second.clone())], Order::Megatron);
    assert_eq!(plain, at(3, &appended), "the next stage begins after step 3");
    let differ = |step: u64, one: &Config, other: &Config| {
        let (one, other) = (at(step, one), at(step, other));
        let of = |all: &[(String, String)], (key, value): &(String, String)| {
            !all.iter().any(|(k, v)| (k, v) == (key, value))
        };
        let keys = one.iter().filter(|pair| of(&other, pair)).chain(other.iter().filter(|pair| of(&one, pair)));
        keys.map(|(key, _)| key.clone()).collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    let passed = |until: u64| staged(vec![(until, first.clone()), (5, second.clone())], Order::Megatron);
    assert_eq!(differ(4, &passed(3), &passed(2)), ["data.stage[0].until_step"]);
    assert_eq!(differ(2, &passed(3), &passed(2)), Vec::<String>::new());
    let third =
        |until: u64| staged(vec![(3, first.clone()), (until, second.clone()), (5, vec![a(1.0)])], Order::Megatron);
    assert_eq!(differ(4, &passed(3), &third(4)), Vec::<String>::new());
    let other = staged(vec![(3, first.clone()), (5, vec![b(1.0), a(1.0)])], Order::Megatron);
    assert_eq!(differ(4, &passed(3), &other), ["data.stage[1].train[0].weight", "data.stage[1].train[1].weight"]);
    let spelled = Feed::open(&passed(3)).unwrap().spelled("data.train[1].bin");
    assert_eq!(spelled, "data.stage[0].train[1].bin");
}

/// A copy of a source in a later stage begins at its start, so it is not the source of the stage before.
#[test]
fn a_copy_of_a_source_is_another_one() {
    let folder = tempfile::tempdir().unwrap();
    let a = || source(folder.path(), "a", &[100], 0, None);
    let copy = || source(folder.path(), "copy", &[100], 0, None);
    let of = |second: Source| staged(vec![(2, vec![a()]), (5, vec![second])], Order::Sequential);
    let [same, other] = [of(a()), of(copy())].map(|config| Feed::open(&config).unwrap());
    assert_eq!((firsts(&same)[4], firsts(&other)[4]), (16, 0));
    assert_ne!(same.fingerprint(5), other.fingerprint(5));
    assert_eq!(same.fingerprint(2), other.fingerprint(2));
}

#[test]
fn more_epochs_than_allowed_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let of = |most: f64| Source { max_epochs: Some(most), ..source(folder.path(), "a", &[20], 0, Some(1.0)) };
    let stages = |most| staged(vec![(2, vec![of(most)]), (5, vec![of(most)])], Order::Megatron);
    // Ten samples of four tokens from twenty tokens are two epochs.
    assert!(Feed::open(&stages(2.0)).is_ok());
    let what = refusal(&stages(1.5));
    let needles =
        ["data.stage[0].train[0].max_epochs = 1.5", "10 samples of 4 positions", "2.000 epochs of its 20 tokens"];
    assert!(needles.iter().all(|needle| what.contains(needle)), "{what}");
    assert!(refusal(&config(vec![of(1.9)], Order::Sequential)).contains("data.train[0].max_epochs = 1.9"));
}

/// Each set gives its own samples, whatever the others are; weights have no effect.
#[test]
fn validation_sets_are_separate() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(vec![source(folder.path(), "a", &[50], 0, None)], Order::Megatron);
    config.train.eval_interval = 2;
    let [ja, en] = [("ja", 1000), ("en", 2000)].map(|(name, first)| source(folder.path(), name, &[30; 4], first, None));
    config.data.valid = vec![ja.clone()];
    let alone = Feed::open(&config).unwrap();
    config.data.valid = vec![Source { weight: Some(0.1), ..en }, Source { weight: Some(0.9), ..ja }];
    let both = Feed::open(&config).unwrap();
    assert_eq!(both.valid_names(), ["en", "ja"]);
    let of = |feed: &Feed, set: usize| feed.micro_batch(Split::Valid(set), 0..6).unwrap();
    assert_eq!(of(&alone, 0), of(&both, 1));
    assert!(of(&both, 0).ids.iter().all(|&id| id >= 2000));
    let keys = |feed: &Feed| feed.fingerprint(5).into_iter().filter(|(key, _)| key.contains("valid")).count();
    assert_eq!((keys(&alone), keys(&both)), (4, 8), "weights are no part of the identity");
    assert_eq!(both.sources()[1].samples, 6);
}

#[test]
fn with_a_split_each_training_source_is_a_set() {
    let folder = tempfile::tempdir().unwrap();
    let a = || source(folder.path(), "a", &[10; 10], 0, Some(3.0));
    let b = || Source { name: Some("english".into()), ..source(folder.path(), "b", &[10; 20], 1000, Some(1.0)) };
    let mut config = staged(vec![(2, vec![a(), a()]), (5, vec![b(), a()])], Order::Megatron);
    (config.data.split, config.train.eval_interval) = ([8.0, 2.0, 0.0], 2);
    let feed = Feed::open(&config).unwrap();
    assert_eq!(feed.valid_names(), ["a", "english"]);
    let ids = |set: usize| feed.micro_batch(Split::Valid(set), 0..6).unwrap().ids;
    assert!(ids(0).iter().all(|&id| (80..100).contains(&id)), "{:?}", ids(0));
    assert!(ids(1).iter().all(|&id| (1160..1200).contains(&id)), "{:?}", ids(1));
}

/// Checkpoints of older programs have the weights of validation sources.
#[test]
fn old_weights_of_validation_decide_nothing() {
    let pairs = |keys: &[&str]| keys.iter().map(|key| (key.to_string(), "1".to_string())).collect::<Vec<_>>();
    let saved = pairs(&["data.train[0].weight", "data.valid[1].weight", "data.valid[1].bin", "model.x"]);
    let want = pairs(&["data.train[0].weight", "data.valid[1].bin", "model.x"]);
    assert_eq!(crate::identity::comparable(saved), want);
}
