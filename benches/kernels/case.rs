//! A benchmark case: a kernel at one shape, with its tensors, its work and its launch.

use cuda::machine::{Done, Machine};
use cuda::tensor::View;
use half::bf16;

/// The work that a kernel's time is compared with.
#[derive(Debug, Clone, Copy)]
pub enum Work {
    /// Minimum memory traffic in bytes: each input read once, each output written once.
    Bytes(usize),
    /// Floating-point operations of its matrix multiplications.
    Flops(usize),
}

/// The initial contents of a tensor.
#[derive(Debug, Clone, Copy)]
pub enum Data {
    /// Approximately normal numbers, times a scale.
    Bf16(f32),
    F32(f32),
    /// Absolute values of such numbers.
    Positive(f32),
    /// Integers below this.
    Ids(u32),
    /// The first position that each row of sequences of `seq` rows sees, if it sees the last `window` ones.
    Starts {
        seq: usize,
        window: usize,
    },
    /// Numbers of rows of experts, of so many in all.
    Counts(usize),
    /// NaN, since the kernel writes before it reads. The field is the element size in bytes.
    Empty(usize),
}

/// The use of a tensor by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Read,
    /// Overwritten or accumulated; its result is compared.
    Written,
    /// Its result is ignored.
    Scratch,
}

#[derive(Debug, Clone, Copy)]
pub struct Tensor {
    pub len: usize,
    pub data: Data,
    pub role: Role,
}

impl Tensor {
    pub fn read(len: usize, data: Data) -> Self {
        Tensor { len, data, role: Role::Read }
    }

    pub fn written(len: usize, data: Data) -> Self {
        Tensor { len, data, role: Role::Written }
    }

    /// Scratch of `len` elements of `bytes` bytes each.
    pub fn scratch(len: usize, bytes: usize) -> Self {
        Tensor { len, data: Data::Empty(bytes), role: Role::Scratch }
    }

    pub fn bytes(&self) -> usize {
        let each = match self.data {
            Data::Bf16(_) => 2,
            Data::F32(_) | Data::Positive(_) | Data::Ids(_) | Data::Starts { .. } | Data::Counts(_) => 4,
            Data::Empty(bytes) => bytes,
        };
        self.len * each
    }

    /// Whether a launch changes what the next one reads.
    pub fn in_place(&self) -> bool {
        self.role == Role::Written && !matches!(self.data, Data::Empty(_))
    }
}

type Launch = Box<dyn Fn(&dyn Machine, &[View]) -> Done>;

/// One row of the table.
pub struct Case {
    /// The op's name, also used in `cuda/peers.py`.
    pub name: &'static str,
    pub shape: String,
    /// The name of the implementation; empty if there is only one.
    pub variant: &'static str,
    pub work: Work,
    pub tensors: Vec<Tensor>,
    /// Computes inputs from the random tensors, once.
    pub prepare: Launch,
    pub launch: Launch,
}

impl Case {
    pub fn new(
        name: &'static str,
        shape: String,
        work: Work,
        tensors: Vec<Tensor>,
        launch: impl Fn(&dyn Machine, &[View]) -> Done + 'static,
    ) -> Self {
        Case { name, shape, variant: "", work, tensors, prepare: Box::new(|_, _| Ok(())), launch: Box::new(launch) }
    }

    pub fn by(mut self, variant: &'static str) -> Self {
        self.variant = variant;
        self
    }

    pub fn prepared(mut self, prepare: impl Fn(&dyn Machine, &[View]) -> Done + 'static) -> Self {
        self.prepare = Box::new(prepare);
        self
    }

    /// Bytes of all its tensors.
    pub fn bytes(&self) -> usize {
        self.tensors.iter().map(Tensor::bytes).sum()
    }
}

/// Random numbers from which tensors are filled repeatedly.
pub struct Pool(Vec<f32>);

/// A prime, so that no two rows of a tensor are equal.
const POOL: usize = 4_194_301;

impl Pool {
    pub fn new() -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut uniform = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        Pool((0..POOL).map(|_| (0..4).map(|_| uniform()).sum::<f32>() * 1.7).collect())
    }

    /// The initial bytes of a tensor.
    pub fn fill(&self, tensor: &Tensor, seed: usize) -> Vec<u8> {
        let of = |element: &dyn Fn(f32) -> [u8; 4], width: usize| {
            let start = seed * 1_000_003 % POOL;
            let numbers = self.0[start..].iter().chain(&self.0[..start]).take(tensor.len);
            let period: Vec<u8> = numbers.flat_map(|&x| element(x).into_iter().take(width)).collect();
            let mut bytes = Vec::with_capacity(tensor.bytes());
            while bytes.len() < tensor.bytes() {
                bytes.extend_from_slice(&period[..period.len().min(tensor.bytes() - bytes.len())]);
            }
            bytes
        };
        match tensor.data {
            Data::Bf16(scale) => of(&|x| u32::from(bf16::from_f32(x * scale).to_bits()).to_le_bytes(), 2),
            Data::F32(scale) => of(&|x| (x * scale).to_le_bytes(), 4),
            Data::Positive(scale) => of(&|x| (x * scale).abs().to_le_bytes(), 4),
            Data::Ids(below) => of(&|x| (x.to_bits().wrapping_mul(0x9e37_79b1) % below).to_le_bytes(), 4),
            Data::Starts { seq, window } => {
                let start = |row: usize| (row % seq + 1).saturating_sub(window) as u32;
                (0..tensor.len).flat_map(|row| start(row).to_le_bytes()).collect()
            }
            Data::Counts(rows) => counts(rows, tensor.len).into_iter().flat_map(u32::to_le_bytes).collect(),
            Data::Empty(_) => vec![0xff; tensor.bytes()],
        }
    }
}

/// The numbers of rows of experts, of `rows` in all: of four consecutive experts the first has 1 part of 10, the last
/// has 4.
pub fn counts(rows: usize, experts: usize) -> Vec<u32> {
    let parts = |expert: usize| 10 * (expert / 4) + [0, 1, 3, 6][expert % 4];
    let first = |expert: usize| rows * parts(expert) / parts(experts);
    (0..experts).map(|expert| (first(expert + 1) - first(expert)) as u32).collect()
}
