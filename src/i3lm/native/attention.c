/* Causal attention in bfloat16 for processors with dot products of it (AVX512-BF16): one head of one sequence at a
 * time, all in the second-level cache. Sums are float32. i3_attention_supported says whether it can run; the definition
 * is `causal_attention` in model/ops_i3.py.
 *
 * A product takes pairs: a 32-bit word holds two neighbours along the summed index. Rows of bfloat16 are pairs as they
 * lie; what is summed over rows is first interleaved, two rows to a row of words.
 *
 * q, k, v, their gradients and the output are (batch * steps, heads * size), row by row. */

#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,prefer-vector-width=512")))
#define QUERIES 64 /* a block of queries; also what the number of keys is rounded up to */
#define LANES 16

typedef struct {
    int64_t batch, steps, heads, size;
} Shape;

/* c[r][16 v + lane] (+)= sum over p of a[r row + p step] . b[p width + 16 v + lane], for 4 rows, `vectors` <= 4. */
TARGET static inline __attribute__((always_inline)) void tile(const int vectors, const int add, int64_t pairs,
                                                               const uint32_t *a, int64_t row, int64_t step,
                                                               const uint32_t *b, int64_t width, float *c,
                                                               int64_t stride) {
    __m512 sums[4][4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            sums[r][v] = add ? _mm512_loadu_ps(c + r * stride + LANES * v) : _mm512_setzero_ps();
    for (int64_t p = 0; p < pairs; p++) {
        __m512bh column[4];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) column[v] = (__m512bh)_mm512_loadu_si512(b + p * width + LANES * v);
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) {
            __m512bh value = (__m512bh)_mm512_set1_epi32((int)a[r * row + p * step]);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], value, column[v]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) _mm512_storeu_ps(c + r * stride + LANES * v, sums[r][v]);
}

/* c (rows, columns) (+)= a b, with rows a multiple of 4 and columns of 16. */
TARGET static void product(int add, int64_t rows, int64_t columns, int64_t pairs, const uint32_t *a, int64_t row,
                           int64_t step, const uint32_t *b, int64_t width, float *c, int64_t stride) {
    int64_t j = 0;
    for (; j + 4 * LANES <= columns; j += 4 * LANES)
        for (int64_t i = 0; i < rows; i += 4) {
            if (add) tile(4, 1, pairs, a + i * row, row, step, b + j, width, c + i * stride + j, stride);
            else tile(4, 0, pairs, a + i * row, row, step, b + j, width, c + i * stride + j, stride);
        }
    for (; j < columns; j += LANES)
        for (int64_t i = 0; i < rows; i += 4) {
            if (add) tile(1, 1, pairs, a + i * row, row, step, b + j, width, c + i * stride + j, stride);
            else tile(1, 0, pairs, a + i * row, row, step, b + j, width, c + i * stride + j, stride);
        }
}

TARGET static inline __m512 widen(const uint16_t *x) {
    __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}

TARGET static inline void narrow(uint16_t *to, __m512 x) {
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x));
}

/* Rows of `size` values, `from` apart, to rows of size / 2 words side by side; rows beyond `steps` are zero. `shift`,
 * which may be NULL, is added to each. */
TARGET static void copy_rows(int64_t steps, int64_t padded, int64_t size, const uint16_t *x, int64_t from,
                             const float *shift, uint32_t *rows) {
    if (shift) {
        uint16_t *to = (uint16_t *)rows;
        for (int64_t t = 0; t < steps; t++)
            for (int64_t c = 0; c < size; c += LANES)
                narrow(to + t * size + c, _mm512_add_ps(widen(x + t * from + c), _mm512_loadu_ps(shift + c)));
    } else {
        for (int64_t t = 0; t < steps; t++) memcpy(rows + t * size / 2, x + t * from, size * sizeof(uint16_t));
    }
    memset(rows + steps * size / 2, 0, (padded - steps) * size * sizeof(uint16_t));
}

/* (padded, size / 2) words to (size / 2, padded). */
TARGET static void transpose(int64_t padded, int64_t words, const uint32_t *rows, uint32_t *columns) {
    for (int64_t t = 0; t < padded; t += LANES)
        for (int64_t p = 0; p < words; p++)
            for (int64_t i = 0; i < LANES; i++) columns[p * padded + t + i] = rows[(t + i) * words + p];
}

