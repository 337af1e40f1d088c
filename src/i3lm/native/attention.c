/* Causal attention in bfloat16 for processors that multiply it (products.h): one head of one sequence at a time, all in
 * the second-level cache. Sums are float32. i3_attention_supported says whether it can run; the definition is
 * `causal_attention` in model/ops_i3.py.
 *
 * q, k, v, their gradients and the output are (batch * steps, heads * size), row by row. Within, a head is padded by
 * zeros to whole blocks: `deep` for its size, `padded` for its steps. */

#include <stdint.h>

int i3_tiles = -1; /* whether there are AMX tiles; not asked yet */

#if defined(__x86_64__) && defined(__GNUC__)
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"
#include "passes.h"
#include "products.h"

#define GROUP 128 /* queries whose share in the gradients of keys and values is added at once */

typedef struct {
    int64_t batch, steps, heads, size;
} Shape;

static int64_t round_up(int64_t steps) { return (steps + SIDE - 1) / SIDE * SIDE; }

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

AVX512 static inline __m512 widen(const uint16_t *x) {
    __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}

AVX512 static inline void narrow_lanes(uint16_t *to, __m512 x) {
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x));
}

/* Rows of `size` values, `from` apart, to rows of `deep`; zeros beyond. `shift`, which may be NULL, is added to each. */
AVX512 static void copy_rows(Shape s, int64_t from, const uint16_t *x, const float *shift, uint16_t *rows) {
    int64_t deep = round_up(s.size);
    for (int64_t t = 0; t < s.steps; t++) {
        uint16_t *to = rows + t * deep;
        if (shift)
            for (int64_t c = 0; c < s.size; c += LANES)
                narrow_lanes(to + c, _mm512_add_ps(widen(x + t * from + c), _mm512_loadu_ps(shift + c)));
        else memcpy(to, x + t * from, s.size * sizeof(uint16_t));
        memset(to + s.size, 0, (deep - s.size) * sizeof(uint16_t));
    }
    memset(rows + s.steps * deep, 0, (round_up(s.steps) - s.steps) * deep * sizeof(uint16_t));
}

/* Rows (padded, deep) as a right factor whose columns are the rows, for products along `deep`. */
AVX512 static void pack_across(int64_t padded, int64_t deep, const uint16_t *rows, uint32_t *panels) {
    for (int64_t t = 0; t < padded; t += LANES)
        for (int64_t k = 0; k < deep; k += SIDE, panels += TILE) {
            __m512i r[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) r[i] = _mm512_loadu_si512(rows + (t + i) * deep + k);
            transpose_words(r);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) _mm512_storeu_si512(panels + LANES * i, r[i]);
        }
}

/* Rows (padded, deep) as a right factor for sums over the rows. */
AVX512 static void pack_down(int64_t padded, int64_t deep, const uint16_t *rows, uint32_t *panels) {
    for (int64_t c = 0; c < deep; c += LANES, panels += LANES * padded / 2) pack_low(padded, rows + c, deep, panels);
}

/* y = x * factors[row] + shift in bfloat16, of rows of x `deep` apart; factors and shift may be NULL. */
AVX512 static void narrow_rows(int64_t rows, int64_t size, const float *x, const float *factors, const float *shift,
                               uint16_t *y, int64_t stride) {
    for (int64_t r = 0; r < rows; r++) {
        __m512 factor = _mm512_set1_ps(factors ? factors[r] : 1);
        for (int64_t c = 0; c < size; c += LANES) {
            __m512 beside = shift ? _mm512_loadu_ps(shift + c) : _mm512_setzero_ps();
            narrow_lanes(y + r * stride + c, _mm512_fmadd_ps(_mm512_loadu_ps(x + r * round_up(size) + c), factor, beside));
        }
    }
}

