/* The passes of an i3 layer between its matrix products. Included once for each type of the products' operands:
 * LOW is that type, LOAD and STORE convert it from and to float, NAME adds the type's name.
 *
 * Sums over rows go chunk by chunk (ROWS rows each) into `partial`, which the caller adds up in order: the result
 * does not depend on the number of threads. */

/* ---- LayerNorm -------------------------------------------------------------------------------------------------- */

/* y = x + add + shift (add may be NULL; then y may be too; y may be x), n = LayerNorm(y), hat (or NULL) the same before
 * gain and bias; stats: mean and 1 / deviation of each row. */
CLONES
void NAME(norm_rows)(int64_t rows, int64_t dim, const float *x, const LOW *restrict add,
                            const float *restrict shift, float *y, const float *restrict gain,
                            const float *restrict bias, float eps,
                            LOW *restrict n, LOW *restrict hat, float *restrict stats) {
    for (int64_t r = 0; r < rows; r++) {
        const float *row = x + r * dim;
        float sum = 0, square = 0;
        ask_for(row + dim, dim * sizeof(float));
        if (add) {
#pragma omp simd
            for (int64_t c = 0; c < dim; c++) y[r * dim + c] = row[c] + LOAD(add[r * dim + c]) + shift[c];
            row = y + r * dim;
        }
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < dim; c++) sum += row[c];
        float mean = sum / dim;
#pragma omp simd reduction(+ : square)
        for (int64_t c = 0; c < dim; c++) square += (row[c] - mean) * (row[c] - mean);
        float inverse = 1 / sqrtf(square / dim + eps);
        LOW *to = n + r * dim;
        if (hat)
            for (int64_t c = 0; c < dim; c++) hat[r * dim + c] = STORE((row[c] - mean) * inverse);
        for (int64_t c = 0; c < dim; c++) to[c] = STORE((row[c] - mean) * inverse * gain[c] + bias[c]);
        stats[2 * r] = mean;
        stats[2 * r + 1] = inverse;
    }
}

int NAME(i3_norm_forward)(int64_t rows, int64_t dim, const float *x, const LOW *add, const float *shift, float *y,
                          const float *gain, const float *bias, float eps, LOW *n, float *stats) {
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < CHUNKS(rows); k++) {
        int64_t at = k * ROWS * dim;
        NAME(norm_rows)(CHUNK_ROWS(rows, k), dim, x + at, add ? add + at : NULL, shift, y ? y + at : NULL, gain, bias,
                        eps, n + at, NULL, stats + 2 * k * ROWS);
    }
    return 0;
}

/* dx = dy + (the gradient of x through LayerNorm), from the gradient dn (+ more, which may be NULL). Of x or
 * `hat`, which is x normalised, one is given. Also dx in LOW, n = LayerNorm(x) unless NULL (of `hat`, and so rounded
 * twice), and for each chunk the sums of d gain, d bias and dx (partial: chunks, 3, dim). */
CLONES
void NAME(norm_rows_backward)(int64_t rows, int64_t dim, const float *restrict x, const LOW *restrict hat,
                                     const float *restrict stats, const float *restrict gain,
                                     const float *restrict bias, const LOW *restrict dn, const LOW *restrict more,
                                     const float *restrict dy, float *restrict dx, LOW *restrict dx_low,
                                     LOW *restrict n, float *restrict partial) {
    float *d_gain = partial, *d_bias = partial + dim, *sum_dx = partial + 2 * dim, hats[dim];
    memset(partial, 0, 3 * dim * sizeof(float));
    for (int64_t r = 0; r < rows; r++) {
        const float mean = stats[2 * r], inverse = stats[2 * r + 1];
        float *to = dx + r * dim, sum = 0, dot = 0;
        ask_for(dy + (r + 1) * dim, dim * sizeof(float));
        if (hat) {
            ask_for(hat + (r + 1) * dim, dim * sizeof(LOW));
            for (int64_t c = 0; c < dim; c++) hats[c] = LOAD(hat[r * dim + c]);
        } else {
            ask_for(x + (r + 1) * dim, dim * sizeof(float));
            for (int64_t c = 0; c < dim; c++) hats[c] = (x[r * dim + c] - mean) * inverse;
        }
        if (more)
            for (int64_t c = 0; c < dim; c++) to[c] = LOAD(dn[r * dim + c]) + LOAD(more[r * dim + c]);
        else
            for (int64_t c = 0; c < dim; c++) to[c] = LOAD(dn[r * dim + c]);
#pragma omp simd reduction(+ : sum, dot)
        for (int64_t c = 0; c < dim; c++) {
            float g = to[c];
            d_gain[c] += g * hats[c];
            d_bias[c] += g;
            sum += g * gain[c];
            dot += g * gain[c] * hats[c];
        }
        if (n)
            for (int64_t c = 0; c < dim; c++) n[r * dim + c] = STORE(hats[c] * gain[c] + bias[c]);
        sum /= dim;
        dot /= dim;
        for (int64_t c = 0; c < dim; c++) {
            float d = dy[r * dim + c] + inverse * (to[c] * gain[c] - sum - hats[c] * dot);
            to[c] = d;
            dx_low[r * dim + c] = STORE(d);
            sum_dx[c] += d;
        }
    }
}

