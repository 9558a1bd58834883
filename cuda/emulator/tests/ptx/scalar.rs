//! Instructions that compute one value from others, without memory and without other lanes (PTX ISA, "Integer
//! arithmetic instructions", "Floating point instructions", "Comparison and selection instructions", "Data movement and
//! conversion instructions"). Values are bits, in the low part of 64.
//!
//! The approximations are the exact functions, rounded once: the PTX ISA bounds their errors only, and so do the tests.

use std::cmp::Ordering;

/// An instruction with its types.
#[derive(Debug, Clone, Copy)]
pub struct Scalar {
    op: Op,
    /// The type of the operands; of a conversion the source's.
    of: Type,
    /// The type of the result.
    to: Type,
    /// `x2`: the operands are pairs, and each half is computed by itself.
    pairs: bool,
    /// `.ftz`: subnormal operands and results are zeros of the same sign.
    flush: bool,
    /// The number of operands.
    pub operands: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Move,
    Add,
    Sub,
    /// The low half of a product, the high half, and both.
    Mul,
    MulHigh,
    MulWide,
    Mad,
    Fma,
    Div,
    Rem,
    Neg,
    Abs,
    Min,
    Max,
    And,
    Or,
    Xor,
    Not,
    Shl,
    Shr,
    Sqrt,
    Exp2,
    Log2,
    Rcp,
    Rsqrt,
    Compare(Comparison),
    Select,
    Convert,
    /// Two f32 to two halves of a word; the first operand becomes the upper half.
    Pack,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Bits,
    Unsigned,
    Signed,
    Float,
    Brain,
}

/// A fundamental type (PTX ISA, "Fundamental types").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Type {
    pub kind: Kind,
    pub bits: u32,
}

impl Type {
    /// The type of that name without its dot.
    pub fn named(name: &str) -> Option<Type> {
        let (kind, bits) = match name {
            "pred" => return Some(Type { kind: Kind::Bits, bits: 1 }),
            "bf16" => return Some(Type { kind: Kind::Brain, bits: 16 }),
            _ => name.split_at_checked(1)?,
        };
        let kind = match kind {
            "b" => Kind::Bits,
            "u" => Kind::Unsigned,
            "s" => Kind::Signed,
            "f" => Kind::Float,
            _ => return None,
        };
        let bits = bits.parse().ok().filter(|bits| [8, 16, 32, 64].contains(bits))?;
        Some(Type { kind, bits })
    }

    pub fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits)
    }

    fn is_float(self) -> bool {
        matches!(self.kind, Kind::Float | Kind::Brain)
    }

    fn signed(self, x: u64) -> i64 {
        (x << (64 - self.bits)) as i64 >> (64 - self.bits)
    }

    /// An integer's value.
    fn integer(self, x: u64) -> i128 {
        if self.kind == Kind::Signed { self.signed(x).into() } else { (x & self.mask()).into() }
    }

    /// A floating-point number's value, which f64 represents exactly.
    fn float(self, x: u64) -> f64 {
        match (self.kind, self.bits) {
            (Kind::Float, 64) => f64::from_bits(x),
            (Kind::Float, 32) => f32::from_bits(x as u32).into(),
            (Kind::Float, _) => small(x, 5, 10),
            _ => small(x, 8, 7),
        }
    }

    /// The nearest number of this type, ties to even. Every NaN becomes the canonical one, except in f64.
    fn rounded(self, x: f64) -> u64 {
        match (self.kind, self.bits) {
            (Kind::Float, 64) => x.to_bits(),
            _ if x.is_nan() => self.mask() >> 1,
            (Kind::Float, 32) => u64::from((x as f32).to_bits()),
            (Kind::Float, _) => to_small(x, 5, 10),
            _ => to_small(x, 8, 7),
        }
    }
}