/* `exponential` of numbers.h for 16 numbers that are not positive; its polynomial is cut for bfloat16 results. */
AVX512 static inline __m512 exponentials(__m512 x) {
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

static inline void zero_from(int64_t seen, int64_t end, uint16_t *row) {
    int64_t done = (seen + LANES - 1) / LANES * LANES;
    if (done < end) memset(row + done, 0, (end - done) * sizeof(uint16_t));
}

/* A row of scores to weights e^(scale (score - top)) of the first `seen` keys, 0 up to `end`.
 * Returns one over their sum, by which the output is to be multiplied, and the logarithm of the denominator. */
AVX512 static float weigh(int64_t seen, int64_t end, float scale, const float *scores, uint16_t *weights, float *log_sum) {
    __m512 tops = _mm512_set1_ps(-INFINITY), sums = _mm512_setzero_ps(), factor = _mm512_set1_ps(scale);
    for (int64_t j = 0; j < seen; j += LANES)
        tops = _mm512_mask_max_ps(tops, visible(seen, j), tops, _mm512_loadu_ps(scores + j));
    float top = scale * _mm512_reduce_max_ps(tops);
    for (int64_t j = 0; j < seen; j += LANES) {
        __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(scores + j), factor, _mm512_set1_ps(top));
        x = _mm512_maskz_mov_ps(visible(seen, j), exponentials(x));
        sums = _mm512_add_ps(sums, x);
        narrow_lanes(weights + j, x);
    }
    zero_from(seen, end, weights);
    float sum = _mm512_reduce_add_ps(sums);
    *log_sum = top + logf(sum);
    return 1 / sum;
}

/* A row of scores and the gradient of their probabilities to the probabilities and the gradient of the scores, 0 from
 * `seen` to `end`. */
AVX512 static void score_gradient(int64_t seen, int64_t end, float scale, float log_sum, float *scores, const float *grad,
                                  uint16_t *probs, uint16_t *out) {
    __m512 dots = _mm512_setzero_ps(), factor = _mm512_set1_ps(scale), base = _mm512_set1_ps(log_sum);
    for (int64_t j = 0; j < seen; j += LANES) {
        __m512 p = exponentials(_mm512_fmsub_ps(_mm512_loadu_ps(scores + j), factor, base));
        p = _mm512_maskz_mov_ps(visible(seen, j), p);
        dots = _mm512_mask3_fmadd_ps(p, _mm512_loadu_ps(grad + j), dots, visible(seen, j));
        _mm512_storeu_ps(scores + j, p);
        narrow_lanes(probs + j, p);
    }
    __m512 dot = _mm512_set1_ps(_mm512_reduce_add_ps(dots));
    for (int64_t j = 0; j < seen; j += LANES) {
        __m512 p = _mm512_mul_ps(_mm512_loadu_ps(scores + j), factor);
        __m512 d = _mm512_mul_ps(p, _mm512_sub_ps(_mm512_loadu_ps(grad + j), dot));
        narrow_lanes(out + j, _mm512_maskz_mov_ps(visible(seen, j), d));
    }
    zero_from(seen, end, probs);
    zero_from(seen, end, out);
}

/* c (32, columns) = a (32, 32 steps) x b, whose panels are `panel` words apart. */
static void strip(Left a, int64_t steps, int64_t columns, const uint32_t *b, int64_t panel, float *c, int64_t stride) {
    for (int64_t j = 0; j < columns; j += SIDE, b += 2 * panel) block(a, steps, b, panel, 0, c + j, stride);
}

/* sums (keys, deep) += weights^T x rows for a group of queries, from `first` on: weights (queries, padded) and the
 * rows' right factor. tiles: room for the transposed weights of 32 keys. */
