//! Attention's kernels against the CPU's op.

use crate::common::{Random, act, cpus, emulators, near_rows, on, places};
use cuda::args::View;
use cuda::machine::{Done, Machine};
use cuda::ops::{self, Shape};
use emulator::place::Place;
use engine::backend::{Backend, Heads};
use engine::cpu::{Cpu, Float};
use half::bf16;

/// What queries see.
#[derive(Debug, Clone, Copy)]
pub enum Sight {
    /// All before them.
    Past,
    /// The last so many.
    Window(usize),
    /// Their document; each is as long as the next number, over and over.
    Documents(&'static [usize]),
}

impl Sight {
    fn starts(self, seq: usize) -> Vec<u32> {
        let window = |n: usize| (0..seq).map(|t| (t + 1).saturating_sub(n) as u32).collect();
        match self {
            Sight::Past => vec![0; seq],
            Sight::Window(n) => window(n),
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

/// One batch: its shape, what its queries see, the size of its numbers.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub shape: Shape,
    pub sight: Sight,
    pub scale: f32,
}

/// An op that makes o and lse of qkv and starts.
pub type Forward = fn(&dyn Machine, View, View, View, View, Shape) -> Done;

pub const fn case(query: usize, kv: usize, dim: usize, seq: usize, sequences: usize, sight: Sight) -> Case {
    Case { shape: Shape { query, kv, dim, seq, sequences }, sight, scale: 1.0 }
}

use Sight::{Documents, Past, Window};

/// Lengths beside each size of a tile, every ratio of heads from 1 to 8, windows and documents whose borders lie
/// within, on and beside those of tiles.
pub const CASES: [Case; 24] = [
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
    case(2, 1, 128, 200, 1, Documents(&[65, 3, 60, 72])),
    case(2, 1, 64, 300, 1, Past),
    case(1, 1, 128, 300, 1, Past),
    case(1, 1, 64, 300, 1, Window(100)),
    case(2, 2, 128, 300, 1, Window(5)),
    case(1, 1, 64, 520, 1, Past),
];

impl Case {
    fn heads(&self) -> Heads {
        let Shape { query, kv, dim, seq, .. } = self.shape;
        Heads { query, kv, dim, seq }
    }

    fn starts(&self) -> Vec<u32> {
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
    pub fn ours(&self, op: Forward, place: &dyn Place) -> (Vec<bf16>, Vec<f32>) {
        let Shape { query, dim, .. } = self.shape;
        let rows = self.shape.rows();
        let (qkv, starts) = (self.qkv(), self.starts());
        let (mut o, mut lse) = (vec![bf16::NAN; rows * query * dim], vec![f32::NAN; rows * query]);
        on(place, |m, l| op(m, l.read(&qkv), l.read(&starts), l.write(&mut o), l.write(&mut lse), self.shape));
        (o, lse)
    }

    pub fn forward(&self, op: Forward) {
        let (cpu, judge) = cpus();
        let (plain, _) = self.theirs(&cpu);
        let (exact, exact_lse) = self.theirs(&judge);
        for place in places() {
            let (o, lse) = self.ours(op, place);
            near_rows(&format!("o of {self:?} on {}", place.name()), &o, &plain, &exact, self.shape.dim);
            for (at, (lse, exact)) in lse.iter().zip(&exact_lse).enumerate() {
                let allowed = 1e-5 * exact.abs().max(1.0);
                assert!((lse - exact).abs() <= allowed, "lse {at} of {self:?} is {lse}, not {exact}");
            }
        }
    }
}

#[test]
fn forward_over_shapes() {
    CASES.iter().for_each(|case| case.forward(ops::attention));
}

#[test]
fn forward_over_sizes_of_numbers() {
    for (dim, scale) in [(64, 1e2), (64, 1e-4), (128, 1e2), (128, 1e-4), (128, 4.0)] {
        Case { scale, ..case(2, 1, dim, 150, 1, Past) }.forward(ops::attention);
    }
}

/// The same bits under every order of threads and blocks, and no two rows of a tile in one bank.
#[test]
fn bits_and_banks() {
    for dim in [64, 128] {
        let case = case(2, 1, dim, 200, 1, Window(100));
        let all = emulators().map(|place| {
            let result = case.ours(ops::attention, &place);
            assert_eq!(place.stats().conflicts, 0, "{dim}");
            result
        });
        assert!(all.iter().all(|result| *result == all[0]), "{dim}");
    }
}