int NAME(i3_norm_backward)(int64_t rows, int64_t dim, const float *x, const float *stats, const float *gain,
                            const float *bias, const LOW *dn, const LOW *more, const float *dy, float *dx,
                            LOW *dx_low, LOW *n, float *partial) {
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < CHUNKS(rows); k++) {
        int64_t at = k * ROWS * dim;
        NAME(norm_rows_backward)(CHUNK_ROWS(rows, k), dim, x + at, NULL, stats + 2 * k * ROWS, gain, bias, dn + at,
                                 more ? more + at : NULL, dy + at, dx + at, dx_low + at,
                                 n ? n + at : NULL, partial + 3 * k * dim);
    }
    return 0;
}

/* ---- residual and column sums ------------------------------------------------------------------------------------------------ */

CLONES
void NAME(add_row)(int64_t count, const float *restrict x, const LOW *restrict add,
                          const float *restrict shift, float *restrict y) {
    for (int64_t c = 0; c < count; c++) y[c] = x[c] + LOAD(add[c]) + shift[c];
}

/* y = x + add + shift */
int NAME(i3_add)(int64_t rows, int64_t dim, const float *x, const LOW *add, const float *shift, float *y) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) NAME(add_row)(dim, x + r * dim, add + r * dim, shift, y + r * dim);
    return 0;
}

CLONES
void NAME(sum_rows)(int64_t rows, int64_t dim, const LOW *restrict x, float *restrict sum) {
    memset(sum, 0, dim * sizeof(float));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < dim; c++) sum[c] += LOAD(x[r * dim + c]);
}

/* partial: (chunks, dim) */
int NAME(i3_column_sums)(int64_t rows, int64_t dim, const LOW *x, float *partial) {
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < CHUNKS(rows); k++)
        NAME(sum_rows)(CHUNK_ROWS(rows, k), dim, x + k * ROWS * dim, partial + k * dim);
    return 0;
}

/* ---- GELU ------------------------------------------------------------------------------------------------------- */

CLONES
static void NAME(gelu_row)(int64_t count, const LOW *restrict x, const float *restrict shift, LOW *restrict y) {
    for (int64_t c = 0; c < count; c++) {
        float v = LOAD(x[c]) + shift[c], density;
        y[c] = STORE(v * normal(v, &density));
    }
}

/* y = gelu(x + shift) */
int NAME(i3_gelu_forward)(int64_t rows, int64_t dim, const LOW *x, const float *shift, LOW *y) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) NAME(gelu_row)(dim, x + r * dim, shift, y + r * dim);
    return 0;
}

/* Replaces dy by dx; y = gelu(x + shift) once more. partial: (chunks, dim), sums of dx. */
CLONES
static void NAME(gelu_rows_backward)(int64_t rows, int64_t dim, const LOW *restrict x, const float *restrict shift,
                                     LOW *restrict y, LOW *restrict dy, float *restrict partial) {
    memset(partial, 0, dim * sizeof(float));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < dim; c++) {
            int64_t i = r * dim + c;
            float v = LOAD(x[i]) + shift[c], density, below = normal(v, &density);
            float d = LOAD(dy[i]) * (below + v * density);
            partial[c] += d;
            dy[i] = STORE(d);
            y[i] = STORE(v * below);
        }
}

