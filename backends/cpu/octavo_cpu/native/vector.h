// Vectors of floats as wide as the instruction set allows, written with the vector extensions GCC and Clang share,
// so that one source serves AVX-512, AVX2 and every other architecture.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define OCTAVO_ISA "avx512"
#define OCTAVO_LANES 16
#elif defined(__AVX2__)
#define OCTAVO_ISA "avx2"
#define OCTAVO_LANES 8
#else
#define OCTAVO_ISA "generic"
#define OCTAVO_LANES 4
#endif

#define OCTAVO_INLINE inline __attribute__((always_inline))
// Register tiles live in local arrays: only a fully unrolled loop lets the compiler keep them in registers.
#define OCTAVO_UNROLL _Pragma("GCC unroll 32")

namespace octavo {

constexpr int LANES = OCTAVO_LANES;

using Floats = float __attribute__((vector_size(4 * LANES)));
using Ints = int32_t __attribute__((vector_size(4 * LANES)));
using Words = uint32_t __attribute__((vector_size(4 * LANES)));
using Halves = uint16_t __attribute__((vector_size(2 * LANES)));

// The same types with the alignment of one element, for loads and stores at any address.
using FloatsAnywhere = float __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
using IntsAnywhere = int32_t __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
using HalvesAnywhere = uint16_t __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

struct Bfloat16 {
    uint16_t bits;
};

OCTAVO_INLINE Floats broadcast(float x) { return x - Floats{}; }  // x - 0 is x for every x, unlike x + 0

OCTAVO_INLINE Floats load(const float* from) { return *reinterpret_cast<const FloatsAnywhere*>(from); }

OCTAVO_INLINE Floats load(const Bfloat16* from) {
    const Halves halves = *reinterpret_cast<const HalvesAnywhere*>(from);
    return reinterpret_cast<Floats>(__builtin_convertvector(halves, Words) << 16);
}

OCTAVO_INLINE Ints load(const int32_t* from) { return *reinterpret_cast<const IntsAnywhere*>(from); }

OCTAVO_INLINE void store(float* to, Floats x) { *reinterpret_cast<FloatsAnywhere*>(to) = x; }

// Rounds to the nearest bfloat16, ties to even; a NaN stays a NaN where plain rounding could carry it into infinity.
OCTAVO_INLINE void store(Bfloat16* to, Floats x) {
    const Words bits = reinterpret_cast<Words>(x);
    const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Words finite = reinterpret_cast<Words>(x == x);
    const Words chosen = (rounded & finite) | (0x7fc0 & ~finite);
    *reinterpret_cast<HalvesAnywhere*>(to) = __builtin_convertvector(chosen, Halves);
}

inline float to_float(float x) { return x; }

inline float to_float(Bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}

template <class T>
T from_float(float x);

template <>
inline float from_float<float>(float x) { return x; }

template <>
inline Bfloat16 from_float<Bfloat16>(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (x != x) return {0x7fc0};
    return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// The larger of two; where one is NaN, the second.
OCTAVO_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }

inline float largest(Floats x) {
    float result = x[0];
    for (int i = 1; i < LANES; i++) result = x[i] > result ? x[i] : result;
    return result;
}

inline float sum(Floats x) {
    float result = 0;
    for (int i = 0; i < LANES; i++) result += x[i];
    return result;
}

// e to the x, within 2 ulp. Cephes' reduction: x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial for e^r, 2^n by exponent bits.
// Clamped where float32 would leave its normal range; a NaN stays a NaN.
OCTAVO_INLINE Floats exp(Floats x) {
    const Floats lowest = broadcast(-87.0f), highest = broadcast(88.0f);
    x = x < lowest ? lowest : x;
    x = x > highest ? highest : x;
    const float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    const Floats n = (x * 1.44269504f + to_integer) - to_integer;
    const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    Floats p = broadcast(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
    return p * reinterpret_cast<Floats>(power);
}

OCTAVO_INLINE Floats tanh(Floats x) { return 1.0f - 2.0f / (exp(2.0f * x) + 1.0f); }

}  // namespace octavo
