/* One position of i3 for a few streams at once, float32: what generation repeats for each token. All layers run in one
 * parallel region, so that a step is a single call. The large matrices are read in bfloat16: a step is as fast as they
 * come from memory. The definition is in model/layers_i3.py. */

#include <math.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "normal.h"
#include "numbers.h"

/* The tensors of a layer as model/fused.py orders its `Parts`, then the stream's states. */
enum {
    GAIN1, SHIFT1, W, A, B, C, D, GAIN2, SHIFT2, DOWN, DOWN_BIAS, Q_UP, Q_BIAS, K_UP, K_BIAS, V_UP, V_BIAS, OUT,
    OUT_BIAS, GAIN3, SHIFT3, UP_A, UP_B, UP_BIAS, DOWN_A, DOWN_B, FFN_BIAS, H, S, KEYS, VALUES, LAYER_TENSORS
};
enum { TOKENS, POSITIONS, NORM_GAIN, NORM_SHIFT, HEAD_A, HEAD_B, HEAD_BIAS, NETWORK_TENSORS };

typedef struct {
    int64_t streams, layers, width, heads, rank, states, inner, classes, capacity, position;
} Sizes;

#define LANES 16

#if defined(__GNUC__)
typedef float Lanes __attribute__((vector_size(64)));
typedef float Half __attribute__((vector_size(32)));
typedef float Quarter __attribute__((vector_size(16)));
typedef uint32_t Wide __attribute__((vector_size(64)));
typedef uint16_t Narrow __attribute__((vector_size(32)));
#define SHORT 128 /* numbers of a row */

/* Lanes of two vectors, by their numbers in both. GCC before 12 has one of these only, clang the other; Order: as many
 * ints as the result has lanes. */
#if defined(__clang__) || __GNUC__ >= 12
#define CHOSEN(Order, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CHOSEN(Order, a, b, ...) __builtin_shuffle(a, b, (Order){__VA_ARGS__})
#endif
typedef int Four __attribute__((vector_size(16)));
typedef int Sixteen __attribute__((vector_size(64)));
#define INLINE static inline __attribute__((always_inline))

INLINE void widen(const uint16_t *x, Lanes *to) {
    Narrow narrow;
    memcpy(&narrow, x, sizeof narrow);
    Wide bits = __builtin_convertvector(narrow, Wide) << 16;
    memcpy(to, &bits, sizeof bits);
}

INLINE Quarter folded(const Lanes *v) {
    union { Lanes whole; Half parts[2]; } a = {*v};
    union { Half whole; Quarter parts[2]; } b = {a.parts[0] + a.parts[1]};
    return b.parts[0] + b.parts[1];
}

/* The sums of four vectors, with six shuffles instead of twelve. */
INLINE Quarter sums_of(const Lanes *v) {
    Quarter a = folded(v), b = folded(v + 1), c = folded(v + 2), d = folded(v + 3);
    Quarter ab = CHOSEN(Four, a, b, 0, 4, 1, 5) + CHOSEN(Four, a, b, 2, 6, 3, 7);
    Quarter cd = CHOSEN(Four, c, d, 0, 4, 1, 5) + CHOSEN(Four, c, d, 2, 6, 3, 7);
    return CHOSEN(Four, ab, cd, 0, 1, 4, 5) + CHOSEN(Four, ab, cd, 2, 3, 6, 7);
}

/* `rows` for 4 rows and 4 streams: all sums stay in registers, and a number that is read serves four of them. */
INLINE void tile(int64_t in, const uint16_t *weight, const float *bias, const float *x, int64_t x_stride, float *y,
                 int64_t y_stride, int add) {
    Lanes sums[4][4] = {{{0}}}, v, w[4];
    int64_t i = 0;
    for (; i + LANES <= in; i += LANES) {
        for (int o = 0; o < 4; o++) widen(weight + o * in + i, &w[o]);
        for (int b = 0; b < 4; b++) {
            memcpy(&v, x + b * x_stride + i, sizeof v);
            for (int o = 0; o < 4; o++) sums[b][o] += w[o] * v;
        }
    }
    for (int b = 0; b < 4; b++) {
        Quarter out = sums_of(sums[b]);
        for (int o = 0; o < 4; o++) {
            float sum = out[o] + (bias ? bias[o] : 0), *to = y + b * y_stride + o;
            for (int64_t j = i; j < in; j++) sum += load_bf16(weight[o * in + j]) * x[b * x_stride + j];
            *to = (add ? *to : 0) + sum;
        }
    }
}

