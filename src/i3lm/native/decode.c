/* The next positions of i3 for a few streams at once, float32: those of a prompt, and the one that generation repeats for
 * each token. All layers run in one parallel region, so that a step is a single call. The large matrices are read in
 * bfloat16: a step is as fast as they come from memory. The definition is in model/layers_i3.py. */

#include <math.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "normal.h"
#include "numbers.h"
#include "rows.h"

/* The tensors of a layer as model/fused.py orders its `Parts`, then the stream's states. */
enum {
    GAIN1, SHIFT1, W, A, B, C, D, GAIN2, SHIFT2, DOWN, DOWN_BIAS, Q_UP, Q_BIAS, K_UP, K_BIAS, V_UP, V_BIAS, OUT,
    OUT_BIAS, GAIN3, SHIFT3, UP_A, UP_B, UP_BIAS, DOWN_A, DOWN_B, FFN_BIAS, H, S, KEYS, VALUES, LAYER_TENSORS
};
enum { TOKENS, POSITIONS, NORM_GAIN, NORM_SHIFT, HEAD_A, HEAD_B, HEAD_BIAS, NETWORK_TENSORS };

typedef struct {
    int64_t streams, steps, rows; /* rows: of all streams, a stream's steps one after the other */
    int64_t layers, width, heads, rank, states, inner, classes, capacity, position;
} Sizes;

/* u_t <- u_t + A s_(t-1) for (steps, n), s_t being u_t: in float32, since states go through A again and again. */
CLONES
static void advance(int64_t n, const float *restrict a, int64_t steps, const float *s, float *u) {
    for (int64_t t = 0; t < steps; s = u, u += n, t++)
        for (int64_t o = 0; o < n; o++) {
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < n; i++) sum += a[o * n + i] * s[i];
            u[o] += sum;
        }
}

CLONES
static void norm(int64_t streams, int64_t width, const float *restrict x, const float *restrict gain,
                 const float *restrict shift, float eps, float *restrict n) {
    for (int64_t b = 0; b < streams; b++, x += width, n += width) {
        float sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < width; c++) sum += x[c];
        float mean = sum / width;
#pragma omp simd reduction(+ : square)
        for (int64_t c = 0; c < width; c++) square += (x[c] - mean) * (x[c] - mean);
        float inverse = 1 / sqrtf(square / width + eps);
        for (int64_t c = 0; c < width; c++) n[c] = (x[c] - mean) * inverse * gain[c] + shift[c];
    }
}

/* h <- w h + (1 - w) n; x <- x + D h, for the channels first <= c < last. */
CLONES
static void mix(int64_t first, int64_t last, const float *restrict n, const float *restrict w,
                const float *restrict d, float *restrict h, float *restrict x) {
    for (int64_t c = first; c < last; c++) {
        h[c] = w[c] * (h[c] - n[c]) + n[c];
        x[c] += d[c] * h[c];
    }
}

/* One query against `seen` keys and values of a head, all rows of `size`. work: `seen` floats. */
CLONES
static void attend(int64_t seen, int64_t size, const float *restrict q, const float *restrict keys,
                   const float *restrict values, float *restrict y, float *restrict work) {
    float scale = 1 / sqrtf((float)size), top = -INFINITY, total = 0;
    for (int64_t j = 0; j < seen; j++) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < size; i++) sum += q[i] * keys[j * size + i];
        work[j] = scale * sum;
        top = work[j] > top ? work[j] : top;
    }
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < seen; j++) {
        work[j] = exponential(work[j] - top);
        total += work[j];
    }
    memset(y, 0, size * sizeof(float));
    for (int64_t j = 0; j < seen; j++)
        for (int64_t i = 0; i < size; i++) y[i] += work[j] / total * values[j * size + i];
}

CLONES
static void gelu(int64_t count, float *restrict x) {
    float density;
    for (int64_t c = 0; c < count; c++) x[c] *= normal(x[c], &density);
}

typedef struct {
    float *x, *middle, *q, *y, *low, *inner, *hidden, *n; /* shared by the threads */
} Room;

static inline int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }

/* A thread's share of `count` outputs. It begins at a whole panel, so that any number of threads adds them up alike. */
static inline int64_t share(int64_t count, int64_t thread, int64_t threads) {
    return thread == threads ? count : (count / LANES * thread + threads - 1) / threads * LANES;
}

