//! The attention kernels, compared with the CPU's op.

use crate::common::{Random, act, cpus, emulators, near_rows, on, places_for};
use cuda::machine::{Done, Machine, Target};
use cuda::ops::{self, AttentionSaved, HEAD_DIMS, Scratch, Shape, stats_len, sums_len};
use cuda::tensor::View;
use emulator::place::Place;
use engine::backend::{Backend, Heads};
use engine::cpu::{Cpu, Float};
use half::bf16;

/// The keys that a query attends to.
#[derive(Debug, Clone, Copy)]
pub enum Sight {
    /// All keys up to the query.
    Past,
    /// The last so many keys up to the query.
    Window(usize),
    /// The keys of the query's document up to it. The documents have these lengths, over and over.
    Documents(&'static [usize]),
    /// Those of the last so many keys that are in the query's document.
    WindowInDocuments(usize, &'static [usize]),
}

impl Sight {
    fn starts(self, seq: usize) -> Vec<u32> {
        let window = |n: usize| (0..seq).map(|t| (t + 1).saturating_sub(n) as u32).collect();
        match self {
            Sight::Past => vec![0; seq],
            Sight::Window(n) => window(n),
            Sight::WindowInDocuments(n, lengths) => {
                let documents = Sight::Documents(lengths).starts(seq);
                documents.iter().zip(window(n)).map(|(&document, start)| document.max(start)).collect()
            }
            Sight::Documents(lengths) => {
                let mut starts = Vec::new();
                for &n in lengths.iter().cycle() {
                    let first = starts.len() as u32;
                    starts.extend(std::iter::repeat_n(first, n.min(seq - starts.len())));
                    if starts.len() == seq {
                        break;
                    }
                }
                starts
            }
        }
    }
}

/// One batch: its shape, the mask, and the scale of its numbers.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub shape: Shape,
    pub sight: Sight,
    pub scale: f32,
}

/// The ops of one architecture.
pub struct Ops {
    pub target: Target,
    pub forward: fn(&dyn Machine, View, View, View, View, Shape) -> Done,
    pub backward: fn(&dyn Machine, View, AttentionSaved, View, Scratch, Shape) -> Done,
}

pub const SM80: Ops = Ops { target: Target::Sm80, forward: ops::attention_sm80, backward: ops::attention_bwd_sm80 };

pub fn case(query: usize, kv: usize, dim: usize, seq: usize, sequences: usize, sight: Sight) -> Case {
    Case { shape: Shape::full(query, kv, dim, seq, sequences), sight, scale: 1.0 }
}

use Sight::{Documents, Past, Window, WindowInDocuments};

/// The cases of heads of this size.
pub fn cases(dim: usize) -> Vec<Case> {
    [plain_cases(), capped_cases()].concat().into_iter().filter(|case| case.shape.dim == dim).collect()
}

/// Lengths around each tile size, every ratio of heads from 1 to 8, windows and documents whose borders lie inside, on
/// and beside the borders of tiles.
fn plain_cases() -> Vec<Case> {
    vec![
        case(1, 1, 64, 1, 1, Past),
        case(1, 1, 128, 1, 3, Past),
        case(2, 1, 64, 17, 2, Past),
        case(3, 1, 128, 17, 1, Past),
        case(2, 2, 64, 63, 1, Past),
        case(1, 1, 128, 63, 1, Window(1)),
        case(4, 1, 64, 64, 1, Window(5)),
        case(2, 1, 128, 64, 2, Documents(&[1, 7, 24, 32])),
        case(1, 1, 64, 65, 2, Past),
        case(5, 1, 128, 65, 1, Past),
        case(1, 1, 64, 127, 1, Window(64)),
        case(2, 2, 128, 127, 1, Past),
        case(6, 1, 64, 128, 1, Documents(&[63, 1, 1, 63])),
        case(1, 1, 128, 128, 1, Window(64)),
        case(7, 1, 64, 129, 1, Past),
        case(2, 1, 128, 129, 2, Documents(&[64, 1, 62, 1, 1])),
        case(8, 1, 64, 66, 1, Past),
        case(1, 1, 64, 200, 2, Documents(&[1])),
        case(2, 1, 128, 200, 1, Documents(&[65, 3, 59, 73])),
        case(2, 1, 64, 300, 1, Past),
        case(1, 1, 128, 300, 1, Past),
        case(1, 1, 64, 300, 1, Window(100)),
        case(2, 2, 128, 300, 1, Window(5)),
        case(1, 1, 64, 520, 1, Past),
        case(2, 1, 64, 260, 1, WindowInDocuments(70, &[130, 17, 90])),
        case(1, 1, 128, 260, 1, WindowInDocuments(70, &[130, 17, 90])),
        case(1, 1, 256, 1, 2, Past),
        case(2, 1, 256, 17, 1, Past),
        case(1, 1, 256, 63, 1, Window(1)),
        case(4, 2, 256, 64, 2, Documents(&[1, 7, 24, 32])),
        case(3, 1, 256, 65, 1, Window(5)),
        case(1, 1, 256, 97, 1, Past),
        case(1, 1, 256, 128, 1, Window(64)),
        case(2, 1, 256, 129, 1, Documents(&[64, 1, 31, 31, 1, 1])),
        case(2, 1, 256, 200, 1, WindowInDocuments(40, &[100, 3, 59, 38])),
        case(1, 1, 256, 300, 1, Past),
        case(1, 1, 256, 300, 1, Window(100)),
    ]
}

/// Caps that hardly bend the scores, that bend most, and that leave little but signs; scales that are not d^-1/2.
fn capped_cases() -> Vec<Case> {
    let capped = |cap, factor, scale, plain: Case| {
        let shape = Shape { cap: Some(cap), scale: factor * plain.shape.scale, ..plain.shape };
        Case { shape, scale, ..plain }
    };
    vec![
        capped(50.0, 1.0, 1.0, case(2, 1, 64, 65, 1, Past)),
        capped(0.5, 1.0, 1.0, case(1, 1, 64, 17, 2, Documents(&[5, 3]))),
        capped(2.0, 2.0, 1.0, case(1, 1, 64, 300, 1, Window(100))),
        capped(2.0, 0.9, 1.0, case(3, 1, 128, 66, 1, Past)),
        capped(500.0, 1.0, 1.0, case(1, 1, 128, 63, 1, Window(1))),
        capped(50.0, 1.0, 4.0, case(2, 1, 128, 200, 1, WindowInDocuments(40, &[65, 3, 59, 73]))),
        capped(3.0, 1.0, 1.0, case(1, 1, 128, 300, 1, Past)),
        capped(50.0, 1.0, 1.0, case(2, 1, 256, 65, 1, Past)),
        capped(500.0, 1.0, 1.0, case(1, 1, 256, 33, 1, Window(1))),
        capped(50.0, 1.0, 4.0, case(1, 1, 256, 150, 1, Window(100))),
        capped(1.0, 1.5, 1.0, case(2, 1, 256, 129, 1, WindowInDocuments(40, &[100, 29]))),
    ]
}

/// Head sizes and scales of numbers. The scores of the large ones reach far beyond a cap of 50.
pub const SCALES: [(usize, f32); 7] =
    [(64, 1e2), (64, 1e-4), (128, 1e2), (128, 1e-4), (128, 4.0), (256, 1e2), (256, 1e-4)];

/// Cases of at least so many tokens a sequence take most of the time.
pub const LONG: usize = 100;

impl Case {
    fn heads(&self) -> Heads {
        let Shape { query, kv, dim, seq, scale, cap, .. } = self.shape;
        Heads { scale, cap, ..Heads::full(query, kv, dim, seq) }
    }

