//! A layout is refused exactly if it is arithmetically impossible, and the values that a refusal suggests are possible.

use super::{LEAST, Ranks, read_for};
use crate::error::counted;
use proptest::prelude::*;

/// The values that decide whether a layout is possible.
#[derive(Debug, Clone)]
struct Wish {
    tensor: usize,
    pipeline: usize,
    chunks: usize,
    kv_heads: usize,
    heads: usize,
    intermediate: usize,
    layers: usize,
    vocab: usize,
    micro: usize,
    batch: usize,
    seq: usize,
    sequence_parallel: Option<bool>,
    ranks: usize,
}

fn wish() -> impl Strategy<Value = Wish> {
    let degrees = (1usize..10, 1usize..7, 1usize..4, 1usize..50);
    let model = (1usize..7, 1usize..7, prop::sample::select(vec![24usize, 40, 42, 48]), 1usize..13, 4usize..30);
    let work = (1usize..4, 1usize..25, 1usize..20, any::<Option<bool>>());
    (degrees, model, work).prop_map(|(degrees, model, work)| {
        let (tensor, pipeline, chunks, ranks) = degrees;
        let (kv_heads, group, intermediate, layers, vocab) = model;
        let (micro, micro_batches, seq, sequence_parallel) = work;
        let (heads, batch) = (kv_heads * group, micro * micro_batches);
        // Half of the numbers of ranks fit the other axes.
        let ranks = if divides(2, ranks) { ranks / 2 } else { tensor * pipeline * (1 + ranks / 8) };
        #[rustfmt::skip]
        let wish = Wish {
            tensor, pipeline, chunks, kv_heads, heads, intermediate, layers, vocab, micro, batch, seq,
            sequence_parallel, ranks,
        };
        wish
    })
}

impl Wish {
    fn flags(&self) -> Vec<String> {
        let mut flags = vec![
            format!("parallel.tensor={}", self.tensor),
            format!("parallel.pipeline={}", self.pipeline),
            format!("parallel.virtual_pipeline={}", self.chunks),
            format!("model.num_key_value_heads={}", self.kv_heads),
            format!("model.num_attention_heads={}", self.heads),
            format!("model.hidden_size={}", 2 * self.heads),
            format!("model.intermediate_size={}", self.intermediate),
            format!("model.num_hidden_layers={}", self.layers),
            format!("model.vocab_size={}", self.vocab),
            format!("train.micro_batch_size={}", self.micro),
            format!("train.global_batch_size={}", self.batch),
            format!("train.seq_length={}", self.seq),
        ];
        flags.extend(self.sequence_parallel.map(|on| format!("parallel.sequence_parallel={on}")));
        flags
    }

    /// Whether the tensor parallelism is arithmetically possible.
    fn tensor_can_be(&self) -> bool {
        let owners = (0..self.vocab).map(|id| id / self.vocab.div_ceil(self.tensor));
        let shards_rows = self.sequence_parallel.unwrap_or(self.tensor > 1);
        divides(self.tensor, self.heads)
            && (divides(self.tensor, self.kv_heads) || divides(self.kv_heads, self.tensor))
            && divides(self.tensor, self.intermediate)
            && owners.max() == Some(self.tensor - 1)
            && (!shards_rows || divides(self.tensor, self.micro * self.seq))
    }

    /// Whether the layout is arithmetically possible on some number of ranks.
    fn can_be(&self) -> bool {
        let interleaved = self.chunks > 1;
        self.tensor_can_be()
            && self.pipeline * self.chunks <= self.layers
            && !(interleaved && self.pipeline == 1)
            && (!interleaved || divides(self.pipeline, self.batch / self.micro))
    }

    /// Whether the layout fits its number of ranks.
    fn fits(&self) -> bool {
        let used = self.tensor * self.pipeline;
        let micro_batches = self.batch / self.micro;
        let dp = self.ranks / used;
        divides(used, self.ranks)
            && divides(dp, micro_batches)
            && (self.chunks == 1 || divides(self.pipeline, micro_batches / dp))
    }

    /// Whether, after `change`, the tensor parallelism is possible and the ranks can run the layout.
    fn runs(&self, change: impl FnOnce(&mut Wish)) -> bool {
        let mut wish = self.clone();
        change(&mut wish);
        wish.tensor_can_be() && wish.fits()
    }

