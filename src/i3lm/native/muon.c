/* A step of Muon (optim/muon.py) for many matrices: momentum, orthogonalisation and update of one map at a time, in
 * the cache of one core. Threads share the maps out, so the result does not depend on their number.
 *
 * A map's Nesterov step is held tall: X^T, (depth, n) with n the smaller side, rounded up to whole vectors by zeros.
 * The rounds are polynomials of the Gram matrix G = X X^T. They are symmetric and commute, so each product is formed
 * above the diagonal and mirrored. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"
#include "passes.h"

#define ALWAYS static inline __attribute__((always_inline))
#define SPAN 64 /* rows of X^T at a time */
#define EDGE 16 /* of a square that is transposed, and the columns of one that is multiplied */

#include "muon_tiles.h"

typedef float Lanes __attribute__((vector_size(4 * EDGE), aligned(4), may_alias));

/* c (high, EDGE) += a b: a's rows are `row` apart and its columns `step`, the rows of b and c `n`. `high` sums are kept
 * in registers: 8, or 4 where a vector takes two of them. */
ALWAYS void multiply_tile(const unsigned high, int64_t depth, const float *a, int64_t row, int64_t step, const float *b,
                          float *c, int64_t n) {
    Lanes sums[8];
#pragma GCC unroll 8
    for (unsigned r = 0; r < high; r++) sums[r] = *(const Lanes *)(c + r * n);
    for (int64_t k = 0; k < depth; k++)
#pragma GCC unroll 8
        for (unsigned r = 0; r < high; r++) sums[r] += a[r * row + k * step] * *(const Lanes *)(b + k * n);
#pragma GCC unroll 8
    for (unsigned r = 0; r < high; r++) *(Lanes *)(c + r * n) = sums[r];
}

/* c += a b for (n, n) of which only the tiles on and above the diagonal are wanted. */
ALWAYS void multiply_upper(const unsigned high, int64_t n, int64_t depth, const float *a, int64_t row, int64_t step, const float *b,
                           float *c) {
    for (int64_t j = 0; j < n; j += EDGE)
        for (int64_t i = 0; i < j + EDGE; i += high)
            multiply_tile(high, depth, a + i * row, row, step, b + j, c + i * n + j, n);
}

ALWAYS void mirror(int64_t n, float *c) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < i; j++) c[i * n + j] = c[j * n + i];
}

/* c = a b, all (n, n) and symmetric. `high` 0: in tiles, which have `room` for their terms. */
ALWAYS void multiply_symmetric(const unsigned high, int64_t n, const float *a, const float *b, float *c, void *room) {
    if (high) {
        memset(c, 0, n * n * sizeof(float));
        multiply_upper(high, n, n, a, n, 1, b, c);
        mirror(n, c);
    } else {
        tile_symmetric(n, a, b, c, room);
    }
}

typedef struct {
    float *p, *momentum;
    const float *grad;
    int64_t n, depth, stride;
    int tall; /* p is X^T, its rows `stride` apart; else X */
    float keep, rate;
} Map;

/* With g = scale grad: m <- m + (1 - beta) (g - m) of the rows of X^T from `first` on; x (count, padded) <- g + beta (m - g). */
ALWAYS void gather(Map m, float scale, float beta, int64_t first, int64_t count, int64_t padded, float *restrict x) {
    int64_t ahead = m.tall ? SPAN * m.stride : SPAN; /* lines of a column do not follow each other: they are asked for */
    for (int64_t i = 0; i < m.n; i += EDGE)
        for (int64_t k = 0; k < count; k += EDGE) {
            float tile[EDGE][EDGE];
            int64_t side = m.n - i < EDGE ? m.n - i : EDGE, span = count - k < EDGE ? count - k : EDGE;
            int64_t high = m.tall ? span : side, wide = m.tall ? side : span;
            int64_t at = m.tall ? (first + k) * m.stride + i : i * m.stride + first + k;
            for (int64_t r = 0; r < high; r++, at += m.stride) {
                __builtin_prefetch(m.grad + at + ahead);
                __builtin_prefetch(m.momentum + at + ahead, 1);
                for (int64_t c = 0; c < wide; c++) {
                    float g = scale * m.grad[at + c], v = m.momentum[at + c];
                    v += (1 - beta) * (g - v);
                    m.momentum[at + c] = v;
                    tile[r][c] = g + beta * (v - g);
                }
            }
            for (int64_t r = 0; r < span; r++)
                for (int64_t c = 0; c < side; c++)
                    x[(k + r) * padded + i + c] = m.tall ? tile[r][c] : tile[c][r];
        }
}

