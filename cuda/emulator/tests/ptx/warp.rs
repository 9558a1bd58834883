//! Instructions in which the 32 lanes of a warp take part together: shfl.sync, vote.sync, ldmatrix and mma. They are
//! written from the text and figures of the PTX ISA alone.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collective {
    Sync,
    Shuffle(Shuffle),
    Any,
    All,
    /// `ldmatrix.x4`
    Load {
        transposed: bool,
    },
    /// `mma.m16n8k16` of bf16 with f32 sums.
    Multiply,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

pub const LANES: usize = 32;

/// A word of every lane.
pub type Word = [u32; LANES];

impl Collective {
    pub fn named(words: &[&str]) -> Option<Collective> {
        Some(match words {
            ["bar", "warp", "sync"] => Collective::Sync,
            ["shfl", "sync", "up", "b32"] => Collective::Shuffle(Shuffle::Up),
            ["shfl", "sync", "down", "b32"] => Collective::Shuffle(Shuffle::Down),
            ["shfl", "sync", "bfly", "b32"] => Collective::Shuffle(Shuffle::Butterfly),
            ["shfl", "sync", "idx", "b32"] => Collective::Shuffle(Shuffle::Index),
            ["vote", "sync", "any", "pred"] => Collective::Any,
            ["vote", "sync", "all", "pred"] => Collective::All,
            ["ldmatrix", "sync", "aligned", "m8n8", "x4", "shared" | "shared::cta", "b16"] => {
                Collective::Load { transposed: false }
            }
            ["ldmatrix", "sync", "aligned", "m8n8", "x4", "trans", "shared" | "shared::cta", "b16"] => {
                Collective::Load { transposed: true }
            }
            ["mma", "sync", "aligned", "m16n8k16", "row", "col", "f32", "bf16", "bf16", "f32"] => Collective::Multiply,
            _ => return None,
        })
    }

    /// How many operands it has.
    pub fn operands(self) -> usize {
        match self {
            Collective::Sync => 1,
            Collective::Load { .. } => 2,
            Collective::Any | Collective::All => 3,
            Collective::Multiply => 4,
            Collective::Shuffle(_) => 5,
        }
    }
}

/// `shfl.sync d, a, b, c`, by the pseudocode of the ISA.
pub fn shuffled(shuffle: Shuffle, a: &Word, b: &Word, c: &Word) -> Word {
    std::array::from_fn(|lane| {
        let [b, clamp, segment] = [b[lane] & 31, c[lane] & 31, c[lane] >> 8 & 31].map(i64::from);
        let lane = lane as i64;
        let (least, most) = (lane & segment, lane & segment | clamp & !segment);
        let (from, valid) = match shuffle {
            Shuffle::Up => (lane - b, lane - b >= most),
            Shuffle::Down => (lane + b, lane + b <= most),
            Shuffle::Butterfly => (lane ^ b, lane ^ b <= most),
            Shuffle::Index => (least | b & !segment, (least | b & !segment) <= most),
        };
        a[if valid { from } else { lane } as usize]
    })
}

/// `ldmatrix.x4`: lane 8 m + r holds row r of matrix m, which is eight 16-bit elements. Each lane gets a word of every
/// matrix: from row lane / 4 the elements 2 (lane % 4) and the next, of the matrix or of its transpose.
pub fn distributed(rows: &[[u16; 8]; LANES], transposed: bool) -> [Word; 4] {
    std::array::from_fn(|m| {
        std::array::from_fn(|lane| {
            let element = |row: usize, column: usize| rows[8 * m + row][column];
            let [low, high] = [0, 1].map(|i| {
                let (row, column) = (lane / 4, 2 * (lane % 4) + i);
                if transposed { element(column, row) } else { element(row, column) }
            });
            u32::from(low) | u32::from(high) << 16
        })
    })
}

/// Halves of words as numbers.
fn halves(words: &[Word], lane: usize, i: usize) -> f64 {
    let half = words[i / 2][lane] >> (16 * (i % 2)) & 0xffff;
    f64::from(f32::from_bits(half << 16))
}

/// `mma.m16n8k16.row.col.f32.bf16.bf16.f32 d, a, b, c`, with the fragments of the ISA's section on m16n8k16. The order
/// and the precision of the sum are not defined there: here it is one in f64, rounded once.
pub fn multiplied(a: &[Word], b: &[Word], c: &[Word]) -> [Word; 4] {
    let (mut left, mut right, mut sums) = ([[0.0; 16]; 16], [[0.0; 8]; 16], [[0.0; 8]; 16]);
    // The row and the column of element i of c and d.
    let place = |lane: usize, i: usize| {
        let (group, in_group) = (lane / 4, lane % 4);
        (if i < 2 { group } else { group + 8 }, 2 * in_group + (i & 1))
    };
    let elements = |n: usize| (0..LANES).flat_map(move |lane| (0..n).map(move |i| (lane, i)));
    for (lane, i) in elements(8) {
        let (group, in_group) = (lane / 4, lane % 4);
        let row = if i < 2 || (4..6).contains(&i) { group } else { group + 8 };
        let column = 2 * in_group + (i & 1) + if i < 4 { 0 } else { 8 };
        left[row][column] = halves(a, lane, i);
    }
    for (lane, i) in elements(4) {
        let (group, in_group) = (lane / 4, lane % 4);
        right[2 * in_group + (i & 1) + if i < 2 { 0 } else { 8 }][group] = halves(b, lane, i);
        let (row, column) = place(lane, i);
        sums[row][column] = f64::from(f32::from_bits(c[i][lane]));
    }
    std::array::from_fn(|i| {
        std::array::from_fn(|lane| {
            let (row, column) = place(lane, i);
            let products = (0..16).map(|k| left[row][k] * right[k][column]);
            (products.fold(sums[row][column], |sum, x| sum + x) as f32).to_bits()
        })
    })
}
