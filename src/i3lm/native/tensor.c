/* Compiled passes of the i3 layer. Products stay with torch; what stands between them is here and in layer.h.
 * The definitions are in model/ops_i3.py, the derivations in docs/math.md. Rows are time steps; the inner loops run over
 * contiguous channels and vectorise.
 *
 * OpenMP calls stay undefined here on purpose: the loader brings in the runtime that torch uses, so
 * that one thread pool serves both. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "normal.h"
#include "numbers.h"
#include "passes.h"

#define LOW float
#define LOAD load_f32
#define STORE store_f32
#define NAME(name) name##_f32
#include "layer.h"
#undef LOW
#undef LOAD
#undef STORE
#undef NAME

#define LOW uint16_t
#define LOAD load_bf16
#define STORE store_bf16
#define NAME(name) name##_bf16
#include "layer.h"

CLONES
void narrow(int64_t count, const float *restrict x, uint16_t *restrict y) {
    for (int64_t i = 0; i < count; i++) y[i] = store_bf16(x[i]);
}

/* Tensors to bfloat16, one after the other in y. */
int i3_narrow(int64_t tensors, const float *const *x, const int64_t *counts, uint16_t *y) {
    for (int64_t k = 0; k < tensors; y += counts[k], k++) {
        const float *from = x[k];
        uint16_t *to = y;
        int64_t count = counts[k], chunk = 8192, chunks = (count + chunk - 1) / chunk;
#pragma omp parallel for schedule(static) if (chunks > 3)
        for (int64_t i = 0; i < chunks; i++)
            narrow(count - i * chunk < chunk ? count - i * chunk : chunk, from + i * chunk, to + i * chunk);
    }
    return 0;
}

/* s_t = M s_{t-1} + u_t, with `columns` = M by columns: columns[j * n + i] = M[i][j]. `by` = +-n. */
CLONES
static void state_block(int64_t steps, int64_t by, int64_t n, const float *restrict columns,
                        const float *restrict u, float *restrict state, float *restrict out) {
    float next[MAX_STATE];
    for (int64_t t = 0; t < steps; t++) {
        const float *row = u + t * by;
        float *to = out + t * by;
        for (int64_t i = 0; i < n; i++) next[i] = row[i];
        for (int64_t j = 0; j < n; j++) {
            const float *column = columns + j * n;
            float value = state[j];
            for (int64_t i = 0; i < n; i++) next[i] += column[i] * value;
        }
        for (int64_t i = 0; i < n; i++) state[i] = to[i] = next[i];
    }
}

/* u, out: (batch, steps, n); state: (batch, n), read and written. reverse: from the last step to the
 * first. Returns 1 when n is larger than the kernel's buffers. */
int i3_state_scan(int64_t batch, int64_t steps, int64_t n, const float *columns, const float *u,
                  float *state, float *out, int64_t reverse) {
    if (n > MAX_STATE) return 1;
    if (steps == 0) return 0;
    int64_t first = reverse ? (steps - 1) * n : 0, by = reverse ? -n : n;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < batch; b++)
        state_block(steps, by, n, columns, u + b * steps * n + first, state + b * n,
                    out + b * steps * n + first);
    return 0;
}

/* c = a b, all (n, n). */
CLONES
static void multiply_double(int64_t n, const double *restrict a, const double *restrict b, double *restrict c) {
    memset(c, 0, n * n * sizeof(double));
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < n; k++)
            for (int64_t j = 0; j < n; j++) c[i * n + j] += a[i * n + k] * b[k * n + j];
}

static double norm_of(int64_t count, const double *x) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += x[i] * x[i];
    return sqrt(sum);
}

static int transition_scale(int64_t n, const float *A, float *scale) {
    double *power = malloc(2 * n * n * sizeof(double)), *square = power + n * n, *swap;
    if (!power) return 1;
    void *room = power;
    for (int64_t i = 0; i < n * n; i++) power[i] = A[i];
    double norm = fmax(norm_of(n * n, power), 1e-12);
    for (int64_t i = 0; i < n * n; i++) power[i] /= norm;
    for (int round = 0; round < 6; round++) {
        multiply_double(n, power, power, square);
        swap = power, power = square, square = swap;
    }
    double bound = norm * pow(norm_of(n * n, power), 1.0 / 64);
    *scale = (float)(1 / (bound > 1 || isnan(bound) ? bound : 1));
    free(room);
    return 0;
}