/// The value of a number of 1 sign bit, `e` bits of exponent and `m` of fraction (IEEE 754, binary interchange
/// formats).
fn small(x: u64, e: u32, m: u32) -> f64 {
    let (sign, exponent, fraction) = (x >> (e + m) & 1, x >> m & ((1 << e) - 1), x & ((1 << m) - 1));
    let bias = (1i32 << (e - 1)) - 1;
    let size = match exponent {
        0 => fraction as f64 * 2f64.powi(1 - bias - m as i32),
        top if top == (1 << e) - 1 => {
            if fraction == 0 {
                f64::INFINITY
            } else {
                f64::NAN
            }
        }
        _ => ((1 << m) + fraction) as f64 * 2f64.powi(exponent as i32 - bias - m as i32),
    };
    if sign == 1 { -size } else { size }
}

/// The same format's number nearest to x, which is no NaN.
fn to_small(x: f64, e: u32, m: u32) -> u64 {
    let (sign, size, bias) = (u64::from(x.is_sign_negative()), x.abs(), (1i32 << (e - 1)) - 1);
    // The exponent of the last bit: below the smallest normal number all are equally spaced.
    let exponent = (size.to_bits() >> 52) as i32 - 1023;
    let last = exponent.max(1 - bias) - m as i32;
    let infinite = ((1 << e) - 1) << m;
    // The steps from zero; a carry out of the fraction goes into the exponent, as it should.
    let steps = if size.is_infinite() { infinite } else { (size * 2f64.powi(-last)).round_ties_even() as u64 };
    let bits = if size.is_infinite() { steps } else { steps + (((last + m as i32 + bias - 1) as u64) << m) };
    sign << (e + m) | bits.min(infinite)
}

impl Scalar {
    /// The instruction of these words; None if it is none of these, or has a modifier that is not known here.
    pub fn named(words: &[String]) -> Option<Scalar> {
        let mut words = words.iter().map(String::as_str).collect::<Vec<_>>();
        let mut take = |word: &str| {
            let at = words.iter().position(|w| *w == word)?;
            Some(words.remove(at))
        };
        let flush = take("ftz").is_some();
        let [nearest, approx] = ["rn", "approx"].map(|word| take(word).is_some());
        let halves = take("mul").or_else(|| take("mad"));
        let [low, high, wide] = ["lo", "hi", "wide"].map(|word| halves.is_some() && take(word).is_some());
        let (&name, mods) = match &halves {
            Some(name) => (name, &words[..]),
            None => words.split_first()?,
        };
        let single = mods.last()?.trim_end_matches("x2");
        let (of, pairs) = (Type::named(single), single != *mods.last()?);
        let (op, operands) = match (name, mods) {
            ("cvt", [to, from]) => return Scalar::conversion(to, from, nearest && !flush),
            ("setp", [comparison, _]) => (Op::Compare(Comparison::named(comparison, of?)?), 2),
            (_, [_]) => match name {
                "mov" => (Op::Move, 1),
                "add" => (Op::Add, 2),
                "sub" => (Op::Sub, 2),
                "mul" if wide => (Op::MulWide, 2),
                "mul" if high => (Op::MulHigh, 2),
                "mul" if low || of?.is_float() => (Op::Mul, 2),
                "mad" if low => (Op::Mad, 3),
                "fma" if nearest => (Op::Fma, 3),
                "div" => (Op::Div, 2),
                "rem" => (Op::Rem, 2),
                "neg" => (Op::Neg, 1),
                "abs" => (Op::Abs, 1),
                "min" => (Op::Min, 2),
                "max" => (Op::Max, 2),
                "and" => (Op::And, 2),
                "or" => (Op::Or, 2),
                "xor" => (Op::Xor, 2),
                "not" => (Op::Not, 1),
                "shl" => (Op::Shl, 2),
                "shr" => (Op::Shr, 2),
                "sqrt" if nearest => (Op::Sqrt, 1),
                "ex2" if approx => (Op::Exp2, 1),
                "lg2" if approx => (Op::Log2, 1),
                "rcp" if approx => (Op::Rcp, 1),
                "rsqrt" if approx => (Op::Rsqrt, 1),
                "selp" => (Op::Select, 3),
                _ => return None,
            },
            _ => return None,
        };
        let of = of?;
        let (divides, approximates) = (op == Op::Div, [Op::Exp2, Op::Log2, Op::Rcp, Op::Rsqrt].contains(&op));
        // The exact operations are defined here for no other rounding than the nearest, division only with it.
        let rounds = !of.is_float() || !divides || nearest;
        let to = match op {
            Op::Compare(_) => Type::named("pred")?,
            Op::MulWide => Type { bits: 2 * of.bits, ..of },
            _ => of,
        };
        (approx == approximates && rounds && (!pairs || [Op::Min, Op::Max].contains(&op))).then_some(Scalar {
            op,
            of,
            to,
            pairs,
            flush,
            operands,
        })
    }

