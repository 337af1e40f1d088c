/* What steps of generation do most, in vectors of BYTES bytes, as wide as the registers, TOGETHER of them at a time.
 * Included for each width: NAME tells them apart, TARGET says for which processors they are.
 *
 * Sums stay in registers and in their lanes, and are added up in one order, whatever else is computed. `panels` and `count`
 * of what is inlined are constants there. */

#define EACH (BYTES / 4)     /* lanes of a vector */
#define PARTS (LANES / EACH) /* vectors of a panel */

typedef float NAME(Lanes) __attribute__((vector_size(BYTES)));
typedef uint32_t NAME(Words) __attribute__((vector_size(BYTES)));

/* w: the weights of the first or the second of two inputs, of vector h of a panel. */
INLINE void NAME(widen)(const uint32_t *pair, int h, int second, NAME(Lanes) *w) {
    NAME(Words) words;
    memcpy(&words, pair + h * EACH, sizeof words);
    words = second ? words & 0xffff0000 : words << 16;
    memcpy(w, &words, sizeof words);
}

/* For x (in, count) the sums of `panels` panels, TOGETHER vectors of each; panels * count <= ABREAST.
 * sums: (panels, count, LANES) from those vectors on. */
INLINE void NAME(add_up)(int64_t in, const uint32_t *panel, int panels, const float *x, int count, float *sums) {
    NAME(Lanes) s[ABREAST * TOGETHER], w;
    int64_t each = panel_words(in), i;
#pragma GCC unroll 12
    for (int k = 0; k < panels * count * TOGETHER; k++) s[k] = (NAME(Lanes)){0};
    for (i = 0; i + 2 <= in; i += 2, panel += LANES)
#pragma GCC unroll 4
        for (int p = 0; p < panels; p++)
#pragma GCC unroll 2
            for (int h = 0; h < TOGETHER; h++) {
                NAME(widen)(panel + p * each, h, 0, &w);
#pragma GCC unroll 12
                for (int b = 0; b < count; b++) s[(p * count + b) * TOGETHER + h] += w * x[i * count + b];
                NAME(widen)(panel + p * each, h, 1, &w);
#pragma GCC unroll 12
                for (int b = 0; b < count; b++) s[(p * count + b) * TOGETHER + h] += w * x[(i + 1) * count + b];
            }
#pragma GCC unroll 4
    for (int p = 0; p < panels && i < in; p++)
#pragma GCC unroll 2
        for (int h = 0; h < TOGETHER; h++) {
            NAME(widen)(panel + p * each, h, 0, &w);
#pragma GCC unroll 12
            for (int b = 0; b < count; b++) s[(p * count + b) * TOGETHER + h] += w * x[i * count + b];
        }
#pragma GCC unroll 12
    for (int k = 0; k < panels * count; k++)
        memcpy(sums + k * LANES, &s[k * TOGETHER], TOGETHER * sizeof w);
}

/* `panels` panels from output o on, for x (in, count): see `rows`. */
INLINE void NAME(some_rows)(int64_t o, int64_t last, int64_t in, const uint32_t *matrix, int panels, const float *bias,
                            const float *x, int count, float *y, int64_t stride, int add) {
    float sums[ABREAST * LANES] __attribute__((aligned(64)));
    const uint32_t *panel = matrix + o / LANES * panel_words(in);
    for (int h = 0; h < PARTS; h += TOGETHER)
        NAME(add_up)(in, panel + h * EACH, panels, x, count, sums + h * EACH);
    for (int p = 0; p < panels; p++, o += LANES)
        for (int b = 0; b < count; b++) {
            float *from = sums + (p * count + b) * LANES, *to = y + b * stride + o;
            if (last - o < LANES) give(from, last - o, bias ? bias + o : NULL, to, add);
            else give(from, LANES, bias ? bias + o : NULL, to, add);
        }
}

/* All panels for `count` rows, whose numbers are read one after the other from one place: work (in, count). */
INLINE void NAME(rows_abreast)(int64_t first, int64_t last, int64_t in, const uint32_t *matrix, const float *bias,
                               int count, const float *x, int64_t x_stride, float *y, int64_t y_stride, int add,
                               float *work) {
    for (int64_t i = 0; i < in; i++)
        for (int b = 0; b < count; b++) work[i * count + b] = x[b * x_stride + i];
    for (int64_t o = first; o < last; o += LANES)
        NAME(some_rows)(o, last, in, matrix, 1, bias, work, count, y, y_stride, add);
}

