//! The instructions of sm_90a, and the barriers, checked without running them: each must have one of the forms that the
//! PTX ISA gives, with operands of the right kind and immediates in the right range; and each matrix descriptor, whose
//! value follows from the text, must have the fields that the ISA gives for its tile.

use super::descriptor::{Descriptor, Swizzle};
use super::memory::{SHARED, SHARED_WINDOW};
use super::program::{Action, Program, Space};
use super::text::{Entry, Module, Operand, Statement};

/// The kinds of operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `[a]` with a 32-bit address of shared memory.
    Shared,
    /// `[a]` with a 64-bit address of global memory.
    Global,
    /// `[map, {x, y, z, w}]`: a 64-bit generic address and 32-bit coordinates.
    Tile,
    /// A 32-bit register or constant.
    Word,
    /// A predicate register.
    Predicate,
    /// `_`
    Sink,
    /// A 64-bit register with a matrix descriptor.
    Matrix,
    /// `{..}` of that many f32 registers.
    Floats(usize),
    /// `{..}` of that many 32-bit registers.
    Words(usize),
    /// A constant of these: first, last, step.
    Immediate(u64, u64, u64),
}

use Kind::*;

const ONE_OR_ZERO: Kind = Immediate(0, 1, 1);
/// `imm-scale`: 1, and not -1, which would negate.
const AS_IT_IS: Kind = Immediate(1, 1, 1);

/// The forms by the names of the ISA's sections, for the modifiers that the header uses.
#[rustfmt::skip]
const FORMS: [(&str, &[Kind]); 23] = [
    // "mbarrier.init", "mbarrier.arrive", "mbarrier.test_wait, mbarrier.try_wait"
    ("mbarrier.init.shared::cta.b64", &[Shared, Word]),
    ("mbarrier.arrive.shared::cta.b64", &[Sink, Shared]),
    ("mbarrier.arrive.expect_tx.shared::cta.b64", &[Sink, Shared, Word]),
    ("mbarrier.try_wait.parity.shared::cta.b64", &[Predicate, Shared, Word]),
    // "membar / fence"
    ("fence.mbarrier_init.release.cluster", &[]),
    ("fence.proxy.async.shared::cta", &[]),
    // "cp.async.bulk", "cp.async.bulk.tensor": destination, source, (size,) mbarrier
    ("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes", &[Shared, Global, Word, Shared]),
    ("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes", &[Shared, Tile, Shared]),
    // "bar, barrier": sixteen barriers; the number of threads is a multiple of the warp's 32
    ("bar.sync", &[Immediate(0, 15, 1)]),
    ("bar.sync", &[Word, Word]),
    ("bar.arrive", &[Word, Word]),
    // "setmaxnreg": 24 to 256 in steps of 8
    ("setmaxnreg.inc.sync.aligned.u32", &[Immediate(24, 256, 8)]),
    ("setmaxnreg.dec.sync.aligned.u32", &[Immediate(24, 256, 8)]),
    // "wgmma.fence", "wgmma.commit_group", "wgmma.wait_group"
    ("wgmma.fence.sync.aligned", &[]),
    ("wgmma.commit_group.sync.aligned", &[]),
    ("wgmma.wait_group.sync.aligned", &[Immediate(0, 7, 1)]),
    // "wgmma.mma_async": d, a, b, scale-d, imm-scale-a, imm-scale-b, (imm-trans-a,) imm-trans-b
    ("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16",
        &[Floats(32), Matrix, Matrix, Predicate, AS_IT_IS, AS_IT_IS, ONE_OR_ZERO, ONE_OR_ZERO]),
    ("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16",
        &[Floats(64), Matrix, Matrix, Predicate, AS_IT_IS, AS_IT_IS, ONE_OR_ZERO, ONE_OR_ZERO]),
    ("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16",
        &[Floats(32), Words(4), Matrix, Predicate, AS_IT_IS, AS_IT_IS, ONE_OR_ZERO]),
    ("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16",
        &[Floats(64), Words(4), Matrix, Predicate, AS_IT_IS, AS_IT_IS, ONE_OR_ZERO]),
    // "bar.warp.sync", "shfl.sync": all lanes
    ("bar.warp.sync", &[Immediate(0xffff_ffff, 0xffff_ffff, 1)]),
    ("shfl.sync.bfly.b32", &[Word, Word, Word, Immediate(31, 31, 1), Immediate(0xffff_ffff, 0xffff_ffff, 1)]),
    ("shfl.sync.idx.b32", &[Word, Word, Word, Immediate(31, 31, 1), Immediate(0xffff_ffff, 0xffff_ffff, 1)]),
];

