//! Vectors of f32 as wide as the processor has them, and the three types that weights are stored in.
//!
//! Every operation is defined element by element (one rounding each, to nearest, ties to even), so all widths give the
//! same bits. The types for AVX2 and AVX-512 may only be used where those features are: inside the functions of
//! [`super::kernel`] that are compiled for them and entered after the processor was asked.
//!
//! SAFETY of every block here: what [`Lanes`] and [`Stored`] ask of their users is all that the instructions need.
#![allow(
    unsafe_code,
    clippy::undocumented_unsafe_blocks,
    reason = "vector instructions; one SAFETY comment for all of them"
)]

use half::f16;

/// Vectors side by side in a tile.
pub(super) const PAIR: usize = 2;

/// [`Lanes::WIDTH`] values of f32.
///
/// # Safety
/// Pointers are to as many elements as two vectors have, readable or writable; they need no alignment, but for
/// streaming, which needs that of a whole vector. The processor has the features that the type stands for.
pub(super) trait Lanes: Copy {
    /// Values in one vector.
    const WIDTH: usize;

    fn splat(value: f32) -> Self;
    /// `self · factor + sum`, rounded once.
    fn mul_add(self, factor: Self, sum: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    /// Bit `j` is set where `self[j] == other[j]`.
    fn equal(self, other: Self) -> u32;
    /// `delta == 0 ? base : base + delta`: an update of zero keeps the base's bits, the sign of a zero too.
    fn updated(base: Self, delta: Self) -> Self;
    /// Rounded to f16, as f32.
    fn round_f16(self) -> Self;
    /// Rounded to bf16, as f32; infinity where that is the nearest. NaN may become another NaN or a number.
    fn round_bf16(self) -> Self;
    /// `[a0 a1 …]`, `[b0 b1 …]` to `a0 b0 a1 b1 …`.
    fn zip(pair: [Self; PAIR]) -> [Self; PAIR];
    /// The even and the odd elements of both together: [`Self::zip`] backwards.
    fn unzip(pair: [Self; PAIR]) -> [Self; PAIR];

    unsafe fn load_f32(from: *const f32) -> Self;
    unsafe fn store_f32(self, to: *mut f32, stream: bool);
    unsafe fn load_f16(from: *const u16) -> Self;
    /// Stores values that are f16 already.
    unsafe fn store_f16(self, to: *mut u16);
    /// The elements of even index, and those of odd index.
    unsafe fn load_bf16(from: *const u16) -> [Self; PAIR];
    /// Stores values that are bf16 already, even and odd as [`Self::load_bf16`] gives them.
    unsafe fn store_bf16(pair: [Self; PAIR], to: *mut u16, stream: bool);
    /// Orders streamed stores before whatever follows.
    unsafe fn fence();
}

/// A storage type, as its bits. A tile's two vectors hold its columns in the order of [`Stored::ZIPPED`].
///
/// # Safety
/// As for [`Lanes`].
pub(super) trait Stored: Copy + Default {
    /// True if even columns are loaded into one vector and odd ones into the other.
    const ZIPPED: bool;

    /// The value in f32.
    fn widened(self) -> f32;
    /// Rounds to this type.
    fn round<V: Lanes>(values: V) -> V;
    unsafe fn load<V: Lanes>(from: *const Self) -> [V; PAIR];
    /// Stores rounded values, which are `zipped` or in order.
    unsafe fn store<V: Lanes>(pair: [V; PAIR], zipped: bool, to: *mut Self, stream: bool);
}

/// Bits of bf16.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub(super) struct Bf16Bits(u16);

/// Bits of f16.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub(super) struct F16Bits(u16);

impl Stored for f32 {
    const ZIPPED: bool = false;

    fn widened(self) -> f32 {
        self
    }
    #[inline(always)]
    fn round<V: Lanes>(values: V) -> V {
        values
    }
    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const Self) -> [V; PAIR] {
        unsafe { [V::load_f32(from), V::load_f32(from.add(V::WIDTH))] }
    }
    #[inline(always)]
    unsafe fn store<V: Lanes>(pair: [V; PAIR], zipped: bool, to: *mut Self, stream: bool) {
        let pair = if zipped { V::zip(pair) } else { pair };
        unsafe {
            pair[0].store_f32(to, stream);
            pair[1].store_f32(to.add(V::WIDTH), stream);
        }
    }
}