    fn conversion(to: &str, from: &str, nearest: bool) -> Option<Scalar> {
        let of = Type::named(from)?;
        if let Some(half) = to.strip_suffix("x2") {
            let to = Type::named(half).filter(|half| half.bits == 16 && half.is_float())?;
            return (nearest && of == Type::named("f32")?).then_some(Scalar {
                op: Op::Pack,
                of,
                to,
                pairs: false,
                flush: false,
                operands: 2,
            });
        }
        let to = Type::named(to)?;
        // A rounding is given exactly where it is needed.
        let rounds = to.is_float() && (!of.is_float() || of.bits > to.bits);
        let integers_of_floats = of.is_float() && !to.is_float();
        (rounds == nearest && !integers_of_floats).then_some(Scalar {
            op: Op::Convert,
            of,
            to,
            pairs: false,
            flush: false,
            operands: 1,
        })
    }

    /// The result for these operands.
    pub fn of(self, x: &[u64]) -> u64 {
        let Type { kind, bits } = self.of;
        let x: Vec<u64> = match (self.op, self.flush) {
            (Op::Select, _) | (_, false) => x.to_vec(),
            (_, true) => x.iter().map(|&x| flushed(x)).collect(),
        };
        match self.op {
            Op::Compare(comparison) => {
                let [a, b] = [x[0], x[1]];
                let order = match self.of.is_float() {
                    true => self.of.float(a).partial_cmp(&self.of.float(b)),
                    false => Some(self.of.integer(a).cmp(&self.of.integer(b))),
                };
                u64::from(comparison.holds(order))
            }
            Op::Select => (if x[2] & 1 == 1 { x[0] } else { x[1] }) & self.of.mask(),
            Op::Min | Op::Max if self.pairs => {
                let halves = |shift: u32| x.iter().map(move |&x| self.of.float(x >> shift) as f32);
                let [low, high] = [0, 16].map(|shift| self.single(&halves(shift).collect::<Vec<_>>()));
                self.of.rounded(low.into()) | self.of.rounded(high.into()) << 16
            }
            Op::Pack => self.to.rounded(self.of.float(x[0])) << 16 | self.to.rounded(self.of.float(x[1])),
            Op::Convert if self.of.is_float() => self.to.rounded(self.of.float(x[0])),
            Op::Convert if self.to.is_float() => self.to.rounded(self.of.integer(x[0]) as f64),
            Op::Convert => self.of.integer(x[0]) as u64 & self.to.mask(),
            Op::Move | Op::And | Op::Or | Op::Xor | Op::Not | Op::Shl => self.bitwise(&x) & self.of.mask(),
            _ if (kind, bits) == (Kind::Float, 32) => {
                let y = self.single(&x.iter().map(|&x| f32::from_bits(x as u32)).collect::<Vec<_>>());
                let y = if y.is_nan() { 0x7fff_ffff } else { y.to_bits().into() };
                if self.flush { flushed(y) } else { y }
            }
            _ if self.of.is_float() => self.double(&x.iter().map(|&x| f64::from_bits(x)).collect::<Vec<_>>()).to_bits(),
            _ => self.integers(&x.iter().map(|&x| self.of.integer(x)).collect::<Vec<_>>(), &x) as u64 & self.to.mask(),
        }
    }

    fn bitwise(self, x: &[u64]) -> u64 {
        match self.op {
            Op::And => x[0] & x[1],
            Op::Or => x[0] | x[1],
            Op::Xor => x[0] ^ x[1],
            Op::Not => !x[0],
            // The amount is an unsigned 32-bit number; larger ones than the width shift everything out.
            Op::Shl => x[0].checked_shl(x[1] as u32).unwrap_or(0),
            _ => x[0],
        }
    }