/* Pairs of lanes of two vectors, added: level by level sixteen vectors become one of their sixteen sums. */
#define ADDED(a, b)                                                                          \
    (CHOSEN(Sixteen, a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +      \
     CHOSEN(Sixteen, a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31))

/* Sixteen short rows for one stream: a row's own sum would cost more than its products. */
INLINE void strip(int64_t in, const uint16_t *weight, const float *bias, const float *x, float *y, int add) {
    Lanes s[LANES] = {{0}}, v, w;
    int64_t i = 0;
    for (; i + LANES <= in; i += LANES) {
        memcpy(&v, x + i, sizeof v);
#pragma GCC unroll 16
        for (int o = 0; o < LANES; o++) {
            widen(weight + o * in + i, &w);
            s[o] += w * v;
        }
    }
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2)
#pragma GCC unroll 8
        for (int o = 0; o < half; o++) s[o] = ADDED(s[2 * o], s[2 * o + 1]);
    for (int o = 0; o < LANES; o++) {
        float sum = s[0][o] + (bias ? bias[o] : 0);
        for (int64_t j = i; j < in; j++) sum += load_bf16(weight[o * in + j]) * x[j];
        y[o] = (add ? y[o] : 0) + sum;
    }
}
#endif

/* u <- u + A s for (streams, n), in float32: states go through A again and again. */
CLONES
static void advance(int64_t n, const float *restrict a, int64_t streams, const float *restrict s, float *restrict u) {
    for (int64_t b = 0; b < streams; b++)
        for (int64_t o = 0; o < n; o++) {
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < n; i++) sum += a[o * n + i] * s[b * n + i];
            u[b * n + o] += sum;
        }
}

static inline void row(int64_t in, const uint16_t *restrict weight, float start, const float *restrict x, float *y,
                       int add) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < in; i++) sum += load_bf16(weight[i]) * x[i];
    *y = (add ? *y : 0) + start + sum;
}