/// The instructions of each form.
pub type Used = [usize; FORMS.len()];

/// The first words of the instructions that must have a form.
const CHECKED: [&str; 7] = ["mbarrier", "fence", "bar", "setmaxnreg", "wgmma", "shfl", "barrier"];

impl Kind {
    fn fits(self, entry: &Entry, operand: &Operand) -> bool {
        let of = |names: &[&str], operand: &Operand| match operand {
            Operand::Register(register) => names.contains(&entry.registers[*register].as_str()),
            _ => false,
        };
        let [word, long] = [["b32", "u32", "s32"], ["b64", "u64", "s64"]];
        let address = |bits: &[&str]| match operand {
            Operand::Address(base, _, coordinates) if of(bits, base) => Some(&coordinates[..]),
            _ => None,
        };
        let all = |n: usize, names: &[&str]| match operand {
            Operand::List(list) => list.len() == n && list.iter().all(|o| of(names, o)),
            _ => false,
        };
        match self {
            Shared => address(&word).is_some_and(|more| more.is_empty()),
            Global => address(&long).is_some_and(|more| more.is_empty()),
            Tile => match address(&long) {
                Some([Operand::List(list)]) => list.len() == 4 && list.iter().all(|o| of(&word, o)),
                _ => false,
            },
            Word => of(&word, operand) || matches!(operand, Operand::Constant(_)),
            Predicate => of(&["pred"], operand),
            Sink => *operand == Operand::Sink,
            Matrix => of(&long, operand),
            Floats(n) => all(n, &["f32"]),
            Words(n) => all(n, &word),
            Immediate(first, last, step) => {
                matches!(operand, Operand::Constant(x) if (first..=last).contains(x) && (x - first) % step == 0)
            }
        }
    }
}

/// Checks a kernel's instructions and returns the errors found; `used` counts the instructions of each form.
fn complaints(entry: &Entry, used: &mut Used) -> Vec<String> {
    let checked = |s: &&Statement| CHECKED.contains(&s.op[0].as_str()) || s.name().starts_with("cp.async.bulk");
    let mut out = Vec::new();
    for statement in entry.body.iter().filter(checked) {
        let fits = |(name, kinds): &(&str, &[Kind])| {
            let mut both = kinds.iter().zip(&statement.operands);
            *name == statement.name()
                && kinds.len() == statement.operands.len()
                && both.all(|(kind, operand)| kind.fits(entry, operand))
        };
        match FORMS.iter().position(fits) {
            Some(form) => used[form] += 1,
            None => out.push(format!("{}, line {}: {}", entry.name, statement.line, statement.name())),
        }
    }
    out
}

/// The value of an operand where it follows from the text: from constants, the address of shared memory, and registers
/// that one instruction without a guard sets.
fn folded(program: &Program, operand: &Operand) -> Option<u64> {
    let register = match operand {
        Operand::Constant(bits) => return Some(*bits),
        Operand::Name(name) if name == "dynamic_shared" => return Some(SHARED),
        Operand::Register(register) => *register,
        _ => return None,
    };
    let mut setters = program.code.iter().filter(|i| i.operands.first() == Some(operand));
    let (setter, None) = (setters.next()?, setters.next()) else { return None };
    let x = || setter.operands[1..].iter().map(|o| folded(program, o)).collect::<Option<Vec<_>>>();
    let value = match setter.action {
        Action::Compute(scalar) => scalar.of(&x()?),
        Action::ToGeneric(Space::Shared) => x()?[0] + SHARED_WINDOW,
        Action::FromGeneric(Space::Shared) => x()?[0].checked_sub(SHARED_WINDOW)?,
        _ => return None,
    };
    setter.guard.is_none().then_some(value & program.registers[register].mask())
}

