/* What all kernels share: clones for several instruction sets, bfloat16, and an exponential that vectorises. */

#pragma once
#include <stdint.h>
#include <string.h>

/* GCC 11 does not know these names of processors, clang no clones: both compile for the oldest one. */
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define HAS_CLONES
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

#ifdef __clang__ /* which does not know it */
#define WIDE_VECTORS ""
#else
#define WIDE_VECTORS ",prefer-vector-width=512"
#endif

static inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline float load_f32(float value) { return value; }
static inline float store_f32(float value) { return value; }
static inline float load_bf16(uint16_t value) { return float_of_bits((uint32_t)value << 16); }

/* Rounds to nearest, ties to even. The NaN that processors make stays one. */
static inline uint16_t store_bf16(float value) {
    uint32_t bits = bits_of_float(value);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* e^x within 2 units in the last place on [-87, 88], clamped beyond; NaN stays NaN.
 * x = n ln 2 + r with |r| <= ln 2 / 2, e^r by its Taylor polynomial (Cody and Waite, 1980). */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23 rounds to a whole number */
    uint32_t power = bits_of_float(n) << 23;
    n -= 12582912.0f;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return float_of_bits(bits_of_float(p) + power);
}
