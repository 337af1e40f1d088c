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
    float *x1, *stats1, *states, *x2, *stats2;
    uint16_t *middle;
    float *log_sums;
    uint16_t *attended;
    float *x3, *stats3;
    uint16_t *up_middle, *down_middle;
} Kept;

/* The matrices, packed as right factors: transposed on the way forward, as they are on the way back. What is wide comes
 * from the middles once more on the way back, which is faster than to write it to memory and read it: four are there
 * in both ways. */
typedef struct {
    uint32_t *B, *C, *down, *q_up, *k_up, *v_up, *out, *up_A, *up_B, *down_A, *down_B;
    uint32_t *q_again, *k_again, *v_again, *up_again;
} Packed;

enum { FORWARD = 11, BACKWARD = 15 };

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

typedef struct {
    const float *from;
    int64_t rows, columns;
    int transposed;
} Matrix;

static int64_t panels_of(Matrix m) { return (m.transposed ? m.rows : m.columns) / LANES; }

/* Fills in the first `count` of Packed, in its order; returns the words that they take. */
static int64_t matrices_of(Sizes s, const Parts *p, int count, Matrix *matrices) {
    int64_t d = s.width, n = s.states, r = s.rank, f = s.inner, words = 0;
    const Matrix known[BACKWARD] = {
        {p->B, n, d},    {p->C, d, n},    {p->down, 3 * r, d}, {p->q_up, d, r},    {p->k_up, d, r},
        {p->v_up, d, r}, {p->out, d, d},  {p->up_A, f, r},     {p->up_B, r, d},    {p->down_A, d, r},
        {p->down_B, r, f}, {p->q_up, d, r}, {p->k_up, d, r},   {p->v_up, d, r},    {p->up_A, f, r},
    };
    for (int i = 0; i < count; i++) {
        matrices[i] = known[i];
        matrices[i].transposed = count == FORWARD || i >= FORWARD;
        words += known[i].rows * known[i].columns / 2;
    }
    return words;
}

/* Packs the first `count` of Packed; called by all threads. */
static void pack_all(Sizes s, const Parts *p, int count, uint32_t *room, Packed *packed) {
    Matrix matrices[BACKWARD];
    int64_t panels = 0, at = 0;
    matrices_of(s, p, count, matrices);
    for (int i = 0; i < count; i++) panels += panels_of(matrices[i]);
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < panels; unit++) {
        int64_t i = 0, panel = unit;
        uint32_t *to = room;
        for (; panel >= panels_of(matrices[i]); i++) {
            panel -= panels_of(matrices[i]);
            to += matrices[i].rows * matrices[i].columns / 2;
        }
        Matrix m = matrices[i];
        to += panel * m.rows * m.columns / 2 / panels_of(m);
        if (m.transposed) pack_rows(m.columns, m.from + panel * LANES * m.columns, to);
        else pack_columns(m.rows, m.from + panel * LANES, m.columns, to);
    }
    uint32_t **names = (uint32_t **)packed;
    for (int i = 0; i < count; at += matrices[i].rows * matrices[i].columns / 2, i++) names[i] = room + at;
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
