/* Fused recurrences of the i3 layer, float32. The definition is in model/ops_i3.py, the derivation in
 * docs/math.md. Rows are time steps; the inner loops run over contiguous channels and vectorise.
 *
 * OpenMP calls stay undefined here on purpose: the loader brings in the runtime that torch uses, so
 * that one thread pool serves both. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

#define BLOCK 128 /* channels that one thread carries through time: 512 bytes of each row */
#define MAX_STATE 256

/* h_t = w h_{t-1} + (1 - w) x_t;  out_t = scale * h_t.  `h` holds the carry, width <= BLOCK. */
CLONES
static void ema_block(int64_t steps, int64_t stride, int64_t width, const float *restrict x,
                      const float *restrict w, const float *restrict scale, float *restrict h,
                      float *restrict out) {
    for (int64_t t = 0; t < steps; t++) {
        const float *row = x + t * stride;
        float *to = out + t * stride;
        for (int64_t c = 0; c < width; c++) {
            h[c] = w[c] * (h[c] - row[c]) + row[c];
            to[c] = scale[c] * h[c];
        }
    }
}

/* The adjoint, last step first. `path` is scratch for steps + 1 rows of `width` values of h. */
CLONES
static void ema_block_backward(int64_t steps, int64_t stride, int64_t width,
                               const float *restrict grad, const float *restrict x,
                               const float *restrict w, const float *restrict scale,
                               float *restrict path, float *restrict lambda,
                               float *restrict grad_x, float *restrict grad_w,
                               float *restrict grad_scale) {
    for (int64_t t = 0; t < steps; t++) {
        const float *row = x + t * stride, *before = path + t * width;
        float *after = path + (t + 1) * width;
        for (int64_t c = 0; c < width; c++) after[c] = w[c] * (before[c] - row[c]) + row[c];
    }
    for (int64_t t = steps - 1; t >= 0; t--) {
        const float *row = x + t * stride, *g = grad + t * stride;
        const float *before = path + t * width, *now = path + (t + 1) * width;
        float *to = grad_x + t * stride;
        for (int64_t c = 0; c < width; c++) {
            float adjoint = scale[c] * g[c] + lambda[c];
            grad_scale[c] += g[c] * now[c];
            grad_w[c] += adjoint * (before[c] - row[c]);
            to[c] = adjoint - w[c] * adjoint;
            lambda[c] = w[c] * adjoint;
        }
    }
}

/* x, out: (batch, steps, channels); w, scale: (channels); carry: (batch, channels), read and written. */
void i3_ema_forward(int64_t batch, int64_t steps, int64_t channels, const float *x, const float *w,
                    const float *scale, float *carry, float *out) {
    int64_t blocks = (channels + BLOCK - 1) / BLOCK;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t k = 0; k < blocks; k++) {
            int64_t c = k * BLOCK, width = channels - c < BLOCK ? channels - c : BLOCK;
            int64_t at = b * steps * channels + c;
            ema_block(steps, channels, width, x + at, w + c, scale + c, carry + b * channels + c,
                      out + at);
        }
}

/* carry: h before the first step; lambda: the gradient that reaches the last h, on return the one of
 * the first carry. grad_w, grad_scale: (batch, channels), zeroed by the caller.
 * Returns 0, or 1 when scratch memory is not to be had. */
int i3_ema_backward(int64_t batch, int64_t steps, int64_t channels, const float *grad,
                    const float *x, const float *w, const float *scale, const float *carry,
                    float *lambda, float *grad_x, float *grad_w, float *grad_scale) {
    int64_t blocks = (channels + BLOCK - 1) / BLOCK;
    int failed = 0;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t k = 0; k < blocks; k++) {
            int64_t c = k * BLOCK, width = channels - c < BLOCK ? channels - c : BLOCK;
            int64_t at = b * steps * channels + c, row = b * channels + c;
            float *path = malloc((size_t)(steps + 1) * width * sizeof(float));
            if (!path) {
#pragma omp atomic write
                failed = 1;
                continue;
            }
            memcpy(path, carry + row, width * sizeof(float));
            ema_block_backward(steps, channels, width, grad + at, x + at, w + c, scale + c, path,
                               lambda + row, grad_x + at, grad_w + row, grad_scale + row);
            free(path);
        }
    return failed;
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
                  float *state, float *out, int reverse) {
    if (n > MAX_STATE) return 1;
    if (steps == 0) return 0;
    int64_t first = reverse ? (steps - 1) * n : 0, by = reverse ? -n : n;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < batch; b++)
        state_block(steps, by, n, columns, u + b * steps * n + first, state + b * n,
                    out + b * steps * n + first);
    return 0;
}
