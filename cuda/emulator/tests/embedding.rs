//! The embedding kernels, compared with the CPU's ops; the gradient also bit for bit with its documented order of sums.

use crate::common::{Random, act, cpus, on, places};
use cuda::ops::{self, EmbedScratch, embed_parts, embed_words};
use emulator::place::Place;
use engine::backend::Backend;
use half::bf16;

/// The id of the table's first row.
const FIRST: usize = 500;

#[test]
fn rows_of_the_table() {
    let (cpu, _) = cpus();
    for (tokens, held, d, late) in [
        (1, 1, 1, 0),
        (5, 3, 5, 0),
        (9, 7, 8, 0),
        (7, 2, 8, 3),
        (3, 40, 264, 0),
        (40, 11, 264, 8),
        (3, 3, 2056, 0),
        (5, 3, 9001, 1),
        (2, 3, 16_384, 0),
    ] {
        let mut random = Random::new((tokens * d) as u64);
        let table = random.bf16(late + held * d, 1.0);
        // From two below the ids that the rank holds to two above.
        let ids = (0..tokens).map(|t| (FIRST - 2 + t * 7 % (held + 4)) as u32).collect::<Vec<_>>();
        let right = cpu.embed(&cpu.upload(&ids, tokens, 1), &act(&cpu, &table[late..], held, d), FIRST);
        for place in places() {
            let mut y = vec![bf16::NAN; late + tokens * d];
            on(place, |m, l| ops::embed(m, l.read(&ids), l.read(&table[late..]), FIRST, l.write(&mut y[late..])));
            assert_eq!(y[late..], cpu.download(&right), "{tokens} x {d} of {held}");
            assert!(y[..late].iter().all(|y| y.is_nan()));
        }
    }
}

/// The tokens of a micro-batch, and the rows and columns of the table.
type Shape = (usize, usize, usize);

/// The ids of `tokens` tokens, for a table of `held` rows.
fn ids(kind: &str, tokens: usize, held: usize) -> Vec<u32> {
    let mut random = Random::new((tokens * 17 + held) as u64);
    let noise = random.f32(tokens, 1.0);
    let id = |t: usize| match kind {
        "equal" => FIRST + held / 2,
        "distinct" => FIRST + (t * 7919 + 13) % held,
        "none held" => [0, FIRST - 1, FIRST + held, u32::MAX as usize][t % 4],
        // A few frequent ids, many rare ones, some that the rank does not hold.
        "text" => FIRST + [0, 0, 1, 0, held / 2, (noise[t].abs() * held as f32) as usize][t % 6],
        _ => panic!("{kind}"),
    };
    (0..tokens).map(|t| id(t) as u32).collect()
}

fn gradient(place: &dyn Place, ids: &[u32], dy: &[bf16], dtable: &mut [f32]) {
    let (tokens, d) = (ids.len(), dy.len() / ids.len());
    let (mut words, mut parts) = (vec![u32::MAX; embed_words(tokens)], vec![f32::NAN; embed_parts(tokens, d)]);
    on(place, |m, l| {
        let scratch = EmbedScratch { words: l.write(&mut words), parts: l.write(&mut parts) };
        ops::embed_bwd(m, l.read(ids), l.read(dy), FIRST, l.write(dtable), scratch)
    });
}

/// The tokens sorted by their ids, in tiles of 32. A run of one id adds its rows to the table one by one in the tile
/// where it begins; the rows in each further tile are summed first.
fn in_order(ids: &[u32], dy: &[bf16], held: usize, dtable: &mut [f32]) {
    let d = dtable.len() / held;
    let row_of = |&t: &usize| (ids[t] as usize).checked_sub(FIRST).filter(|&row| row < held);
    let mut tokens = (0..ids.len()).filter(|t| row_of(t).is_some()).collect::<Vec<_>>();
    tokens.sort_by_key(row_of);
    let places = tokens.into_iter().enumerate().collect::<Vec<_>>();
    for run in places.chunk_by(|a, b| row_of(&a.1) == row_of(&b.1)) {
        let to = &mut dtable[row_of(&run[0].1).unwrap() * d..][..d];
        for (n, tile) in run.chunk_by(|a, b| a.0 / 32 == b.0 / 32).enumerate() {
            for (col, to) in to.iter_mut().enumerate() {
                let add = |sum: f32, &(_, t): &(usize, usize)| sum + dy[t * d + col].to_f32();
                *to = if n == 0 { tile.iter().fold(*to, add) } else { *to + tile.iter().fold(0.0, add) };
            }
        }
    }
}

#[test]
fn gradients_of_the_table() {
    let (cpu, _) = cpus();
    // Tokens: one, odd, around a tile, around a chunk of the sort, several chunks. Columns: around a vector and a
    // slice.
    const SHAPES: [Shape; 14] = [
        (1, 1, 8),
        (1, 9, 5),
        (2, 2, 8),
        (31, 40, 8),
        (33, 40, 5),
        (64, 64, 264),
        (65, 3, 264),
        (777, 1, 8),
        (1000, 100, 3),
        (1024, 30, 8),
        (1025, 2000, 16),
        (2500, 2600, 8),
        (2500, 7, 40),
        (300, 20, 1032),
    ];
    for (tokens, held, d) in SHAPES {
        for kind in ["equal", "distinct", "text"] {
            let ids = ids(kind, tokens, held);
            let mut random = Random::new((tokens * d) as u64);
            let (dy, before) = (random.bf16(tokens * d, 1.0), random.f32(held * d, 1.0));
            let mut right = before.clone();
            in_order(&ids, &dy, held, &mut right);
            let mut plain = cpu.upload(&before, held, d);
            cpu.embed_bwd(&cpu.upload(&ids, tokens, 1), &act(&cpu, &dy, tokens, d), FIRST, &mut plain);
            for (a, b) in right.iter().zip(cpu.download(&plain)) {
                assert!((a - b).abs() < 1e-6 * tokens as f32, "{kind}, {tokens} x {d}: {a}, row after row {b}");
            }
            for place in places() {
                let mut dtable = before.clone();
                gradient(place, &ids, &dy, &mut dtable);
                assert!(dtable == right, "{kind}, {tokens} x {d} of {held} rows, {}", place.name());
            }
        }
    }
}

#[test]
fn tokens_of_other_tables_change_nothing() {
    for (tokens, held, d) in [(1, 1, 5), (1500, 40, 8)] {
        let (ids, dy) = (ids("none held", tokens, held), vec![bf16::ONE; tokens * d]);
        for place in places() {
            let mut dtable = vec![-0.0; held * d];
            gradient(place, &ids, &dy, &mut dtable);
            assert!(dtable.iter().all(|x| x.to_bits() == (-0.0f32).to_bits()), "{}", place.name());
        }
    }
}

/// The table's gradient may begin anywhere in a flat buffer.
#[test]
fn gradients_that_begin_anywhere() {
    for (late_dy, late) in [(0, 1), (3, 0), (1, 3)] {
        let (tokens, held, d) = (70, 4, 16);
        let mut random = Random::new(late as u64 + 5);
        let (ids, dy) = (ids("text", tokens, held), random.bf16(late_dy + tokens * d, 1.0));
        let mut right = vec![0.0; held * d];
        in_order(&ids, &dy[late_dy..], held, &mut right);
        for place in places() {
            let mut dtable = vec![0.0; late + held * d];
            dtable[..late].fill(7.0);
            gradient(place, &ids, &dy[late_dy..], &mut dtable[late..]);
            assert!(dtable[late..] == right && dtable[..late].iter().all(|&x| x == 7.0), "{}", place.name());
        }
    }
}
