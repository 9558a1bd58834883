//! The device's half of the primitives, executed on the host: NVRTC compiles the probes to PTX, and an interpreter that
//! is written by the PTX ISA alone runs it. It is one more machine for the tests of the probes, with the same inputs:
//! its results are held to the definitions in those tests, and to the emulator's bits where the arithmetic is exact.
//! Where it is not (`APPROXIMATE_PROBES` in `alike.rs`), both are held to the bounds of the ISA.
//!
//! These tests do not cover how ptxas translates PTX into machine code, nor the hardware, nor speed.

mod descriptor;
mod forms;
mod hopper;
mod machine;
mod memory;
mod nvrtc;
mod planted;
mod program;
mod scalar;
mod text;
mod warp;

use cuda::arch::Arch;
use cuda::kernels::File;
use cuda::machine::{Geometry, Machine, Target};
use cuda::tensor::{TensorMap, Tiles};
use emulator::PROCESSORS;
use emulator::place::{Kind, Place};
use emulator::probes::{FILE, HOPPER};
use memory::Global;
use nvrtc::{Change, Compiler};
use program::Program;
use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::io::Write;
use std::sync::OnceLock;
use text::Module;

/// The compiler of this machine, or why there is none.
fn compiler() -> Result<&'static Compiler, &'static str> {
    static COMPILER: OnceLock<Result<Compiler, String>> = OnceLock::new();
    COMPILER.get_or_init(Compiler::find).as_ref().map_err(|why| why.as_str())
}

