//! The matrix descriptor of `wgmma` (PTX ISA, "Matrix descriptor format"), and where it says that an element lies.

/// A descriptor's fields, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    pub start: u64,
    pub leading: u64,
    pub stride: u64,
    pub base: u64,
    pub swizzle: Swizzle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swizzle {
    None,
    Bytes128,
    Bytes64,
    Bytes32,
}

/// The table of the ISA: the field, its first and its last bit.
const FIELDS: [(&str, u32, u32); 5] = [
    ("start address", 0, 13),
    ("leading dimension byte offset", 16, 29),
    ("stride dimension byte offset", 32, 45),
    ("base offset", 49, 51),
    ("swizzle mode", 62, 63),
];

impl Descriptor {
    /// The fields of a descriptor; an error if other bits are set, or a mode that these kernels do not use.
    pub fn of(bits: u64) -> Result<Descriptor, String> {
        let field = |i: usize| bits >> FIELDS[i].1 & ((1 << (FIELDS[i].2 - FIELDS[i].1 + 1)) - 1);
        let [start, leading, stride, base, swizzle] = [0, 1, 2, 3, 4].map(field);
        let known = (0..5).fold(0, |all, i| all | field(i) << FIELDS[i].1);
        if known != bits {
            return Err(format!("the descriptor {bits:#x} has bits outside its fields"));
        }
        let swizzle = [Swizzle::None, Swizzle::Bytes128, Swizzle::Bytes64, Swizzle::Bytes32][swizzle as usize];
        let descriptor = Descriptor { start: start * 16, leading: leading * 16, stride: stride * 16, base, swizzle };
        // The pattern of 128 bytes begins anew every 1024; where it begins elsewhere, the base offset would say so.
        if swizzle != Swizzle::Bytes128 || base != 0 || !descriptor.stride.is_multiple_of(1024) {
            return Err(format!("{descriptor:?} is not of tiles with rows of 128 bytes"));
        }
        Ok(descriptor)
    }

    /// The address of element (row, k) of bf16 before the swizzle, where row runs over m or n (PTX ISA, "Strides").
    /// Along k: rows of 128 bytes, of which eight are `stride` from the next eight. Across: rows of k with 64 elements
    /// of m or n, of which eight are `stride` from the next eight, and `leading` from the next 64 elements.
    pub fn offset(self, row: u64, k: u64, across: bool) -> u64 {
        match across {
            false => self.start + row / 8 * self.stride + row % 8 * 128 + k * 2,
            true => self.start + row / 64 * self.leading + k / 8 * self.stride + k % 8 * 128 + row % 64 * 2,
        }
    }
}