    pub fn starts(&self) -> Vec<u32> {
        self.sight.starts(self.shape.seq).repeat(self.shape.sequences)
    }

    fn random(&self) -> Random {
        let Shape { query, dim, seq, .. } = self.shape;
        Random::new((query * 7919 + dim * 31 + seq) as u64)
    }

    fn qkv(&self) -> Vec<bf16> {
        self.random().bf16(self.shape.rows() * self.shape.qkv_cols(), self.scale)
    }

    /// o and lse of the CPU's op.
    fn theirs<A: Float>(&self, cpu: &Cpu<A>) -> (Vec<A>, Vec<f32>) {
        let rows = self.shape.rows();
        let (qkv, starts) = (act(cpu, &self.qkv(), rows, self.shape.qkv_cols()), cpu.upload(&self.starts(), rows, 1));
        let (o, lse) = cpu.attention(&qkv, &starts, self.heads());
        (cpu.download(&o), cpu.download(&lse))
    }

    /// o and lse of the kernels.
    pub fn ours(&self, ops: &Ops, place: &dyn Place) -> (Vec<bf16>, Vec<f32>) {
        let Shape { query, dim, .. } = self.shape;
        let rows = self.shape.rows();
        let (qkv, starts) = (self.qkv(), self.starts());
        let (mut o, mut lse) = (vec![bf16::NAN; rows * query * dim], vec![f32::NAN; rows * query]);
        on(place, |m, l| {
            (ops.forward)(m, l.read(&qkv), l.read(&starts), l.write(&mut o), l.write(&mut lse), self.shape)
        });
        (o, lse)
    }