    fn integers(self, x: &[i128], bits: &[u64]) -> i128 {
        match self.op {
            Op::Add => x[0] + x[1],
            Op::Sub => x[0] - x[1],
            Op::Mul | Op::MulWide => x[0].wrapping_mul(x[1]),
            Op::MulHigh => x[0].wrapping_mul(x[1]) >> self.of.bits,
            Op::Mad => x[0].wrapping_mul(x[1]).wrapping_add(x[2]),
            // A division by zero has no defined result.
            Op::Div => x[0].checked_div(x[1]).unwrap_or(-1),
            Op::Rem => x[0].checked_rem(x[1]).unwrap_or(-1),
            Op::Neg => -x[0],
            Op::Abs => x[0].abs(),
            Op::Min => x[0].min(x[1]),
            Op::Max => x[0].max(x[1]),
            Op::Shr => x[0] >> (bits[1] as u32).min(127),
            other => unreachable!("{other:?} of integers"),
        }
    }

    fn single(self, x: &[f32]) -> f32 {
        let exactly = |f: fn(f64) -> f64| f(x[0].into()) as f32;
        match self.op {
            Op::Add => x[0] + x[1],
            Op::Sub => x[0] - x[1],
            Op::Mul => x[0] * x[1],
            Op::Fma => x[0].mul_add(x[1], x[2]),
            Op::Div => x[0] / x[1],
            Op::Neg => -x[0],
            Op::Abs => x[0].abs(),
            Op::Min => -larger(-x[0], -x[1]),
            Op::Max => larger(x[0], x[1]),
            Op::Sqrt => x[0].sqrt(),
            Op::Exp2 => exactly(f64::exp2),
            Op::Log2 => exactly(f64::log2),
            Op::Rcp => exactly(f64::recip),
            Op::Rsqrt => exactly(|x| 1.0 / x.sqrt()),
            other => unreachable!("{other:?} of f32"),
        }
    }

    fn double(self, x: &[f64]) -> f64 {
        match self.op {
            Op::Add => x[0] + x[1],
            Op::Sub => x[0] - x[1],
            Op::Mul => x[0] * x[1],
            Op::Fma => x[0].mul_add(x[1], x[2]),
            Op::Div => x[0] / x[1],
            Op::Neg => -x[0],
            Op::Abs => x[0].abs(),
            Op::Sqrt => x[0].sqrt(),
            other => unreachable!("{other:?} of f64"),
        }
    }
}

impl Comparison {
    fn named(name: &str, of: Type) -> Option<Comparison> {
        let unsigned = of.kind == Kind::Unsigned;
        Some(match name {
            "eq" => Comparison::Eq,
            // With a NaN, `ne` of two floats is false; nothing here needs it.
            "ne" if !of.is_float() => Comparison::Ne,
            "lt" => Comparison::Lt,
            "le" => Comparison::Le,
            "gt" => Comparison::Gt,
            "ge" => Comparison::Ge,
            "lo" if unsigned => Comparison::Lt,
            "ls" if unsigned => Comparison::Le,
            "hi" if unsigned => Comparison::Gt,
            "hs" if unsigned => Comparison::Ge,
            _ => return None,
        })
    }

    /// Whether it holds for numbers in this order; for a NaN, which has none, it does not.
    fn holds(self, order: Option<Ordering>) -> bool {
        order.is_some_and(|order| match self {
            Comparison::Eq => order.is_eq(),
            Comparison::Ne => order.is_ne(),
            Comparison::Lt => order.is_lt(),
            Comparison::Le => order.is_le(),
            Comparison::Gt => order.is_gt(),
            Comparison::Ge => order.is_ge(),
        })
    }
}

/// An f32's bits with subnormals as zeros.
fn flushed(x: u64) -> u64 {
    if x & 0x7f80_0000 == 0 { x & 0x8000_0000 } else { x }
}