    /// The verdict of the program; `Err` holds its message.
    fn judged(&self) -> Result<(), String> {
        let flags = self.flags();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let config = read_for(Ranks::AtHand(self.ranks), LEAST.as_bytes(), &flags).map_err(|e| e.to_string())?;
        config.mesh(self.ranks).map(|_| ()).map_err(|e| e.to_string())
    }

    /// The layouts that the refusal of this one suggests.
    fn remedies(&self, message: &str) -> Vec<Wish> {
        let here = format!("on {} the nearest", counted(self.ranks, "rank"));
        let message = &message.replace(&format!("{here} that fit"), "here fit").replace(&here, "the nearest");
        let mut found = Vec::new();
        let mut each = |numbers: Vec<usize>, change: &dyn Fn(&mut Wish, usize)| {
            for n in numbers {
                let mut wish = self.clone();
                change(&mut wish, n);
                found.push(wish);
            }
        };
        if key(message) == "parallel.tensor" {
            each(numbers(message, "; the nearest "), &|w, n| w.tensor = n);
            each(numbers(message, "micro_batch_size (the nearest "), &|w, n| w.micro = n);
        }
        if message.contains("global_batch_size") {
            each(numbers(message, "; the nearest are "), &|w, n| w.batch = n);
            each(numbers(message, "; the nearest is "), &|w, n| w.batch = n);
        }
        each(numbers(message, "ranks; the nearest that fit: "), &|w, n| w.ranks = n);
        each(numbers(message, "keep it and run on "), &|w, n| w.ranks = n);
        if message.contains("parallel.sequence_parallel = false") {
            each(vec![0], &|w, _| w.sequence_parallel = Some(false));
        }
        if message.contains("virtual_pipeline = 1") || message.ends_with("write 1") {
            each(vec![1], &|w, n| w.chunks = n);
        }
        for pair in numbers(message, "here fit: ").chunks(2) {
            each(vec![pair[0]], &|w, n| (w.tensor, w.pipeline) = (n, pair[1]));
        }
        for pair in numbers(message, "the nearest: ").chunks(2) {
            each(vec![pair[0]], &|w, n| (w.pipeline, w.chunks) = (n, pair[1]));
        }
        found
    }
}

fn divides(d: usize, n: usize) -> bool {
    n.checked_rem(d) == Some(0)
}

/// The numbers in `message` between `marker` and the next punctuation mark.
fn numbers(message: &str, marker: &str) -> Vec<usize> {
    let Some((_, rest)) = message.split_once(marker) else { return Vec::new() };
    let end = rest.find([',', ';', ')']).unwrap_or(rest.len());
    rest[..end].split(' ').filter_map(|word| word.parse().ok()).collect()
}

/// The key that a refusal is about; empty if it is about the number of ranks.
fn key(message: &str) -> &str {
    let rest = message.strip_prefix("--set ").unwrap_or("");
    rest.split(' ').next().unwrap_or("")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn impossible_layouts_are_refused_and_suggestions_are_possible(wish in wish()) {
        let judged = wish.judged();
        prop_assert_eq!(judged.is_ok(), wish.can_be() && wish.fits(), "{:?}", judged);
        let Err(message) = judged else { return Ok(()) };
        prop_assert!(message.contains("parallel.") || message.contains("train.global_batch_size = "), "{}", message);
        let here = message.contains(&format!("; on {} the nearest", counted(wish.ranks, "rank")));
        if key(&message) == "parallel.tensor" {
            let some = (1..=wish.heads).any(|tensor| wish.runs(|w| w.tensor = tensor));
            prop_assert_eq!(here, some, "{}", message);
        }
        let remedies = wish.remedies(&message);
        // All values that are suggested for a degree on these ranks can run there.
        if here && ["parallel.tensor", "parallel.pipeline"].contains(&key(&message)) {
            let same = |w: &&Wish| (w.micro, w.sequence_parallel) == (wish.micro, wish.sequence_parallel);
            prop_assert!(remedies.iter().filter(same).all(Wish::fits), "{}", message);
        }
        prop_assert!(!remedies.is_empty(), "{}", message);
        for remedy in remedies {
            match remedy.judged() {
                Ok(()) => {}
                // A second mistake is reported after the first is fixed.
                Err(next) if !wish.can_be() => {
                    prop_assert!(key(&next) != key(&message), "{}\n{:?}\n{}", message, remedy, next);
                }
                Err(next) => prop_assert!(false, "{}\n{:?}\n{}", message, remedy, next),
            }
        }
    }
}
