/* The way forward of a whole layer; see whole.h. */

#include "whole.h"

#ifdef WHOLE_LAYER

typedef struct {
    Layer layer;
    float *u, *mixed, *zeros, *columns, *carry, *out; /* mixed: from attention_rows on this is x2 */
    uint16_t *n1, *q, *k, *v;
} Forward;

static void recurrence_rows(void *pass, int64_t row, Room own) {
    Forward *f = pass;
    Layer *l = &f->layer;
    int64_t d = l->s.width, at = row * d;
    norm_rows_bf16(SIDE, d, l->k.x1 + at, NULL, NULL, NULL, l->p.gain1, l->p.shift1, l->eps,
                   f->n1 + at, NULL, l->k.stats1 + 2 * row);
    times_float(f->n1 + at, d, l->s.states, l->m.B, f->u + row * l->s.states);
}

static void attention_rows(void *pass, int64_t row, Room own) {
    Forward *f = pass;
    Layer *l = &f->layer;
    int64_t d = l->s.width, n = l->s.states, r = l->s.rank, at = row * d;
    uint16_t *low = take(&own, SIDE * n * 2), *written = take(&own, SIDE * d * 2), *normed = take(&own, SIDE * d * 2);
    uint16_t *middle = l->k.middle + row * 3 * r;
    narrow(SIDE * n, l->k.states + row * n, low);
    times(low, n, n, d, l->m.C, NULL, written, d);
    norm_rows_bf16(SIDE, d, f->mixed + at, written, f->zeros, f->mixed + at, l->p.gain2, l->p.shift2, l->eps, normed,
                   l->k.hat2 + at, l->k.stats2 + 2 * row);
    times(normed, d, d, 3 * r, l->m.down, l->p.down_bias, middle, 3 * r);
    times(middle, 3 * r, r, d, l->m.q_up, NULL, f->q + at, d);
    times(middle + r, 3 * r, r, d, l->m.k_up, NULL, f->k + at, d);
    times(middle + 2 * r, 3 * r, r, d, l->m.v_up, NULL, f->v + at, d);
}

static void ffn_rows(void *pass, int64_t row, Room own) {
    Forward *f = pass;
    Layer *l = &f->layer;
    int64_t d = l->s.width, r = l->s.rank, wide = l->s.inner, at = row * d;
    uint16_t *written = take(&own, SIDE * d * 2), *normed = take(&own, SIDE * d * 2);
    uint16_t *inner = take(&own, SIDE * wide * 2);
    float *x3 = take(&own, SIDE * d * 4);
    times(l->k.attended + at, d, d, d, l->m.out, NULL, written, d);
    norm_rows_bf16(SIDE, d, f->mixed + at, written, l->p.out_bias, x3, l->p.gain3, l->p.shift3, l->eps, normed,
                   l->k.hat3 + at, l->k.stats3 + 2 * row);
    times(normed, d, d, r, l->m.up_B, NULL, l->k.up_middle + row * r, r);
    times(l->k.up_middle + row * r, r, r, wide, l->m.up_A, NULL, inner, wide);
    gelu_rows(SIDE, wide, inner, l->p.up_bias, inner, l->tables);
    times(inner, wide, wide, r, l->m.down_B, NULL, l->k.down_middle + row * r, r);
    if (!f->out) return;
    times(l->k.down_middle + row * r, r, r, d, l->m.down_A, NULL, written, d);
    for (int64_t i = 0; i < SIDE; i++)
        add_row_bf16(d, x3 + i * d, written + i * d, l->p.ffn_bias, f->out + at + i * d);
}

static void room_forward(Forward *f, Room *room, uint32_t **words) {
    Sizes s = f->layer.s;
    int64_t tokens = f->layer.tokens, wide = 2 * tokens * s.width;
    Matrix matrices[BACKWARD];
    *words = take(room, 4 * matrices_of(s, &f->layer.p, FORWARD, matrices));
    f->u = take(room, 4 * tokens * s.states);
    f->mixed = take(room, 2 * wide);
    f->n1 = take(room, wide);
    f->q = take(room, wide);
    f->k = take(room, wide);
    f->v = take(room, wide);
    f->columns = take(room, 4 * s.states * s.states);
    f->zeros = take(room, 4 * s.batch * (s.width + s.states)); /* also the carries of both recurrences */
    f->carry = f->zeros ? f->zeros + s.batch * s.width : NULL;
}

static int64_t forward_bytes(Sizes s) { return 2 * SIDE * (s.inner + 4 * s.width + s.states) + 320; }

/* Bytes of `work` that the way forward needs. */
int64_t i3_layer_forward_room(const int64_t *sizes) {
    Forward f = {.layer = {.s = *(const Sizes *)sizes}};
    f.layer.tokens = f.layer.s.batch * f.layer.s.steps;
    Room room = {NULL, 0};
    uint32_t *words;
    room_forward(&f, &room, &words);
    return room.taken;
}

/* sizes: as in Sizes; parts, kept: addresses, as in Parts and Kept, with x1 given and the others to be filled; out
 * (M, D), or NULL. work: see above. Returns 1 when there is no memory. */
int i3_layer_forward(const int64_t *sizes, float *const *parts, void *const *kept, float eps, const float *tables,
                     float *out, char *work) {
    Forward f = {.layer = layer_of(sizes, parts, kept, eps, tables), .out = out};
    Layer *l = &f.layer;
    Sizes s = l->s;
    Room room = {work, 0};
    uint32_t *words;
    room_forward(&f, &room, &words);
    int64_t bytes = forward_bytes(s);
#pragma omp parallel
    pack_all(s, &l->p, FORWARD, words, &l->m);
    memset(f.zeros, 0, 4 * s.batch * (s.width + s.states));
    for (int64_t i = 0; i < s.states; i++)
        for (int64_t j = 0; j < s.states; j++) f.columns[j * s.states + i] = l->p.A[i * s.states + j];
    int failed = for_blocks(&f, l->tokens, bytes, recurrence_rows) ||
                 i3_state_scan(s.batch, s.steps, s.states, f.columns, f.u, f.carry, l->k.states, 0) ||
                 i3_ema_forward_bf16(s.batch, s.steps, s.width, f.n1, l->p.w, l->p.D, l->k.x1, f.zeros, f.mixed);
    memset(f.zeros, 0, 4 * s.width);
    return failed || for_blocks(&f, l->tokens, bytes, attention_rows) ||
           i3_attention_forward_bf16(s.batch, s.steps, s.heads, s.width / s.heads, f.q, f.k, f.v, l->p.q_bias,
                                     l->p.v_bias, l->k.attended, l->k.log_sums) ||
           for_blocks(&f, l->tokens, bytes, ffn_rows);
}

#endif
