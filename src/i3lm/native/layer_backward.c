/* The way back of a whole layer; see whole.h. */

#include "whole.h"

#ifdef WHOLE_LAYER

/* ---- the way back ----------------------------------------------------------------------------------------------- */

/* Names with `left_` and `right_` are packed factors of `outer_products`. */
typedef struct {
    Layer layer;
    Parts g; /* gradients, which are filled, or added to */
    int add;
    const float *grad;
    float *grad_x, *grad_3;
    uint16_t *low;                     /* (M, D): the residual gradient of the branch that is next */
    uint16_t *n1, *q, *k, *v;          /* (M, D): once more */
    uint16_t *d_out, *d_q, *d_k, *d_v; /* (M, D) */
    uint16_t *left_down_middle, *left_d_down_middle, *left_up_middle, *left_d_up_middle;
    uint32_t *right_low, *right_active, *right_d_inner, *right_n;
    uint16_t *left_low, *left_middle, *left_d_middle, *left_states, *left_d_u;
    uint32_t *right_attended, *right_d_q, *right_d_k, *right_d_v, *right_n1;
    float *d_states, *adjoint, *zeros, *d_w, *d_D;
    float *sums; /* of each block: ffn_bias D, up_bias F, norms 3 x 3 D, v_bias D, q_bias D, down_bias 3 R */
} Backward;

static int64_t sums_width(Sizes s) { return 12 * s.width + s.inner + 3 * s.rank; }

static void ffn_rows_back(void *pass, int64_t row, Room own) {
    Backward *b = pass;
    Layer *l = &b->layer;
    int64_t d = l->s.width, r = l->s.rank, wide = l->s.inner, at = row * d;
    float *sums = b->sums + row / SIDE * sums_width(l->s);
    uint16_t *d_n = take(&own, SIDE * d * 2), *low = take(&own, SIDE * d * 2), *middle = take(&own, SIDE * r * 2);
    uint16_t *d_inner = take(&own, SIDE * wide * 2), *active = take(&own, SIDE * wide * 2);
    narrow(SIDE * d, b->grad + at, low);
    sum_rows_bf16(SIDE, d, low, sums);
    pack_right_block(l->tokens, row, d, low, d, b->right_low);
    pack_left_block(l->tokens, row, r, l->k.down_middle + row * r, r, b->left_down_middle);
    times(low, d, d, r, l->m.down_A, NULL, middle, r);
    pack_left_block(l->tokens, row, r, middle, r, b->left_d_down_middle);
    times(middle, r, r, wide, l->m.down_B, NULL, d_inner, wide);
    times(l->k.up_middle + row * r, r, r, wide, l->m.up_again, NULL, active, wide);
    gelu_rows_backward(SIDE, wide, active, l->p.up_bias, active, d_inner, sums + d, l->tables);
    pack_right_block(l->tokens, row, wide, active, wide, b->right_active);
    pack_right_block(l->tokens, row, wide, d_inner, wide, b->right_d_inner);
    pack_left_block(l->tokens, row, r, l->k.up_middle + row * r, r, b->left_up_middle);
    times(d_inner, wide, wide, r, l->m.up_A, NULL, middle, r);
    pack_left_block(l->tokens, row, r, middle, r, b->left_d_up_middle);
    times(middle, r, r, d, l->m.up_B, NULL, d_n, d);
    norm_rows_backward_bf16(SIDE, d, NULL, l->k.hat3 + at, l->k.stats3 + 2 * row, l->p.gain3, l->p.shift3, d_n, NULL,
                            b->grad + at, b->grad_x + at, b->low + at, low, sums + d + wide);
    pack_right_block(l->tokens, row, d, low, d, b->right_n);
}

static void out_rows_back(void *pass, int64_t row, Room own) {
    Backward *b = pass;
    Layer *l = &b->layer;
    int64_t d = l->s.width, r = l->s.rank, at = row * d;
    const uint16_t *middle = l->k.middle + row * 3 * r;
    times(middle, 3 * r, r, d, l->m.q_again, NULL, b->q + at, d);
    times(middle + r, 3 * r, r, d, l->m.k_again, NULL, b->k + at, d);
    times(middle + 2 * r, 3 * r, r, d, l->m.v_again, NULL, b->v + at, d);
    pack_left_block(l->tokens, row, d, b->low + at, d, b->left_low);
    pack_right_block(l->tokens, row, d, l->k.attended + at, d, b->right_attended);
    pack_left_block(l->tokens, row, 3 * r, middle, 3 * r, b->left_middle);
    times(b->low + at, d, d, d, l->m.out, NULL, b->d_out + at, d);
    sum_rows_bf16(SIDE, d, b->d_out + at, b->sums + row / SIDE * sums_width(l->s) + 10 * d + l->s.inner);
}

