//! Runs a program on the threads of one block after another. Each thread has its own program counter (PTX ISA,
//! "Independent thread scheduling"), so branches need no reconvergence: an instruction of a whole warp is executed when
//! all its lanes have come to it, and a block is stuck when they wait at different ones.

use super::hopper;
use super::memory::{Global, PARAM_WINDOW, SHARED, SHARED_WINDOW, Shared, aligned, number};
use super::program::{Action, Instruction, Program, Space};
use super::scalar::Type;
use super::text::Operand;
use super::warp::{Collective, LANES, Word, distributed, multiplied, shuffled};
use cuda::machine::Geometry;
use std::collections::{HashMap, VecDeque};

/// A result with a message that lacks the place yet.
pub type Done<T> = Result<T, String>;

/// Copies of `cp.async` in flight: destination, source, and bytes that are read.
type Copies = Vec<(u64, u64, usize)>;

/// A thread of a probe that executes more instructions than these runs without end.
const MOST_STEPS: usize = 100_000;

/// A thread's progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Ready,
    /// At an instruction of its whole warp, or of its warpgroup.
    Together,
    /// At barrier `id`.
    Barrier(u64),
    /// At a phase of an mbarrier.
    Phase,
    Done,
}

pub struct Thread {
    pub next: usize,
    /// Instructions that it has executed.
    steps: usize,
    pub state: State,
    registers: Vec<Option<u64>>,
    open: Copies,
    closed: VecDeque<Copies>,
}

/// A block that runs.
pub struct Block<'a> {
    pub program: &'a Program,
    args: &'a [u8],
    geometry: Geometry,
    block: [u32; 3],
    pub threads: Vec<Thread>,
    pub shared: Shared,
    pub global: &'a mut Global,
    /// Threads that have arrived at a barrier, by its id.
    arrived: HashMap<u64, u64>,
    pub hopper: hopper::State,
}

/// Runs a kernel to its end.
pub fn run(program: &Program, args: &[u8], geometry: Geometry, global: &mut Global) -> Done<()> {
    let [x, y, z] = geometry.grid;
    for at in 0..x * y * z {
        let block = [at % x, at / x % y, at / x / y];
        let thread = |_| Thread {
            next: 0,
            steps: 0,
            state: State::Ready,
            registers: vec![None; program.registers.len()],
            open: Vec::new(),
            closed: VecDeque::new(),
        };
        let threads = (0..geometry.block).map(thread).collect();
        let (shared, arrived) = (Shared::new(geometry.shared as usize), HashMap::new());
        let hopper = hopper::State::default();
        Block { program, args, geometry, block, threads, shared, global, arrived, hopper }.run()?;
    }
    Ok(())
}

