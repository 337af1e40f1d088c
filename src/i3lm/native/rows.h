/* Products of rows of float32 with a matrix in bfloat16, sums in float32: what generation needs. One row is as fast as
 * the matrix comes from memory, many are as fast as registers are filled.
 *
 * The matrix lies in panels of 16 outputs: for every two inputs 16 words, a word being the two weights of an output (as
 * in products.h); zeros for what is not there. So a sum stays in its lane, is added up in the order of inputs, and is the
 * same whatever else is computed. */

#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "numbers.h"

#define LANES 16
#define MOST 12   /* rows abreast, of any kind of processor */
#define FEW 4     /* of the rows that are left */
#define WIDE 4    /* panels, for a single row: enough sums that none waits for itself */

#ifdef __GNUC__
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

static inline int64_t panel_words(int64_t in) { return (in + 1) / 2 * LANES; }

/* Gives `count` of the LANES sums of a panel to their place. */
INLINE void give(const float *sums, int64_t count, const float *bias, float *y, int add) {
    float sum[LANES];
    memcpy(sum, sums, sizeof sum);
    if (bias)
        for (int64_t i = 0; i < count; i++) sum[i] += bias[i];
    if (add)
        for (int64_t i = 0; i < count; i++) sum[i] += y[i];
    memcpy(y, sum, count * sizeof *sum);
}

/* One panel of a matrix (.., in), of its first `count` rows here. */
CLONES
static void pack_panel(int64_t count, int64_t in, const float *restrict weight, uint32_t *restrict to) {
    memset(to, 0, panel_words(in) * sizeof *to);
    for (int64_t o = 0; o < count; o++) {
        const float *row = weight + o * in;
        for (int64_t i = 0; i + 2 <= in; i += 2)
            to[i / 2 * LANES + o] = store_bf16(row[i]) | (uint32_t)store_bf16(row[i + 1]) << 16;
        if (in % 2) to[in / 2 * LANES + o] = store_bf16(row[in - 1]);
    }
}

/* For the widths of registers that there may be; without clones for 16 bytes alone, which all have. */
#if defined(__GNUC__)
#ifdef HAS_CLONES
#define BYTES 64
#define ABREAST MOST
#define TOGETHER 1
#define NAME(name) name##_64
#define TARGET __attribute__((target("arch=x86-64-v4" WIDE_VECTORS)))
#include "lanes.h"
#define BYTES 32
#define ABREAST 6
#define TOGETHER 2
#define NAME(name) name##_32
#define TARGET __attribute__((target("arch=x86-64-v3")))
#include "lanes.h"
#define CHOSEN(name, ...)                                                \
    (__builtin_cpu_supports("x86-64-v4")   ? name##_64(__VA_ARGS__)      \
     : __builtin_cpu_supports("x86-64-v3") ? name##_32(__VA_ARGS__)      \
                                           : name##_16(__VA_ARGS__))
#else
#define CHOSEN(name, ...) name##_16(__VA_ARGS__)
#endif
#define BYTES 16
#define ABREAST 6
#define TOGETHER 2
#define NAME(name) name##_16
#define TARGET
#include "lanes.h"
#endif

/* y[b][o] (+)= weight[o] . x[b] + bias[o] for the outputs first <= o < last, of whole panels but for the matrix's last,
 * and `count` rows x[b]. work: MOST * in floats. */
static void rows(int64_t first, int64_t last, int64_t in, const void *matrix, const float *bias, int64_t count,
                 const float *x, int64_t x_stride, float *y, int64_t y_stride, int add, float *work) {
#if !defined(__GNUC__)
    for (int64_t b = 0; b < count; b++)
        for (int64_t o = first; o < last; o++) {
            const uint32_t *word = (const uint32_t *)matrix + o / LANES * panel_words(in) + o % LANES;
            float sum = (add ? y[b * y_stride + o] : 0) + (bias ? bias[o] : 0);
            for (int64_t i = 0; i < in; i++)
                sum += load_bf16((uint16_t)(word[i / 2 * LANES] >> i % 2 * 16)) * x[b * x_stride + i];
            y[b * y_stride + o] = sum;
        }
#else
    CHOSEN(rows, first, last, in, matrix, bias, count, x, x_stride, y, y_stride, add, work);
#endif
}
