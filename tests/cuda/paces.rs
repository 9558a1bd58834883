//! Streams that run at other paces change no bit: what must wait for another stream says so.
//!
//! The stand-in waits before each operation, at random or on one stream alone, so that whatever is not ordered by an
//! event happens in another order. The uneven runs are then held to one at the usual pace.

use super::{Site, apart, apart_and, small, with};

/// Of a rank: compute, copies to the host, and then groups as they are made.
const STREAMS: usize = 9;

#[test]
fn tensor_and_data_parallel() {
    stays_itself(&[("parallel.tensor", 2.into())]);
}

#[test]
fn tensor_and_pipeline_parallel() {
    stays_itself(&[("parallel.tensor", 2.into()), ("parallel.pipeline", 2.into()), ("model.tie_word_embeddings", true.into())]);
}

/// Four ranks at this layout.
#[track_caller]
fn stays_itself(layout: &[(&str, toml::Value)]) {
    let site = Site::new();
    let config = with(&small(site.tmp.path()), layout);
    let config = with(&config, &[("train.steps", 2.into()), ("checkpoint.interval", 1.into())]);
    let usual = site.run("usual", 4, &config, apart);
    let seeds = (1..=3).map(|seed| ("STANDIN_DELAY", seed));
    let streams = (1..=STREAMS).map(|stream| ("STANDIN_SLOW", stream));
    for (name, value) in seeds.chain(streams) {
        let pace = format!("{name}={value}");
        let uneven = site.run(&pace, 4, &config, apart_and(&[(name, &value.to_string())]));
        uneven.is_exactly(&usual, &pace);
    }
}
