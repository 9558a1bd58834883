//! Greedy generation: the likeliest next token again and again. The keys and values of earlier tokens are cached where
//! the backend has the op for it; elsewhere all tokens are computed again for each new one.

use crate::backend::{Act, Backend, CachedAttention, Collectives};
use crate::batch::MicroBatch;
use crate::error::{Error, Result};
use crate::stage::cache::{Cache, Row};
use crate::train::eval::Scorer;
use crate::train::likelihood::{Shape, Text, blank, lay};

/// Sequences that are continued at once: weights are read once for all of them.
const AT_ONCE: usize = 16;
/// Tokens of a prompt that are computed at once.
const ROWS: usize = 1024;

/// Says whether the continuation of a prompt ends here, from the prompt's index and its continuation so far.
pub type Ends<'a> = &'a mut dyn FnMut(usize, &[u32]) -> Result<bool>;

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

impl Sequence {
    fn row(&self, position: usize) -> Row {
        Row { sequence: self.slot, position, id: self.ids[position] }
    }
}

impl<B: CachedAttention> Scorer<B> {
    /// The continuations of prompts of at least one token each, which with `most` tokens fit the scorer's sequences: at
    /// most `most` tokens, fewer where `ends` is true, which is asked after each token. Of equally likely tokens the
    /// lowest id is taken. The model is held by one stage; its tensor-parallel ranks call this together.
    pub fn continuations(&mut self, prompts: &[Vec<u32>], most: usize, ends: Ends) -> Result<Vec<Vec<u32>>> {
        let groups = prompts.chunks(AT_ONCE).map(<[_]>::len);
        self.in_groups(groups.collect(), prompts, most, ends, |scorer, going| {
            let mut cache = scorer.filled(going, most);
            Box::new(move |scorer: &mut Self, going: &[Sequence]| {
                let rows: Vec<Row> = going.iter().map(|s| s.row(s.ids.len() - 1)).collect();
                let wanted: Vec<u32> = (0..rows.len() as u32).collect();
                scorer.stage.extend(&scorer.b, &mut cache, &rows, &wanted)
            })
        })
    }

    /// A cache with memory for `most` more tokens of each sequence, and with all but the last token of the prompts.
    fn filled(&mut self, sequences: &[Sequence], most: usize) -> Cache<B> {
        let longest = sequences.iter().map(|s| s.given).max().unwrap_or(0);
        let mut cache = self.stage.cache(&self.b, sequences.len(), longest + most - 1);
        for s in sequences {
            let rows: Vec<Row> = (0..s.given - 1).map(|position| s.row(position)).collect();
            for rows in rows.chunks(ROWS) {
                self.stage.extend(&self.b, &mut cache, rows, &[0]);
            }
        }
        cache
    }
}

/// Computes the logits after each of some sequences, `[at least as many rows, V/tp]`.
type Logits<B> = Box<dyn FnMut(&mut Scorer<B>, &[Sequence]) -> Act<B>>;

impl<B: Backend> Scorer<B> {
    /// The same tokens as [`Scorer::continuations`] up to rounding, by the ops of training. Each micro-batch has the
    /// same shape.
    pub fn continuations_uncached(&mut self, prompts: &[Vec<u32>], most: usize, ends: Ends) -> Result<Vec<Vec<u32>>> {
        let groups = groups(prompts.iter().map(|ids| ids.len() + most - 1), self.shape);
        self.in_groups(groups, prompts, most, ends, |_, _| {
            Box::new(|scorer: &mut Self, going: &[Sequence]| {
                let (host, mut wanted) = together(going, scorer.shape);
                wanted.resize(AT_ONCE, 0);
                let batch = scorer.stage.upload(&scorer.b, 0, &host);
                scorer.stage.some_logits(&scorer.b, &batch, &wanted)
            })
        })
    }