/* The factors of `stable_transition` in model/ops_i3.py, for each A (n, n) of (count, n, n). Returns 1 when there is no
 * memory. */
int i3_transition_scale(int64_t count, int64_t n, const float *A, float *scale) {
    int failed = 0;
#pragma omp parallel for schedule(static) reduction(| : failed)
    for (int64_t i = 0; i < count; i++) failed |= transition_scale(n, A + i * n * n, scale + i);
    return failed;
}

/* ---- dropout ---------------------------------------------------------------------------------------------------- */

/* The final mix of MurmurHash3: every bit of the result depends on every bit of h. */
static inline uint32_t scrambled(uint32_t h) {
    h = (h ^ (h >> 16)) * 0x85ebca6bu;
    h = (h ^ (h >> 13)) * 0xc2b2ae35u;
    return h ^ (h >> 16);
}

/* What a number is multiplied by: 0 for the share least / 2^32 of them, `scale` else. */
static inline float kept(uint32_t i, const int64_t *keys, uint32_t least, float scale) {
    return (scrambled(i * 0x9e3779b1u + (uint32_t)keys[0]) ^ (uint32_t)keys[1]) >= least ? scale : 0;
}

/* `out` may be y, and `grad_y` may be grad: nothing of another place is read. */
CLONES
static void drop_rows(int64_t first, int64_t last, const int64_t *restrict keys, uint32_t least, float scale,
                      const float *x, const float *y, float *out) {
#pragma omp simd
    for (int64_t i = first; i < last; i++) out[i] = x[i] + kept(i, keys, least, scale) * (y[i] - x[i]);
}

CLONES
static void drop_rows_backward(int64_t first, int64_t last, const int64_t *restrict keys, uint32_t least, float scale,
                               const float *grad, float *grad_x, float *grad_y) {
#pragma omp simd
    for (int64_t i = first; i < last; i++) {
        float whole = grad[i], part = kept(i, keys, least, scale) * whole;
        grad_y[i] = part;
        grad_x[i] = whole - part;
    }
}

#define DROP_CHUNK 8192
#define FOR_CHUNKS(call)                                                                                               \
    int64_t chunks = (count + DROP_CHUNK - 1) / DROP_CHUNK;                                                            \
    _Pragma("omp parallel for collapse(2) schedule(static)")                                                           \
    for (int64_t b = 0; b < batch; b++)                                                                                \
        for (int64_t k = 0; k < chunks; k++) {                                                                         \
            int64_t at = b * count, end = (k + 1) * DROP_CHUNK < count ? (k + 1) * DROP_CHUNK : count;                 \
            call;                                                                                                      \
        }                                                                                                              \
    return 0

/* out = x + m (y - x), all (batch, count), m = 0 for the share least / 2^32 of the numbers and `scale` for the others.
 * keys: (batch, 2), each below 2^32. */
int i3_dropout(int64_t batch, int64_t count, int64_t least, float scale, const int64_t *keys, const float *x,
               const float *y, float *out) {
    FOR_CHUNKS(drop_rows(k * DROP_CHUNK, end, keys + 2 * b, least, scale, x + at, y + at, out + at));
}

int i3_dropout_backward(int64_t batch, int64_t count, int64_t least, float scale, const int64_t *keys,
                        const float *grad, float *grad_x, float *grad_y) {
    FOR_CHUNKS(drop_rows_backward(k * DROP_CHUNK, end, keys + 2 * b, least, scale, grad + at, grad_x + at, grad_y + at));
}

/* table[rows[i]] += x[i] for x (count, width), in the order of i, whatever the threads: each has columns of its own. */
int i3_add_rows(int64_t count, int64_t width, const int64_t *rows, const float *x, float *table) {
    int64_t columns = 64, parts = (width + columns - 1) / columns;
#pragma omp parallel for schedule(static)
    for (int64_t part = 0; part < parts; part++) {
        int64_t begin = part * columns, left = width - begin, size = left < columns ? left : columns;
        for (int64_t i = 0; i < count; i++) {
            float *to = table + rows[i] * width + begin;
            const float *from = x + i * width + begin;
            for (int64_t j = 0; j < size; j++) to[j] += from[j];
        }
    }
    return 0;
}