/* (padded, size) values to (padded / 2, size) words of two rows each. */
TARGET static void interleave(int64_t padded, int64_t size, const uint16_t *rows, int64_t from, uint32_t *pairs) {
    for (int64_t m = 0; m < padded / 2; m++)
        for (int64_t c = 0; c < size; c++)
            pairs[m * size + c] = rows[2 * m * from + c] | (uint32_t)rows[(2 * m + 1) * from + c] << 16;
}

/* y = x * factors[row] + shift in bfloat16; factors and shift may be NULL. */
TARGET static void narrow_rows(int64_t rows, int64_t size, const float *x, const float *factors, const float *shift,
                               uint16_t *y, int64_t stride) {
    for (int64_t r = 0; r < rows; r++) {
        __m512 factor = _mm512_set1_ps(factors ? factors[r] : 1);
        for (int64_t c = 0; c < size; c += LANES) {
            __m512 beside = shift ? _mm512_loadu_ps(shift + c) : _mm512_setzero_ps();
            narrow(y + r * stride + c, _mm512_fmadd_ps(_mm512_loadu_ps(x + r * size + c), factor, beside));
        }
    }
}

/* `exponential` of numbers.h for 16 numbers that are not positive; its polynomial is cut for bfloat16 results. */
TARGET static inline __m512 exponentials(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-87), x); /* in this order a NaN stays one */
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.69314718f), x);
    __m512 p = _mm512_set1_ps(1.0f / 120);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1));
    return _mm512_scalef_ps(p, n);
}

/* Which of the 16 keys from j on are among the first `seen`. */
static inline uint16_t visible(int64_t seen, int64_t j) {
    return seen - j >= LANES ? 0xffff : (uint16_t)((1 << (seen - j)) - 1);
}

/* A row of scores to weights e^(scale (score - top)) of the first `seen` keys, 0 up to a whole vector.
 * Returns one over their sum, by which the output is to be multiplied, and the logarithm of the denominator. */
TARGET static float weigh(int64_t seen, float scale, const float *scores, uint16_t *weights, float *log_sum) {
    __m512 tops = _mm512_set1_ps(-INFINITY), sums = _mm512_setzero_ps(), factor = _mm512_set1_ps(scale);
    for (int64_t j = 0; j < seen; j += LANES)
        tops = _mm512_mask_max_ps(tops, visible(seen, j), tops, _mm512_loadu_ps(scores + j));
    float top = scale * _mm512_reduce_max_ps(tops);
    for (int64_t j = 0; j < seen; j += LANES) {
        __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(scores + j), factor, _mm512_set1_ps(top));
        x = _mm512_maskz_mov_ps(visible(seen, j), exponentials(x));
        sums = _mm512_add_ps(sums, x);
        narrow(weights + j, x);
    }
    float sum = _mm512_reduce_add_ps(sums);
    *log_sum = top + logf(sum);
    return 1 / sum;
}

/* A row of scores and the gradient of their probabilities to the probabilities and the gradient of the scores. */
TARGET static void score_gradient(int64_t seen, float scale, float log_sum, float *scores, const float *grad,
                                  uint16_t *probs, uint16_t *out) {
    __m512 dots = _mm512_setzero_ps(), factor = _mm512_set1_ps(scale), base = _mm512_set1_ps(log_sum);
    for (int64_t j = 0; j < seen; j += LANES) {
        __m512 p = exponentials(_mm512_fmsub_ps(_mm512_loadu_ps(scores + j), factor, base));
        p = _mm512_maskz_mov_ps(visible(seen, j), p);
        dots = _mm512_mask3_fmadd_ps(p, _mm512_loadu_ps(grad + j), dots, visible(seen, j));
        _mm512_storeu_ps(scores + j, p);
        narrow(probs + j, p);
    }
    __m512 dot = _mm512_set1_ps(_mm512_reduce_add_ps(dots));
    for (int64_t j = 0; j < seen; j += LANES) {
        __m512 p = _mm512_mul_ps(_mm512_loadu_ps(scores + j), factor);
        __m512 d = _mm512_mul_ps(p, _mm512_sub_ps(_mm512_loadu_ps(grad + j), dot));
        narrow(out + j, _mm512_maskz_mov_ps(visible(seen, j), d));
    }
}

/* The three products of a block of queries, in strips of 16 that leave out most of what no query sees. */