#define PART(count) int64_t first = share(count, thread, threads), last = share(count, thread + 1, threads)
#define WAIT _Pragma("omp barrier")

/* Return the norm of x. Of single steps each thread makes its own, which takes less than to wait for the others. */
static const float *normed(const Sizes *z, const Room *r, const float *gain, const float *shift, float eps, float *own,
                           int64_t thread, int64_t threads) {
    if (z->steps == 1) {
        norm(z->rows, z->width, r->x, gain, shift, eps, own);
        return own;
    }
    int64_t first = z->rows * thread / threads, last = z->rows * (thread + 1) / threads;
    norm(last - first, z->width, r->x + first * z->width, gain, shift, eps, r->n + first * z->width);
    WAIT
    return r->n;
}

/* A stream's head: remember the new keys and values, then let each new query see what came before it, and itself.
 * q, k, v: a row for each step. The results take the place of k. */
static void attend_head(const Sizes *z, const float *q, float *k, const float *v, float *keys, float *values,
                        float *work) {
    int64_t at = z->position, width = z->width, size = width / z->heads;
    for (int64_t s = 0; s < z->steps; s++) {
        memcpy(keys + (at + s) * size, k + s * width, size * sizeof(float));
        memcpy(values + (at + s) * size, v + s * width, size * sizeof(float));
    }
    int64_t s = 0;
#if defined(__GNUC__)
    for (int64_t count; z->steps > 1 && s < z->steps; s += count) {
        count = z->steps - s < LANES ? z->steps - s : LANES;
        CHOSEN(attend_together, count, at + s, size, width, q + s * width, keys, values, k + s * width, work);
    }
#endif
    for (; s < z->steps; s++) attend(at + s + 1, size, q + s * width, keys, values, k + s * width, work);
}

/* A layer, by one of the threads. own, state, work: its own room, (streams, width), (rows, states) and see i3_decode. */
static void layer(const Sizes *z, float *const *t, const Room *r, float eps, float *own, float *state, float *work,
                  int64_t thread, int64_t threads) {
    int64_t b, s, width = z->width, rank = z->rank, steps = z->steps, size = width / z->heads;
    const float *n = normed(z, r, t[GAIN1], t[SHIFT1], eps, own, thread, threads);
    rows(0, z->states, width, t[B], NULL, z->rows, n, width, state, z->states, 0, work);
    for (b = 0; b < z->streams; b++)
        advance(z->states, t[A], steps, t[S] + b * z->states, state + b * steps * z->states);
    WAIT /* all have read the norm's input and the old states */
    {
        PART(width);
        for (b = 0; b < z->rows; b++)
            mix(first, last, n + b * width, t[W], t[D], t[H] + b / steps * width, r->x + b * width);
        rows(first, last, z->states, t[C], NULL, z->rows, state, z->states, r->x, width, 1, work);
        for (b = 0; b < z->streams && thread == 0; b++)
            for (s = 0; s < z->states; s++) t[S][b * z->states + s] = state[((b + 1) * steps - 1) * z->states + s];
    }
    WAIT
    n = normed(z, r, t[GAIN2], t[SHIFT2], eps, own, thread, threads);
    {
        PART(3 * rank);
        rows(first, last, width, t[DOWN], t[DOWN_BIAS], z->rows, n, width, r->middle, 3 * rank, 0, work);
    }
    WAIT
    for (int i = 0; i < 3; i++) {
        PART(width);
        float *to = i == 0 ? r->q : i == 1 ? r->y : r->hidden;
        rows(first, last, rank, t[Q_UP + 2 * i], t[Q_BIAS + 2 * i], z->rows, r->middle + i * rank, 3 * rank, to,
             width, 0, work);
    }
    WAIT
    {
        int64_t all = z->streams * z->heads;
        for (int64_t i = all * thread / threads; i < all * (thread + 1) / threads; i++) {
            int64_t from = i / z->heads * steps * width + i % z->heads * size, to = i * z->capacity * size;
            attend_head(z, r->q + from, r->y + from, r->hidden + from, t[KEYS] + to, t[VALUES] + to, work);
        }
    }
    WAIT
    {
        PART(width);
        rows(first, last, width, t[OUT], t[OUT_BIAS], z->rows, r->y, width, r->x, width, 1, work);
    }
    WAIT
    n = normed(z, r, t[GAIN3], t[SHIFT3], eps, own, thread, threads);
    {
        PART(rank);
        rows(first, last, width, t[UP_B], NULL, z->rows, n, width, r->low, rank, 0, work);
    }
    WAIT
    {
        PART(z->inner);
        rows(first, last, rank, t[UP_A], t[UP_BIAS], z->rows, r->low, rank, r->inner, z->inner, 0, work);
        for (b = 0; b < z->rows; b++) gelu(last - first, r->inner + b * z->inner + first);
    }
    WAIT
    {
        PART(rank);
        rows(first, last, z->inner, t[DOWN_B], NULL, z->rows, r->inner, z->inner, r->middle, rank, 0, work);
    }
    WAIT
    {
        PART(width);
        rows(first, last, rank, t[DOWN_A], t[FFN_BIAS], z->rows, r->middle, rank, r->x, width, 1, work);
    }
    WAIT
}

