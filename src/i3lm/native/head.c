/* The cross-entropy of a LoRPt head and its gradients in one call, for bfloat16 where the processor multiplies it:
 * logits = A (B x) + bias, a block of 32 tokens at a time. What it computes is written out in model/ops_i3.py. */

#include "blocks.h"

#ifdef WHOLE_LAYER

/* M tokens, width D, rank R: multiples of 32. V rows of A, a multiple of 32, of which `classes` are real: the others
 * are zero and take no part. */
typedef struct {
    int64_t tokens, width, rank, rows, classes;
} HeadSizes;

typedef struct {
    HeadSizes s;
    const float *x, *bias;
    const int64_t *targets;
    double *losses;
    float *d_x, *d_bias; /* (M, D), NULL where no gradient is wanted; (M / 32, V) */
    uint32_t *B, *A, *A_back, *B_back; /* packed */
    uint16_t *left_middle, *left_d_middle;
    uint32_t *right_x, *right_logits;
} Head;

static void head_rows(void *pass, int64_t row, Room own) {
    Head *h = pass;
    int64_t m = h->s.tokens, d = h->s.width, r = h->s.rank, v = h->s.rows, k = row / SIDE;
    uint16_t *low = take(&own, SIDE * d * 2), *middle = take(&own, SIDE * r * 2), *logits = take(&own, SIDE * v * 2);
    float *work = take(&own, v * 4);
    narrow(SIDE * d, h->x + row * d, low);
    times(low, d, d, r, h->B, NULL, middle, r);
    times(middle, r, r, v, h->A, NULL, logits, v);
    h->losses[k] = 0;
    if (h->d_x) memset(h->d_bias + k * v, 0, v * sizeof(float));
    for (int64_t i = 0; i < SIDE; i++)
        h->losses[k] += loss_rows_bf16(1, h->s.classes, logits + i * v, h->bias, h->targets + row + i,
                                       h->d_x ? h->d_bias + k * v : NULL, work);
    if (!h->d_x) return;
    pack_left_block(m, row, r, middle, r, h->left_middle);
    pack_right_block(m, row, v, logits, v, h->right_logits);
    pack_right_block(m, row, d, low, d, h->right_x);
    times(logits, v, v, r, h->A_back, NULL, middle, r);
    pack_left_block(m, row, r, middle, r, h->left_d_middle);
    times_float(middle, r, d, h->B_back, h->d_x + row * d);
}

static int64_t head_bytes(HeadSizes s) { return SIDE * 2 * (s.width + s.rank + s.rows) + 4 * s.rows + 256; }

static uint32_t *room_of_head(Head *h, Room *room) {
    HeadSizes s = h->s;
    uint32_t *words = take(room, 4 * s.rank * (s.width + s.rows));
    h->left_middle = take(room, 2 * s.tokens * s.rank);
    h->left_d_middle = take(room, 2 * s.tokens * s.rank);
    h->right_x = take(room, 2 * s.tokens * s.width);
    h->right_logits = take(room, 2 * s.tokens * s.rows);
    h->d_bias = take(room, 4 * s.tokens / SIDE * s.rows);
    return words;
}

/* Bytes of `work` that a call needs. */
int64_t i3_head_room(const int64_t *sizes) {
    Head h = {.s = *(const HeadSizes *)sizes};
    Room room = {NULL, 0};
    room_of_head(&h, &room);
    return room.taken;
}

/* sizes: as in HeadSizes; x (M, D), A (V, R), B (R, D), bias (classes); losses (M / 32), in nats, summed over 32
 * tokens. Gradients, where d_x is not NULL: d_x (M, D), d_A (V, R), d_B (R, D), d_bias (V). Returns 1 without memory. */
int i3_head(const int64_t *sizes, const float *x, const float *A, const float *B, const float *bias,
            const int64_t *targets, double *losses, float *d_x, float *d_A, float *d_B, float *d_bias, char *work) {
    Head h = {.s = *(const HeadSizes *)sizes, .x = x, .bias = bias, .targets = targets, .losses = losses, .d_x = d_x};
    int64_t m = h.s.tokens, d = h.s.width, r = h.s.rank, v = h.s.rows;
    const Matrix matrices[] = {{B, r, d, 1}, {A, v, r, 1}, {A, v, r, 0}, {B, r, d, 0}};
    const int count = d_x ? 4 : 2;
    Room room = {work, 0};
    uint32_t *words = room_of_head(&h, &room), *places[4] = {NULL};
#pragma omp parallel
    pack_matrices(count, matrices, words, places);
    h.B = places[0], h.A = places[1], h.A_back = places[2], h.B_back = places[3];
    if (for_blocks(&h, m, head_bytes(h.s), head_rows)) return 1;
    if (!d_x) return 0;
    const Outer jobs[] = {{h.left_middle, h.right_logits, r, v, d_A, 1}, {h.left_d_middle, h.right_x, r, d, d_B, 0}};
    outer_products(m, jobs, 2, 0);
    reduce(m / SIDE, v, h.d_bias, v, d_bias, 0);
    return 0;
}

typedef struct {
    int64_t depth, columns;
    const uint16_t *x;
    const uint32_t *w;
    uint16_t *y;
} Product;

static void product_rows(void *pass, int64_t row, Room own) {
    Product *p = pass;
    (void)own;
    times(p->x + row * p->depth, p->depth, p->depth, p->columns, p->w, NULL, p->y + row * p->columns, p->columns);
}

/* y = x w^T, bfloat16 but for w: x (M, K), w (N, K), y (M, N), all sizes multiples of 32. Returns 1 without memory. */
int i3_product(int64_t m, int64_t n, int64_t k, const uint16_t *x, const float *w, uint16_t *y) {
    uint32_t *words = aligned_alloc(64, 2 * n * k), *place[1];
    if (!words) return 1;
    const Matrix matrix = {w, n, k, 1};
#pragma omp parallel
    pack_matrices(1, &matrix, words, place);
    Product p = {k, n, x, words, y};
    int failed = for_blocks(&p, m, 64, product_rows);
    free(words);
    return failed;
}

#endif
