//! Greedy generation: the likeliest next token again and again, with a cache of keys and values.

use crate::backend::CachedAttention;
use crate::error::{Error, Result};
use crate::stage::cache::{Cache, Row};
use crate::train::eval::Scorer;

/// Sequences that are continued at once: weights are read once for all of them.
const AT_ONCE: usize = 16;
/// Tokens of a prompt that are computed at once.
const ROWS: usize = 1024;

/// A prompt and its continuation so far.
struct Sequence {
    /// Its number in the cache.
    slot: usize,
    /// Its index among the prompts.
    prompt: usize,
    ids: Vec<u32>,
    /// The number of tokens of the prompt.
    given: usize,
}

impl<B: CachedAttention> Scorer<B> {
    /// The continuations of prompts of at least one token each, which fit the scorer's longest text: at most `most`
    /// tokens, fewer where `ends(prompt, continuation)` is true, which is asked after each token. Of equally likely
    /// tokens the lowest id is taken.
    pub fn continuations(
        &mut self,
        prompts: &[Vec<u32>],
        most: usize,
        mut ends: impl FnMut(usize, &[u32]) -> Result<bool>,
    ) -> Result<Vec<Vec<u32>>> {
        let mut out = vec![Vec::new(); prompts.len()];
        if most == 0 {
            return Ok(out);
        }
        let first = |batch: usize| batch * AT_ONCE;
        for (batch, prompts) in prompts.chunks(AT_ONCE).enumerate() {
            let numbered = prompts.iter().enumerate();
            let sequence = |(slot, ids): (usize, &Vec<u32>)| Sequence {
                slot,
                prompt: first(batch) + slot,
                ids: ids.clone(),
                given: ids.len(),
            };
            let mut going: Vec<Sequence> = numbered.map(sequence).collect();
            let mut cache = self.filled(&going, most);
            while !going.is_empty() {
                let next = self.likeliest(&mut cache, &going)?;
                let mut still = Vec::new();
                for (mut sequence, id) in going.into_iter().zip(next) {
                    sequence.ids.push(id);
                    let so_far = &sequence.ids[sequence.given..];
                    if so_far.len() == most || ends(sequence.prompt, so_far)? {
                        out[sequence.prompt] = so_far.to_vec();
                    } else {
                        still.push(sequence);
                    }
                }
                going = still;
            }
        }
        Ok(out)
    }

    /// A cache with memory for `most` more tokens of each sequence, and with all but the last token of the prompts.
    fn filled(&mut self, sequences: &[Sequence], most: usize) -> Cache<B> {
        let longest = sequences.iter().map(|s| s.given).max().unwrap_or(0);
        let mut cache = self.stage.cache(&self.b, sequences.len(), longest + most - 1);
        for s in sequences {
            assert!(s.given > 0, "prompt {} has no token", s.prompt);
            let rows: Vec<Row> = (0..s.given - 1).map(|position| s.row(position)).collect();
            for rows in rows.chunks(ROWS) {
                self.stage.extend(&self.b, &mut cache, rows, &[0]);
            }
        }
        cache
    }

    /// The likeliest token after each sequence, all but whose last tokens are in the cache.
    fn likeliest(&mut self, cache: &mut Cache<B>, sequences: &[Sequence]) -> Result<Vec<u32>> {
        let rows: Vec<Row> = sequences.iter().map(|s| s.row(s.ids.len() - 1)).collect();
        let wanted: Vec<u32> = (0..rows.len() as u32).collect();
        let logits = self.stage.extend(&self.b, cache, &rows, &wanted);
        let mut wide = self.b.alloc(logits.rows(), logits.cols());
        self.b.widen(&logits, &mut wide);
        let host = self.b.wait_host(self.b.copy_to_host_async(&wide)).map_err(|fault| Error::run(fault.to_string()))?;
        host.chunks(logits.cols()).map(largest).collect()
    }
}

impl Sequence {
    fn row(&self, position: usize) -> Row {
        Row { sequence: self.slot, position, id: self.ids[position] }
    }
}