/// `max.f32`: if one operand is a NaN, the other; of two zeros the positive one.
fn larger(a: f32, b: f32) -> f32 {
    match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == b => {
            if a.is_sign_negative() {
                b
            } else {
                a
            }
        }
        _ => {
            if a > b {
                a
            } else {
                b
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, x: &[u64]) -> u64 {
        let words = name.split('.').map(String::from).collect::<Vec<_>>();
        let op = Scalar::named(&words).unwrap_or_else(|| panic!("{name}"));
        assert_eq!(op.operands, x.len(), "{name}");
        op.of(x)
    }

    /// Values from the PTX ISA's definitions by hand.
    #[test]
    fn instructions_compute_what_the_isa_says() {
        let minus = |x: i64| x as u64 & 0xffff_ffff;
        assert_eq!(run("mad.lo.s32", &[minus(-3), 5, 1]), minus(-14));
        assert_eq!(run("mul.wide.u32", &[0xffff_ffff, 4]), 0x3_ffff_fffc);
        assert_eq!(run("mul.wide.s32", &[minus(-1), 4]), -4i64 as u64);
        assert_eq!(run("mul.hi.u32", &[0xffff_ffff, 4]), 3);
        assert_eq!((run("shr.s32", &[minus(-8), 1]), run("shr.u32", &[minus(-8), 28])), (minus(-4), 15));
        assert_eq!((run("shl.b32", &[3, 31]), run("shl.b32", &[3, 40])), (0x8000_0000, 0));
        assert_eq!((run("setp.lt.s32", &[minus(-1), 0]), run("setp.lt.u32", &[minus(-1), 0])), (1, 0));
        assert_eq!((run("selp.b32", &[7, 9, 1]), run("selp.b32", &[7, 9, 0])), (7, 9));
        assert_eq!((run("not.b32", &[0]), run("cvt.u32.u64", &[0x1_0000_0002])), (0xffff_ffff, 2));
        assert_eq!((run("cvt.s64.s32", &[minus(-2)]), run("cvt.u64.u32", &[minus(-2)])), (-2i64 as u64, minus(-2)));
        let bits = |x: f32| u64::from(x.to_bits());
        assert_eq!(run("cvt.rn.f32.s32", &[minus(-16777217)]), bits(-16777216.0));
        assert_eq!(run("setp.eq.f32", &[bits(f32::NAN), bits(f32::NAN)]), 0);
        assert_eq!(run("max.f32", &[bits(f32::NAN), bits(f32::NAN)]), 0x7fff_ffff);
        assert_eq!(run("ex2.approx.ftz.f32", &[bits(-126.5)]), 0);
        assert_eq!(run("rcp.approx.ftz.f32", &[bits(-1e-40)]), bits(f32::NEG_INFINITY));
    }

    /// Every f16 and every bf16 is its own rounding, and what lies between two goes to the nearer, or to the even one.
    #[test]
    fn halves_are_rounded_to_the_nearest() {
        for (name, e, m) in [("f16", 5, 10), ("bf16", 8, 7)] {
            let ty = Type::named(name).unwrap();
            for x in 0..(((1u64 << e) - 1) << m) {
                let (low, high) = (ty.float(x), small(x + 1, e, m));
                assert_eq!(ty.rounded(low), x, "{name}");
                if high.is_finite() {
                    let even = x + x % 2;
                    let middle = (low + high) / 2.0;
                    assert_eq!((ty.rounded(middle), ty.rounded(-middle)), (even, even | 1 << 15), "{name} {middle}");
                    assert_eq!(ty.rounded(middle * (1.0 + 1e-12)), x + 1, "{name}");
                }
            }
        }
        let half = Type::named("f16").unwrap();
        assert_eq!([65519.9, 65520.0, 1e9].map(|x| half.rounded(x)), [0x7bff, 0x7c00, 0x7c00]);
    }

    #[test]
    fn an_unknown_modifier_is_refused() {
        for name in ["add.sat.s32", "cvt.rz.bf16x2.f32", "cvt.bf16x2.f32", "fma.rz.f32", "div.approx.f32", "mul.s32"] {
            assert!(Scalar::named(&name.split('.').map(String::from).collect::<Vec<_>>()).is_none(), "{name}");
        }
    }
}
