//! Sixteen lanes of f32, in whatever registers the CPU has, with the same bits from all of them.
//!
//! Every operation is one that IEEE 754 defines exactly (fused multiply-add, loads, stores), lane by lane, so a
//! kernel written over [`Lanes`] gives the same result on AVX-512, on AVX2 and without either. Workers of one
//! deployment may therefore run on different CPUs and still agree.
//!
//! All `unsafe` of the CPU backend is in this file: intrinsics, and the calls into functions compiled for features
//! that were detected. The register types are private, so the only way to run a kernel on them is [`Isa::run`].
#![allow(unsafe_code)]

use half::{bf16, f16};

/// Lanes of a vector.
pub(super) const LANES: usize = 16;

/// A vector of [`LANES`] numbers.
pub(super) trait Lanes: Copy {
    /// Whether there are registers for two dozen vectors at once, or for half a dozen.
    const MANY_REGISTERS: bool;

    /// The same number in every lane.
    fn splat(value: f32) -> Self;

    /// Lane by lane from memory.
    fn load(from: &[f32; LANES]) -> Self;

    /// Lane by lane from memory, widened, which is exact.
    fn load_bf16(from: &[bf16; LANES]) -> Self;

    /// Lane by lane from memory, widened, which is exact.
    fn load_f16(from: &[f16; LANES]) -> Self;

    /// Lane by lane to memory.
    fn store(self, to: &mut [f32; LANES]);

    /// `self + other`, rounded once.
    #[must_use]
    fn add(self, other: Self) -> Self;

    /// `self + a * b`, rounded once.
    #[must_use]
    fn add_product(self, a: Self, b: Self) -> Self;
}

/// Code that is compiled once per instruction set. `run` must be `#[inline(always)]`, and so must all that it calls:
/// only what is inlined is compiled for the instruction set.
pub(super) trait Kernel {
    /// What it returns.
    type Output;

    /// Does the work.
    fn run<V: Lanes>(self) -> Self::Output;
}

/// An instruction set that this CPU has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Isa(Kind);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Isa {
    /// All that this CPU has, best first. The last is plain code.
    pub(super) fn available() -> Vec<Self> {
        let mut available = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                available.push(Self(Kind::Avx512));
            }
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                available.push(Self(Kind::Avx2));
            }
        }
        available.push(Self(Kind::Portable));
        available
    }

    /// The best that this CPU has.
    pub(super) fn best() -> Self {
        Self::available()[0]
    }

    /// For logs.
    pub(super) fn as_str(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            Kind::Portable => "portable",
        }
    }

    /// Runs `kernel` with this instruction set.
    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            // SAFETY: the value exists only if `available` found the features.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe { x86::run_avx512(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { x86::run_avx2(kernel) },
            Kind::Portable => kernel.run::<Portable>(),
        }
    }
}

/// Plain code. On CPUs without fused multiply-add it is slow, since the exact result has to be computed in software.
#[derive(Clone, Copy)]
struct Portable([f32; LANES]);