/// The bytes of a tile of 64 rows and 64 columns, and those that 16 of its columns and of its rows take.
const TILE: u64 = 64 * 128;
const COLUMNS: u64 = 16 * 2;
const ROWS: u64 = 16 * 128;

/// Checks the descriptors of a probe and returns the errors found. The probe multiplies 64 columns in four steps; its
/// shared memory holds a, then b in tiles (`product` in `probes_hopper.cu`).
fn wrong_descriptors(entry: &Entry) -> Result<Vec<String>, String> {
    let program = Program::of(entry)?;
    let products = entry.body.iter().filter(|s| s.name().starts_with("wgmma.mma_async"));
    let mut out = Vec::new();
    for (step, product) in (0..).zip(products) {
        // The last operands: imm-trans-b and, where a is in shared memory, imm-trans-a in front of it.
        let [.., Operand::Constant(a_across), Operand::Constant(across)] = product.operands[..] else {
            return Err("no constants say whether the operands are transposed".into());
        };
        let operands = [(&product.operands[1], 0, a_across), (&product.operands[2], TILE, across)];
        for (operand, tile, across) in operands.into_iter().filter(|(o, ..)| matches!(o, Operand::Register(_))) {
            let bits = folded(&program, operand).ok_or_else(|| format!("line {}: no value", product.line))?;
            let descriptor = Descriptor::of(bits)?;
            // "Strides": eight rows of 128 bytes from the next eight. Along k the leading dimension counts as 1;
            // across, it is the distance to the next 64 columns, in the next tile.
            let (leading, within) = if across == 1 { (TILE, step * ROWS) } else { (16, step * COLUMNS) };
            let (start, stride) = (SHARED + tile + within, 8 * 128);
            let right = Descriptor { start, leading, stride, base: 0, swizzle: Swizzle::Bytes128 };
            if descriptor != right {
                out.push(format!("{}, line {}: {descriptor:?}, not {right:?}", entry.name, product.line));
            }
        }
    }
    Ok(out)
}

/// All complaints about the probes of sm_90a.
pub fn all_complaints(module: &Module, used: &mut Used) -> Vec<String> {
    let descriptors = |entry: &Entry| wrong_descriptors(entry).unwrap_or_else(|e| vec![format!("{}: {e}", entry.name)]);
    module.entries.iter().flat_map(|entry| [complaints(entry, used), descriptors(entry)].concat()).collect()
}

#[test]
fn instructions_and_descriptors_have_the_forms_of_the_isa() {
    let Some([primitives, hopper]) = super::modules() else { return };
    let mut used = Used::default();
    let wrong = all_complaints(&hopper, &mut used);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let wrong = primitives.entries.iter().flat_map(|e| complaints(e, &mut used)).collect::<Vec<_>>();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let unused = FORMS.iter().zip(used).filter(|(_, n)| *n == 0).map(|(form, _)| form.0).collect::<Vec<_>>();
    assert!(unused.is_empty(), "no probe has {unused:?}");
}

mod exhaustive {
    use super::*;
    use crate::ptx::{compiled, compiler};
    use cuda::kernels::files_for;
    use cuda::machine::Target;

    #[test]
    fn instructions_of_the_kernels_of_sm_90a_have_the_forms_too() {
        if compiler().is_err() {
            return;
        }
        let mut used = Used::default();
        for file in files_for(Target::Sm90a).filter(|file| file.only.is_some()) {
            let module = Module::read(&compiled(file, &[]).unwrap()).unwrap_or_else(|e| panic!("{}: {e}", file.name));
            let wrong = module.entries.iter().flat_map(|e| complaints(e, &mut used)).collect::<Vec<_>>();
            assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        }
        assert!(used.iter().sum::<usize>() > 500, "{used:?}");
    }
}