/* scores (QUERIES, stride) of the rows from `first` on against the keys, columns of words. */
TARGET static void scores_of(int64_t first, int64_t words, const uint32_t *queries, const uint32_t *keys,
                             int64_t stride, float *scores) {
    for (int64_t r = 0; r < QUERIES; r += LANES)
        product(0, LANES, first + r + LANES, words, queries + (first + r) * words, words, 1, keys, stride,
                scores + r * stride, stride);
}

/* out (QUERIES, size) = weights (QUERIES, stride) x values, interleaved. */
TARGET static void mix(int64_t first, int64_t size, const uint16_t *weights, int64_t stride, const uint32_t *values,
                       float *out) {
    for (int64_t r = 0; r < QUERIES; r += LANES)
        product(0, LANES, size, (first + r + LANES) / 2, (const uint32_t *)(weights + r * stride), stride / 2, 1,
                values, size, out + r * size, size);
}

/* sums (keys, size) += weights^T x rows; weights are pairs of queries, (QUERIES / 2, first + QUERIES). */
TARGET static void spread(int64_t first, int64_t size, const uint32_t *weights, const uint32_t *rows, float *sums) {
    int64_t end = first + QUERIES;
    rows += first / 2 * size;
    product(1, first, size, QUERIES / 2, weights, 1, end, rows, size, sums, size);
    for (int64_t r = 0; r < QUERIES; r += LANES)
        product(1, LANES, size, (QUERIES - r) / 2, weights + r / 2 * end + first + r, 1, end, rows + r / 2 * size,
                size, sums + (first + r) * size, size);
}

static int64_t round_up(int64_t steps) { return (steps + QUERIES - 1) / QUERIES * QUERIES; }

TARGET static void forward_head(Shape s, const uint16_t *q, const uint16_t *k, const uint16_t *v,
                                const float *q_bias, const float *v_bias, uint16_t *y, float *log_sums,
                                char *scratch) {
    int64_t padded = round_up(s.steps), stride = s.heads * s.size, words = s.size / 2;
    uint32_t *rows = (uint32_t *)scratch, *keys = rows + padded * words, *values = keys + padded * words;
    float *scores = (float *)(values + padded * words), *out = scores + QUERIES * padded;
    uint16_t *weights = (uint16_t *)(out + QUERIES * s.size);
    float scale = 1 / sqrtf((float)s.size), factors[QUERIES], log_sum;
    copy_rows(s.steps, padded, s.size, k, stride, NULL, rows);
    transpose(padded, words, rows, keys);
    copy_rows(s.steps, padded, s.size, v, stride, NULL, rows);
    interleave(padded, s.size, (uint16_t *)rows, s.size, values);
    copy_rows(s.steps, padded, s.size, q, stride, q_bias, rows);
    for (int64_t first = 0; first < s.steps; first += QUERIES) {
        int64_t end = first + QUERIES, count = s.steps < end ? s.steps - first : QUERIES;
        scores_of(first, words, rows, keys, padded, scores);
        for (int64_t r = 0; r < QUERIES; r++) {
            factors[r] = weigh(first + r + 1, scale, scores + r * padded, weights + r * padded, &log_sum);
            if (r < count) log_sums[first + r] = log_sum;
        }
        mix(first, s.size, weights, padded, values, out);
        narrow_rows(count, s.size, out, factors, v_bias, y + first * stride, stride);
    }
}