static void attention_rows_back(void *pass, int64_t row, Room own) {
    Backward *b = pass;
    Layer *l = &b->layer;
    int64_t d = l->s.width, r = l->s.rank, n = l->s.states, at = row * d;
    float *sums = b->sums + row / SIDE * sums_width(l->s) + l->s.inner;
    uint16_t *d_n = take(&own, SIDE * d * 2), *normed = take(&own, SIDE * d * 2), *middle = take(&own, SIDE * 3 * r * 2);
    uint16_t *states = take(&own, SIDE * n * 2);
    sum_rows_bf16(SIDE, d, b->d_q + at, sums + 11 * d);
    pack_right_block(l->tokens, row, d, b->d_q + at, d, b->right_d_q);
    pack_right_block(l->tokens, row, d, b->d_k + at, d, b->right_d_k);
    pack_right_block(l->tokens, row, d, b->d_v + at, d, b->right_d_v);
    times(b->d_q + at, d, d, r, l->m.q_up, NULL, middle, 3 * r);
    times(b->d_k + at, d, d, r, l->m.k_up, NULL, middle + r, 3 * r);
    times(b->d_v + at, d, d, r, l->m.v_up, NULL, middle + 2 * r, 3 * r);
    sum_rows_bf16(SIDE, 3 * r, middle, sums + 12 * d);
    pack_left_block(l->tokens, row, 3 * r, middle, 3 * r, b->left_d_middle);
    times(middle, 3 * r, 3 * r, d, l->m.down, NULL, d_n, d);
    norm_rows_backward_bf16(SIDE, d, NULL, l->k.hat2 + at, l->k.stats2 + 2 * row, l->p.gain2, l->p.shift2, d_n, NULL,
                            b->grad_x + at, b->grad_3 + at, b->low + at, normed, sums + 4 * d);
    pack_right_block(l->tokens, row, d, normed, d, b->right_n);
    pack_right_block(l->tokens, row, d, b->low + at, d, b->right_low);
    times_float(b->low + at, d, n, l->m.C, b->d_states + row * n);
    narrow(SIDE * n, l->k.states + row * n, states);
    pack_left_block(l->tokens, row, n, states, n, b->left_states);
    norm_rows_bf16(SIDE, d, l->k.x1 + at, NULL, NULL, NULL, l->p.gain1, l->p.shift1, l->eps,
                   b->n1 + at, NULL, l->k.stats1 + 2 * row);
}

static void recurrence_rows_back(void *pass, int64_t row, Room own) {
    Backward *b = pass;
    Layer *l = &b->layer;
    int64_t d = l->s.width, n = l->s.states, at = row * d;
    uint16_t *more = take(&own, SIDE * d * 2), *low = take(&own, SIDE * d * 2), *d_u = take(&own, SIDE * n * 2);
    narrow(SIDE * n, b->adjoint + row * n, d_u);
    pack_left_block(l->tokens, row, n, d_u, n, b->left_d_u);
    pack_right_block(l->tokens, row, d, b->n1 + at, d, b->right_n1);
    times(d_u, n, n, d, l->m.B, NULL, more, d);
    norm_rows_backward_bf16(SIDE, d, l->k.x1 + at, NULL, l->k.stats1 + 2 * row, l->p.gain1, l->p.shift1, b->d_q + at, more,
                            b->grad_3 + at, b->grad_x + at, low, NULL,
                            b->sums + row / SIDE * sums_width(l->s) + l->s.inner + 7 * d);
}

/* dA = the sum over time of adjoint_t s_{t-1}^T, in float32; with `add` that is added to it. */
CLONES static void transition_gradient(Sizes s, const float *adjoint, const float *states, float *to, int add) {
    int64_t n = s.states;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float sums[MAX_STATE] = {0};
        for (int64_t t = 0; t < s.batch * s.steps; t++) {
            if (t % s.steps == 0) continue;
            float factor = adjoint[t * n + i];
            for (int64_t j = 0; j < n; j++) sums[j] += factor * states[(t - 1) * n + j];
        }
        for (int64_t j = 0; j < n; j++) to[i * n + j] = add ? to[i * n + j] + sums[j] : sums[j];
    }
}