/// The PTX of a file of probes as it is, compiled once.
fn original(file: &'static File) -> Result<&'static str, String> {
    static TEXTS: [OnceLock<Result<String, String>>; 2] = [OnceLock::new(), OnceLock::new()];
    let text = TEXTS[usize::from(file == &HOPPER)].get_or_init(|| compiled(file, &[]));
    text.as_deref().map_err(String::clone)
}

fn compiled(file: &File, changes: &[Change]) -> Result<String, String> {
    let arch = Arch::named(if file.only == Some(Target::Sm90a) { "sm_90a" } else { "sm_80" });
    compiler()?.ptx(file, arch.expect("a name from the table"), changes)
}

thread_local! {
    /// The machine of this thread, and whether it is the only one: then it has planted bugs.
    static MACHINE: Cell<Option<(&'static Interpreter, bool)>> = const { Cell::new(None) };
}

/// These places, and the interpreter if there is a compiler; or alone the interpreter with planted bugs.
pub fn with_interpreter(places: Vec<&'static dyn Place>) -> Vec<&'static dyn Place> {
    if let Some((interpreter, true)) = MACHINE.get() {
        return vec![interpreter];
    }
    if std::env::var_os("KERNELS_ON").is_some() || compiler().is_err() {
        return places;
    }
    let new = || (&*Box::leak(Box::new(Interpreter::of(&[]))), false);
    let (interpreter, _) = MACHINE.get().unwrap_or_else(new);
    MACHINE.set(Some((interpreter, false)));
    places.into_iter().chain([interpreter as &dyn Place]).collect()
}

/// The interpreter's name in messages.
const NAME: &str = "the interpreter of PTX";

/// The interpreter, with memory for the slices in use.
struct Interpreter {
    changes: Vec<Change>,
    /// The modules that were compiled for it, with planted bugs.
    changed: RefCell<Vec<(&'static str, &'static str)>>,
    memory: RefCell<Global>,
}

impl Interpreter {
    fn of(changes: &[Change]) -> Interpreter {
        Interpreter { changes: changes.to_vec(), changed: RefCell::default(), memory: RefCell::default() }
    }

    fn ptx(&self, file: &'static File) -> Result<&'static str, String> {
        if self.changes.is_empty() {
            return original(file);
        }
        let mut changed = self.changed.borrow_mut();
        if let Some((_, text)) = changed.iter().find(|(name, _)| *name == file.name) {
            return Ok(text);
        }
        let text = &*compiled(file, &self.changes)?.leak();
        changed.push((file.name, text));
        Ok(text)
    }

    fn program(&self, kernel: &str) -> Result<Program, String> {
        let file = [&FILE, &HOPPER].into_iter().find(|file| file.kernels.contains(&kernel)).ok_or("no probe")?;
        let module = Module::read(self.ptx(file)?)?;
        let entry = module.entries.iter().find(|entry| entry.name == kernel);
        Program::of(entry.ok_or_else(|| format!("the PTX has no {kernel}"))?)
    }
}

impl Machine for Interpreter {
    fn target(&self) -> Target {
        Target::Sm90a
    }

    fn processors(&self) -> usize {
        PROCESSORS
    }

    fn tensor_map(&self, tiles: Tiles) -> Result<TensorMap, String> {
        tiles.check()?;
        Ok(hopper::map(tiles))
    }

    unsafe fn start(&self, kernel: &'static str, args: *const c_void, geometry: Geometry) -> Result<(), String> {
        let program = self.program(kernel)?;
        // SAFETY: by this function's contract, `args` points to the struct whose size the kernel's text declares.
        let args = unsafe { std::slice::from_raw_parts(args.cast::<u8>(), program.param.1) };
        machine::run(&program, args, geometry, &mut self.memory.borrow_mut())
    }
}

impl Place for Interpreter {
    fn machine(&self) -> &dyn Machine {
        self
    }

    fn kind(&self) -> Kind {
        Kind::Interpreter
    }

    fn name(&self) -> String {
        NAME.into()
    }

    fn view(&self, bytes: &[u8]) -> u64 {
        self.memory.borrow_mut().add(bytes)
    }

    fn view_mut(&self, bytes: &mut [u8]) -> u64 {
        self.memory.borrow_mut().add(bytes)
    }

    fn end(&self, at: u64) {
        self.memory.borrow_mut().remove(at);
    }

    fn end_mut(&self, at: u64, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.memory.borrow_mut().remove(at));
    }
}

/// The modules of the probes; none where there is no compiler.
fn modules() -> Option<[Module; 2]> {
    compiler().ok()?;
    Some([&FILE, &HOPPER].map(|file| Module::read(original(file).unwrap()).unwrap()))
}

/// The tests of the probes skip the interpreter where there is no compiler; this one says so.
#[test]
fn every_probe_has_ptx_that_is_known() {
    let Some(modules) = modules() else {
        // The output of `eprintln!` is hidden when a test passes.
        let remedy = "`pip install nvidia-cuda-nvrtc==13.0.88`, or see scripts/nvrtc.sh";
        return writeln!(std::io::stderr(), "\nthe PTX of the primitives is NOT EXECUTED: {remedy}").unwrap();
    };
    for (file, module) in [&FILE, &HOPPER].into_iter().zip(&modules) {
        let names = module.entries.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>();
        assert_eq!(names, file.kernels);
        for entry in &module.entries {
            Program::of(entry).map(|_| ()).unwrap_or_else(|e| panic!("{}: {e}", entry.name));
        }
    }
}

#[test]
fn what_is_not_known_is_an_error_with_its_line() {
    let kernel = |code: &str| {
        let text = format!(".visible .entry k(\n.param .align 8 .b8 p[8]\n)\n{{\n.reg .b32 %r<3>;\n{code}\n}}\n");
        let module = Module::read(&text)?;
        let program = Program::of(&module.entries[0])?;
        machine::run(&program, &[0; 8], Geometry { grid: [1; 3], block: 32, shared: 64 }, &mut Global::default())
    };
    assert_eq!(kernel("mov.u32 %r1, %tid.x;\nret;"), Ok(()));
    for (code, error) in [
        ("ret;\nbrev.b32 %r1, %r2;\nret;", "line 7: brev.b32 is not known"),
        ("add.s32 %r1, %r2;\nret;", "line 6: add.s32 has 2 operands"),
        ("\nadd.s32 %r1, %r2, 1;\nret;", "line 7, thread 0: a register is read that was never set"),
        ("mov.u32 %r1, 2;\nld.shared.u32 %r2, [%r1];\nret;", "line 7, thread 0: misaligned: 4 bytes at 0x2"),
        (
            "mov.u32 %r1, 4;\nld.shared.u32 %r2, [%r1];\nret;",
            "line 7, thread 0: out of bounds: 4 bytes of shared memory at 0x4",
        ),
        (
            "mov.u32 %r1, %tid.x;\n.reg .pred p;\nsetp.eq.s32 p, %r1, 0;\n@p bar.sync 0;\nbar.sync 0;\nret;",
            "line 9, thread 0: waits without end",
        ),
    ] {
        assert_eq!(kernel(code), Err(error.to_string()), "{code}");
    }
}