    /// Continues as many prompts at once as the groups say, by logits that `begin` makes for each group.
    fn in_groups(
        &mut self,
        groups: Vec<usize>,
        prompts: &[Vec<u32>],
        most: usize,
        ends: Ends,
        mut begin: impl FnMut(&mut Self, &[Sequence]) -> Logits<B>,
    ) -> Result<Vec<Vec<u32>>> {
        assert_eq!(self.rank_layout.pipe.stages, 1, "stages of a model that generates");
        let mut out = vec![Vec::new(); prompts.len()];
        if most == 0 {
            return Ok(out);
        }
        let mut first = 0;
        for n in groups {
            let sequence = |(slot, ids): (usize, &Vec<u32>)| {
                assert!(!ids.is_empty(), "prompt {} has no token", first + slot);
                Sequence { slot, prompt: first + slot, ids: ids.clone(), given: ids.len() }
            };
            let mut going: Vec<Sequence> = prompts[first..first + n].iter().enumerate().map(sequence).collect();
            let mut logits = begin(self, &going);
            while !going.is_empty() {
                let next = logits(self, &going);
                let next = self.likeliest(&next, going.len())?;
                let mut still = Vec::new();
                for (mut sequence, id) in going.into_iter().zip(next) {
                    sequence.ids.push(id);
                    let so_far = &sequence.ids[sequence.given..];
                    if ends(sequence.prompt, so_far)? || so_far.len() == most {
                        out[sequence.prompt] = so_far.to_vec();
                    } else {
                        still.push(sequence);
                    }
                }
                going = still;
            }
            first += n;
        }
        Ok(out)
    }

    /// The token with the largest logit in each of the first `n` rows, the lowest id of equals. Each tensor-parallel
    /// rank has the columns of its part of the vocabulary, `[>= n, V/tp]`.
    fn likeliest(&self, logits: &Act<B>, n: usize) -> Result<Vec<u32>> {
        let (b, group) = (&self.b, self.stage.tensor_group());
        let mut wide = b.alloc(logits.rows(), logits.cols());
        b.widen(logits, &mut wide);
        let fetch = |x| b.wait_host(b.copy_to_host_async(x)).map_err(|fault| Error::run(fault.to_string()));
        let own = fetch(&wide)?;
        let largest = own.chunks(logits.cols()).flat_map(|row| largest(row, self.stage.vocab_start()));
        let largest: Vec<f32> = largest.collect();
        // [R, 2] -> [tp R, 2]; ids are below 2^24, which f32 holds exactly.
        let all = fetch(&group.all_gather(b, b.upload(&largest, logits.rows(), 2)).wait())?;
        let ranks: Vec<&[f32]> = all.chunks(2 * logits.rows()).collect();
        let of_row = |row: usize| best(ranks.iter().map(|rank| [rank[2 * row], rank[2 * row + 1]]));
        (0..n).map(of_row).collect()
    }
}

/// How many prompts in a row fit one micro-batch, again and again, if each takes `rows` rows.
fn groups(rows: impl Iterator<Item = usize>, shape: Shape) -> Vec<usize> {
    let mut groups = Vec::new();
    let mut fill: Vec<usize> = Vec::new();
    for rows in rows {
        assert!(rows <= shape.seq, "a text of {rows} rows in sequences of {}", shape.seq);
        let fits = fill.last().is_some_and(|last| last + rows <= shape.seq);
        let group_is_full = groups.last().is_none_or(|n| *n == AT_ONCE) || !fits && fill.len() == shape.sequences;
        if group_is_full {
            (fill, _) = (vec![rows], groups.push(1));
            continue;
        }
        *groups.last_mut().expect("a group is open") += 1;
        match fits {
            true => *fill.last_mut().expect("a sequence is open") += rows,
            false => fill.push(rows),
        }
    }
    groups
}

/// The micro-batch of sequences that fit one, and the row of the last token of each.
fn together(going: &[Sequence], shape: Shape) -> (MicroBatch, Vec<u32>) {
    let (mut batch, mut wanted) = (blank(shape), Vec::new());
    let (mut sequence, mut start) = (0, 0);
    for s in going {
        let rows = s.ids.len();
        if start + rows > shape.seq {
            (sequence, start) = (sequence + 1, 0);
        }
        assert!(sequence < shape.sequences, "sequence {sequence} of {}", shape.sequences);
        // The last row predicts a token that is not known yet.
        let text = Text { ids: [&s.ids[..], &[0]].concat(), from: rows };
        lay(&mut batch, &text, sequence * shape.seq + start, start);
        start += rows;
        wanted.push((sequence * shape.seq + start - 1) as u32);
    }
    (batch, wanted)
}

