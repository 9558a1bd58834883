//! Loops compiled once for each instruction set and chosen at run time, so that one binary runs on any x86-64 and uses
//! AVX-512 or AVX2 where available. The number of lanes is fixed and every multiply-add is fused, so that the results
//! are the same on all instruction sets.

/// Lanes of a reduction: four 512-bit registers, enough to hide an addition's latency.
pub const LANES: usize = 64;

/// The instruction sets that loops are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Plain,
    Avx2,
    Avx512,
}

/// The best level that this machine supports.
#[cfg(target_arch = "x86_64")]
#[inline]
pub fn level() -> Level {
    if is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
    {
        Level::Avx512
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        Level::Avx2
    } else {
        Level::Plain
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub fn level() -> Level {
    Level::Plain
}

/// Defines a function whose body is compiled for each [`Level`] and dispatched. Functions that the body calls must be
/// `#[inline(always)]`, to be compiled with it.
macro_rules! vectorized {
    ($(#[$doc:meta])* $vis:vis fn $name:ident $(<$($gen:ident: $bound:path),+>)? ($($arg:ident: $ty:ty),* $(,)?)
        $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        $vis fn $name $(<$($gen: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body $(<$($gen: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512 $(<$($gen: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
                body $(::<$($gen),+>)? ($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2 $(<$($gen: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
                body $(::<$($gen),+>)? ($($arg),*)
            }

            match $crate::cpu::simd::level() {
                // SAFETY: `level` found the features that the function is compiled for.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::Level::Avx512 => unsafe { avx512 $(::<$($gen),+>)? ($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::Level::Avx2 => unsafe { avx2 $(::<$($gen),+>)? ($($arg),*) },
                _ => body $(::<$($gen),+>)? ($($arg),*),
            }
        }
    };
}
pub(crate) use vectorized;

/// Transposes 16 x 16, in place.
#[inline(always)]
pub fn transpose16(square: &mut [[f32; 16]; 16]) {
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512 {
        // SAFETY: `level` found the features.
        return unsafe { transpose16_avx512(square) };
    }
    let rows = *square;
    for (i, row) in rows.iter().enumerate() {
        for (j, x) in row.iter().enumerate() {
            square[j][i] = *x;
        }
    }
}

/// Transposes in registers, by four exchanges of ever larger parts. It uses no closures, because the compiler would not
/// compile them for the same features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose16_avx512(rows: &mut [[f32; 16]; 16]) {
    use std::arch::x86_64::*;
    let mut r = [_mm512_setzero_ps(); 16];
    for i in 0..16 {
        // SAFETY: a row is 16 numbers.
        r[i] = unsafe { _mm512_loadu_ps(rows[i].as_ptr()) };
    }
    // Exchanges within pairs of rows, then within groups of four: `u[4 g + c]` holds columns c, 4 + c, 8 + c, 12 + c of
    // rows 4 g ..
    let (mut t, mut u) = (r, r);
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for i in [0, 1, 4, 5, 8, 9, 12, 13] {
        let (a, b) = (_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2]));
        let to = i / 4 * 4 + i % 4 * 2;
        u[to] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
        u[to + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
    for c in 0..4 {
        let (even, even_low) =
            (_mm512_shuffle_f32x4::<0x88>(u[c], u[4 + c]), _mm512_shuffle_f32x4::<0x88>(u[8 + c], u[12 + c]));
        let (odd, odd_low) =
            (_mm512_shuffle_f32x4::<0xdd>(u[c], u[4 + c]), _mm512_shuffle_f32x4::<0xdd>(u[8 + c], u[12 + c]));
        r[c] = _mm512_shuffle_f32x4::<0x88>(even, even_low);
        r[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd, odd_low);
        r[8 + c] = _mm512_shuffle_f32x4::<0xdd>(even, even_low);
        r[12 + c] = _mm512_shuffle_f32x4::<0xdd>(odd, odd_low);
    }
    for i in 0..16 {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(rows[i].as_mut_ptr(), r[i]) };
    }
}

/// e^x to 2 ulp; 0 below the smallest normal result, e^88 above 88; NaN stays.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // r = x - n ln 2 with ln 2 in two parts (Cody & Waite), |r| <= ln(2) / 2
    let r = n.mul_add(-1.428_606_8e-6, n.mul_add(-0.693_145_75, x));
    let p = 1.388_888_9e-3f32.mul_add(r, 8.333_334e-3);
    let p = p.mul_add(r, 4.166_666_8e-2);
    let p = p.mul_add(r, 1.666_666_7e-1);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r, 1.0);
    let p = p.mul_add(r, 1.0);
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x < -87.0 { 0.0 } else { p * scale }
}

/// tanh(x) to 4e-7 of its value: from e^x, and near 0, where that would cancel, by an odd polynomial (Cephes' `tanhf`).
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let z = x * x;
    let p = (-5.704_988_7e-3f32).mul_add(z, 2.063_909e-2);
    let p = p.mul_add(z, -5.373_971_6e-2);
    let p = p.mul_add(z, 1.333_144_2e-1);
    let p = p.mul_add(z, -3.333_328e-1);
    let (near, far) = ((p * z).mul_add(x, x), 1.0 - 2.0 / (exp(2.0 * x) + 1.0));
    if z < 0.390_625 { near } else { far }
}

/// The sum of the lanes, by halving.
#[inline(always)]
pub fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            lanes[i] += lanes[i + n];
        }
        n /= 2;
    }
    lanes[0]
}

/// The maximum of the lanes; a NaN lane may be lost.
#[inline(always)]
pub fn max_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            lanes[i] = if lanes[i + n] > lanes[i] { lanes[i + n] } else { lanes[i] };
        }
        n /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_rows_turn_into_columns() {
        let rows: [[f32; 16]; 16] = std::array::from_fn(|i| std::array::from_fn(|j| (16 * i + j) as f32));
        let mut cols = rows;
        transpose16(&mut cols);
        assert!((0..16).all(|i| (0..16).all(|j| cols[j][i] == rows[i][j])));
    }

    #[test]
    fn exp_is_exact_to_two_ulp() {
        let mut x = -86.9f32;
        while x < 87.9 {
            let (ours, right) = (exp(x) as f64, (x as f64).exp());
            assert!((ours - right).abs() <= 2.5e-7 * right, "exp({x}) = {ours:e}, not {right:e}");
            x += 0.001_37;
        }
    }

    #[test]
    fn exp_at_the_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!([exp(f32::NEG_INFINITY), exp(-1e9), exp(-88.0)], [0.0; 3]);
        assert!(exp(1e9).is_finite() && exp(f32::INFINITY) > 1e38);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_exact_to_four_ulp() {
        let powers = (-60..0).flat_map(|e| [1.0, -1.37].map(|x| x * 2f32.powi(e)));
        for x in (-4000..=4000).map(|i| i as f32 * 0.01).chain(powers) {
            let (ours, right) = (tanh(x) as f64, (x as f64).tanh());
            assert!((ours - right).abs() <= 4e-7 * right.abs(), "tanh({x}) = {ours:e}, not {right:e}");
        }
        assert_eq!([tanh(f32::INFINITY), tanh(f32::NEG_INFINITY), tanh(0.0)], [1.0, -1.0, 0.0]);
    }

    #[test]
    fn lanes_reduce() {
        let lanes = std::array::from_fn(|i| (i * 7 % LANES) as f32);
        assert_eq!(sum_lanes(lanes), (LANES * (LANES - 1) / 2) as f32);
        assert_eq!(max_lanes(lanes), (LANES - 1) as f32);
    }

    vectorized! {
        fn dot(a: &[f32], b: &[f32]) -> f32 {
            a.iter().zip(b).map(|(x, y)| x * y).sum()
        }
    }

    #[test]
    fn dispatch_runs_the_body() {
        assert_eq!(dot(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]), 32.0);
    }
}