int NAME(i3_gelu_backward)(int64_t rows, int64_t dim, const LOW *x, const float *shift, LOW *y, LOW *dy,
                           float *partial) {
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < CHUNKS(rows); k++) {
        int64_t at = k * ROWS * dim;
        NAME(gelu_rows_backward)(CHUNK_ROWS(rows, k), dim, x + at, shift, y + at, dy + at, partial + k * dim);
    }
    return 0;
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

/* Replaces scores by softmax(scale * scores) over the first `seen` keys, 0 elsewhere. With dp, the gradient of the
 * probabilities, that is replaced by the gradient of the scores. work: `keys` floats. */
CLONES
static void NAME(softmax_row)(int64_t seen, int64_t keys, float scale, LOW *restrict scores, LOW *restrict dp,
                              float *restrict work) {
    float top = -INFINITY, sum = 0, dot = 0;
#pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < seen; j++) {
        work[j] = scale * LOAD(scores[j]);
        top = work[j] > top ? work[j] : top;
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < seen; j++) {
        work[j] = exponential(work[j] - top);
        sum += work[j];
    }
    sum = 1 / sum;
    if (dp) {
#pragma omp simd reduction(+ : dot)
        for (int64_t j = 0; j < seen; j++) {
            work[j] *= sum;
            scores[j] = STORE(work[j]);
            dot += work[j] * LOAD(dp[j]);
        }
        for (int64_t j = 0; j < seen; j++) dp[j] = STORE(scale * work[j] * (LOAD(dp[j]) - dot));
        for (int64_t j = seen; j < keys; j++) dp[j] = STORE(0);
    } else {
        for (int64_t j = 0; j < seen; j++) scores[j] = STORE(work[j] * sum);
    }
    for (int64_t j = seen; j < keys; j++) scores[j] = STORE(0);
}

/* scores, dp: (heads, rows, keys); row r sees the first `first + r + 1` keys. dp may be NULL.
 * Returns 1 when scratch memory is not to be had. */
int NAME(i3_softmax)(int64_t heads, int64_t rows, int64_t keys, int64_t first, float scale, LOW *scores, LOW *dp) {
    int failed = 0;
#pragma omp parallel for schedule(static)
    for (int64_t h = 0; h < heads; h++) {
        float *work = malloc(keys * sizeof(float));
        if (!work) {
#pragma omp atomic write
            failed = 1;
            continue;
        }
        for (int64_t r = 0; r < rows; r++) {
            int64_t at = (h * rows + r) * keys, seen = first + r + 1 < keys ? first + r + 1 : keys;
            NAME(softmax_row)(seen, keys, scale, scores + at, dp ? dp + at : NULL, work);
        }
        free(work);
    }
    return failed;
}

/* ---- time mixing ------------------------------------------------------------------------------------------------ */

/* h_t = w h_{t-1} + (1 - w) x_t;  out_t = residual_t + scale * h_t.  `h` holds the carry. residual may be NULL. */
CLONES
static void NAME(ema_block)(int64_t steps, int64_t stride, int64_t width, const LOW *restrict x,
                            const float *restrict w, const float *restrict scale, const float *restrict residual,
                            float *restrict h, float *restrict out) {
    for (int64_t t = 0; t < steps; t++) {
        const LOW *row = x + t * stride;
        float *to = out + t * stride;
        for (int64_t c = 0; c < width; c++) {
            float v = LOAD(row[c]);
            h[c] = w[c] * (h[c] - v) + v;
            to[c] = scale[c] * h[c];
        }
        if (residual)
            for (int64_t c = 0; c < width; c++) to[c] += residual[t * stride + c];
    }
}

/* The adjoint, last step first. `path` is scratch for steps + 1 rows of `width` values of h. */
CLONES
static void NAME(ema_block_backward)(int64_t steps, int64_t stride, int64_t width, const float *restrict grad,
                                     const LOW *restrict x, const float *restrict w, const float *restrict scale,
                                     float *restrict path, float *restrict lambda, LOW *restrict grad_x,
                                     float *restrict grad_w, float *restrict grad_scale) {
    for (int64_t t = 0; t < steps; t++) {
        const LOW *row = x + t * stride;
        const float *before = path + t * width;
        float *after = path + (t + 1) * width;
        for (int64_t c = 0; c < width; c++) {
            float v = LOAD(row[c]);
            after[c] = w[c] * (before[c] - v) + v;
        }
    }
    for (int64_t t = steps - 1; t >= 0; t--) {
        const LOW *row = x + t * stride;
        const float *g = grad + t * stride, *before = path + t * width, *now = path + (t + 1) * width;
        LOW *to = grad_x + t * stride;
        for (int64_t c = 0; c < width; c++) {
            float adjoint = scale[c] * g[c] + lambda[c];
            grad_scale[c] += g[c] * now[c];
            grad_w[c] += adjoint * (before[c] - LOAD(row[c]));
            to[c] = STORE(adjoint - w[c] * adjoint);
            lambda[c] = w[c] * adjoint;
        }
    }
}

