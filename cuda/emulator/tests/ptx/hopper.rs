//! The instructions of sm_90a (PTX ISA, "mbarrier", "cp.async.bulk", "cp.async.bulk.tensor", "Asynchronous warpgroup
//! level matrix instructions"): their effects, as late as the ISA allows. Fences have none here.

use super::descriptor::Descriptor;
use super::machine::{Block, Done, State as Progress, list};
use super::memory::{PARAM_WINDOW, aligned, number};
use super::program;
use super::text::Operand;
use super::warp::LANES;
use cuda::tensor::{TensorMap, Tiles};
use half::bf16;
use std::collections::{HashMap, VecDeque};
use std::ops::RangeInclusive;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Init,
    Arrive,
    /// `mbarrier.arrive.expect_tx`
    Announce,
    /// `mbarrier.try_wait.parity`, which is given all the time it needs.
    Wait,
    /// `cp.async.bulk.tensor.4d`
    Tile,
    /// `cp.async.bulk`
    Bulk,
    Fence,
    Registers,
    /// `wgmma` with n columns.
    Multiply(usize),
    CloseProducts,
    WaitForProducts,
    FenceProducts,
}

/// Threads of a warpgroup.
const GROUP: usize = 128;

/// An mbarrier object (PTX ISA, "Contents of the mbarrier object").
#[derive(Debug, Default)]
struct Mbarrier {
    phase: u64,
    pending: u64,
    expected: u64,
    bytes: i64,
}

/// Bytes on their way to shared memory: where each piece goes, and the mbarrier that counts them.
struct Flight {
    pieces: Vec<(u64, Vec<u8>)>,
    bar: u64,
}

/// A product that was started: its instruction, and the values of its operands after d. Registers are read when it is
/// executed, so a is None if it is in registers.
struct Product {
    at: usize,
    a: Option<Descriptor>,
    b: Descriptor,
    flags: Vec<u64>,
}

#[derive(Default)]
pub struct State {
    mbarriers: HashMap<u64, Mbarrier>,
    flights: VecDeque<Flight>,
    /// By warpgroup: the products of the open group and of the closed ones.
    open: HashMap<usize, Vec<Product>>,
    closed: HashMap<usize, VecDeque<Vec<Product>>>,
}

impl State {
    /// Whether nothing was started that nobody has waited for.
    pub fn is_idle(&self) -> bool {
        let products = self.closed.values().flatten().chain(self.open.values());
        self.flights.is_empty() && products.flatten().next().is_none()
    }
}

impl Action {
    pub fn named(words: &[&str]) -> Option<Action> {
        Some(match words {
            ["mbarrier", "init", "shared::cta", "b64"] => Action::Init,
            ["mbarrier", "arrive", "shared::cta", "b64"] => Action::Arrive,
            ["mbarrier", "arrive", "expect_tx", "shared::cta", "b64"] => Action::Announce,
            ["mbarrier", "try_wait", "parity", "shared::cta", "b64"] => Action::Wait,
            ["cp", "async", "bulk", "tensor", "4d", "shared::cluster", "global", "mbarrier::complete_tx::bytes"] => {
                Action::Tile
            }
            ["cp", "async", "bulk", "shared::cluster", "global", "mbarrier::complete_tx::bytes"] => Action::Bulk,
            ["fence", "proxy", "async", "shared::cta"] | ["fence", "mbarrier_init", "release", "cluster"] => {
                Action::Fence
            }
            ["setmaxnreg", "inc" | "dec", "sync", "aligned", "u32"] => Action::Registers,
            ["wgmma", "mma_async", "sync", "aligned", "m64n64k16", "f32", "bf16", "bf16"] => Action::Multiply(64),
            ["wgmma", "mma_async", "sync", "aligned", "m64n128k16", "f32", "bf16", "bf16"] => Action::Multiply(128),
            ["wgmma", "commit_group", "sync", "aligned"] => Action::CloseProducts,
            ["wgmma", "wait_group", "sync", "aligned"] => Action::WaitForProducts,
            ["wgmma", "fence", "sync", "aligned"] => Action::FenceProducts,
            _ => return None,
        })
    }