    pub fn forward(&self, ops: &Ops) {
        let (cpu, judge) = cpus();
        let (plain, _) = self.theirs(&cpu);
        let (exact, exact_lse) = self.theirs(&judge);
        for place in places_for(ops.target) {
            let (o, lse) = self.ours(ops, place);
            near_rows(&format!("o of {self:?} on {}", place.name()), &o, &plain, &exact, self.shape.dim, 0.0);
            for (at, (lse, exact)) in lse.iter().zip(&exact_lse).enumerate() {
                let allowed = 1e-5 * exact.abs().max(1.0);
                assert!((lse - exact).abs() <= allowed, "lse {at} of {self:?} is {lse}, not {exact}");
            }
        }
    }

    /// The scores of queries that see only themselves, in f64. There the kernels' lse is the score.
    fn own_scores(&self) -> Vec<f64> {
        let (Shape { query, kv, dim, scale, cap, .. }, qkv) = (self.shape, self.qkv());
        let row = |t: usize, head: usize| &qkv[t * self.shape.qkv_cols() + head * dim..][..dim];
        let score = |t: usize, head: usize| {
            let (q, k) = (row(t, head), row(t, query + head / (query / kv)));
            let s = scale as f64 * q.iter().zip(k).map(|(q, k)| q.to_f64() * k.to_f64()).sum::<f64>();
            cap.map_or(s, |cap| cap as f64 * (s / cap as f64).tanh())
        };
        (0..self.shape.rows()).flat_map(|t| (0..query).map(move |head| score(t, head))).collect()
    }

    /// Checks the kernels' scores, in which a large cap enlarges the errors of tanh.
    pub fn exact_scores(&self, ops: &Ops) {
        for place in places_for(ops.target) {
            for (lse, exact) in self.ours(ops, place).1.into_iter().zip(self.own_scores()) {
                let allowed = 2e-6 * exact.abs().max(4.0);
                assert!((lse as f64 - exact).abs() <= allowed, "{self:?} on {}: {lse}, not {exact}", place.name());
            }
        }
    }

    fn do_(&self) -> Vec<bf16> {
        Random::new(self.shape.rows() as u64).bf16(self.shape.rows() * self.shape.query * self.shape.dim, 1.0)
    }

    /// dqkv of the CPU's op, from the same o and lse that the kernels get.
    fn their_gradients<A: Float>(&self, cpu: &Cpu<A>, o: &[bf16], lse: &[f32]) -> Vec<A> {
        let (h, rows) = (self.heads(), self.shape.rows());
        let (qkv, starts) = (act(cpu, &self.qkv(), rows, h.qkv_cols()), cpu.upload(&self.starts(), rows, 1));
        let (do_, o) = (act(cpu, &self.do_(), rows, h.out_cols()), act(cpu, o, rows, h.out_cols()));
        cpu.download(&cpu.attention_bwd(&do_, &o, &cpu.upload(lse, rows, h.query), &qkv, &starts, h))
    }

    /// dqkv of the kernels.
    pub fn our_gradients(&self, ops: &Ops, place: &dyn Place, o: &[bf16], lse: &[f32], parts: usize) -> Vec<bf16> {
        let (qkv, do_, starts) = (self.qkv(), self.do_(), self.starts());
        let mut dqkv = vec![bf16::NAN; qkv.len()];
        let mut stats = vec![u32::MAX; stats_len(self.shape)];
        let mut sums = vec![f32::NAN; sums_len(self.shape, parts)];
        on(place, |m, l| {
            let saved = AttentionSaved { qkv: l.read(&qkv), o: l.read(o), lse: l.read(lse), starts: l.read(&starts) };
            let scratch = Scratch { stats: l.write(&mut stats), sums: l.write(&mut sums), parts };
            (ops.backward)(m, l.read(&do_), saved, l.write(&mut dqkv), scratch, self.shape)
        });
        dqkv
    }