/* x (LOW), residual, out: (batch, steps, channels); w, scale: (channels); carry: (batch, channels), read and
 * written. */
int NAME(i3_ema_forward)(int64_t batch, int64_t steps, int64_t channels, const LOW *x, const float *w,
                          const float *scale, const float *residual, float *carry, float *out) {
    int64_t blocks = (channels + BLOCK - 1) / BLOCK;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t k = 0; k < blocks; k++) {
            int64_t c = k * BLOCK, width = channels - c < BLOCK ? channels - c : BLOCK;
            int64_t at = b * steps * channels + c;
            NAME(ema_block)(steps, channels, width, x + at, w + c, scale + c, residual ? residual + at : NULL,
                            carry + b * channels + c, out + at);
        }
    return 0;
}

/* carry: h before the first step; lambda: the gradient that reaches the last h, on return the one of the first
 * carry. grad_w, grad_scale: (batch, channels), zeroed by the caller.
 * Returns 0, or 1 when scratch memory is not to be had. */
int NAME(i3_ema_backward)(int64_t batch, int64_t steps, int64_t channels, const float *grad, const LOW *x,
                          const float *w, const float *scale, const float *carry, float *lambda, LOW *grad_x,
                          float *grad_w, float *grad_scale) {
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
            NAME(ema_block_backward)(steps, channels, width, grad + at, x + at, w + c, scale + c, path,
                                     lambda + row, grad_x + at, grad_w + row, grad_scale + row);
            free(path);
        }
    return failed;
}

/* ---- cross-entropy ---------------------------------------------------------------------------------------------- */

/* Adds up the losses (nats) of rows of logits + bias; with `bias_grad`, replaces the logits by their gradient and
 * adds its column sums there. work: `classes` floats. */
CLONES
double NAME(loss_rows)(int64_t rows, int64_t classes, LOW *restrict logits, const float *restrict bias,
                              const int64_t *restrict targets, float *restrict bias_grad, float *restrict work) {
    double total = 0;
    for (int64_t r = 0; r < rows; r++) {
        LOW *row = logits + r * classes;
        float top = -INFINITY, sum = 0;
#pragma omp simd reduction(max : top)
        for (int64_t c = 0; c < classes; c++) {
            work[c] = LOAD(row[c]) + bias[c];
            top = work[c] > top ? work[c] : top;
        }
        float wanted = work[targets[r]] - top;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < classes; c++) {
            work[c] = exponential(work[c] - top);
            sum += work[c];
        }
        total += logf(sum) - wanted;
        if (!bias_grad) continue;
        float inverse = 1 / sum;
        for (int64_t c = 0; c < classes; c++) work[c] *= inverse;
        work[targets[r]] -= 1;
        for (int64_t c = 0; c < classes; c++) {
            row[c] = STORE(work[c]);
            bias_grad[c] += work[c];
        }
    }
    return total;
}

/* losses: (chunks); bias_grad: (chunks, classes) of zeros, or NULL. Returns 1 when memory is not to be had. */
int NAME(i3_cross_entropy)(int64_t rows, int64_t classes, LOW *logits, const float *bias, const int64_t *targets,
                           double *losses, float *bias_grad) {
    int failed = 0;
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < CHUNKS(rows); k++) {
        float *work = malloc(classes * sizeof(float));
        if (!work) {
#pragma omp atomic write
            failed = 1;
            continue;
        }
        losses[k] = NAME(loss_rows)(CHUNK_ROWS(rows, k), classes, logits + k * ROWS * classes, bias,
                                    targets + k * ROWS, bias_grad ? bias_grad + k * classes : NULL, work);
        free(work);
    }
    return failed;
}