/* y[b][o] (+)= weight[o] . x[b] + bias[o] for the rows first <= o < last of weight. */
CLONES
static void rows(int64_t first, int64_t last, int64_t in, const void *matrix, const float *bias, int64_t streams,
                 const float *x, int64_t x_stride, float *y, int64_t y_stride, int add) {
    const uint16_t *weight = matrix;
    int64_t tiled = 0; /* streams */
#if defined(__GNUC__)
    for (; streams == 1 && in <= SHORT && first + LANES <= last; first += LANES)
        strip(in, weight + first * in, bias ? bias + first : NULL, x, y + first, add);
    tiled = streams / 4 * 4;
    for (int64_t o = first; o + 4 <= last; o += 4)
        for (int64_t b = 0; b < tiled; b += 4)
            tile(in, weight + o * in, bias ? bias + o : NULL, x + b * x_stride, x_stride, y + b * y_stride + o,
                 y_stride, add);
#endif
    for (int64_t o = first; o < last; o++) {
        int64_t done = o < last - (last - first) % 4 ? tiled : 0;
        for (int64_t b = done; b < streams; b++)
            row(in, weight + o * in, bias ? bias[o] : 0, x + b * x_stride, y + b * y_stride + o, add);
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
    float *x, *middle, *q, *y, *low, *inner, *hidden; /* shared by the threads */
} Room;

/* A thread's share of `count` rows. It begins at a whole strip, so that any number of threads adds a row up alike. */
static inline int64_t share(int64_t count, int64_t thread, int64_t threads) {
    return thread == threads ? count : (count / LANES * thread + threads - 1) / threads * LANES;
}

#define PART(count) int64_t first = share(count, thread, threads), last = share(count, thread + 1, threads)
#define WAIT _Pragma("omp barrier")

/* A layer, by one of the threads. n, state: this thread's own room, (streams, width) and (streams, states). */
static void layer(const Sizes *z, float *const *t, const Room *r, float eps, float *n, float *state, float *work,
                  int64_t thread, int64_t threads) {
    int64_t b, width = z->width, rank = z->rank, size = width / z->heads, at = z->position;
    norm(z->streams, width, r->x, t[GAIN1], t[SHIFT1], eps, n);
    rows(0, z->states, width, t[B], NULL, z->streams, n, width, state, z->states, 0);
    advance(z->states, t[A], z->streams, t[S], state);
    WAIT /* all have read the norm's input and the old states */
    {
        PART(width);
        for (b = 0; b < z->streams; b++)
            mix(first, last, n + b * width, t[W], t[D], t[H] + b * width, r->x + b * width);
        rows(first, last, z->states, t[C], NULL, z->streams, state, z->states, r->x, width, 1);
        if (thread == 0) memcpy(t[S], state, z->streams * z->states * sizeof(float));
    }
    WAIT
    norm(z->streams, width, r->x, t[GAIN2], t[SHIFT2], eps, n);
    {
        PART(3 * rank);
        rows(first, last, width, t[DOWN], t[DOWN_BIAS], z->streams, n, width, r->middle, 3 * rank, 0);
    }
    WAIT
    for (int i = 0; i < 3; i++) {
        PART(width);
        float *to = i == 0 ? r->q : i == 1 ? r->y : r->hidden;
        rows(first, last, rank, t[Q_UP + 2 * i], t[Q_BIAS + 2 * i], z->streams, r->middle + i * rank, 3 * rank, to,
             width, 0);
    }
    WAIT
    {
        int64_t all = z->streams * z->heads;
        for (int64_t i = all * thread / threads; i < all * (thread + 1) / threads; i++) {
            int64_t from = i / z->heads * width + i % z->heads * size;
            float *keys = t[KEYS] + i * z->capacity * size, *values = t[VALUES] + i * z->capacity * size;
            memcpy(keys + at * size, r->y + from, size * sizeof(float));
            memcpy(values + at * size, r->hidden + from, size * sizeof(float));
            attend(at + 1, size, r->q + from, keys, values, r->y + from, work);
        }
    }
    WAIT
    {
        PART(width);
        rows(first, last, width, t[OUT], t[OUT_BIAS], z->streams, r->y, width, r->x, width, 1);
    }
    WAIT
    norm(z->streams, width, r->x, t[GAIN3], t[SHIFT3], eps, n);
    {
        PART(rank);
        rows(first, last, width, t[UP_B], NULL, z->streams, n, width, r->low, rank, 0);
    }
    WAIT
    {
        PART(z->inner);
        rows(first, last, rank, t[UP_A], t[UP_BIAS], z->streams, r->low, rank, r->inner, z->inner, 0);
        for (b = 0; b < z->streams; b++) gelu(last - first, r->inner + b * z->inner + first);
    }
    WAIT
    {
        PART(rank);
        rows(first, last, z->inner, t[DOWN_B], NULL, z->streams, r->inner, z->inner, r->middle, rank, 0);
    }
    WAIT
    {
        PART(width);
        rows(first, last, rank, t[DOWN_A], t[FFN_BIAS], z->streams, r->middle, rank, r->x, width, 1);
    }
    WAIT
}

/* tokens: (streams); layers: (layers, LAYER_TENSORS) addresses; network: NETWORK_TENSORS addresses. Bfloat16 are all
 * matrices of a layer but A, and HEAD_A and HEAD_B; all else is float32.
 * h (streams, width), s (streams, states), keys and values (streams, heads, capacity, size) are updated.
 * logits: (streams, classes). Returns 1 when scratch memory is not to be had. */
int i3_decode(int64_t streams, int64_t layers, int64_t width, int64_t heads, int64_t rank, int64_t states,
              int64_t inner, int64_t classes, int64_t capacity, int64_t position, int64_t threads, float eps,
              const int64_t *tokens, float *const *tensors, float *const *network, float *logits) {
    Sizes z = {streams, layers, width, heads, rank, states, inner, classes, capacity, position};
    int64_t shared = streams * (5 * width + 4 * rank + inner), own = streams * (width + states) + capacity;
    float *scratch = malloc((shared + threads * own) * sizeof(float));
    if (!scratch) return 1;
    Room r = {scratch, NULL, NULL, NULL, NULL, NULL, NULL};
    r.q = r.x + streams * width;
    r.y = r.q + streams * width;
    r.hidden = r.y + streams * width;
    r.middle = r.hidden + streams * width;
    r.low = r.middle + 3 * streams * rank;
    r.inner = r.low + streams * rank;
    for (int64_t b = 0; b < streams; b++)
        for (int64_t c = 0; c < width; c++)
            r.x[b * width + c] = network[TOKENS][tokens[b] * width + c] + network[POSITIONS][position * width + c];
#pragma omp parallel num_threads(threads)
    {
        int64_t thread = 0, count = 1;
#ifdef _OPENMP
        thread = omp_get_thread_num(), count = omp_get_num_threads();
#endif
        float *n = scratch + shared + thread * own, *state = n + streams * width, *work = state + streams * states;
        for (int64_t i = 0; i < layers; i++)
            layer(&z, tensors + i * LAYER_TENSORS, &r, eps, n, state, work, thread, count);
        norm(streams, width, r.x, network[NORM_GAIN], network[NORM_SHIFT], eps, n);
        rows(share(rank, thread, count), share(rank, thread + 1, count), width, network[HEAD_B], NULL, streams, n,
             width, r.low, rank, 0);
        WAIT
        rows(share(classes, thread, count), share(classes, thread + 1, count), rank, network[HEAD_A],
             network[HEAD_BIAS], streams, r.low, rank, logits, classes, 0);
    }
    free(scratch);
    return 0;
}
