/* Products of rows of float32 with a matrix in bfloat16, sums in float32: what generation needs. One row is as fast as
 * the matrix comes from memory, many are as fast as registers are filled.
 *
 * The matrix lies in panels of 16 outputs: for every two inputs 16 words, a word being the two weights of an output (as
 * in products.h); zeros for what is not there. So a sum stays in its lane, is added up in the order of inputs, and is the
 * same whatever else is computed. */

#pragma once
#include <stdint.h>
#include <string.h>

#include "numbers.h"

#define LANES 16
#define NEAR 8192 /* numbers of x that stay in the first cache, 32 KB */
#define ABREAST 6 /* rows whose sums stay in registers, with 32 registers of 64 bytes or 16 of 32 */
#define WIDE 4    /* panels, for a single row: enough sums that none waits for itself */

static inline int64_t panel_words(int64_t in) { return (in + 1) / 2 * LANES; }

#if defined(__GNUC__)
typedef float Lanes __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
#define INLINE static inline __attribute__((always_inline))

/* For `count` rows of x the sums of `panels` panels: at most ABREAST sums, and both are known where it is inlined. */
INLINE void add_up(int64_t in, const uint32_t *panel, int panels, const float *x, int64_t stride, int count,
                   Lanes *sums) {
    Lanes s[ABREAST], even, odd;
    Words words, bits;
    int64_t each = panel_words(in), i;
#pragma GCC unroll 6
    for (int k = 0; k < panels * count; k++) s[k] = (Lanes){0};
    for (i = 0; i + 2 <= in; i += 2, panel += LANES)
#pragma GCC unroll 4
        for (int p = 0; p < panels; p++) {
            memcpy(&words, panel + p * each, sizeof words);
            bits = words << 16;
            memcpy(&even, &bits, sizeof even);
            bits = words & 0xffff0000;
            memcpy(&odd, &bits, sizeof odd);
#pragma GCC unroll 6
            for (int b = 0; b < count; b++) s[p * count + b] += even * x[b * stride + i];
#pragma GCC unroll 6
            for (int b = 0; b < count; b++) s[p * count + b] += odd * x[b * stride + i + 1];
        }
    for (int p = 0; p < panels && i < in; p++) {
        memcpy(&words, panel + p * each, sizeof words);
        bits = words << 16;
        memcpy(&even, &bits, sizeof even);
        for (int b = 0; b < count; b++) s[p * count + b] += even * x[b * stride + i];
    }
#pragma GCC unroll 6
    for (int k = 0; k < panels * count; k++) sums[k] = s[k];
}
#else
typedef struct {
    float at[LANES];
} Lanes;
#define INLINE static inline

INLINE void add_up(int64_t in, const uint32_t *panel, int panels, const float *x, int64_t stride, int count,
                   Lanes *sums) {
    memset(sums, 0, panels * count * sizeof *sums);
    for (int p = 0; p < panels; p++)
        for (int b = 0; b < count; b++)
            for (int64_t i = 0; i < in; i++)
                for (int o = 0; o < LANES; o++) {
                    uint32_t word = panel[p * panel_words(in) + i / 2 * LANES + o];
                    sums[p * count + b].at[o] += load_bf16(word >> i % 2 * 16) * x[b * stride + i];
                }
}
#endif

/* Gives the sums of a panel to their place, `count` of them. */
INLINE void give(const Lanes *sums, int64_t count, const float *bias, float *y, int add) {
    float sum[LANES];
    memcpy(sum, sums, sizeof sum);
    if (bias)
        for (int64_t i = 0; i < count; i++) sum[i] += bias[i];
    if (add)
        for (int64_t i = 0; i < count; i++) sum[i] += y[i];
    memcpy(y, sum, count * sizeof *sum);
}

INLINE void some_rows(int64_t o, int64_t last, int64_t in, const uint32_t *matrix, int panels, const float *bias,
                      const float *x, int64_t x_stride, int count, float *y, int64_t y_stride, int add) {
    Lanes sums[ABREAST];
    add_up(in, matrix + o / LANES * panel_words(in), panels, x, x_stride, count, sums);
    for (int p = 0; p < panels; p++, o += LANES)
        for (int b = 0; b < count; b++) {
            float *to = y + b * y_stride + o;
            if (last - o < LANES) give(sums + p * count + b, last - o, bias ? bias + o : NULL, to, add);
            else give(sums + p * count + b, LANES, bias ? bias + o : NULL, to, add);
        }
}

/* y[b][o] (+)= weight[o] . x[b] + bias[o] for the outputs first <= o < last, of whole panels but for the matrix's last,
 * and `count` rows x[b]. */
CLONES
static void rows(int64_t first, int64_t last, int64_t in, const void *matrix, const float *bias, int64_t count,
                 const float *x, int64_t x_stride, float *y, int64_t y_stride, int add) {
    int64_t near = NEAR / in / ABREAST * ABREAST, whole = count / ABREAST * ABREAST, o;
    if (near < ABREAST) near = ABREAST;
    for (int64_t begin = 0; begin < whole; begin += near)
        for (o = first; o < last; o += LANES)
            for (int64_t b = begin; b < whole && b < begin + near; b += ABREAST)
                some_rows(o, last, in, matrix, 1, bias, x + b * x_stride, x_stride, ABREAST, y + b * y_stride, y_stride,
                          add);
    for (o = first; o < last; o += WIDE * LANES)
        for (int64_t b = whole; b < count; b++) {
            const float *from = x + b * x_stride;
            float *to = y + b * y_stride;
            if (last - o > (WIDE - 1) * LANES) some_rows(o, last, in, matrix, WIDE, bias, from, 0, 1, to, 0, add);
            else
                for (int64_t i = o; i < last; i += LANES) some_rows(i, last, in, matrix, 1, bias, from, 0, 1, to, 0, add);
        }
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
