/* A whole i3 layer in one call each way, products included, for bfloat16 where the processor multiplies it. What it
 * computes is written out in model/fused.py, which runs elsewhere, with torch's products; docs/math.md has the
 * derivations.
 *
 * Tokens go in blocks of 32 rows: one thread takes a block through all that looks at single tokens, so that what stands
 * between two products stays in its cache. Every sum has one order, whatever the number of threads.
 *
 * Sizes: M tokens (a multiple of 32), width D, states N, rank R, feed-forward F, all multiples of 32. */

#pragma once
#include "passes.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define WHOLE_LAYER
#include <stdlib.h>

#include "numbers.h"
#include "products.h"

typedef struct {
    int64_t batch, steps, width, states, rank, inner, heads;
} Sizes;

/* model/fused.py has both lists in this order. Parameters are float32. */
typedef struct {
    float *gain1, *shift1, *w, *A, *B, *C, *D, *gain2, *shift2, *down, *down_bias, *q_up, *q_bias, *k_up, *k_bias, *v_up,
        *v_bias, *out, *out_bias, *gain3, *shift3, *up_A, *up_B, *up_bias, *down_A, *down_B, *ffn_bias;
} Parts;

typedef struct {
    float *x1, *stats1;
    uint16_t *n1;
    float *states, *x2, *stats2;
    uint16_t *middle, *q, *k, *v;
    float *log_sums;
    uint16_t *attended;
    float *x3, *stats3;
    uint16_t *up_middle, *inner, *down_middle;
} Kept;

/* The matrices, packed as right factors: transposed on the way forward, as they are on the way back. */
typedef struct {
    uint32_t *B, *C, *down, *q_up, *k_up, *v_up, *out, *up_A, *up_B, *down_A, *down_B;
} Packed;

enum { MATRICES = 11 };

/* ---- memory ----------------------------------------------------------------------------------------------------- */

typedef struct {
    char *at;
    int64_t taken;
} Room;

/* A piece of a room, on a border of 64 bytes. A room without memory only adds up what is asked for. */
static void *take(Room *room, int64_t bytes) {
    char *found = room->at ? room->at + room->taken : NULL;
    room->taken += (bytes + 63) / 64 * 64;
    return found;
}

static int64_t matrix_sizes(Sizes s, const Parts *p, int64_t (*sizes)[2], const float **from) {
    int64_t d = s.width, n = s.states, r = s.rank, f = s.inner, words = 0;
    const int64_t known[MATRICES][2] = {{n, d}, {d, n}, {3 * r, d}, {d, r}, {d, r}, {d, r},
                                        {d, d}, {f, r}, {r, d},     {d, r}, {r, f}};
    const float *matrices[MATRICES] = {p->B,   p->C,    p->down, p->q_up,   p->k_up,  p->v_up,
                                       p->out, p->up_A, p->up_B, p->down_A, p->down_B};
    for (int i = 0; i < MATRICES; i++) {
        sizes[i][0] = known[i][0], sizes[i][1] = known[i][1], from[i] = matrices[i];
        words += known[i][0] * known[i][1] / 2;
    }
    return words;
}

/* Packs all matrices; called by all threads. */
static void pack_all(Sizes s, const Parts *p, int transposed, uint32_t *room, Packed *packed) {
    int64_t sizes[MATRICES][2], panels = 0, at = 0;
    const float *from[MATRICES];
    matrix_sizes(s, p, sizes, from);
    for (int i = 0; i < MATRICES; i++) panels += sizes[i][!transposed] / LANES;
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < panels; unit++) {
        int64_t i = 0, panel = unit;
        uint32_t *to = room;
        for (; panel >= sizes[i][!transposed] / LANES; i++) {
            panel -= sizes[i][!transposed] / LANES;
            to += sizes[i][0] * sizes[i][1] / 2;
        }
        int64_t depth = sizes[i][transposed], columns = sizes[i][1];
        to += panel * depth * LANES / 2;
        if (transposed) pack_rows(depth, from[i] + panel * LANES * columns, to);
        else pack_columns(depth, from[i] + panel * LANES, columns, to);
    }
    uint32_t **names = (uint32_t **)packed;
    for (int i = 0; i < MATRICES; at += sizes[i][0] * sizes[i][1] / 2, i++) names[i] = room + at;
}

/* ---- products --------------------------------------------------------------------------------------------------- */

/* y (32, columns) = a (32, depth) x b + bias, which may be NULL. */
static void times(const uint16_t *a, int64_t row, int64_t depth, int64_t columns, const uint32_t *b, const float *bias,
                  uint16_t *y, int64_t stride) {
    float c[SIDE * SIDE] __attribute__((aligned(64)));
    for (int64_t j = 0; j < columns; j += SIDE, b += SIDE * depth / 2) {
        block(in_rows(a, row), depth / SIDE, b, LANES * depth / 2, 0, c, SIDE);
        block_to_low(c, bias ? bias + j : NULL, y + j, stride);
    }
}

static void times_float(const uint16_t *a, int64_t depth, int64_t columns, const uint32_t *b, float *y) {
    for (int64_t j = 0; j < columns; j += SIDE, b += SIDE * depth / 2)
        block(in_rows(a, depth), depth / SIDE, b, LANES * depth / 2, 0, y + j, columns);
}

/* ---- a pass over blocks ----------------------------------------------------------------------------------------- */

/* What a call works on. */
typedef struct {
    Sizes s;
    float eps;
    Parts p;
    Kept k;
    const float *tables; /* of GELU, see gelu.c */
    Packed m;
    int64_t tokens, chunks;
} Layer;

/* Runs `work` for the first row of each block; each thread has a room of `bytes`. Returns 1 without memory. */
static int for_blocks(void *pass, int64_t tokens, int64_t bytes, void (*work)(void *pass, int64_t row, Room own)) {
    int failed = 0;
#pragma omp parallel
    {
        char *own = aligned_alloc(64, (bytes + 63) / 64 * 64);
        if (!own) {
#pragma omp atomic write
            failed = 1;
        }
        begin_blocks();
#pragma omp for schedule(static)
        for (int64_t row = 0; row < tokens; row += SIDE)
            if (own) work(pass, row, (Room){own, 0});
        end_blocks();
        free(own);
    }
    return failed;
}

static Layer layer_of(const int64_t *sizes, float *const *parts, void *const *kept, float eps, const float *tables) {
    Layer l = {.eps = eps, .tables = tables};
    memcpy(&l.s, sizes, sizeof(l.s));
    memcpy(&l.p, parts, sizeof(l.p));
    memcpy(&l.k, kept, sizeof(l.k));
    l.tokens = l.s.batch * l.s.steps;
    l.chunks = l.tokens / SIDE;
    return l;
}

#endif
