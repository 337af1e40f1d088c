/* A whole i3 layer in one call each way, products included, for bfloat16 where the processor multiplies it. What it
 * computes is written out in model/fused.py, which runs elsewhere, with torch's products; docs/math.md has the
 * derivations.
 *
 * Sizes: M tokens (a multiple of 32), width D, states N, rank R, feed-forward F, all multiples of 32. */

#pragma once
#include "blocks.h"

#ifdef WHOLE_LAYER

typedef struct {
    int64_t batch, steps, width, states, rank, inner, heads;
} Sizes;

/* model/fused.py has both lists in this order; of `Kept` the absent ones are left out. Parameters are float32. */
typedef struct {
    float *gain1, *shift1, *w, *A, *B, *C, *D, *gain2, *shift2, *down, *down_bias, *q_up, *q_bias, *k_up, *k_bias, *v_up,
        *v_bias, *out, *out_bias, *gain3, *shift3, *up_A, *up_B, *up_bias, *down_A, *down_B, *ffn_bias;
} Parts;

typedef struct {
    float *x1, *stats1, *states, *stats2;
    uint16_t *hat2, *middle;
    float *log_sums;
    uint16_t *attended;
    float *stats3;
    uint16_t *hat3, *up_middle, *down_middle;
} Kept;

/* The matrices, packed as right factors: transposed on the way forward, as they are on the way back. What is wide comes
 * from the middles once more on the way back, which is faster than to write it to memory and read it: four are there
 * in both ways. */
typedef struct {
    uint32_t *B, *C, *down, *q_up, *k_up, *v_up, *out, *up_A, *up_B, *down_A, *down_B;
    uint32_t *q_again, *k_again, *v_again, *up_again;
} Packed;

enum { FORWARD = 11, BACKWARD = 15 };

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
    matrices_of(s, p, count, matrices);
    pack_matrices(count, matrices, room, (uint32_t **)packed);
}

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