impl Lanes for Portable {
    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        Self(*from)
    }

    #[inline(always)]
    fn load_bf16(from: &[bf16; LANES]) -> Self {
        Self(from.map(bf16::to_f32))
    }

    #[inline(always)]
    fn load_f16(from: &[f16; LANES]) -> Self {
        Self(from.map(f16::to_f32))
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        *to = self.0;
    }

    #[inline(always)]
    fn add(mut self, other: Self) -> Self {
        for (sum, other) in self.0.iter_mut().zip(other.0) {
            *sum += other;
        }
        self
    }

    #[inline(always)]
    fn add_product(mut self, a: Self, b: Self) -> Self {
        for ((sum, a), b) in self.0.iter_mut().zip(a.0).zip(b.0) {
            *sum = a.mul_add(b, *sum);
        }
        self
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m128i, __m256, __m256i, __m512, _mm256_add_ps, _mm256_castsi256_ps, _mm256_cvtepu16_epi32,
        _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_set1_ps, _mm256_slli_epi32, _mm512_add_ps,
        _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_set1_ps,
        _mm512_slli_epi32,
    };
    use std::mem::transmute;

    use half::{bf16, f16};

    use super::{Kernel, LANES, Lanes};

    #[target_feature(enable = "avx512f")]
    pub(super) fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Avx512>()
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Avx2>()
    }

    // Arrays become vectors by `transmute`: the intrinsics that load and store go through pointers, which builds with debug
    // assertions check one by one, and that takes longer than the arithmetic.

    /// Only named in [`run_avx512`].
    #[derive(Clone, Copy)]
    struct Avx512(__m512);

    impl Lanes for Avx512 {
        const MANY_REGISTERS: bool = true;

        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: the type is only used where AVX-512 was detected.
            Self(unsafe { _mm512_set1_ps(value) })
        }

        #[inline(always)]
        fn load(from: &[f32; LANES]) -> Self {
            // SAFETY: both are sixteen floats, of which every pattern of bits is one.
            Self(unsafe { transmute::<[f32; LANES], __m512>(*from) })
        }

        #[inline(always)]
        fn load_bf16(from: &[bf16; LANES]) -> Self {
            // SAFETY: as above; both are 32 bytes. A bfloat16 is the upper half of the f32 that equals it.
            unsafe {
                let halves = transmute::<[bf16; LANES], __m256i>(*from);
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves))))
            }
        }

        #[inline(always)]
        fn load_f16(from: &[f16; LANES]) -> Self {
            // SAFETY: as above; both are 32 bytes.
            Self(unsafe { _mm512_cvtph_ps(transmute::<[f16; LANES], __m256i>(*from)) })
        }

        #[inline(always)]
        fn store(self, to: &mut [f32; LANES]) {
            // SAFETY: both are sixteen floats.
            *to = unsafe { transmute::<__m512, [f32; LANES]>(self.0) };
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: the type is only used where AVX-512 was detected.
            Self(unsafe { _mm512_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
        }
    }

    /// Lanes 0 to 7, and 8 to 15. Only named in [`run_avx2`].
    #[derive(Clone, Copy)]
    struct Avx2(__m256, __m256);

    impl Lanes for Avx2 {
        const MANY_REGISTERS: bool = false;

        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: the type is only used where AVX2, FMA and F16C were detected.
            let half = unsafe { _mm256_set1_ps(value) };
            Self(half, half)
        }

        #[inline(always)]
        fn load(from: &[f32; LANES]) -> Self {
            // SAFETY: both are sixteen floats, of which every pattern of bits is one.
            let [low, high] = unsafe { transmute::<[f32; LANES], [__m256; 2]>(*from) };
            Self(low, high)
        }

        #[inline(always)]
        fn load_bf16(from: &[bf16; LANES]) -> Self {
            // SAFETY: as for `splat`; both are 32 bytes. A bfloat16 is the upper half of the f32 that equals it.
            unsafe {
                let [low, high] = transmute::<[bf16; LANES], [__m128i; 2]>(*from);
                let low = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(low));
                let high = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(high));
                Self(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
            }
        }

        #[inline(always)]
        fn load_f16(from: &[f16; LANES]) -> Self {
            // SAFETY: as for `splat`; both are 32 bytes.
            unsafe {
                let [low, high] = transmute::<[f16; LANES], [__m128i; 2]>(*from);
                Self(_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
            }
        }

        #[inline(always)]
        fn store(self, to: &mut [f32; LANES]) {
            // SAFETY: both are sixteen floats.
            *to = unsafe { transmute::<[__m256; 2], [f32; LANES]>([self.0, self.1]) };
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: as for `splat`.
            unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
        }

        #[inline(always)]
        fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: as for `splat`.
            unsafe { Self(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)) }
        }
    }
}
