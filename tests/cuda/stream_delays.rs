//! Delays of streams change no bit: every dependency between streams is expressed by an event.
//!
//! The fake device delays each operation, at random or on some streams only, so that operations that no event orders
//! happen in another order. Delayed runs are compared with an undelayed one, by their metrics and weights at each step.

use super::layouts::in_pieces;
use super::{Site, Vars, apart, small, with};
use crate::common::export;

/// Delays in milliseconds by stream: stream 1 computes, stream 2 copies to the host, and the others are those of the
/// groups. Where a slow stream is not waited for, the others read or write too early.
const BEHIND: [&str; 3] = ["1@2", "2@2", "3,4,5,6,7,8,9@2"];

mod exhaustive {
    use super::*;

    #[test]
    fn tensor_and_data_parallel() {
        is_unchanged_by_delays(&[("parallel.tensor", 2.into())]);
    }
}

mod campaign {
    use super::*;

    /// Collectives in chunks have events of their own for each chunk.
    #[test]
    fn collectives_in_chunks() {
        is_unchanged_by_delays(&[&[("parallel.tensor", 2.into())], &in_pieces()[..]].concat());
    }

    #[test]
    fn tensor_and_pipeline_parallel() {
        let tied = ("model.tie_word_embeddings", true.into());
        is_unchanged_by_delays(&[("parallel.tensor", 2.into()), ("parallel.pipeline", 2.into()), tied]);
    }
}

/// Trains on four ranks at this layout, undelayed and with every delay.
#[track_caller]
fn is_unchanged_by_delays(layout: &[(&str, toml::Value)]) {
    let site = Site::with_fake_cuda();
    let config = with(&small(site.tmp.path()), layout);
    let config = with(&config, &[("train.steps", 2.into()), ("checkpoint.interval", 1.into())]);
    let first = |name: &str| export(&site.dir(name).join("checkpoints/step-00000001"), &site.dir(&format!("{name}-1")));
    let usual = site.run("usual", 4, &config, apart);
    let paces = (1..=3).map(|seed| ("FAKE_CUDA_DELAY", seed.to_string()));
    for (name, value) in paces.chain(BEHIND.map(|streams| ("FAKE_CUDA_SLOW", streams.to_string()))) {
        let pace = format!("{name}={value}");
        // Each rank has its own random delays.
        let of = |rank| if name == "FAKE_CUDA_DELAY" { format!("{value}{rank}") } else { value.clone() };
        let vars = |rank| -> Vars { apart(rank).into_iter().chain([(name, of(rank))]).collect() };
        let disturbed = site.run(&pace, 4, &config, vars);
        disturbed.is_exactly(&usual, &pace);
        assert!(first(&pace) == first("usual"), "{pace}: the checkpoint of step 1 differs");
    }
}