static void spread(int64_t first, int64_t queries, int64_t padded, int64_t deep, const uint16_t *weights,
                   const uint32_t *rows, uint16_t *tiles, float *sums) {
    for (int64_t key = 0; key < first + queries; key += SIDE) {
        int64_t begin = key < first ? 0 : key - first, count = queries - begin; /* earlier queries see nothing of it */
        pack_left(count, weights + begin * padded + key, padded, tiles);
        pack_left(count, weights + begin * padded + key + LANES, padded, tiles + LANES * count);
        for (int64_t c = 0; c < deep; c += SIDE)
            block(in_tiles(tiles, count), count / SIDE, rows + (c * padded + LANES * (first + begin)) / 2,
                  LANES * padded / 2, 1, sums + key * deep + c, deep);
    }
}

/* A thread's memory, used for one head after the other. */
typedef struct {
    uint16_t *q, *rows, *probs, *inner, *tiles;
    uint32_t *keys, *values, *keys_down, *q_down, *rows_down;
    float *scores, *d_scores, *out, *k_sums, *v_sums;
} Scratch;

/* Divides memory among what a head needs; returns the bytes. `at` may be NULL. */
static int64_t divide(Shape s, int backward, char *at, Scratch *scratch) {
    int64_t padded = round_up(s.steps), deep = round_up(s.size), area = 2 * padded * deep, taken = 0;
    int64_t queries = backward ? GROUP : SIDE;
    struct {
        void *to;
        int64_t bytes;
    } all[] = {
        {&scratch->q, area}, {&scratch->rows, area}, {&scratch->keys, area}, {&scratch->values, area},
        {&scratch->probs, 2 * queries * padded}, {&scratch->scores, 4 * SIDE * padded}, {&scratch->out, 4 * SIDE * deep},
        {&scratch->inner, 2 * queries * padded}, {&scratch->d_scores, 4 * SIDE * padded},
        {&scratch->tiles, 2 * SIDE * GROUP}, {&scratch->keys_down, area}, {&scratch->q_down, area},
        {&scratch->rows_down, area}, {&scratch->k_sums, 2 * area}, {&scratch->v_sums, 2 * area},
    };
    for (int i = 0; i < (backward ? 15 : 7); i++, taken = (taken + 63) / 64 * 64) {
        char *here = at ? at + taken : NULL;
        memcpy(all[i].to, &here, sizeof(here));
        taken += all[i].bytes;
    }
    return taken;
}

AVX512 static void forward_head(Shape s, const uint16_t *q, const uint16_t *k, const uint16_t *v, const float *q_bias,
                                const float *v_bias, uint16_t *y, float *log_sums, Scratch h) {
    int64_t padded = round_up(s.steps), deep = round_up(s.size), stride = s.heads * s.size;
    float scale = 1 / sqrtf((float)s.size), factors[SIDE], log_sum;
    copy_rows(s, stride, k, NULL, h.rows);
    pack_across(padded, deep, h.rows, h.keys);
    copy_rows(s, stride, v, NULL, h.rows);
    pack_down(padded, deep, h.rows, h.values);
    copy_rows(s, stride, q, q_bias, h.q);
    for (int64_t first = 0; first < s.steps; first += SIDE) {
        int64_t end = first + SIDE, count = least(s.steps - first, SIDE);
        strip(in_rows(h.q + first * deep, deep), deep / SIDE, end, h.keys, LANES * deep / 2, h.scores, padded);
        for (int64_t r = 0; r < SIDE; r++) {
            factors[r] = weigh(first + r + 1, end, scale, h.scores + r * padded, h.probs + r * padded, &log_sum);
            if (r < count) log_sums[first + r] = log_sum;
        }
        strip(in_rows(h.probs, padded), end / SIDE, deep, h.values, LANES * padded / 2, h.out, deep);
        narrow_rows(count, s.size, h.out, factors, v_bias, y + first * stride, stride);
    }
}