impl Stored for Bf16Bits {
    const ZIPPED: bool = true;

    fn widened(self) -> f32 {
        half::bf16::from_bits(self.0).to_f32()
    }
    #[inline(always)]
    fn round<V: Lanes>(values: V) -> V {
        values.round_bf16()
    }
    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const Self) -> [V; PAIR] {
        unsafe { V::load_bf16(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store<V: Lanes>(pair: [V; PAIR], _zipped: bool, to: *mut Self, stream: bool) {
        unsafe { V::store_bf16(pair, to.cast(), stream) }
    }
}

impl Stored for F16Bits {
    const ZIPPED: bool = false;

    fn widened(self) -> f32 {
        f16::from_bits(self.0).to_f32()
    }
    #[inline(always)]
    fn round<V: Lanes>(values: V) -> V {
        values.round_f16()
    }
    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const Self) -> [V; PAIR] {
        let from = from.cast::<u16>();
        unsafe { [V::load_f16(from), V::load_f16(from.add(V::WIDTH))] }
    }
    #[inline(always)]
    unsafe fn store<V: Lanes>(pair: [V; PAIR], _zipped: bool, to: *mut Self, _stream: bool) {
        let to = to.cast::<u16>();
        unsafe {
            pair[0].store_f16(to);
            pair[1].store_f16(to.add(V::WIDTH));
        }
    }
}

/// Eight values without any feature of the processor; compilers turn it into what there is, NEON among it.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 8]);

impl Portable {
    #[inline(always)]
    fn zip_with(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|j| f(self.0[j], other.0[j])))
    }
}

/// True if `value` may be an f64 that was rounded to the middle between two f32, or is near the subnormal f32, whose middles
/// lie elsewhere.
#[inline(always)]
fn is_risky(value: f64) -> bool {
    let bits = value.to_bits();
    let (middle, size) = (bits & 0x1fff_ffff == 0x1000_0000, bits & (u64::MAX >> 1));
    let smallest_normal = f64::from(f32::MIN_POSITIVE).to_bits();
    middle | ((size != 0) & (size < smallest_normal))
}

/// `a · b + c`, rounded once, without an instruction for it.
///
/// The product of two f32 is exact in f64. Its sum with `c` is rounded to odd, which keeps enough of what was cut off for
/// the last rounding to be right (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", 2008).
#[inline(always)]
fn fused_multiply_add(a: f32, b: f32, c: f32) -> f32 {
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    // What the addition cut off, exactly.
    let back = sum - product;
    let error = (product - (sum - back)) + (c - back);
    let bits = sum.to_bits();
    // Towards zero if the error says that the sum was rounded away from it, then odd.
    let away = (error < 0.0) == (sum > 0.0);
    let odd = bits.wrapping_sub(u64::from(away)) | 1;
    let exact = error == 0.0 || !sum.is_finite();
    f64::from_bits(if exact { bits } else { odd }) as f32
}