static void room_backward(Backward *b, Room *room, uint32_t **words) {
    Sizes s = b->layer.s;
    int64_t m = b->layer.tokens, wide = 2 * m * s.width, middle = 2 * m * s.rank, n = 4 * m * s.states;
    Matrix matrices[BACKWARD];
    *words = take(room, 4 * matrices_of(s, &b->layer.p, BACKWARD, matrices));
    b->grad_3 = take(room, 2 * wide);
    b->low = take(room, wide);
    b->right_low = take(room, wide);
    b->right_n = take(room, wide);
    int64_t branch = room->taken; /* what the feed-forward needs lies where attention's and the recurrence's is */
    b->left_down_middle = take(room, middle);
    b->left_d_down_middle = take(room, middle);
    b->left_up_middle = take(room, middle);
    b->left_d_up_middle = take(room, middle);
    b->right_active = take(room, 2 * m * s.inner);
    b->right_d_inner = take(room, 2 * m * s.inner);
    int64_t end = room->taken;
    room->taken = branch;
    b->n1 = take(room, wide);
    b->q = take(room, wide);
    b->k = take(room, wide);
    b->v = take(room, wide);
    b->d_out = take(room, wide);
    b->d_q = take(room, wide);
    b->d_k = take(room, wide);
    b->d_v = take(room, wide);
    b->left_low = take(room, wide);
    b->left_middle = take(room, 3 * middle);
    b->left_d_middle = take(room, 3 * middle);
    b->right_attended = take(room, wide);
    b->right_d_q = take(room, wide);
    b->right_d_k = take(room, wide);
    b->right_d_v = take(room, wide);
    b->right_n1 = b->right_attended; /* which is used up by then */
    room->taken = end > room->taken ? end : room->taken;
    b->left_states = take(room, n / 2);
    b->left_d_u = take(room, n / 2);
    b->d_states = take(room, n);
    b->adjoint = take(room, n);
    b->zeros = take(room, 4 * s.batch * (2 * s.width + s.states));
    b->d_w = take(room, 4 * s.batch * s.width);
    b->d_D = take(room, 4 * s.batch * s.width);
    b->sums = take(room, 4 * b->layer.chunks * sums_width(s));
}

static int64_t backward_bytes(Sizes s) { return 2 * SIDE * (2 * s.inner + 2 * s.width + 3 * s.rank + s.states) + 512; }

static int ffn_back(Backward *b) {
    Layer *l = &b->layer;
    int64_t d = l->s.width, r = l->s.rank, f = l->s.inner;
    const Outer jobs[] = {
        {b->left_d_down_middle, b->right_active, r, f, b->g.down_B, 0},
        {b->left_up_middle, b->right_d_inner, r, f, b->g.up_A, 1},
        {b->left_down_middle, b->right_low, r, d, b->g.down_A, 1},
        {b->left_d_up_middle, b->right_n, r, d, b->g.up_B, 0},
    };
    if (for_blocks(b, l->tokens, backward_bytes(l->s), ffn_rows_back)) return 1;
    outer_products(l->tokens, jobs, 4, b->add);
    return 0;
}

static int attention_back(Backward *b) {
    Layer *l = &b->layer;
    int64_t d = l->s.width, r = l->s.rank, third = r * l->tokens;
    const Outer jobs[] = {
        {b->left_low, b->right_attended, d, d, b->g.out, 0},
        {b->left_d_middle, b->right_n, 3 * r, d, b->g.down, 0},
        {b->left_middle, b->right_d_q, r, d, b->g.q_up, 1},
        {b->left_middle + third, b->right_d_k, r, d, b->g.k_up, 1},
        {b->left_middle + 2 * third, b->right_d_v, r, d, b->g.v_up, 1},
    };
    if (for_blocks(b, l->tokens, 64, out_rows_back) ||
        i3_attention_backward_bf16(l->s.batch, l->s.steps, l->s.heads, d / l->s.heads, b->q, b->k, b->v,
                                   l->p.q_bias, b->d_out, l->k.log_sums, b->d_q, b->d_k, b->d_v) ||
        for_blocks(b, l->tokens, backward_bytes(l->s), attention_rows_back))
        return 1;
    outer_products(l->tokens, jobs, 5, b->add);
    return 0;
}

