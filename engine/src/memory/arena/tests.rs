use super::*;
use proptest::prelude::*;
use std::cell::RefCell;
use std::rc::Rc;

/// An arena without small blocks that has blocks of these sizes, and their addresses.
fn filled<const N: usize>(bytes: [usize; N]) -> (Arena, [usize; N]) {
    let mut arena = Arena::new(ArenaSpec::boundless(0));
    let at = bytes.map(|bytes| arena.take(bytes));
    (arena, at)
}

#[test]
fn the_smallest_gap_that_fits_is_taken_and_the_first_among_equals() {
    let (mut arena, at) = filled([500, 1, 300, 1, 400, 1, 300, 1]);
    assert_eq!(at, [0, 500, 501, 801, 802, 1202, 1203, 1503]);
    [(500, at[0]), (300, at[2]), (400, at[4]), (300, at[6])].into_iter().for_each(|(bytes, at)| arena.give(bytes, at));
    assert_eq!([300, 300, 350, 450, 60].map(|bytes| arena.take(bytes)), [501, 1203, 802, 0, 1504]);
    assert_eq!(arena.usage(), Usage { allocations: 9, reserved: 1564, in_use: 1464, peak: 1504 });
}

#[test]
fn gaps_that_touch_are_one_and_the_last_is_the_middle() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let (mut arena, at) = filled([10, 20, 30, 5]);
        order.into_iter().for_each(|i| arena.give(10 * (i + 1), at[i]));
        assert_eq!(arena.take(60), 0, "{order:?}");
        arena.give(5, at[3]);
        assert_eq!([arena.take(70), arena.take(5)], [60, 130], "{order:?}");
    }
}

#[test]
fn small_blocks_lie_at_the_end() {
    let mut arena = Arena::new(ArenaSpec { bytes: 100, small: 10 });
    assert_eq!([30, 10, 5, 11, 10].map(|bytes| arena.take(bytes)), [0, 90, 85, 30, 75]);
    [(5, 85), (30, 0)].into_iter().for_each(|(bytes, at)| arena.give(bytes, at));
    // A block takes no gap of the other side, and the last one fills the middle exactly.
    assert_eq!([6, 20, 4, 28].map(|bytes| arena.take(bytes)), [69, 0, 85, 41]);
    assert_eq!(arena.usage(), Usage { allocations: 7, reserved: 100, in_use: 89, peak: 89 });
}

#[test]
#[should_panic(expected = "a block of 8 bytes, 7 are left of ArenaSpec { bytes: 100, small: 8 }")]
fn an_arena_is_not_longer_than_planned() {
    let mut arena = Arena::new(ArenaSpec { bytes: 100, small: 8 });
    [90, 3, 8].into_iter().for_each(|bytes| _ = arena.take(bytes));
}

#[test]
#[should_panic(expected = "bytes of the block at 0")]
fn a_block_is_freed_with_its_own_size() {
    let (mut arena, [at]) = filled([8]);
    arena.give(4, at);
}

/// An operation: allocates this number of bytes, or frees the live block with this index.
type Work = Result<usize, usize>;

fn works() -> impl Strategy<Value = Vec<Work>> {
    let one = prop_oneof![(1..6usize).prop_map(|n| Ok(n * n * 256)), (0..1000usize).prop_map(Err)];
    prop::collection::vec(one, 1..200)
}

/// Applies an operation to an allocator and to a list of the live blocks, (address, bytes), sorted by address.
fn work(allocator: &mut impl Allocator, blocks: &mut Vec<(usize, usize)>, work: Work) {
    match work {
        Ok(bytes) => blocks.push((allocator.take(bytes), bytes)),
        Err(n) if !blocks.is_empty() => {
            let (at, bytes) = blocks.remove(n % blocks.len());
            allocator.give(bytes, at);
        }
        Err(_) => {}
    }
    blocks.sort_unstable();
}