impl Lanes for Portable {
    const WIDTH: usize = 8;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; 8])
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, sum: Self) -> Self {
        if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
            return Self(std::array::from_fn(|j| self.0[j].mul_add(factor.0[j], sum.0[j])));
        }
        // Rounding to f64 and then to f32 goes wrong only where the first lands between two f32.
        let wide: [f64; 8] =
            std::array::from_fn(|j| f64::from(self.0[j]) * f64::from(factor.0[j]) + f64::from(sum.0[j]));
        if wide.iter().fold(false, |risk, &value| risk | is_risky(value)) {
            return Self(std::array::from_fn(|j| fused_multiply_add(self.0[j], factor.0[j], sum.0[j])));
        }
        Self(wide.map(|value| value as f32))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip_with(other, |a, b| a - b)
    }
    #[inline(always)]
    fn equal(self, other: Self) -> u32 {
        (0..8).fold(0, |mask, j| mask | u32::from(self.0[j] == other.0[j]) << j)
    }
    #[inline(always)]
    fn updated(base: Self, delta: Self) -> Self {
        base.zip_with(delta, |w, d| if d == 0.0 { w } else { w + d })
    }
    #[inline(always)]
    fn round_f16(self) -> Self {
        Self(self.0.map(|v| f16::from_f32(v).to_f32()))
    }
    #[inline(always)]
    fn round_bf16(self) -> Self {
        Self(self.0.map(|v| {
            let bits = v.to_bits();
            f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
        }))
    }
    #[inline(always)]
    fn zip([a, b]: [Self; PAIR]) -> [Self; PAIR] {
        let at = |i: usize| if i.is_multiple_of(2) { a.0[i / 2] } else { b.0[i / 2] };
        [Self(std::array::from_fn(at)), Self(std::array::from_fn(|i| at(8 + i)))]
    }
    #[inline(always)]
    fn unzip([a, b]: [Self; PAIR]) -> [Self; PAIR] {
        let at = |i: usize| if i < 8 { a.0[i] } else { b.0[i - 8] };
        [Self(std::array::from_fn(|i| at(2 * i))), Self(std::array::from_fn(|i| at(2 * i + 1)))]
    }
    #[inline(always)]
    unsafe fn load_f32(from: *const f32) -> Self {
        Self(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store_f32(self, to: *mut f32, _stream: bool) {
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        let bits = unsafe { from.cast::<[u16; 8]>().read_unaligned() };
        Self(bits.map(|b| f16::from_bits(b).to_f32()))
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        unsafe { to.cast::<[u16; 8]>().write_unaligned(self.0.map(|v| f16::from_f32(v).to_bits())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> [Self; PAIR] {
        let bits = unsafe { from.cast::<[u16; 16]>().read_unaligned() };
        let widened = |i: usize| f32::from_bits(u32::from(bits[i]) << 16);
        [Self(std::array::from_fn(|j| widened(2 * j))), Self(std::array::from_fn(|j| widened(2 * j + 1)))]
    }
    #[inline(always)]
    unsafe fn store_bf16([even, odd]: [Self; PAIR], to: *mut u16, _stream: bool) {
        let bits: [u16; 16] = std::array::from_fn(|i| {
            let value = if i.is_multiple_of(2) { even.0[i / 2] } else { odd.0[i / 2] };
            (value.to_bits() >> 16) as u16
        });
        unsafe { to.cast::<[u16; 16]>().write_unaligned(bits) }
    }
    #[inline(always)]
    unsafe fn fence() {}
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::*;

    use super::{Lanes, PAIR};

    /// The bits of a bf16 within an f32.
    const HIGH: i32 = 0xffff_0000_u32 as i32;

    /// AVX2, FMA and F16C.
    #[derive(Clone, Copy)]
    pub(in crate::lora::fuse) struct Avx2(__m256);

    impl Lanes for Avx2 {
        const WIDTH: usize = 8;

        #[inline(always)]
        fn splat(value: f32) -> Self {
            Self(unsafe { _mm256_set1_ps(value) })
        }
        #[inline(always)]
        fn mul_add(self, factor: Self, sum: Self) -> Self {
            Self(unsafe { _mm256_fmadd_ps(self.0, factor.0, sum.0) })
        }
        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            Self(unsafe { _mm256_sub_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn equal(self, other: Self) -> u32 {
            unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_EQ_OQ>(self.0, other.0)) as u32 }
        }
        #[inline(always)]
        fn updated(base: Self, delta: Self) -> Self {
            Self(unsafe {
                let changed = _mm256_cmp_ps::<_CMP_NEQ_UQ>(delta.0, _mm256_setzero_ps());
                _mm256_blendv_ps(base.0, _mm256_add_ps(base.0, delta.0), changed)
            })
        }
        #[inline(always)]
        fn round_f16(self) -> Self {
            Self(unsafe { _mm256_cvtph_ps(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) })
        }
        #[inline(always)]
        fn round_bf16(self) -> Self {
            Self(unsafe {
                let bits = _mm256_castps_si256(self.0);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let up = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff));
                _mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32(HIGH)))
            })
        }
        #[inline(always)]
        fn zip([a, b]: [Self; PAIR]) -> [Self; PAIR] {
            unsafe {
                // Within halves of the vectors first.
                let (low, high) = (_mm256_unpacklo_ps(a.0, b.0), _mm256_unpackhi_ps(a.0, b.0));
                [Self(_mm256_permute2f128_ps::<0x20>(low, high)), Self(_mm256_permute2f128_ps::<0x31>(low, high))]
            }
        }
        #[inline(always)]
        fn unzip([a, b]: [Self; PAIR]) -> [Self; PAIR] {
            unsafe {
                // Within halves of the vectors first; pairs of elements are then in the order 0, 2, 1, 3.
                let ordered = |pairs| _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(_mm256_castps_pd(pairs)));
                let (even, odd) =
                    (_mm256_shuffle_ps::<0b10_00_10_00>(a.0, b.0), _mm256_shuffle_ps::<0b11_01_11_01>(a.0, b.0));
                [Self(ordered(even)), Self(ordered(odd))]
            }
        }
        #[inline(always)]
        unsafe fn load_f32(from: *const f32) -> Self {
            Self(unsafe { _mm256_loadu_ps(from) })
        }
        #[inline(always)]
        unsafe fn store_f32(self, to: *mut f32, stream: bool) {
            unsafe { if stream { _mm256_stream_ps(to, self.0) } else { _mm256_storeu_ps(to, self.0) } }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> Self {
            Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) })
        }
        #[inline(always)]
        unsafe fn store_f16(self, to: *mut u16) {
            unsafe { _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> [Self; PAIR] {
            unsafe {
                let bits = _mm256_loadu_si256(from.cast());
                let odd = _mm256_and_si256(bits, _mm256_set1_epi32(HIGH));
                [Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))), Self(_mm256_castsi256_ps(odd))]
            }
        }
        #[inline(always)]
        unsafe fn store_bf16([even, odd]: [Self; PAIR], to: *mut u16, stream: bool) {
            unsafe {
                let low = _mm256_srli_epi32::<16>(_mm256_castps_si256(even.0));
                let bits = _mm256_or_si256(low, _mm256_castps_si256(odd.0));
                if stream { _mm256_stream_si256(to.cast(), bits) } else { _mm256_storeu_si256(to.cast(), bits) }
            }
        }
        #[inline(always)]
        unsafe fn fence() {
            unsafe { _mm_sfence() }
        }
    }

    /// AVX-512 F, BW and DQ.
    #[derive(Clone, Copy)]
    pub(in crate::lora::fuse) struct Avx512(__m512);

    impl Lanes for Avx512 {
        const WIDTH: usize = 16;

        #[inline(always)]
        fn splat(value: f32) -> Self {
            Self(unsafe { _mm512_set1_ps(value) })
        }
        #[inline(always)]
        fn mul_add(self, factor: Self, sum: Self) -> Self {
            Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, sum.0) })
        }
        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            Self(unsafe { _mm512_sub_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn equal(self, other: Self) -> u32 {
            unsafe { u32::from(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, other.0)) }
        }
        #[inline(always)]
        fn updated(base: Self, delta: Self) -> Self {
            Self(unsafe {
                let changed = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(delta.0, _mm512_setzero_ps());
                _mm512_mask_add_ps(base.0, changed, base.0, delta.0)
            })
        }
        #[inline(always)]
        fn round_f16(self) -> Self {
            Self(unsafe { _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) })
        }
        // Not `vcvtneps2bf16`: it takes subnormal numbers for zero.
        #[inline(always)]
        fn round_bf16(self) -> Self {
            Self(unsafe {
                let bits = _mm512_castps_si512(self.0);
                let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                let up = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
                _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32(HIGH)))
            })
        }
        #[inline(always)]
        fn zip([a, b]: [Self; PAIR]) -> [Self; PAIR] {
            unsafe {
                let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
                let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
                [Self(_mm512_permutex2var_ps(a.0, low, b.0)), Self(_mm512_permutex2var_ps(a.0, high, b.0))]
            }
        }
        #[inline(always)]
        fn unzip([a, b]: [Self; PAIR]) -> [Self; PAIR] {
            unsafe {
                let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
                let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
                [Self(_mm512_permutex2var_ps(a.0, even, b.0)), Self(_mm512_permutex2var_ps(a.0, odd, b.0))]
            }
        }
        #[inline(always)]
        unsafe fn load_f32(from: *const f32) -> Self {
            Self(unsafe { _mm512_loadu_ps(from) })
        }
        #[inline(always)]
        unsafe fn store_f32(self, to: *mut f32, stream: bool) {
            unsafe { if stream { _mm512_stream_ps(to, self.0) } else { _mm512_storeu_ps(to, self.0) } }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> Self {
            Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
        }
        #[inline(always)]
        unsafe fn store_f16(self, to: *mut u16) {
            unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> [Self; PAIR] {
            unsafe {
                let bits = _mm512_loadu_si512(from.cast());
                let odd = _mm512_and_si512(bits, _mm512_set1_epi32(HIGH));
                [Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))), Self(_mm512_castsi512_ps(odd))]
            }
        }
        #[inline(always)]
        unsafe fn store_bf16([even, odd]: [Self; PAIR], to: *mut u16, stream: bool) {
            unsafe {
                let low = _mm512_srli_epi32::<16>(_mm512_castps_si512(even.0));
                let bits = _mm512_or_si512(low, _mm512_castps_si512(odd.0));
                if stream { _mm512_stream_si512(to.cast(), bits) } else { _mm512_storeu_si512(to.cast(), bits) }
            }
        }
        #[inline(always)]
        unsafe fn fence() {
            unsafe { _mm_sfence() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernel::Simd;
    use super::*;

    #[inline(always)]
    fn check_unzip<V: Lanes>() {
        let stored = |pair: [V; PAIR]| {
            let mut values = vec![0.0; PAIR * V::WIDTH];
            let (first, second) = values.split_at_mut(V::WIDTH);
            unsafe {
                pair[0].store_f32(first.as_mut_ptr(), false);
                pair[1].store_f32(second.as_mut_ptr(), false);
            }
            values
        };
        let values: Vec<f32> = (0..PAIR * V::WIDTH).map(|i| i as f32).collect();
        let pair = unsafe { [V::load_f32(values.as_ptr()), V::load_f32(values[V::WIDTH..].as_ptr())] };
        let even_then_odd: Vec<f32> =
            [0, 1].into_iter().flat_map(|at| values.iter().skip(at).step_by(2).copied()).collect();
        assert_eq!(stored(V::unzip(pair)), even_then_odd);
        assert_eq!(stored(V::zip(V::unzip(pair))), values);
        assert_eq!(stored(V::unzip(V::zip(pair))), values);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx2,fma,f16c,popcnt")]
    fn check_unzip_avx512() {
        check_unzip::<x86::Avx512>();
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c,popcnt")]
    fn check_unzip_avx2() {
        check_unzip::<x86::Avx2>();
    }

    #[test]
    fn unzip_undoes_zip_with_all_instructions() {
        for simd in Simd::available() {
            match simd {
                #[cfg(target_arch = "x86_64")]
                Simd::Avx512 => unsafe { check_unzip_avx512() },
                #[cfg(target_arch = "x86_64")]
                Simd::Avx2 => unsafe { check_unzip_avx2() },
                _ => check_unzip::<Portable>(),
            }
        }
    }

    #[test]
    fn fused_multiply_add_rounds_once() {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Exponents near each other, so that sums cancel, carry, and fall on ties.
            let exponent = 120 + (state >> 60) as u32;
            let mantissa = (state >> 20) as u32 & if state & 1 == 0 { 0x7f_ffff } else { 0x7f_f000 };
            f32::from_bits(((state >> 32) as u32 & 0x8000_0000) | exponent << 23 | mantissa)
        };
        for _ in 0..200_000 {
            let (a, b, c) = (next(), next(), next() * next());
            for c in [c, -a * b, 0.0] {
                let expected = a.mul_add(b, c);
                let lanes = Portable::splat(a).mul_add(Portable::splat(b), Portable::splat(c));
                for found in [fused_multiply_add(a, b, c), lanes.0[7]] {
                    assert_eq!(
                        found.to_bits(),
                        expected.to_bits(),
                        "{a:e} * {b:e} + {c:e}: {found:e}, not {expected:e}"
                    );
                }
            }
        }
        for (a, b, c) in [(1e-30, 1e-10, 1e-45), (-1e-30, 1e-15, 1e-45), (3e38, 2.0, -3e38), (-0.0, 1.0, -0.0)] {
            let lanes = Portable::splat(a).mul_add(Portable::splat(b), Portable::splat(c));
            for found in [fused_multiply_add(a, b, c), lanes.0[7]] {
                assert_eq!(found.to_bits(), a.mul_add(b, c).to_bits(), "{a:e} * {b:e} + {c:e}");
            }
        }
    }
}