/// The largest logit of a row and its id, of which the first column's is `start`; the first of equals. A NaN is larger
/// than all.
fn largest(row: &[f32], start: usize) -> [f32; 2] {
    let mut best = 0;
    for (column, logit) in row.iter().enumerate() {
        if logit.is_nan() {
            return [*logit, (start + column) as f32];
        }
        if *logit > row[best] {
            best = column;
        }
    }
    [row.get(best).copied().unwrap_or(f32::NEG_INFINITY), (start + best) as f32]
}

/// The id of the largest of the ranks' largest logits, of equals that of the first rank.
fn best(ranks: impl Iterator<Item = [f32; 2]>) -> Result<u32> {
    let mut best = [f32::NEG_INFINITY, -1.0];
    for [logit, id] in ranks {
        if logit.is_nan() {
            return Err(Error::run(format!("the logit of token {id} is NaN; check the model's weights")));
        }
        if logit > best[0] || best[1] < 0.0 {
            best = [logit, id];
        }
    }
    Ok(best[1] as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::HuggingFace;
    use crate::config::{Config, Evaluation, Model, hf};
    use crate::cpu::{Cpu, Float};
    use crate::layout::rank_layout::RankLayout;
    use crate::model::param_specs::TensorSpec;
    use crate::model::rect::Rect;
    use crate::stage::groups::Groups;
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
        let mut scorer = scorer(&model, Evaluation { sequences: 2, ..Evaluation::on_one_rank(24) }, read);
        let prompts: Vec<Vec<u32>> = (0..19).map(|i| ids(&model, 1 + i % 7, i)).collect();
        let ends = |prompt: usize, so_far: &[u32]| Ok(prompt.is_multiple_of(3) && so_far.len() == 1 + prompt / 3);
        let all = scorer.continuations(&prompts, 9, &mut { ends }).unwrap();
        assert_eq!(all, scorer.continuations_uncached(&prompts, 9, &mut { ends }).unwrap());
        for (i, prompt) in prompts.iter().enumerate() {
            let one = std::slice::from_ref(prompt);
            let alone = scorer.continuations(one, 9, &mut |_, so_far| ends(i, so_far)).unwrap();
            assert_eq!(all[i], alone[0], "prompt {i}");
            assert_eq!(all[i].len(), if i.is_multiple_of(3) { 9.min(1 + i / 3) } else { 9 }, "prompt {i}");
        }
        assert_eq!(scorer.continuations(&prompts, 0, &mut |_, _| Ok(false)).unwrap(), vec![Vec::<u32>::new(); 19]);
    }

    fn scorer(
        model: &Model,
        of: Evaluation,
        read: impl FnMut(&TensorSpec, &Rect, &mut [f32]) -> Result<()>,
    ) -> Scorer<Cpu<f32>> {
        let (b, config) = (Cpu::<f32>::new(2), Config::of_evaluation(model, &of, 1).unwrap());
        let rank_layout = RankLayout::new(&config, config.mesh(1).unwrap(), 0);
        let groups = Groups::new(&b, &config, &rank_layout);
        Scorer::new(b, groups, &config, rank_layout, read).unwrap()
    }

    #[test]
    fn the_first_of_equal_logits_is_taken() {
        let of = |ranks: &[&[f32]]| {
            let starts = ranks.iter().scan(0, |start, row| Some(std::mem::replace(start, *start + row.len())));
            best(ranks.iter().zip(starts).map(|(row, start)| largest(row, start)))
        };
        assert_eq!(of(&[&[0.5, 2.0, -1.0, 2.0]]).unwrap(), 1);
        assert_eq!(of(&[&[0.5, 1.0], &[2.0, -1.0], &[2.0]]).unwrap(), 2);
        assert_eq!(of(&[&[f32::NEG_INFINITY; 3][..]; 2]).unwrap(), 0);
        assert!(of(&[&[0.0], &[9.0, f32::NAN]]).unwrap_err().to_string().contains("token 2 is NaN"));
    }

    #[test]
    fn prompts_that_do_not_fit_one_micro_batch_are_continued_later() {
        let shape = Shape { sequences: 2, seq: 10 };
        assert_eq!(groups([6, 5, 5, 1, 10, 2].into_iter(), shape), [3, 2, 1]);
        assert_eq!(groups([1; 40].into_iter(), Shape { sequences: 5, seq: 100 }), [16, 16, 8]);
        assert_eq!(groups([].into_iter(), shape), Vec::<usize>::new());
    }
}