/// The index of the largest logit, the first of equals.
fn largest(logits: &[f32]) -> Result<u32> {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if logit.is_nan() {
            return Err(Error::run(format!("the logit of token {id} is NaN; check the model's weights")));
        }
        if *logit > logits[best] {
            best = id;
        }
    }
    Ok(best as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;
    use crate::batch::MicroBatch;
    use crate::checkpoint::HuggingFace;
    use crate::config::{Model, hf};
    use crate::cpu::{Cpu, Float};
    use crate::model::param_specs::TensorSpec;
    use crate::model::rect::Rect;
    use crate::train::eval::whole;
    use half::bf16;
    use std::path::{Path, PathBuf};

    /// The checkpoints of all families that the golden runs begin with.
    fn checkpoints() -> Vec<PathBuf> {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
        let cases = std::fs::read_dir(golden).unwrap().map(|case| case.unwrap().path().join("init"));
        let found: Vec<PathBuf> = cases.filter(|init| init.join("config.json").is_file()).collect();
        assert!(found.len() >= 20, "{found:?}");
        found
    }

    fn ids(model: &Model, n: usize, seed: usize) -> Vec<u32> {
        (0..n).map(|i| ((i * i * 31 + i * 17 + seed * 101) % model.vocab_size) as u32).collect()
    }

    fn to_host<A: Float>(b: &Cpu<A>, logits: &crate::backend::Act<Cpu<A>>) -> Vec<f32> {
        let mut wide = b.alloc(logits.rows(), logits.cols());
        b.widen(logits, &mut wide);
        b.download(&wide)
    }

    /// Logits of two sequences of different lengths: each computed whole, and token by token together after parts of
    /// them were computed at once.
    fn cached_and_whole<A: Float>(init: &Path) -> (Vec<f32>, Vec<f32>) {
        let (model, b) = (hf::read_model(init).unwrap(), Cpu::<A>::new(2));
        let weights = HuggingFace::open(init, &model).unwrap();
        let (mut stage, _) = whole(&b, &model, 32, |t, rect, out| weights.read_parameter(t, rect, out)).unwrap();
        let texts = [ids(&model, 32, 1), ids(&model, 27, 2)];
        let mut right = Vec::new();
        for text in &texts {
            let n = text.len();
            let (weights, starts, positions) = (vec![1.0; n], vec![0; n], (0..n as u32).collect());
            let host = MicroBatch { seq: n, ids: text.clone(), targets: text.clone(), weights, starts, positions };
            let batch = stage.upload(&b, 0, &host);
            right.push(to_host(&b, &stage.logits(&b, &batch)));
        }
        let row = |sequence: usize, position| Row { sequence, position, id: texts[sequence][position] };
        let (mut cache, mut got) = (stage.cache(&b, 2, 32), vec![Vec::new(), Vec::new()]);
        for (sequence, at_once) in [(0, 19), (1, 14)] {
            let rows: Vec<Row> = (0..at_once).map(|position| row(sequence, position)).collect();
            let all: Vec<u32> = (0..at_once as u32).collect();
            got[sequence] = to_host(&b, &stage.extend(&b, &mut cache, &rows, &all));
        }
        for step in 0..13 {
            let logits = to_host(&b, &stage.extend(&b, &mut cache, &[row(0, 19 + step), row(1, 14 + step)], &[0, 1]));
            let (first, second) = logits.split_at(model.vocab_size);
            got[0].extend_from_slice(first);
            got[1].extend_from_slice(second);
        }
        (got.concat(), right.concat())
    }

    fn worst(got: &[f32], right: &[f32]) -> f32 {
        assert_eq!(got.len(), right.len());
        let largest = right.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        got.iter().zip(right).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max) / largest
    }

    #[test]
    fn cached_logits_are_those_of_the_whole_text() {
        for init in checkpoints() {
            let (got, right) = cached_and_whole::<f32>(&init);
            assert!(worst(&got, &right) < 2e-6, "{}: {}", init.display(), worst(&got, &right));
        }
    }

    /// In bf16 the rounding of P depends on the tiles that it is computed in.
    #[test]
    fn cached_logits_in_bf16() {
        for init in checkpoints() {
            let (got, right) = cached_and_whole::<bf16>(&init);
            assert!(worst(&got, &right) < 3e-2, "{}: {}", init.display(), worst(&got, &right));
        }
    }

    /// More prompts than are continued at once, of different lengths, some of which end early.
    #[test]
    fn each_prompt_is_continued_as_if_it_were_alone() {
        let init = &checkpoints()[0];
        let (model, weights) = hf::read_model(init).map(|m| (m.clone(), HuggingFace::open(init, &m).unwrap())).unwrap();
        let read = |t: &TensorSpec, rect: &Rect, out: &mut [f32]| weights.read_parameter(t, rect, out);
        let mut scorer = Scorer::new(Cpu::<f32>::new(2), &model, 24, read).unwrap();
        let prompts: Vec<Vec<u32>> = (0..19).map(|i| ids(&model, 1 + i % 7, i)).collect();
        let ends = |prompt: usize, so_far: &[u32]| Ok(prompt.is_multiple_of(3) && so_far.len() == 1 + prompt / 3);
        let all = scorer.continuations(&prompts, 9, ends).unwrap();
        for (i, prompt) in prompts.iter().enumerate() {
            let alone = scorer.continuations(std::slice::from_ref(prompt), 9, |_, so_far| ends(i, so_far)).unwrap();
            assert_eq!(all[i], alone[0], "prompt {i}");
            assert_eq!(all[i].len(), if i.is_multiple_of(3) { 9.min(1 + i / 3) } else { 9 }, "prompt {i}");
        }
        assert_eq!(scorer.continuations(&prompts, 0, |_, _| Ok(false)).unwrap(), vec![Vec::<u32>::new(); 19]);
    }

    #[test]
    fn the_first_of_equal_logits_is_taken() {
        assert_eq!(largest(&[0.5, 2.0, -1.0, 2.0]).unwrap(), 1);
        assert_eq!(largest(&[f32::NEG_INFINITY; 3]).unwrap(), 0);
        assert!(largest(&[0.0, f32::NAN]).unwrap_err().to_string().contains("token 1 is NaN"));
    }
}