/* p <- keep p - rate x for the rows of X^T from `first` on. */
ALWAYS void apply(Map m, int64_t first, int64_t count, int64_t padded, const float *restrict x) {
    int64_t ahead = m.tall ? SPAN * m.stride : SPAN;
    for (int64_t i = 0; i < m.n; i += EDGE)
        for (int64_t k = 0; k < count; k += EDGE) {
            float tile[EDGE][EDGE];
            int64_t side = m.n - i < EDGE ? m.n - i : EDGE, span = count - k < EDGE ? count - k : EDGE;
            int64_t high = m.tall ? span : side, wide = m.tall ? side : span;
            int64_t at = m.tall ? (first + k) * m.stride + i : i * m.stride + first + k;
            for (int64_t r = 0; r < span; r++)
                for (int64_t c = 0; c < side; c++)
                    *(m.tall ? &tile[r][c] : &tile[c][r]) = x[(k + r) * padded + i + c];
            for (int64_t r = 0; r < high; r++, at += m.stride) {
                __builtin_prefetch(m.p + at + ahead, 1);
                for (int64_t c = 0; c < wide; c++) m.p[at + c] = m.keep * m.p[at + c] - m.rate * tile[r][c];
            }
        }
}

/* Replaces the Gram matrix g by the polynomial Q with Q X orthogonal: rounds X <- (a + b G + c G^2) X, where G is
 * taken over its trace. work: 3 n^2. Returns Q. */
ALWAYS float *polynomial(const unsigned high, int64_t n, float *g, int64_t rounds, const float *coefficients, float *work,
                         void *room) {
    float *q = work, *product = q + n * n, *spare = product + n * n, *swap, trace = 0;
    for (int64_t i = 0; i < n; i++) trace += g[i * n + i];
    float norm = sqrtf(trace) + 1e-7f, factor = 1 / (norm * norm);
    for (int64_t i = 0; i < n * n; i++) g[i] *= factor;
    for (int64_t round = 0; round < rounds; round++) {
        float a = coefficients[3 * round], b = coefficients[3 * round + 1], c = coefficients[3 * round + 2];
        multiply_symmetric(high, n, g, g, q, room);
        for (int64_t i = 0; i < n * n; i++) q[i] = b * g[i] + c * q[i];
        for (int64_t i = 0; i < n; i++) q[i * n + i] += a;
        if (round + 1 < rounds) {
            multiply_symmetric(high, n, q, g, spare, room);
            multiply_symmetric(high, n, spare, q, g, room);
        }
        if (round) {
            multiply_symmetric(high, n, q, product, spare, room);
            swap = product, product = spare, spare = swap;
        } else {
            swap = product, product = q, q = swap;
        }
    }
    for (int64_t i = 0; i < n * n; i++) product[i] /= norm;
    return product;
}

static int64_t padded_side(int64_t n, int64_t edge) { return (n + edge - 1) / edge * edge; }

static int64_t padded_depth(int64_t depth) { return (depth + SPAN - 1) / SPAN * SPAN; }

/* The floats of scratch memory that a map of these sizes needs, its terms included. */
static int64_t scratch_of(int64_t n, int64_t depth) {
    n = padded_side(n, 2 * EDGE);
    return n * (padded_depth(depth) + SPAN + 4 * n) + ROOM_OF_TERMS(n);
}

ALWAYS void step(const unsigned high, Map m, float scale, float beta, int64_t rounds, const float *coefficients, float *scratch) {
    int64_t n = padded_side(m.n, high ? EDGE : 2 * EDGE), depth = padded_depth(m.depth);
    float *x = scratch, *out = x + n * depth, *gram = out + n * SPAN, *work = gram + n * n, *room = work + 3 * n * n;
    memset(gram, 0, n * n * sizeof(float));
    for (int64_t k = 0; k < depth; k += SPAN) {
        int64_t count = m.depth - k < SPAN ? m.depth - k : SPAN;
        if (count < SPAN || m.n < n) memset(x + k * n, 0, SPAN * n * sizeof(float));
        gather(m, scale, beta, k, count, n, x + k * n);
        if (high) multiply_upper(high, n, SPAN, x + k * n, 1, n, x + k * n, gram);
        else tile_gram(n, x + k * n, gram, room);
    }
    if (high) mirror(n, gram);
    else tile_mirror(n, gram);
    float *q = polynomial(high, n, gram, rounds, coefficients, work, room);
    if (!high) split_right(n, q, (uint32_t *)room, NULL);
    for (int64_t k = 0; k < depth; k += SPAN) {
        if (high) {
            memset(out, 0, SPAN * n * sizeof(float));
            for (int64_t j = 0; j < n; j += EDGE)
                for (int64_t i = 0; i < SPAN; i += high)
                    multiply_tile(high, n, x + (k + i) * n, n, 1, q + j, out + i * n + j, n);
        } else {
            tile_rows(n, x + k * n, (uint32_t *)room, out);
        }
        apply(m, k, m.depth - k < SPAN ? m.depth - k : SPAN, n, out);
    }
}