    /// How many operands it has.
    pub fn operands(self) -> RangeInclusive<usize> {
        match self {
            Action::Fence | Action::CloseProducts | Action::FenceProducts => 0..=0,
            Action::Registers | Action::WaitForProducts => 1..=1,
            Action::Init | Action::Arrive => 2..=2,
            Action::Announce | Action::Wait | Action::Tile => 3..=3,
            Action::Bulk => 4..=4,
            Action::Multiply(_) => 7..=8,
        }
    }
}

/// The interpreter's encoding of a tensor map: the address, then 64-bit extents, strides in bytes, and the box.
pub fn map(tiles: Tiles) -> TensorMap {
    let mut words = [0; 16];
    words[0] = tiles.of.at();
    words[1..5].copy_from_slice(&tiles.dims().map(|d| d as u64));
    words[5..8].copy_from_slice(&tiles.strides().map(|s| s as u64 * 2));
    words[8..12].copy_from_slice(&tiles.tile().map(|t| t as u64));
    TensorMap(words)
}

impl Block<'_> {
    /// Executes an instruction of one thread, or lets it wait for others.
    pub fn hopper_step(&mut self, t: usize, action: Action) -> Done<()> {
        let operands = &self.program.code[self.threads[t].next].operands;
        match action {
            Action::Init => {
                let (bar, count) = (self.address(t, &operands[0])?, self.value(t, &operands[1])?);
                aligned(bar, 8)?;
                self.shared.bytes(bar, 8)?;
                self.hopper.mbarriers.insert(bar, Mbarrier { pending: count, expected: count, ..Mbarrier::default() });
            }
            Action::Arrive => {
                let bar = self.address(t, &operands[1])?;
                self.mbarrier(bar)?.arrive()?;
            }
            Action::Announce => {
                let (bar, bytes) = (self.address(t, &operands[1])?, self.value(t, &operands[2])?);
                let bar = self.mbarrier(bar)?;
                bar.bytes += bytes as i64;
                bar.arrive()?;
            }
            Action::Wait => {
                let (bar, parity) = (self.address(t, &operands[1])?, self.value(t, &operands[2])?);
                if !self.mbarrier(bar)?.has_completed(parity)? {
                    self.threads[t].state = Progress::Phase;
                    return Ok(());
                }
                self.set(t, &operands[0], 1)?;
            }
            Action::Tile => self.start_tile(t, operands)?,
            Action::Bulk => {
                let (to, from) = (self.address(t, &operands[0])?, self.address(t, &operands[1])?);
                let (n, bar) = (self.value(t, &operands[2])?, self.address(t, &operands[3])?);
                aligned(to, 16).and(aligned(from, 16)).and(aligned(n, 16))?;
                let bytes = self.global.bytes(from, n as usize)?.to_vec();
                self.hopper.flights.push_back(Flight { pieces: vec![(to, bytes)], bar });
            }
            Action::Fence => {}
            Action::Registers
            | Action::Multiply(_)
            | Action::CloseProducts
            | Action::WaitForProducts
            | Action::FenceProducts => {
                self.threads[t].state = Progress::Together;
                return Ok(());
            }
        }
        self.threads[t].next += 1;
        Ok(())
    }

    fn mbarrier(&mut self, bar: u64) -> Done<&mut Mbarrier> {
        self.hopper.mbarriers.get_mut(&bar).ok_or_else(|| format!("there is no mbarrier at {bar}"))
    }

    /// The pieces of a box: rows of 128 bytes, swizzled in 16-byte chunks. Elements out of bounds are zero (PTX ISA,
    /// "Tiled mode", "Swizzling modes").
    fn start_tile(&mut self, t: usize, operands: &[Operand]) -> Done<()> {
        let to = self.address(t, &operands[0])?;
        let Operand::Address(_, _, coordinates) = &operands[1] else { return Err("no tensor map".into()) };
        let at = self.address(t, &operands[1])?;
        let at = at.checked_sub(PARAM_WINDOW).ok_or("the tensor map is not in parameter memory")?;
        let [Operand::List(coordinates)] = &coordinates[..] else { return Err("no coordinates".into()) };
        let start = coordinates.iter().map(|c| Ok(i64::from(self.value(t, c)? as i32))).collect::<Done<Vec<_>>>()?;
        let bar = self.address(t, &operands[2])?;
        aligned(at, 64).and(aligned(to, 128))?;
        let map = self.argument(at, 128)?.chunks_exact(8).map(number).collect::<Vec<_>>();
        let (from, dims, strides, size) = (map[0], &map[1..5], &map[5..8], &map[8..12]);
        let [rows, pages, batches] = [size[1], size[2], size[3]];
        let mut pieces = Vec::new();
        for row in 0..rows * pages * batches {
            let inner = [0, row % rows, row / rows % pages, row / rows / pages];
            let place: Vec<i64> = start.iter().zip(inner).map(|(s, i)| s + i as i64).collect();
            let inside = |axis: usize, x: i64| (0..dims[axis] as i64).contains(&x);
            let mut bytes = vec![0; size[0] as usize * 2];
            if (1..4).all(|axis| inside(axis, place[axis])) {
                let row_at = (1..4).map(|axis| place[axis] as u64 * strides[axis - 1]).sum::<u64>() + from;
                for column in (0..size[0] as usize).filter(|c| inside(0, place[0] + *c as i64)) {
                    let element = self.global.bytes(row_at + (place[0] as u64 + column as u64) * 2, 2)?;
                    bytes[2 * column..][..2].copy_from_slice(element);
                }
            }
            let row_to = to + row * bytes.len() as u64;
            let chunks = bytes.chunks_exact(16).enumerate();
            pieces.extend(chunks.map(|(i, chunk)| (swizzled(row_to + 16 * i as u64), chunk.to_vec())));
        }
        self.hopper.flights.push_back(Flight { pieces, bar });
        Ok(())
    }

    /// Lets the oldest copy arrive, when no thread can go on. Returns whether there was one.
    pub fn deliver(&mut self) -> Done<bool> {
        if let Some(Flight { pieces, bar }) = self.hopper.flights.pop_front() {
            let mut bytes = 0;
            for (to, piece) in pieces {
                bytes += piece.len() as i64;
                self.shared.bytes(to, piece.len())?.copy_from_slice(&piece);
            }
            let bar = self.mbarrier(bar)?;
            bar.bytes -= bytes;
            bar.complete();
            return Ok(true);
        }
        Ok(false)
    }

    /// Wakes the threads whose phase is over. Returns whether there are any.
    pub fn wake(&mut self) -> Done<bool> {
        let mut woken = false;
        for t in (0..self.threads.len()).filter(|&t| self.threads[t].state == Progress::Phase).collect::<Vec<_>>() {
            let operands = &self.instruction(t).operands;
            let (bar, parity) = (self.address(t, &operands[1])?, self.value(t, &operands[2])?);
            if self.mbarrier(bar)?.has_completed(parity)? {
                self.threads[t].state = Progress::Ready;
                woken = true;
            }
        }
        Ok(woken)
    }

    /// Executes the instruction that a warp waits at; those of a warpgroup once its four warps are there.
    pub fn hopper_together(&mut self, first: usize, action: Action) -> Done<bool> {
        let (next, group) = (self.threads[first].next, first / GROUP);
        let threads = group * GROUP..(group + 1) * GROUP;
        let all = self.threads.get(threads.clone()).ok_or("the block has no whole warpgroups")?;
        if all.iter().any(|t| t.state != Progress::Together || t.next != next) {
            return Ok(false);
        }
        let operands = &self.program.code[next].operands;
        match action {
            Action::Multiply(_) => {
                let product = self.started(threads.start, next)?;
                self.hopper.open.entry(group).or_default().push(product);
            }
            Action::CloseProducts => {
                let products = self.hopper.open.remove(&group).unwrap_or_default();
                self.hopper.closed.entry(group).or_default().push_back(products);
            }
            Action::WaitForProducts => {
                let in_flight = self.value(first, &operands[0])? as usize;
                let mut groups = self.hopper.closed.remove(&group).unwrap_or_default();
                while groups.len() > in_flight {
                    for product in groups.pop_front().expect("there is a group") {
                        self.multiply(threads.start, product)?;
                    }
                }
                self.hopper.closed.insert(group, groups);
            }
            _ => {}
        }
        self.pass(threads.start, GROUP);
        Ok(true)
    }

    /// `wgmma.mma_async d, a, b, scale-d, ...`, which a warpgroup starts.
    fn started(&self, first: usize, at: usize) -> Done<Product> {
        let [_, a, b, flags @ ..] = &self.program.code[at].operands[..] else {
            return Err("operands are missing".into());
        };
        let descriptor = |o: &Operand| Descriptor::of(self.value(first, o)?);
        let a = if matches!(a, Operand::List(_)) { None } else { Some(descriptor(a)?) };
        let flags = flags.iter().map(|o| self.value(first, o)).collect::<Done<_>>()?;
        Ok(Product { at, a, b: descriptor(b)?, flags })
    }

    /// d [64, n] = a [64, 16] b [16, n], plus d where the predicate is set.
    fn multiply(&mut self, first: usize, product: Product) -> Done<()> {
        let instruction = &self.program.code[product.at];
        let program::Action::Hopper(Action::Multiply(n)) = instruction.action else { unreachable!("no product") };
        let d = list(&instruction.operands[0])?;
        if d.len() != n / 2 {
            return Err(format!("{} accumulators for {n} columns", d.len()));
        }
        // The scales of a and b are 1.
        let (add, left, across) = match (product.a, &product.flags[..]) {
            (None, [add, 1, 1, across]) => {
                (*add == 1, self.left(first, list(&instruction.operands[1])?)?, *across == 1)
            }
            (Some(a), [add, 1, 1, across_a, across]) => (*add == 1, self.matrix(a, *across_a == 1, 64)?, *across == 1),
            (_, flags) => return Err(format!("flags {flags:?}")),
        };
        let right = self.matrix(product.b, across, n)?;
        for (row, left) in left.iter().enumerate() {
            for (column, right) in right.iter().enumerate() {
                let lane = row / 16 * LANES + row % 8 * 4 + column % 8 / 2;
                let register = &d[column / 8 * 4 + row / 8 % 2 * 2 + column % 2];
                let old = if add { self.value(first + lane, register)? as u32 } else { 0 };
                let sum = left.iter().zip(right).fold(f32::from_bits(old).into(), |sum: f64, (a, b)| sum + a * b);
                self.set(first + lane, register, (sum as f32).to_bits().into())?;
            }
        }
        Ok(())
    }

    /// The left operand in registers: per warp of 16 rows the fragment of `mma.m16n8k16`.
    fn left(&self, first: usize, words: &[Operand]) -> Done<Vec<[f64; 16]>> {
        let mut left = vec![[0.0; 16]; 64];
        for (at, x) in left.iter_mut().flatten().enumerate() {
            let (row, k) = (at / 16, at % 16);
            let lane = row / 16 * LANES + row % 8 * 4 + k % 8 / 2;
            let word = words.get(row / 8 % 2 + k / 8 * 2).ok_or("four registers hold the left operand")?;
            let word = self.value(first + lane, word)? as u32;
            *x = f32::from_bits(word >> (16 * (k % 2)) << 16).into();
        }
        Ok(left)
    }

    /// An operand in shared memory, with rows of m or n.
    fn matrix(&mut self, descriptor: Descriptor, across: bool, rows: usize) -> Done<Vec<[f64; 16]>> {
        let mut matrix = vec![[0.0; 16]; rows];
        for (at, x) in matrix.iter_mut().flatten().enumerate() {
            let at = swizzled(descriptor.offset((at / 16) as u64, (at % 16) as u64, across));
            let bytes = self.shared.bytes(at, 2)?;
            *x = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f64();
        }
        Ok(matrix)
    }
}

/// The 128-byte swizzle: the chunk of 16 bytes in a row of 128 is XORed with the row modulo 8, by the address's bits.
fn swizzled(at: u64) -> u64 {
    at ^ (at >> 7 & 7) << 4
}

impl Mbarrier {
    fn arrive(&mut self) -> Done<()> {
        self.pending = self.pending.checked_sub(1).ok_or("more arrivals than the mbarrier expects")?;
        self.complete();
        Ok(())
    }

    /// A phase is over when no arrival and no byte is missing.
    fn complete(&mut self) {
        if self.pending == 0 && self.bytes == 0 {
            self.phase += 1;
            self.pending = self.expected;
        }
    }

    /// Whether the phase of this parity, the current one or the one before it, is over.
    fn has_completed(&self, parity: u64) -> Done<bool> {
        if parity > 1 { Err(format!("the parity {parity}")) } else { Ok(self.phase % 2 != parity) }
    }
}