AVX512 static void backward_head(Shape s, const uint16_t *q, const uint16_t *k, const uint16_t *v, const float *q_bias,
                                 const uint16_t *grad, const float *log_sums, uint16_t *dq, uint16_t *dk, uint16_t *dv,
                                 Scratch h) {
    int64_t padded = round_up(s.steps), deep = round_up(s.size), stride = s.heads * s.size;
    float scale = 1 / sqrtf((float)s.size);
    copy_rows(s, stride, k, NULL, h.rows);
    pack_across(padded, deep, h.rows, h.keys);
    pack_down(padded, deep, h.rows, h.keys_down);
    copy_rows(s, stride, v, NULL, h.rows);
    pack_across(padded, deep, h.rows, h.values);
    copy_rows(s, stride, q, q_bias, h.q);
    pack_down(padded, deep, h.q, h.q_down);
    copy_rows(s, stride, grad, NULL, h.rows);
    pack_down(padded, deep, h.rows, h.rows_down);
    memset(h.k_sums, 0, 4 * padded * deep);
    memset(h.v_sums, 0, 4 * padded * deep);
    for (int64_t group = 0; group < padded; group += GROUP) {
        int64_t queries = least(padded - group, GROUP);
        for (int64_t first = group; first < group + queries; first += SIDE) {
            int64_t end = first + SIDE, count = least(s.steps - first, SIDE);
            uint16_t *probs = h.probs + (first - group) * padded, *inner = h.inner + (first - group) * padded;
            strip(in_rows(h.q + first * deep, deep), deep / SIDE, end, h.keys, LANES * deep / 2, h.scores, padded);
            strip(in_rows(h.rows + first * deep, deep), deep / SIDE, end, h.values, LANES * deep / 2, h.d_scores, padded);
            for (int64_t r = 0; r < SIDE; r++)
                score_gradient(first + r + 1, group + queries, scale, r < count ? log_sums[first + r] : 0,
                               h.scores + r * padded, h.d_scores + r * padded, probs + r * padded, inner + r * padded);
            strip(in_rows(inner, padded), end / SIDE, deep, h.keys_down, LANES * padded / 2, h.out, deep);
            narrow_rows(count, s.size, h.out, NULL, NULL, dq + first * stride, stride);
        }
        spread(group, queries, padded, deep, h.probs, h.rows_down, h.tiles, h.v_sums);
        spread(group, queries, padded, deep, h.inner, h.q_down, h.tiles, h.k_sums);
    }
    narrow_rows(s.steps, s.size, h.k_sums, NULL, NULL, dk, stride);
    narrow_rows(s.steps, s.size, h.v_sums, NULL, NULL, dv, stride);
}

int i3_attention_supported(void) {
    __builtin_cpu_init();
    int supported = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw");
    if (i3_tiles < 0) i3_tiles = supported && ask_for_tiles();
    return supported;
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
        Scratch h;
        char *scratch = aligned_alloc(64, divide(s, 0, NULL, &h));
        if (scratch) divide(s, 0, scratch, &h);
        else {
#pragma omp atomic write
            failed = 1;
        }
        begin_blocks();
#pragma omp for schedule(static)
        for (int64_t i = 0; i < batch * heads; i++) {
            int64_t head = i % heads * size, at = i / heads * steps * heads * size + head;
            if (scratch)
                forward_head(s, q + at, k + at, v + at, q_bias + head, v_bias + head, y + at, log_sums + i * steps, h);
        }
        end_blocks();
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
        Scratch h;
        char *scratch = aligned_alloc(64, divide(s, 1, NULL, &h));
        if (scratch) divide(s, 1, scratch, &h);
        else {
#pragma omp atomic write
            failed = 1;
        }
        begin_blocks();
#pragma omp for schedule(static)
        for (int64_t i = 0; i < batch * heads; i++) {
            int64_t head = i % heads * size, at = i / heads * steps * heads * size + head;
            if (scratch)
                backward_head(s, q + at, k + at, v + at, q_bias + head, grad + at, log_sums + i * steps, dq + at,
                              dk + at, dv + at, h);
        }
        end_blocks();
        free(scratch);
    }
    return failed;
}

#else

int i3_attention_supported(void) { return i3_tiles = 0; }

#endif