    /// Runs with all query heads of a key/value head in one block, and with one block for each.
    pub fn backward(&self, ops: &Ops) {
        let (cpu, judge) = cpus();
        let (o, _) = self.theirs(&cpu);
        let (_, lse) = self.theirs(&judge);
        let (plain, exact) = (self.their_gradients(&cpu, &o, &lse), self.their_gradients(&judge, &o, &lse));
        let Shape { query, kv, dim, seq, .. } = self.shape;
        // dP - D cancels where a query attends to hardly more than one key: f32 loses a part of terms do v k, which are
        // summed over queries.
        let (scale, seq) = (self.scale as f64, seq as f64);
        let (group, lost) = (query / kv, 1e-6 * dim as f64 * scale * scale * seq.sqrt());
        for place in places_for(ops.target) {
            for parts in if group > 1 { vec![1, group] } else { vec![1] } {
                let dqkv = self.our_gradients(ops, place, &o, &lse, parts);
                let what = format!("dqkv of {self:?} on {}", place.name());
                near_rows(&what, &dqkv, &plain, &exact, dim, lost);
            }
        }
    }
}

/// Queries that see only themselves, with caps from far above the scores to far below them.
pub fn single_keys(dims: &'static [usize]) -> impl Iterator<Item = Case> {
    let caps = [None, Some(1000.0), Some(50.0), Some(2.0), Some(0.1)];
    dims.iter().flat_map(move |&dim| caps.map(|cap| (dim, cap))).map(|(dim, cap)| {
        let plain = case(3, 1, dim, 70, 1, Window(1));
        Case { shape: Shape { cap, scale: 1.5 * plain.shape.scale, ..plain.shape }, ..plain }
    })
}

#[test]
fn forward_scores_are_exact() {
    single_keys(&HEAD_DIMS).for_each(|case| case.exact_scores(&SM80));
}

/// Cases of numbers of very different sizes, without and with a cap.
pub fn sizes_of_numbers(dims: &'static [usize]) -> impl Iterator<Item = Case> {
    SCALES.into_iter().filter(|(dim, _)| dims.contains(dim)).flat_map(|(dim, scale)| {
        let plain = Case { scale, ..case(2, 1, dim, 150, 1, Past) };
        let capped = Case { shape: Shape { cap: Some(50.0), ..plain.shape }, ..plain };
        std::iter::once(plain).chain((scale > 1.0).then_some(capped))
    })
}

mod forward_over_shapes {
    use super::*;

    fn forward(dim: usize, lengths: std::ops::Range<usize>) {
        cases(dim).iter().filter(|case| lengths.contains(&case.shape.seq)).for_each(|case| case.forward(&SM80));
    }

    #[test]
    fn heads_of_64() {
        forward(64, 0..usize::MAX);
    }

    #[test]
    fn heads_of_128() {
        forward(128, 0..usize::MAX);
    }

    #[test]
    fn heads_of_256_below_100_tokens() {
        forward(256, 0..LONG);
    }

    #[test]
    fn heads_of_256_from_100_tokens_on_exhaustive() {
        forward(256, LONG..usize::MAX);
    }
}

#[test]
fn forward_over_sizes_of_numbers() {
    sizes_of_numbers(&HEAD_DIMS).for_each(|case| case.forward(&SM80));
}

mod backward_over_shapes {
    use super::*;

    fn backward(dim: usize, lengths: std::ops::Range<usize>) {
        cases(dim).iter().filter(|case| lengths.contains(&case.shape.seq)).for_each(|case| case.backward(&SM80));
    }

    #[test]
    fn heads_of_64_below_100_tokens() {
        backward(64, 0..LONG);
    }

    #[test]
    fn heads_of_128_below_100_tokens() {
        backward(128, 0..LONG);
    }

    mod exhaustive {
        use super::*;

        #[test]
        fn heads_of_256_below_100_tokens() {
            backward(256, 0..LONG);
        }

        #[test]
        fn heads_of_64_from_100_tokens_on() {
            backward(64, LONG..usize::MAX);
        }

        #[test]
        fn heads_of_128_from_100_tokens_on() {
            backward(128, LONG..usize::MAX);
        }

        #[test]
        fn heads_of_256_from_100_tokens_on() {
            backward(256, LONG..usize::MAX);
        }
    }
}

#[test]
fn backward_over_sizes_of_numbers_exhaustive() {
    sizes_of_numbers(&HEAD_DIMS).for_each(|case| case.backward(&SM80));
}

#[test]
fn bits_and_banks() {
    hold_bits_and_banks([(64, None), (128, Some(2.0))]);
}

#[test]
fn bits_and_banks_of_all_kernels_exhaustive() {
    hold_bits_and_banks([(64, Some(2.0)), (128, None), (256, None), (256, Some(2.0))]);
}

/// Every order of threads and blocks leaves the same bits, and no two rows of a tile conflict in a bank.
fn hold_bits_and_banks(kernels: impl IntoIterator<Item = (usize, Option<f32>)>) {
    for (dim, cap) in kernels {
        let plain = case(2, 1, dim, 200, 1, Window(100));
        let case = Case { shape: Shape { cap, ..plain.shape }, ..plain };
        let all = emulators().map(|place| {
            let (o, lse) = case.ours(&SM80, &place);
            let gradients = [1, 2].map(|parts| case.our_gradients(&SM80, &place, &o, &lse, parts));
            assert_eq!(place.stats().conflicts, 0, "{dim}");
            (o, lse, gradients)
        });
        assert!(all.iter().all(|result| *result == all[0]), "{dim}");
    }
}
