//! A kernel ready to run: each instruction of its text with its meaning. An instruction that is not known is an error.

use super::scalar::{Kind, Scalar, Type};
use super::text::{Entry, Operand, Statement};
use super::warp::Collective;
use std::ops::RangeInclusive;

/// The state spaces of loads and stores (PTX ISA, "State spaces").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    Generic,
    Global,
    Shared,
    Param,
}

#[derive(Debug, Clone, Copy)]
pub enum Action {
    Compute(Scalar),
    /// `mov` of the parts of a value to a value, and back.
    Join,
    Split,
    Load(Space, Type),
    Store(Space, Type),
    /// `cvta`: the generic address of an address in a space, and back.
    ToGeneric(Space),
    FromGeneric(Space),
    Branch(usize),
    Exit,
    /// `cp.async` of sixteen bytes.
    Copy,
    CloseCopies,
    WaitForCopies,
    /// All lanes of a warp together.
    Warp(Collective),
    /// `bar.sync`, which waits, and `bar.arrive`, which does not.
    Barrier {
        waits: bool,
    },
    /// An instruction of sm_90a.
    Hopper(super::hopper::Action),
}

impl Action {
    /// How many operands it has.
    fn operands(self) -> RangeInclusive<usize> {
        match self {
            Action::CloseCopies | Action::Exit => 0..=0,
            Action::WaitForCopies | Action::Branch(_) => 1..=1,
            Action::Barrier { waits } => {
                if waits {
                    1..=2
                } else {
                    2..=2
                }
            }
            Action::Join | Action::Split | Action::Load(..) | Action::Store(..) => 2..=2,
            Action::ToGeneric(_) | Action::FromGeneric(_) => 2..=2,
            Action::Copy => 3..=4,
            Action::Compute(scalar) => scalar.operands + 1..=scalar.operands + 1,
            Action::Warp(collective) => collective.operands()..=collective.operands(),
            Action::Hopper(action) => action.operands(),
        }
    }
}

pub struct Instruction {
    pub line: usize,
    pub guard: Option<(usize, bool)>,
    pub action: Action,
    pub operands: Vec<Operand>,
}

pub struct Program {
    pub param: (String, usize),
    pub registers: Vec<Type>,
    pub code: Vec<Instruction>,
}

impl Program {
    pub fn of(entry: &Entry) -> Result<Program, String> {
        let unknown = |s: &Statement| format!("line {}: {} is not known", s.line, s.name());
        let instruction = |s: &Statement| {
            let action = match (&s.op[0][..], &s.operands[..]) {
                ("bra", [Operand::Name(label)]) => Action::Branch(*entry.labels.get(label).ok_or_else(|| unknown(s))?),
                _ => action(s).ok_or_else(|| unknown(s))?,
            };
            if !action.operands().contains(&s.operands.len()) {
                return Err(format!("line {}: {} has {} operands", s.line, s.name(), s.operands.len()));
            }
            Ok(Instruction { line: s.line, guard: s.guard, action, operands: s.operands.clone() })
        };
        if !entry.body.last().is_some_and(|last| ["ret", "bra"].contains(&last.op[0].as_str())) {
            return Err(format!("{} does not end", entry.name));
        }
        let class = |name: &String| Type::named(name).ok_or_else(|| format!("{}: registers of {name}", entry.name));
        Ok(Program {
            param: entry.param.clone(),
            registers: entry.registers.iter().map(class).collect::<Result<_, _>>()?,
            code: entry.body.iter().map(instruction).collect::<Result<_, _>>()?,
        })
    }
}

fn action(s: &Statement) -> Option<Action> {
    let words = s.op.iter().map(String::as_str).collect::<Vec<_>>();
    let memory = |space: &str, more: &[&str]| {
        let (ty, vector) = more.split_last()?;
        let fits = match (vector, s.operands.iter().find_map(|o| if let Operand::List(l) = o { Some(l) } else { None }))
        {
            ([], None) => true,
            (["v2"], Some(list)) => list.len() == 2,
            (["v4"], Some(list)) => list.len() == 4,
            _ => false,
        };
        fits.then_some((self::space(space)?, Type::named(ty)?))
    };
    Some(match &words[..] {
        ["mov", _] if matches!(s.operands[..], [_, Operand::List(_)]) => Action::Join,
        ["mov", _] if matches!(s.operands[..], [Operand::List(_), _]) => Action::Split,
        ["ld", space, more @ ..] if self::space(space).is_some() => {
            memory(space, more).map(|(space, ty)| Action::Load(space, ty))?
        }
        ["ld", more @ ..] => Action::Load(Space::Generic, memory("global", more)?.1),
        ["st", space, more @ ..] if self::space(space).is_some() => {
            memory(space, more).map(|(space, ty)| Action::Store(space, ty))?
        }
        ["st", more @ ..] => Action::Store(Space::Generic, memory("global", more)?.1),
        ["cvta", "to", space, "u64"] => Action::FromGeneric(self::space(space)?),
        ["cvta", space, "u64"] => Action::ToGeneric(self::space(space)?),
        ["ret"] => Action::Exit,
        ["cp", "async", "cg", "shared" | "shared::cta", "global"] => Action::Copy,
        ["cp", "async", "commit_group"] => Action::CloseCopies,
        ["cp", "async", "wait_group"] => Action::WaitForCopies,
        ["bar" | "barrier", "sync"] => Action::Barrier { waits: true },
        ["bar" | "barrier", "arrive"] => Action::Barrier { waits: false },
        _ => match (Collective::named(&words), super::hopper::Action::named(&words)) {
            (Some(collective), _) => Action::Warp(collective),
            (_, Some(action)) => Action::Hopper(action),
            _ => Action::Compute(Scalar::named(&s.op)?),
        },
    })
}

fn space(name: &str) -> Option<Space> {
    match name {
        "global" => Some(Space::Global),
        "shared" | "shared::cta" => Some(Space::Shared),
        "param" => Some(Space::Param),
        _ => None,
    }
}

impl Type {
    /// The bytes of a value in memory.
    pub fn bytes(self) -> usize {
        self.bits as usize / 8
    }

    /// A value loaded into a register, which may be wider.
    pub fn widened(self, x: u64) -> u64 {
        if self.kind == Kind::Signed { ((x << (64 - self.bits)) as i64 >> (64 - self.bits)) as u64 } else { x }
    }
}
