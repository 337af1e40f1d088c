/* Products of all tokens by matrices in one pass, for bfloat16 where the processor multiplies it.
 *
 * Tokens go in blocks of 32 rows: one thread takes a block through all that looks at single tokens, so that what stands
 * between two products stays in its cache. Every sum has one order, whatever the number of threads. */

#pragma once
#include "passes.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define WHOLE_LAYER
#include <stdlib.h>

#include "numbers.h"
#include "products.h"

/* ---- memory ----------------------------------------------------------------------------------------------------- */

typedef struct {
    char *at;
    int64_t taken;
} Room;

/* A piece of a room, on a border of 64 bytes. A room without memory only adds up what is asked for. */
static inline void *take(Room *room, int64_t bytes) {
    char *found = room->at ? room->at + room->taken : NULL;
    room->taken += (bytes + 63) / 64 * 64;
    return found;
}

/* ---- matrices --------------------------------------------------------------------------------------------------- */

typedef struct {
    const float *from;
    int64_t rows, columns;
    int transposed;
} Matrix;

static inline int64_t panels_of(Matrix m) { return (m.transposed ? m.rows : m.columns) / LANES; }

/* Packs matrices as right factors, one after the other; `places` get their addresses. Called by all threads. */
static inline void pack_matrices(int count, const Matrix *matrices, uint32_t *room, uint32_t **places) {
    int64_t panels = 0, at = 0;
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
#pragma omp master
    for (int i = 0; i < count; at += matrices[i].rows * matrices[i].columns / 2, i++) places[i] = room + at;
}

/* ---- products --------------------------------------------------------------------------------------------------- */

/* y (32, columns) = a (32, depth) x b + bias, which may be NULL. */
static inline void times(const uint16_t *a, int64_t row, int64_t depth, int64_t columns, const uint32_t *b, const float *bias,
                  uint16_t *y, int64_t stride) {
    float c[SIDE * SIDE] __attribute__((aligned(64)));
    for (int64_t j = 0; j < columns; j += SIDE, b += SIDE * depth / 2) {
        block(in_rows(a, row), depth / SIDE, b, LANES * depth / 2, 0, c, SIDE);
        block_to_low(c, bias ? bias + j : NULL, y + j, stride);
    }
}

static inline void times_float(const uint16_t *a, int64_t depth, int64_t columns, const uint32_t *b, float *y) {
    for (int64_t j = 0; j < columns; j += SIDE, b += SIDE * depth / 2)
        block(in_rows(a, depth), depth / SIDE, b, LANES * depth / 2, 0, y + j, columns);
}

/* ---- a pass over blocks ----------------------------------------------------------------------------------------- */

/* Runs `work` for the first row of each block; each thread has a room of `bytes`. Returns 1 without memory. */
static inline int for_blocks(void *pass, int64_t tokens, int64_t bytes, void (*work)(void *pass, int64_t row, Room own)) {
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

/* ---- products over all tokens ----------------------------------------------------------------------------------- */

/* A factor of a product over all tokens, packed block by block while the block is in the cache. */
static inline void pack_right_block(int64_t tokens, int64_t row, int64_t columns, const uint16_t *x, int64_t stride, uint32_t *to) {
    to += row * LANES / 2;
    for (int64_t c = 0; c < columns; c += LANES, to += tokens * LANES / 2) {
        const char *next = (const char *)(to + tokens * LANES / 2);
        for (int i = 0; i < LANES; i++) __builtin_prefetch(next + 64 * i, 1);
        pack_low(SIDE, x + c, stride, to);
    }
}

static inline void pack_left_block(int64_t tokens, int64_t row, int64_t columns, const uint16_t *x, int64_t stride, uint16_t *to) {
    for (int64_t c = 0; c < columns; c += LANES)
        pack_left(SIDE, x + c, stride, to + (c / LANES * tokens + row) * LANES);
}

/* The gradient of a matrix: left^T x right over all tokens, (high, wide), or its transpose. */
typedef struct {
    const uint16_t *left;
    const uint32_t *right;
    int64_t high, wide;
    float *to;
    int transposed;
} Outer;

/* Fills what the jobs name, or with `add` adds to it. */
static inline void outer_products(int64_t tokens, const Outer *jobs, int count, int add) {
    int64_t pieces = 0;
    for (int i = 0; i < count; i++) pieces += jobs[i].wide / SIDE;
#pragma omp parallel
    {
        begin_blocks();
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < pieces; unit++) {
            int64_t i = 0, piece = unit;
            for (; piece >= jobs[i].wide / SIDE; i++) piece -= jobs[i].wide / SIDE;
            Outer job = jobs[i];
            float c[SIDE * SIDE] __attribute__((aligned(64)));
            int64_t at = piece * SIDE, panel = LANES * tokens / 2;
            for (int64_t j = 0; j < job.high; j += SIDE) {
                Left left = in_tiles(job.left + j * tokens, tokens);
                float *to = job.to + (job.transposed ? at * job.high + j : j * job.wide + at);
                block(left, tokens / SIDE, job.right + 2 * piece * panel, panel, 0, c, SIDE);
                if (job.transposed) transposed_block_to_float(c, SIDE, add, to, job.high);
                else block_to_float(c, add, to, job.wide);
            }
        }
        end_blocks();
    }
}

/* to (count) = the sum of `chunks` rows of partial, `stride` apart; with `add` that is added to it. */
CLONES static inline void reduce(int64_t chunks, int64_t stride, const float *partial, int64_t count, float *to, int add) {
    for (int64_t c = 0; c < count; c += BLOCK) {
        float sums[BLOCK] = {0};
        int64_t width = count - c < BLOCK ? count - c : BLOCK;
        for (int64_t k = 0; k < chunks; k++)
            for (int64_t i = 0; i < width; i++) sums[i] += partial[k * stride + c + i];
        for (int64_t i = 0; i < width; i++) to[c + i] = add ? to[c + i] + sums[i] : sums[i];
    }
}

#endif
