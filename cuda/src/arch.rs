//! Device architectures, named as by NVIDIA's compilers.

use crate::machine::Target;
use std::fmt;

/// The target of a cubin: `sm_80`, `sm_90a`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Arch {
    major: u32,
    minor: u32,
    features: Features,
}

/// The instructions of an architecture that the kernels use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Features {
    /// Only instructions that later architectures support, too.
    Common,
    /// Also architecture-specific instructions: `wgmma` and `setmaxnreg` of 9.0.
    Own,
}

/// The architectures that cubins can be built for by name; a device may have a newer one. Attention's blocks need 163
/// KiB of shared memory, which consumer devices lack (8.6, 8.9, 12.0).
///
/// `sm_90` compiles an A100's kernels for an H100, which runs them if the user names a pack of `sm_90` alone.
pub const KNOWN: [Arch; 7] =
    [sm(8, 0), sm(8, 7), sm(9, 0), Arch { features: Features::Own, ..sm(9, 0) }, sm(10, 0), sm(10, 3), sm(11, 0)];

const fn sm(major: u32, minor: u32) -> Arch {
    Arch { major, minor, features: Features::Common }
}

/// The required bytes of shared memory per multiprocessor; a block can use 1 KiB less.
const SHARED: u32 = 164 << 10;

impl Arch {
    /// The architecture for a device of this compute capability, or why the device is not supported.
    pub fn of((major, minor): (i32, i32)) -> Result<Arch, String> {
        let arch = match (u32::try_from(major), u32::try_from(minor)) {
            (Ok(9), Ok(0)) => Some(Arch { features: Features::Own, ..sm(9, 0) }),
            (Ok(major @ 8..), Ok(minor)) => Some(sm(major, minor)),
            _ => None,
        };
        arch.filter(|arch| arch.processor().shared >= SHARED).ok_or_else(|| {
            format!(
                "its compute capability is {major}.{minor}, but the kernels need an A100 (8.0), an H100 (9.0) or a \
                 later device with {} KiB of shared memory per multiprocessor; use train.backend = \"cpu\" on this \
                 machine",
                SHARED >> 10
            )
        })
    }

    /// The architecture of that name; the error lists all names.
    pub fn named(name: &str) -> Result<Arch, String> {
        let known = KNOWN.into_iter().find(|arch| arch.to_string() == name);
        known.ok_or_else(|| KNOWN.map(|arch| arch.to_string()).join(", "))
    }

    /// The best target of the kernels that it runs.
    pub fn target(self) -> Target {
        match self.features {
            Features::Common => Target::Sm80,
            Features::Own => Target::Sm90a,
        }
    }

    /// The number in `nvrtcGetSupportedArchs`: 90 for `sm_90` and `sm_90a`.
    pub fn number(self) -> u32 {
        10 * self.major + self.minor
    }

    /// The architectures whose cubins a device of this one runs, the best first: its own, then older ones of its
    /// generation. `sm_90a` runs on no other.
    pub fn runs(self) -> impl Iterator<Item = Arch> {
        let own = (self.features == Features::Own).then_some(self);
        own.into_iter().chain((0..=self.minor).rev().map(move |minor| sm(self.major, minor)))
    }

    /// The limits of a multiprocessor.
    pub fn processor(self) -> Processor {
        let (threads, shared, blocks) = match (self.major, self.minor) {
            (8, 0) => (2048, 164 << 10, 32),
            (8, 7) => (1536, 164 << 10, 16),
            (8, minor) => (1536, 100 << 10, if minor == 9 { 24 } else { 16 }),
            (9 | 10, _) => (2048, 228 << 10, 32),
            (12, _) => (1536, 100 << 10, 24),
            _ => (1536, 228 << 10, 24),
        };
        Processor { threads, shared, blocks }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = if self.features == Features::Own { "a" } else { "" };
        write!(f, "sm_{}{}{own}", self.major, self.minor)
    }
}

/// The limits of a multiprocessor, from the CUDA C++ Programming Guide's table of compute capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processor {
    pub threads: u32,
    /// Bytes of shared memory.
    pub shared: u32,
    pub blocks: u32,
}

impl Processor {
    /// Blocks that run at once, given their threads, registers per thread and bytes of shared memory. Registers are
    /// allocated in units of 256 per warp, on each of four partitions with 16384; a block costs 1024 more bytes of
    /// shared memory.
    pub fn at_once(self, threads: u32, registers: u32, shared: u32) -> u32 {
        let warps = threads.div_ceil(32);
        let each = (32 * registers.max(1)).next_multiple_of(256);
        let by_registers = 4 * (16384 / each) / warps;
        let by_shared = self.shared / (shared.next_multiple_of(128) + 1024);
        by_registers.min(by_shared).min(self.threads / (32 * warps)).min(self.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_runs_its_own_kernels() {
        for (capability, name) in [((8, 0), "sm_80"), ((8, 7), "sm_87"), ((9, 0), "sm_90a"), ((13, 1), "sm_131")] {
            assert_eq!(Arch::of(capability).unwrap().to_string(), name);
        }
        for refused in [(7, 5), (0, 0), (-1, 0), (8, 6), (8, 9), (12, 0)] {
            assert!(Arch::of(refused).unwrap_err().contains("164 KiB"));
        }
    }

    #[test]
    fn only_listed_names_are_known() {
        for arch in KNOWN {
            assert_eq!(Arch::named(&arch.to_string()), Ok(arch));
        }
        for wrong in ["sm_90b", "sm_86", "sm_75", "80", "sm_80 ", ""] {
            assert!(Arch::named(wrong).unwrap_err().contains("sm_80, sm_87"));
        }
    }

    #[test]
    fn older_cubins_of_a_generation_run() {
        let runs = |arch: Arch| arch.runs().map(|arch| arch.to_string()).collect::<Vec<_>>();
        assert_eq!(runs(sm(8, 2)), ["sm_82", "sm_81", "sm_80"]);
        assert_eq!(runs(Arch::of((9, 0)).unwrap()), ["sm_90a", "sm_90"]);
        assert_eq!(runs(sm(9, 0)), ["sm_90"]);
    }

    /// Computed by hand: limited by threads, by registers, by shared memory, by blocks.
    #[test]
    fn blocks_at_once() {
        let a100 = sm(8, 0).processor();
        for (threads, registers, shared, blocks) in [
            (1024, 32, 128, 2),
            (1024, 33, 128, 1),
            (512, 83, 256, 1),
            (512, 128, 256, 1),
            (256, 40, 0, 6),
            (256, 32, 1024, 8),
            (128, 255, 64 << 10, 2),
            (128, 128, 82 << 10, 1),
            (32, 21, 0, 32),
        ] {
            assert_eq!(a100.at_once(threads, registers, shared), blocks, "{threads} x {registers}, {shared} bytes");
        }
    }
}