#ifdef HAS_TILES
AVX512 static void step_tiles(Map m, float scale, float beta, int64_t rounds, const float *coefficients, float *scratch) {
    step(0, m, scale, beta, rounds, coefficients, scratch);
}
#endif

#ifdef HAS_CLONES
__attribute__((target("arch=x86-64-v4" WIDE_VECTORS))) static void step_wide(
    Map m, float scale, float beta, int64_t rounds, const float *coefficients, float *scratch) {
    step(8, m, scale, beta, rounds, coefficients, scratch);
}

__attribute__((target_clones("arch=x86-64-v3", "default")))
#endif
static void step_narrow(Map m, float scale, float beta, int64_t rounds, const float *coefficients, float *scratch) {
    step(4, m, scale, beta, rounds, coefficients, scratch);
}

static void step_here(Map m, float scale, float beta, int64_t rounds, const float *coefficients, float *scratch) {
#ifdef HAS_TILES
    if (i3_tiles > 0 && m.n >= LEAST_SIDE) {
        step_tiles(m, scale, beta, rounds, coefficients, scratch);
        return;
    }
#endif
#ifdef HAS_CLONES
    if (__builtin_cpu_supports("x86-64-v4")) {
        step_wide(m, scale, beta, rounds, coefficients, scratch);
        return;
    }
#endif
    step_narrow(m, scale, beta, rounds, coefficients, scratch);
}

/* The map number `i` of a tensor; sizes: rows, columns, maps, joined (0: maps are blocks of rows, 1: of columns). */
static Map map_of(int64_t i, const int64_t *sizes, const float *rates, float *p, const float *grad, float *momentum) {
    int64_t rows = sizes[0], columns = sizes[1], maps = sizes[2], joined = sizes[3];
    int64_t high = joined ? rows : rows / maps, wide = joined ? columns / maps : columns;
    int64_t at = i * (joined ? wide : high * columns);
    int tall = joined || (maps == 1 && rows > columns);
    Map m = {p + at, momentum + at, grad + at, tall ? wide : high, tall ? high : wide, columns, tall, rates[0], rates[1]};
    return m;
}

/* sizes: (tensors, 4), see map_of; rates: (tensors, 2): p <- keep p - rate direction; `scale` multiplies the gradients; coefficients: (rounds, 3).
 * Returns 1 when scratch memory is not to be had. */
int i3_muon(int64_t tensors, float *const *p, const float *const *grads, float *const *momenta, const int64_t *sizes,
            const float *rates, float scale, float beta, int64_t rounds, const float *coefficients) {
    int64_t room = 0, units = 0;
    for (int64_t t = 0; t < tensors; t++) {
        Map m = map_of(0, sizes + 4 * t, rates + 2 * t, p[t], grads[t], momenta[t]);
        int64_t needed = scratch_of(m.n, m.depth);
        room = room < needed ? needed : room;
        units += sizes[4 * t + 2];
    }
    int failed = 0;
    i3_attention_supported(); /* finds out about tiles */
#pragma omp parallel
    {
        begin_tiles();
        float *scratch = aligned_alloc(64, room * sizeof(float));
        if (!scratch) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier /* all have their room, or nothing is changed */
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < units; unit++) {
            int64_t t = 0, i = unit;
            for (; i >= sizes[4 * t + 2]; t++) i -= sizes[4 * t + 2];
            if (!failed)
                step_here(map_of(i, sizes + 4 * t, rates + 2 * t, p[t], grads[t], momenta[t]), scale, beta, rounds, coefficients,
                          scratch);
        }
        free(scratch);
        end_tiles();
    }
    return failed;
}