TARGET static void backward_head(Shape s, const uint16_t *q, const uint16_t *k, const uint16_t *v,
                                 const float *q_bias, const uint16_t *grad, const float *log_sums, uint16_t *dq,
                                 uint16_t *dk, uint16_t *dv, char *scratch) {
    int64_t padded = round_up(s.steps), stride = s.heads * s.size, words = s.size / 2, area = padded * words;
    uint32_t *q_rows = (uint32_t *)scratch, *g_rows = q_rows + area, *q_pairs = g_rows + area;
    uint32_t *g_pairs = q_pairs + area, *keys = g_pairs + area, *key_pairs = keys + area, *values = key_pairs + area;
    float *k_sums = (float *)(values + area), *v_sums = k_sums + padded * s.size;
    float *scores = v_sums + padded * s.size, *d_scores = scores + QUERIES * padded;
    float *out = d_scores + QUERIES * padded;
    uint16_t *probs = (uint16_t *)(out + QUERIES * s.size), *inner = probs + QUERIES * padded;
    uint32_t *pairs = (uint32_t *)(inner + QUERIES * padded);
    float scale = 1 / sqrtf((float)s.size);
    copy_rows(s.steps, padded, s.size, k, stride, NULL, q_rows);
    transpose(padded, words, q_rows, keys);
    interleave(padded, s.size, (uint16_t *)q_rows, s.size, key_pairs);
    copy_rows(s.steps, padded, s.size, v, stride, NULL, q_rows);
    transpose(padded, words, q_rows, values);
    copy_rows(s.steps, padded, s.size, q, stride, q_bias, q_rows);
    interleave(padded, s.size, (uint16_t *)q_rows, s.size, q_pairs);
    copy_rows(s.steps, padded, s.size, grad, stride, NULL, g_rows);
    interleave(padded, s.size, (uint16_t *)g_rows, s.size, g_pairs);
    memset(k_sums, 0, 2 * padded * s.size * sizeof(float));
    for (int64_t first = 0; first < s.steps; first += QUERIES) {
        int64_t end = first + QUERIES, count = s.steps < end ? s.steps - first : QUERIES;
        scores_of(first, words, q_rows, keys, padded, scores);
        scores_of(first, words, g_rows, values, padded, d_scores);
        for (int64_t r = 0; r < QUERIES; r++)
            score_gradient(first + r + 1, scale, r < count ? log_sums[first + r] : 0, scores + r * padded,
                           d_scores + r * padded, probs + r * padded, inner + r * padded);
        mix(first, s.size, inner, padded, key_pairs, out);
        narrow_rows(count, s.size, out, NULL, NULL, dq + first * stride, stride);
        interleave(QUERIES, end, probs, padded, pairs);
        spread(first, s.size, pairs, g_pairs, v_sums);
        interleave(QUERIES, end, inner, padded, pairs);
        spread(first, s.size, pairs, q_pairs, k_sums);
    }
    narrow_rows(s.steps, s.size, k_sums, NULL, NULL, dk, stride);
    narrow_rows(s.steps, s.size, v_sums, NULL, NULL, dv, stride);
}

static void *new_scratch(Shape s, int64_t areas, int64_t blocks) {
    int64_t padded = round_up(s.steps);
    int64_t bytes = areas * padded * s.size * 2 + blocks * QUERIES * padded * 4 + QUERIES * s.size * 4;
    return aligned_alloc(64, (bytes + 63) / 64 * 64);
}

int i3_attention_supported(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw");
}

/* log_sums: (batch, heads, steps), logarithms of the softmax denominators. size: a multiple of 16.
 * Returns 0, or 1 when scratch memory is not to be had. */
int i3_attention_forward_bf16(int64_t batch, int64_t steps, int64_t heads, int64_t size, const uint16_t *q,
                              const uint16_t *k, const uint16_t *v, const float *q_bias, const float *v_bias,
                              uint16_t *y, float *log_sums) {
    Shape s = {batch, steps, heads, size};
    int failed = 0;
#pragma omp parallel
    {
        char *scratch = new_scratch(s, 3, 2);
        if (!scratch) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < batch * heads; i++) {
            int64_t head = i % heads * size, at = i / heads * steps * heads * size + head;
            if (scratch)
                forward_head(s, q + at, k + at, v + at, q_bias + head, v_bias + head, y + at, log_sums + i * steps,
                             scratch);
        }
        free(scratch);
    }
    return failed;
}

int i3_attention_backward_bf16(int64_t batch, int64_t steps, int64_t heads, int64_t size, const uint16_t *q,
                               const uint16_t *k, const uint16_t *v, const float *q_bias, const uint16_t *grad,
                               const float *log_sums, uint16_t *dq, uint16_t *dk, uint16_t *dv) {
    Shape s = {batch, steps, heads, size};
    int failed = 0;
#pragma omp parallel
    {
        char *scratch = new_scratch(s, 11, 4);
        if (!scratch) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < batch * heads; i++) {
            int64_t head = i % heads * size, at = i / heads * steps * heads * size + head;
            if (scratch)
                backward_head(s, q + at, k + at, v + at, q_bias + head, grad + at, log_sums + i * steps, dq + at,
                              dk + at, dv + at, scratch);
        }
        free(scratch);
    }
    return failed;
}

#else

int i3_attention_supported(void) { return 0; }

#endif