/* weight: (outputs, in); to: its panels in bfloat16, see rows.h. */
int i3_panels(int64_t outputs, int64_t in, const float *weight, uint32_t *to) {
#pragma omp parallel for schedule(static)
    for (int64_t o = 0; o < outputs; o += LANES)
        pack_panel(outputs - o < LANES ? outputs - o : LANES, in, weight + o * in, to + o / LANES * panel_words(in));
    return 0;
}

/* tokens: (streams, steps); layers: (layers, LAYER_TENSORS) addresses; network: NETWORK_TENSORS addresses. Panels are
 * all matrices of a layer but A, and HEAD_A and HEAD_B; all else is float32.
 * h (streams, width), s (streams, states), keys and values (streams, heads, capacity, size) are updated; `position` of
 * them are there. logits: (streams, classes), after the last step. Returns 1 when scratch memory is not to be had. */
int i3_decode(int64_t streams, int64_t steps, int64_t layers, int64_t width, int64_t heads, int64_t rank,
              int64_t states, int64_t inner, int64_t classes, int64_t capacity, int64_t position, int64_t threads,
              float eps, const int64_t *tokens, float *const *tensors, float *const *network, float *logits) {
    int64_t all = streams * steps;
    Sizes z = {streams, steps, all, layers, width, heads, rank, states, inner, classes, capacity, position};
    int64_t shared = all * (5 * width + 4 * rank + inner), own = streams * width + all * states;
    int64_t most = largest(largest(width, inner), largest(rank, states)); /* numbers that a matrix takes */
    own += (capacity + width) * LANES + MOST * most;                      /* of work: attention, rows */
    float *scratch = malloc((shared + threads * own) * sizeof(float));
    if (!scratch) return 1;
    Room r = {.x = scratch};
    r.q = r.x + all * width;
    r.y = r.q + all * width;
    r.hidden = r.y + all * width;
    r.n = r.hidden + all * width;
    r.middle = r.n + all * width;
    r.low = r.middle + 3 * all * rank;
    r.inner = r.low + all * rank;
    for (int64_t b = 0; b < all; b++)
        for (int64_t c = 0; c < width; c++)
            r.x[b * width + c] =
                network[TOKENS][tokens[b] * width + c] + network[POSITIONS][(position + b % steps) * width + c];
#pragma omp parallel num_threads(threads)
    {
        int64_t thread = 0, count = 1;
#ifdef _OPENMP
        thread = omp_get_thread_num(), count = omp_get_num_threads();
#endif
        float *n = scratch + shared + thread * own, *state = n + streams * width, *work = state + all * states;
        for (int64_t i = 0; i < layers; i++)
            layer(&z, tensors + i * LAYER_TENSORS, &r, eps, n, state, work, thread, count);
        for (int64_t b = 0; b < streams; b++)
            norm(1, width, r.x + ((b + 1) * steps - 1) * width, network[NORM_GAIN], network[NORM_SHIFT], eps,
                 n + b * width);
        rows(share(rank, thread, count), share(rank, thread + 1, count), width, network[HEAD_B], NULL, streams, n,
             width, r.low, rank, 0, work);
        WAIT
        rows(share(classes, thread, count), share(classes, thread + 1, count), rank, network[HEAD_A],
             network[HEAD_BIAS], streams, r.low, rank, logits, classes, 0, work);
    }
    free(scratch);
    return 0;
}