TARGET
static void NAME(rows)(int64_t first, int64_t last, int64_t in, const uint32_t *matrix, const float *bias, int64_t count,
                       const float *x, int64_t x_stride, float *y, int64_t y_stride, int add, float *work) {
    int64_t b = 0;
    for (; b + ABREAST <= count; b += ABREAST)
        NAME(rows_abreast)(first, last, in, matrix, bias, ABREAST, x + b * x_stride, x_stride, y + b * y_stride, y_stride,
                           add, work);
    for (; b + FEW <= count; b += FEW)
        NAME(rows_abreast)(first, last, in, matrix, bias, FEW, x + b * x_stride, x_stride, y + b * y_stride, y_stride, add,
                           work);
    for (; b < count; b++)
        for (int64_t o = first; o < last; o += WIDE * LANES) {
            const float *from = x + b * x_stride;
            float *to = y + b * y_stride;
            if (last - o > (WIDE - 1) * LANES) NAME(some_rows)(o, last, in, matrix, WIDE, bias, from, 1, to, 0, add);
            else
                for (int64_t i = o; i < last; i += LANES) NAME(some_rows)(i, last, in, matrix, 1, bias, from, 1, to, 0, add);
        }
}

/* y[b] = the sum of values over the keys, weighted by weights[key][b], for `count` queries. */
INLINE void NAME(weigh)(int64_t keys, int64_t size, int64_t stride, const float *weights, const float *values,
                        int count, float *y) {
    int64_t c = 0;
    for (; c + EACH <= size; c += EACH) {
        NAME(Lanes) s[ABREAST] = {{0}}, v;
        for (int64_t j = 0; j < keys; j++) {
            memcpy(&v, values + j * size + c, sizeof v);
#pragma GCC unroll 12
            for (int b = 0; b < count; b++) s[b] += v * weights[j * LANES + b];
        }
#pragma GCC unroll 12
        for (int b = 0; b < count; b++) memcpy(y + b * stride + c, &s[b], sizeof v);
    }
    for (; c < size; c++)
        for (int b = 0; b < count; b++) {
            float sum = 0;
            for (int64_t j = 0; j < keys; j++) sum += values[j * size + c] * weights[j * LANES + b];
            y[b * stride + c] = sum;
        }
}

/* The scores of `count` keys for LANES queries: (count, LANES). queries: (size, LANES) */
INLINE void NAME(score)(int64_t size, const float *queries, const float *keys, int count, float *scores) {
    for (int h = 0; h < PARTS; h++) {
        NAME(Lanes) s[ABREAST] = {{0}}, q;
        for (int64_t i = 0; i < size; i++) {
            memcpy(&q, queries + i * LANES + h * EACH, sizeof q);
#pragma GCC unroll 12
            for (int b = 0; b < count; b++) s[b] += q * keys[b * size + i];
        }
#pragma GCC unroll 12
        for (int b = 0; b < count; b++) memcpy(scores + b * LANES + h * EACH, &s[b], sizeof q);
    }
}

/* Attention of a head, for `count` queries one after the other, at most LANES, a lane each: the first sees `before` keys
 * and its own. q, y: rows `stride` apart. work: (before + count + size, LANES). */
TARGET
static void NAME(attend_together)(int64_t count, int64_t before, int64_t size, int64_t stride, const float *q,
                                  const float *keys, const float *values, float *y, float *work) {
    float scale = 1 / sqrtf((float)size), top[LANES], total[LANES] = {0};
    int64_t seen = before + count, j = 0;
    float *queries = work + seen * LANES;
    for (int64_t i = 0; i < size; i++)
        for (int64_t l = 0; l < LANES; l++) queries[i * LANES + l] = l < count ? scale * q[l * stride + i] : 0;
    for (; j + ABREAST <= seen; j += ABREAST) NAME(score)(size, queries, keys + j * size, ABREAST, work + j * LANES);
    for (; j < seen; j++) NAME(score)(size, queries, keys + j * size, 1, work + j * LANES);
    for (j = before + 1; j < seen; j++)
        for (int64_t l = 0; l < j - before; l++) work[j * LANES + l] = -INFINITY;
    for (int l = 0; l < LANES; l++) top[l] = work[l];
    for (j = 1; j < seen; j++)
        for (int l = 0; l < LANES; l++) top[l] = work[j * LANES + l] > top[l] ? work[j * LANES + l] : top[l];
    for (j = 0; j < seen; j++)
        for (int l = 0; l < LANES; l++) {
            float weight = exponential(work[j * LANES + l] - top[l]);
            work[j * LANES + l] = j <= before + l ? weight : 0;
            total[l] += work[j * LANES + l];
        }
    for (int64_t b = 0; b < count;) {
        float *to = y + b * stride;
        if (b + ABREAST <= count) {
            NAME(weigh)(before + b + ABREAST, size, stride, work + b, values, ABREAST, to);
            b += ABREAST;
        } else {
            NAME(weigh)(before + b + 1, size, stride, work + b, values, 1, to);
            b++;
        }
    }
    for (int64_t b = 0; b < count; b++)
        for (int64_t i = 0; i < size; i++) y[b * stride + i] /= total[b];
}

#undef EACH
#undef PARTS
#undef BYTES
#undef ABREAST
#undef TOGETHER
#undef NAME
#undef TARGET
