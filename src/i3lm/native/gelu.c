/* GELU in bfloat16 for processors with AVX512-BF16: what `normal` of normal.h computes by an exponential and a division
 * comes from a table that two registers hold, 32 quadratics on [0, 32 / 6). kernels.py makes the table and says how
 * large its error is. i3_attention_supported says whether this can run. */

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#include "numbers.h"
#include "passes.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma" WIDE_VECTORS)))
#define LANES 16

typedef struct {
    __m512 low[3], high[3]; /* coefficients of 1, t and t^2 for segments 0 to 15 and 16 to 31 */
} Table;

TARGET static Table load_table(const float *values) {
    Table table;
    for (int k = 0; k < 3; k++) {
        table.low[k] = _mm512_loadu_ps(values + 32 * k);
        table.high[k] = _mm512_loadu_ps(values + 32 * k + LANES);
    }
    return table;
}

/* f(x) for f(-x) = 1 - f(x), from the table of f(-a), a >= 0; `segment` and t are those of a = |x|. */
TARGET static inline __m512 look_up(const Table *table, __m512i segment, __m512 t, __mmask16 positive) {
    __m512 value = _mm512_permutex2var_ps(table->low[2], segment, table->high[2]);
    value = _mm512_fmadd_ps(value, t, _mm512_permutex2var_ps(table->low[1], segment, table->high[1]));
    value = _mm512_fmadd_ps(value, t, _mm512_permutex2var_ps(table->low[0], segment, table->high[0]));
    return _mm512_mask_sub_ps(value, positive, _mm512_set1_ps(1), value);
}

/* Where |x| lies. A NaN stays one in t. */
TARGET static inline void locate(__m512 x, __m512i *segment, __m512 *t, __mmask16 *positive) {
    __m512 a = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(6));
    a = _mm512_min_ps(_mm512_set1_ps(31.999998f), a);
    *segment = _mm512_cvttps_epi32(a);
    *t = _mm512_sub_ps(a, _mm512_roundscale_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
    *positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
}

TARGET static inline __m512 load(const uint16_t *x, __mmask16 mask) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x)), 16));
}

TARGET static inline void store(uint16_t *to, __m512 x, __mmask16 mask) {
    _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh(x));
}

static inline __mmask16 first(int64_t count) { return count >= LANES ? 0xffff : (__mmask16)((1 << count) - 1); }

TARGET static void forward_row(int64_t dim, const uint16_t *x, const float *shift, uint16_t *y, const Table *phi) {
    for (int64_t c = 0; c < dim; c += LANES) {
        __mmask16 mask = first(dim - c), positive;
        __m512 v = _mm512_add_ps(load(x + c, mask), _mm512_maskz_loadu_ps(mask, shift + c)), t;
        __m512i segment;
        locate(v, &segment, &t, &positive);
        store(y + c, _mm512_mul_ps(v, look_up(phi, segment, t, positive)), mask);
    }
}

TARGET static void backward_row(int64_t dim, const uint16_t *x, const float *shift, uint16_t *y, uint16_t *dy,
                                float *sums, const Table *phi, const Table *slope) {
    for (int64_t c = 0; c < dim; c += LANES) {
        _mm_prefetch((const char *)(x + c + dim), _MM_HINT_T0); /* the row after this one, on another page */
        __mmask16 mask = first(dim - c), positive;
        __m512 v = _mm512_add_ps(load(x + c, mask), _mm512_maskz_loadu_ps(mask, shift + c)), t;
        __m512i segment;
        locate(v, &segment, &t, &positive);
        store(y + c, _mm512_mul_ps(v, look_up(phi, segment, t, positive)), mask);
        __m512 d = _mm512_mul_ps(load(dy + c, mask), look_up(slope, segment, t, positive));
        store(dy + c, d, mask);
        _mm512_mask_storeu_ps(sums + c, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, sums + c), d));
    }
}

TARGET void gelu_rows(int64_t rows, int64_t dim, const uint16_t *x, const float *shift, uint16_t *y,
                      const float *tables) {
    Table phi = load_table(tables);
    for (int64_t r = 0; r < rows; r++) forward_row(dim, x + r * dim, shift, y + r * dim, &phi);
}

TARGET void gelu_rows_backward(int64_t rows, int64_t dim, const uint16_t *x, const float *shift, uint16_t *y,
                               uint16_t *dy, float *sums, const float *tables) {
    Table phi = load_table(tables), slope = load_table(tables + 96);
    memset(sums, 0, dim * sizeof(float));
    for (int64_t r = 0; r < rows; r++) backward_row(dim, x + r * dim, shift, y + r * dim, dy + r * dim, sums, &phi, &slope);
}

/* y = gelu(x + shift). tables: (2, 3, 32), of Phi and of GELU's slope. */
TARGET int i3_table_gelu_forward_bf16(int64_t rows, int64_t dim, const uint16_t *x, const float *shift, uint16_t *y,
                                      const float *tables) {
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < CHUNKS(rows); k++)
        gelu_rows(CHUNK_ROWS(rows, k), dim, x + k * ROWS * dim, shift, y + k * ROWS * dim, tables);
    return 0;
}

/* Replaces dy by dx; y = gelu(x + shift) once more. partial: (chunks of ROWS rows, dim), sums of dx. */
TARGET int i3_table_gelu_backward_bf16(int64_t rows, int64_t dim, const uint16_t *x, const float *shift, uint16_t *y,
                                       uint16_t *dy, float *partial, const float *tables) {
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < CHUNKS(rows); k++) {
        int64_t at = k * ROWS * dim;
        gelu_rows_backward(CHUNK_ROWS(rows, k), dim, x + at, shift, y + at, dy + at, partial + k * dim, tables);
    }
    return 0;
}

#endif