impl Block<'_> {
    fn run(&mut self) -> Done<()> {
        loop {
            let mut moved = false;
            for t in 0..self.threads.len() {
                while self.threads[t].state == State::Ready {
                    moved = true;
                    let line = self.instruction(t).line;
                    self.step(t).map_err(|what| format!("line {line}, thread {t}: {what}"))?;
                }
            }
            for warp in 0..self.threads.len() / LANES {
                moved |= self.together(warp * LANES)?;
            }
            moved |= self.wake()?;
            if self.threads.iter().all(|thread| thread.state == State::Done) {
                return self.finished();
            }
            // Copies of the engine arrive as late as they can.
            if !moved && !self.deliver()? {
                let t = self.threads.iter().position(|thread| thread.state != State::Done).expect("one waits");
                return Err(format!("line {}, thread {t}: waits without end", self.instruction(t).line));
            }
        }
    }

    fn finished(&self) -> Done<()> {
        let left = self.threads.iter().position(|t| !t.open.is_empty() || t.closed.iter().any(|c| !c.is_empty()));
        match left {
            Some(t) => Err(format!("thread {t} ends before its copies are waited for")),
            None if !self.hopper.is_idle() => Err("the block ends before a copy or a product is waited for".into()),
            None => Ok(()),
        }
    }

    pub fn instruction(&self, t: usize) -> &Instruction {
        &self.program.code[self.threads[t].next]
    }

    /// Executes the next instruction of a thread, or lets it wait there for others.
    fn step(&mut self, t: usize) -> Done<()> {
        let Instruction { guard, action, operands, .. } = &self.program.code[self.threads[t].next];
        self.threads[t].steps += 1;
        if self.threads[t].steps > MOST_STEPS {
            return Err("runs without end".into());
        }
        if let Some((predicate, value)) = *guard
            && (self.register(t, predicate)? == 1) != value
        {
            self.threads[t].next += 1;
            return Ok(());
        }
        let thread = &mut self.threads[t];
        match *action {
            Action::Branch(to) => thread.next = to,
            Action::Exit => thread.state = State::Done,
            Action::Warp(_) | Action::Barrier { .. } => thread.state = State::Together,
            Action::Hopper(action) => self.hopper_step(t, action)?,
            action => {
                self.perform(t, action, operands)?;
                self.threads[t].next += 1;
            }
        }
        Ok(())
    }

    /// Executes an instruction that concerns one thread alone.
    fn perform(&mut self, t: usize, action: Action, operands: &[Operand]) -> Done<()> {
        match action {
            Action::Compute(scalar) => {
                let x = operands[1..].iter().map(|o| self.value(t, o)).collect::<Done<Vec<_>>>()?;
                self.set(t, &operands[0], scalar.of(&x))
            }
            Action::Join => {
                let bits = self.width(&operands[0])? / list(&operands[1])?.len() as u32;
                let parts = list(&operands[1])?.iter().map(|o| self.value(t, o)).collect::<Done<Vec<_>>>()?;
                self.set(t, &operands[0], parts.iter().rev().fold(0, |x, part| x << bits | part))
            }
            Action::Split => {
                let parts = list(&operands[0])?;
                let (whole, bits) = (self.value(t, &operands[1])?, self.width(&parts[0])?);
                (0..).zip(parts).try_for_each(|(i, part)| self.set(t, part, whole >> (bits * i)))
            }
            Action::Load(space, ty) => self.load(t, space, ty, &operands[0], &operands[1]),
            Action::Store(space, ty) => self.store(t, space, ty, &operands[0], &operands[1]),
            Action::ToGeneric(space) => {
                let at = self.value(t, &operands[1])?;
                self.set(t, &operands[0], at + window(space))
            }
            Action::FromGeneric(space) => {
                let at = self.value(t, &operands[1])?;
                let inside = at.checked_sub(window(space)).ok_or("the address is of another space")?;
                self.set(t, &operands[0], inside)
            }
            Action::Copy => self.start_copy(t, operands),
            Action::CloseCopies => {
                let group = std::mem::take(&mut self.threads[t].open);
                self.threads[t].closed.push_back(group);
                Ok(())
            }
            Action::WaitForCopies => {
                let in_flight = self.value(t, &operands[0])? as usize;
                while self.threads[t].closed.len() > in_flight {
                    let group = self.threads[t].closed.pop_front().expect("there is a group");
                    group.into_iter().try_for_each(|copy| self.copy(copy))?;
                }
                Ok(())
            }
            other => unreachable!("{other:?} does not concern one thread alone"),
        }
    }

    /// `cp.async.cg [to], [from], 16{, read}`
    fn start_copy(&mut self, t: usize, operands: &[Operand]) -> Done<()> {
        let (to, from) = (self.address(t, &operands[0])?, self.address(t, &operands[1])?);
        let sizes = operands[2..].iter().map(|o| self.value(t, o)).collect::<Done<Vec<_>>>()?;
        let read = *sizes.get(1).unwrap_or(&16) as usize;
        if sizes[0] != 16 || read > 16 {
            return Err(format!("a copy of {read} of {} bytes", sizes[0]));
        }
        aligned(to, 16).and(aligned(from, 16))?;
        self.threads[t].open.push((to, from, read));
        Ok(())
    }

    /// A copy takes effect as late as it may, at the wait; the bytes that are not read become zero.
    fn copy(&mut self, (to, from, read): (u64, u64, usize)) -> Done<()> {
        let mut bytes = [0; 16];
        if read > 0 {
            bytes[..read].copy_from_slice(self.global.bytes(from, read)?);
        }
        self.shared.bytes(to, 16)?.copy_from_slice(&bytes);
        Ok(())
    }

    /// Bytes of the kernel's parameter.
    pub fn argument(&self, at: u64, n: usize) -> Done<&[u8]> {
        self.args
            .get(at as usize..)
            .and_then(|b| b.get(..n))
            .ok_or_else(|| format!("out of bounds: parameter byte {at}"))
    }

    fn register(&self, t: usize, register: usize) -> Done<u64> {
        self.threads[t].registers[register].ok_or_else(|| "a register is read that was never set".to_string())
    }

    /// The bits of a register.
    fn width(&self, operand: &Operand) -> Done<u32> {
        match operand {
            Operand::Register(register) => Ok(self.program.registers[*register].bits),
            other => Err(format!("{other:?} is no register")),
        }
    }

    pub fn set(&mut self, t: usize, operand: &Operand, value: u64) -> Done<()> {
        match *operand {
            Operand::Sink => Ok(()),
            Operand::Register(register) => {
                let mask = self.program.registers[register].mask();
                self.threads[t].registers[register] = Some(value & mask);
                Ok(())
            }
            ref other => Err(format!("{other:?} cannot be set")),
        }
    }

    /// The value of an operand for a thread.
    pub fn value(&self, t: usize, operand: &Operand) -> Done<u64> {
        match operand {
            Operand::Register(register) => self.register(t, *register),
            Operand::Constant(bits) => Ok(*bits),
            Operand::Special(name) => self.special(t, name),
            Operand::Name(name) if *name == self.program.param.0 => Ok(0),
            // The one variable of shared memory is the launch's.
            Operand::Name(name) if name == "dynamic_shared" => Ok(SHARED),
            other => Err(format!("{other:?} has no value")),
        }
    }

    fn special(&self, t: usize, name: &str) -> Done<u64> {
        let Geometry { grid, block, .. } = self.geometry;
        let value = match name {
            "%tid.x" => t as u32,
            "%ntid.x" => block,
            "%ctaid.x" => self.block[0],
            "%ctaid.y" => self.block[1],
            "%ctaid.z" => self.block[2],
            "%nctaid.x" => grid[0],
            "%nctaid.y" => grid[1],
            "%nctaid.z" => grid[2],
            "%laneid" => (t % LANES) as u32,
            _ => return Err(format!("{name} is not known")),
        };
        Ok(value.into())
    }

    pub fn address(&self, t: usize, operand: &Operand) -> Done<u64> {
        match operand {
            Operand::Address(base, offset, _) => Ok(self.value(t, base)?.wrapping_add(*offset as u64)),
            other => Err(format!("{other:?} is no address")),
        }
    }

    /// The address of the bytes of an access, after its checks, and whether it is in shared memory.
    fn located(&self, t: usize, space: Space, bytes: usize, at: &Operand) -> Done<(u64, Space)> {
        let at = self.address(t, at)?;
        let (at, space) = match space {
            Space::Generic if at >= SHARED_WINDOW => (at - SHARED_WINDOW, Space::Shared),
            Space::Generic if at >= PARAM_WINDOW => (at - PARAM_WINDOW, Space::Param),
            Space::Generic => (at, Space::Global),
            space => (at, space),
        };
        aligned(at, bytes)?;
        Ok((at, space))
    }

    fn load(&mut self, t: usize, space: Space, ty: Type, to: &Operand, from: &Operand) -> Done<()> {
        let to = if let Operand::List(list) = to { &list[..] } else { std::slice::from_ref(to) };
        let n = ty.bytes() * to.len();
        let (at, space) = self.located(t, space, n, from)?;
        let bytes = match space {
            Space::Param => self.argument(at, n)?.to_vec(),
            Space::Shared => self.shared.bytes(at, n)?.to_vec(),
            _ => self.global.bytes(at, n)?.to_vec(),
        };
        for (to, bytes) in to.iter().zip(bytes.chunks_exact(ty.bytes())) {
            self.set(t, to, ty.widened(number(bytes)))?;
        }
        Ok(())
    }

    fn store(&mut self, t: usize, space: Space, ty: Type, to: &Operand, from: &Operand) -> Done<()> {
        let from = if let Operand::List(list) = from { &list[..] } else { std::slice::from_ref(from) };
        let values = from.iter().map(|o| self.value(t, o)).collect::<Done<Vec<_>>>()?;
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()[..ty.bytes()].to_vec()).collect();
        let (at, space) = self.located(t, space, bytes.len(), to)?;
        let place = match space {
            Space::Param => return Err("parameters are read-only".into()),
            Space::Shared => self.shared.bytes(at, bytes.len())?,
            _ => self.global.bytes(at, bytes.len())?,
        };
        place.copy_from_slice(&bytes);
        Ok(())
    }

    /// Executes the instruction that a warp's lanes wait at, once all are there.
    fn together(&mut self, first: usize) -> Done<bool> {
        let lanes = first..first + LANES;
        let next = self.threads[first].next;
        if self.threads[lanes.clone()].iter().any(|t| t.state != State::Together || t.next != next) {
            return Ok(false);
        }
        let instruction = &self.program.code[next];
        let place = |what| format!("line {}, warp {}: {what}", instruction.line, first / LANES);
        match instruction.action {
            Action::Hopper(action) => return self.hopper_together(first, action).map_err(place),
            Action::Barrier { waits } => self.barrier(first, waits, &instruction.operands).map_err(place)?,
            Action::Warp(collective) => {
                self.collective(first, collective, &instruction.operands).map_err(place)?;
                self.pass(first, LANES);
            }
            _ => unreachable!("no thread waits for its warp at anything else"),
        }
        Ok(true)
    }

    /// Lets threads go on with their next instructions.
    pub fn pass(&mut self, first: usize, n: usize) {
        for thread in &mut self.threads[first..first + n] {
            (thread.next, thread.state) = (thread.next + 1, State::Ready);
        }
    }

    /// `bar.sync a{, b}`: waits until b threads, or all, have arrived at barrier a. `bar.arrive a, b` only arrives.
    fn barrier(&mut self, first: usize, waits: bool, operands: &[Operand]) -> Done<()> {
        let id = self.word(first, &operands[0])?[0];
        let expected = match operands.get(1) {
            Some(count) => self.word(first, count)?[0].into(),
            None => self.threads.len() as u64,
        };
        if id >= 16 || !expected.is_multiple_of(LANES as u64) || !waits && operands.len() == 1 {
            return Err(format!("barrier {id} of {expected} threads"));
        }
        let id = u64::from(id);
        match waits {
            true => self.threads[first..first + LANES].iter_mut().for_each(|t| t.state = State::Barrier(id)),
            false => self.pass(first, LANES),
        }
        let arrived = self.arrived.entry(id).or_default();
        *arrived += LANES as u64;
        if *arrived == expected {
            self.arrived.remove(&id);
            for t in
                (0..self.threads.len()).filter(|&t| self.threads[t].state == State::Barrier(id)).collect::<Vec<_>>()
            {
                self.pass(t, 1);
            }
        }
        Ok(())
    }

    /// The values of an operand on all lanes.
    pub fn word(&self, first: usize, operand: &Operand) -> Done<Word> {
        let mut word = [0; LANES];
        for (lane, word) in word.iter_mut().enumerate() {
            *word = self.value(first + lane, operand)? as u32;
        }
        Ok(word)
    }

    pub fn words(&self, first: usize, operand: &Operand) -> Done<Vec<Word>> {
        list(operand)?.iter().map(|o| self.word(first, o)).collect()
    }

    fn set_words(&mut self, first: usize, to: &[Operand], words: &[Word]) -> Done<()> {
        if to.len() != words.len() {
            return Err(format!("{} results for {} registers", words.len(), to.len()));
        }
        for (to, word) in to.iter().zip(words) {
            (0..LANES).try_for_each(|lane| self.set(first + lane, to, word[lane].into()))?;
        }
        Ok(())
    }

    fn collective(&mut self, first: usize, collective: Collective, operands: &[Operand]) -> Done<()> {
        let whole = |mask: &Operand| match self.word(first, mask)? == [u32::MAX; LANES] {
            true => Ok(()),
            false => Err("the mask leaves out lanes".to_string()),
        };
        match (collective, operands) {
            (Collective::Sync, [mask]) => whole(mask),
            (Collective::Shuffle(shuffle), [d, a, b, c, mask]) => {
                whole(mask)?;
                let [a, b, c] = [a, b, c].map(|o| self.word(first, o));
                let moved = shuffled(shuffle, &a?, &b?, &c?);
                self.set_words(first, std::slice::from_ref(d), &[moved])
            }
            (Collective::Any | Collective::All, [d, a, mask]) => {
                whole(mask)?;
                let a = self.word(first, a)?;
                let so = if collective == Collective::Any { a.contains(&1) } else { !a.contains(&0) };
                self.set_words(first, std::slice::from_ref(d), &[[so.into(); LANES]])
            }
            (Collective::Load { transposed }, [d, at]) => {
                let mut rows = [[0; 8]; LANES];
                for (lane, row) in rows.iter_mut().enumerate() {
                    let at = self.address(first + lane, at)?;
                    aligned(at, 16)?;
                    let bytes = self.shared.bytes(at, 16)?;
                    *row = std::array::from_fn(|i| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]));
                }
                self.set_words(first, list(d)?, &distributed(&rows, transposed))
            }
            (Collective::Multiply, [d, a, b, c]) => {
                let [a, b, c] = [a, b, c].map(|o| self.words(first, o));
                let (a, b, c) = (a?, b?, c?);
                if [a.len(), b.len(), c.len()] != [4, 2, 4] {
                    return Err(format!("fragments of {}, {} and {} registers", a.len(), b.len(), c.len()));
                }
                self.set_words(first, list(d)?, &multiplied(&a, &b, &c))
            }
            _ => Err(format!("{} operands", operands.len())),
        }
    }
}

fn window(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED_WINDOW,
        Space::Param => PARAM_WINDOW,
        Space::Generic | Space::Global => 0,
    }
}

/// The parts of `{a, b}`.
pub fn list(operand: &Operand) -> Done<&[Operand]> {
    match operand {
        Operand::List(list) => Ok(list),
        other => Err(format!("{other:?} is no list")),
    }
}