/// The expected address of a new block among `blocks`, found by a plain search.
fn by_the_rule(blocks: &[(usize, usize)], cut: ArenaSpec, bytes: usize) -> usize {
    let (large, small): (Vec<_>, Vec<_>) = blocks.iter().partition(|(_, bytes)| *bytes > cut.small);
    let large_end = large.last().map_or(0, |(at, bytes)| at + bytes);
    let small_start = small.first().map_or(cut.bytes, |(at, _)| *at);
    let (side, from, to) = if bytes > cut.small { (large, 0, large_end) } else { (small, small_start, cut.bytes) };
    let starts = std::iter::once(from).chain(side.iter().map(|(at, bytes)| at + bytes));
    let ends = side.iter().map(|(at, _)| *at).chain([to]);
    let fits = starts.zip(ends).filter(|(start, end)| end - start >= bytes);
    let best = fits.min_by_key(|(start, end)| (end - start, *start)).map(|(start, _)| start);
    best.unwrap_or(if bytes > cut.small { large_end } else { small_start - bytes })
}

proptest! {
    /// The address of a block follows from the live blocks, and no two blocks overlap: so adjacent gaps are merged, and
    /// the same allocations and frees lead to the same addresses.
    #[test]
    fn blocks_lie_where_the_rule_says(todo in works(), small in 0usize..3000) {
        let cut = ArenaSpec { bytes: 1 << 20, small };
        let (mut arena, mut blocks, mut reserved, mut peak) = (Arena::new(cut), Vec::new(), 0, 0);
        for step in todo {
            let before = blocks.clone();
            work(&mut arena, &mut blocks, step);
            if let Ok(bytes) = step {
                prop_assert!(blocks.contains(&(by_the_rule(&before, cut, bytes), bytes)), "{blocks:?}");
            }
            prop_assert!(blocks.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{blocks:?}");
            let (large, small): (Vec<_>, Vec<_>) = blocks.iter().partition(|(_, bytes)| *bytes > cut.small);
            let below = large.last().map_or(0, |(at, bytes)| at + bytes);
            let outside = below + small.first().map_or(0, |(at, _)| cut.bytes - at);
            let in_use = blocks.iter().map(|(_, bytes)| bytes).sum::<usize>();
            (reserved, peak) = (outside.max(reserved), in_use.max(peak));
            let usage = arena.usage();
            prop_assert_eq!((usage.reserved, usage.in_use, usage.peak), (reserved, in_use, peak));
            let live: Vec<(usize, usize)> = arena.live().unwrap().iter().map(|b| (b.at, b.bytes)).collect();
            prop_assert_eq!(&live, &blocks);
        }
    }

    /// An arena of the planned size has the same layout as the boundless one.
    #[test]
    fn an_arena_of_the_planned_size_has_the_planned_layout(todo in works(), small in 0usize..3000) {
        let plan = |cut: ArenaSpec| {
            let (mut arena, mut blocks, mut places) = (Arena::new(cut), Vec::new(), Vec::new());
            for &step in &todo {
                work(&mut arena, &mut blocks, step);
                places.push(blocks.clone());
            }
            (arena.usage(), places)
        };
        let boundless = ArenaSpec::boundless(small);
        let (usage, mut planned) = plan(boundless);
        // Addresses of small blocks are relative to the end of the arena.
        let shorter = boundless.bytes - usage.reserved;
        planned.iter_mut().flatten().filter(|(_, bytes)| *bytes <= small).for_each(|(at, _)| *at -= shorter);
        prop_assert_eq!(plan(ArenaSpec { bytes: usage.reserved, small }), (usage, planned));
    }
}

/// Each layer allocates and frees a block of 4 units, and leaves a block of 3 units in that place and a small block
/// behind it, so that the next layer finds no place for its 4 units.
#[test]
fn a_trace_finds_the_border_that_needs_least() {
    let mut trace = Rc::new(RefCell::new(AllocTrace::default()));
    let (unit, bit) = (1 << 20, 256);
    for _ in 0..10 {
        let wide = trace.take(4 * unit);
        trace.take(bit);
        trace.give(4 * unit, wide);
        trace.take(3 * unit);
    }
    let needed = [0, 3 * unit, 4 * unit].map(|small| trace.borrow().needed(small, usize::MAX).unwrap());
    assert_eq!(needed, [32 * unit + bit, 31 * unit + 10 * bit, 32 * unit + bit]);
    assert_eq!(trace.borrow().border(), 3 * unit);
    assert_eq!([0, 1].map(|less| trace.borrow().needed(0, needed[0] - less)), [Some(needed[0]), None]);
    let usage = trace.usage();
    assert_eq!((usage.in_use, usage.peak), (30 * unit + 10 * bit, 31 * unit + 10 * bit));
    assert_eq!(trace.live().unwrap().len(), 20);
}