static int recurrence_back(Backward *b) {
    Layer *l = &b->layer;
    Sizes s = l->s;
    int64_t d = s.width, n = s.states;
    const Outer jobs[] = {
        {b->left_states, b->right_low, n, d, b->g.C, 1},
        {b->left_d_u, b->right_n1, n, d, b->g.B, 0},
    };
    memset(b->zeros, 0, 4 * s.batch * (2 * d + n));
    memset(b->d_w, 0, 4 * s.batch * d);
    memset(b->d_D, 0, 4 * s.batch * d);
    if (i3_state_scan(s.batch, s.steps, n, l->p.A, b->d_states, b->zeros + 2 * s.batch * d, b->adjoint, 1) ||
        i3_ema_backward_bf16(s.batch, s.steps, d, b->grad_3, b->n1, l->p.w, l->p.D, b->zeros,
                             b->zeros + s.batch * d, b->d_q, b->d_w, b->d_D) ||
        for_blocks(b, l->tokens, backward_bytes(s), recurrence_rows_back))
        return 1;
    transition_gradient(s, b->adjoint, l->k.states, b->g.A, b->add);
    outer_products(l->tokens, jobs, 2, b->add);
    return 0;
}

/* Adds up the blocks' sums. */
static void vectors_back(Backward *b) {
    Sizes s = b->layer.s;
    int64_t d = s.width, f = s.inner, stride = sums_width(s);
    const float *at = b->sums, *norms = at + d + f;
    const struct {
        const float *from;
        int64_t chunks, stride, count;
        float *to;
    } all[] = {
        {at, b->layer.chunks, stride, d, b->g.ffn_bias},
        {at + d, b->layer.chunks, stride, f, b->g.up_bias},
        {norms, b->layer.chunks, stride, d, b->g.gain3},
        {norms + d, b->layer.chunks, stride, d, b->g.shift3},
        {norms + 2 * d, b->layer.chunks, stride, d, b->g.out_bias},
        {norms + 3 * d, b->layer.chunks, stride, d, b->g.gain2},
        {norms + 4 * d, b->layer.chunks, stride, d, b->g.shift2},
        {norms + 6 * d, b->layer.chunks, stride, d, b->g.gain1},
        {norms + 7 * d, b->layer.chunks, stride, d, b->g.shift1},
        {norms + 9 * d, b->layer.chunks, stride, d, b->g.v_bias},
        {norms + 10 * d, b->layer.chunks, stride, d, b->g.q_bias},
        {norms + 11 * d, b->layer.chunks, stride, 3 * s.rank, b->g.down_bias},
        {b->d_w, s.batch, d, d, b->g.w},
        {b->d_D, s.batch, d, d, b->g.D},
    };
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < (int64_t)(sizeof(all) / sizeof(all[0])); i++)
        reduce(all[i].chunks, all[i].stride, all[i].from, all[i].count, all[i].to, b->add);
}

/* Bytes of `work` that the way back needs. */
int64_t i3_layer_backward_room(const int64_t *sizes) {
    Backward b = {.layer = {.s = *(const Sizes *)sizes}};
    b.layer.tokens = b.layer.s.batch * b.layer.s.steps;
    b.layer.chunks = b.layer.tokens / SIDE;
    Room room = {NULL, 0};
    uint32_t *words;
    room_backward(&b, &room, &words);
    return room.taken;
}

/* grads: addresses as in Parts, to be filled, or with `add` added to; that of k_bias is zero and left to the caller.
 * grad, grad_x: (M, D). work: see above. Returns 1 when there is no memory. */
int i3_layer_backward(const int64_t *sizes, float *const *parts, void *const *kept, float eps, const float *tables,
                      float *const *grads, int64_t add, const float *grad, float *grad_x, char *work) {
    Backward b = {.layer = layer_of(sizes, parts, kept, eps, tables), .add = add != 0, .grad = grad, .grad_x = grad_x};
    memcpy(&b.g, grads, sizeof(b.g));
    Room room = {work, 0};
    uint32_t *words;
    room_backward(&b, &room, &words);
#pragma omp parallel
    pack_all(b.layer.s, &b.layer.p, BACKWARD, words, &b.layer.m);
    int failed = ffn_back(&b) || attention_back(&b) || recurrence_back(&b);
    if (!failed) vectors_back(&b);
    return failed;
}

#endif
