/* The way back of a whole layer; see whole.h. */

#include "whole.h"

#ifdef WHOLE_LAYER

/* The gradient of a matrix: left^T x right over all tokens, (high, wide), or its transpose. */
typedef struct {
    const uint16_t *left, *right;
    int64_t left_row, high, wide;
    float *to;
    int transposed;
} Outer;

/* room: `largest` bytes for the left factors, shared. Called by all threads; each has a panel room of its own. */
static void outer_products(int64_t tokens, const Outer *jobs, int count, uint16_t *lefts, uint32_t *panels) {
    int64_t strips = 0, pieces = 0;
    for (int i = 0; i < count; i++) strips += jobs[i].high / LANES, pieces += jobs[i].wide / SIDE;
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < strips; unit++) {
        int64_t i = 0, strip = unit;
        for (; strip >= jobs[i].high / LANES; i++) strip -= jobs[i].high / LANES;
        pack_left(tokens, jobs[i].left + strip * LANES, jobs[i].left_row, lefts + unit * LANES * tokens);
    }
#pragma omp for schedule(dynamic)
    for (int64_t unit = 0; unit < pieces; unit++) {
        int64_t i = 0, piece = unit;
        const uint16_t *left = lefts;
        for (; piece >= jobs[i].wide / SIDE; i++) {
            piece -= jobs[i].wide / SIDE;
            left += jobs[i].high * tokens;
        }
        Outer job = jobs[i];
        float c[SIDE * SIDE] __attribute__((aligned(64)));
        int64_t at = piece * SIDE;
        pack_low(tokens, job.right + at, job.wide, panels);
        pack_low(tokens, job.right + at + LANES, job.wide, panels + LANES * tokens / 2);
        for (int64_t j = 0; j < job.high; j += SIDE) {
            float *to = job.transposed ? c : job.to + j * job.wide + at;
            block(in_tiles(left + j * tokens, tokens), tokens / SIDE, panels, LANES * tokens / 2, 0, to,
                  job.transposed ? SIDE : job.wide);
            if (job.transposed) transposed_block_to_float(c, job.to + at * job.high + j, job.high);
        }
    }
}

/* to (count) = the sum of `chunks` rows of partial, `stride` apart. */
CLONES static void reduce(int64_t chunks, int64_t stride, const float *partial, int64_t count, float *to) {
    for (int64_t c = 0; c < count; c += BLOCK) {
        float sums[BLOCK] = {0};
        int64_t width = count - c < BLOCK ? count - c : BLOCK;
        for (int64_t k = 0; k < chunks; k++)
            for (int64_t i = 0; i < width; i++) sums[i] += partial[k * stride + c + i];
        for (int64_t i = 0; i < width; i++) to[c + i] = sums[i];
    }
}

/* ---- the way back ----------------------------------------------------------------------------------------------- */

typedef struct {
    Layer layer;
    Parts g; /* gradients */
    const float *grad;
    float *grad_x, *grad_2, *grad_3;
    uint16_t *low, *low_2; /* (M, D): the residual gradient of this branch and of the next */
    uint16_t *n, *d_middle, *d_down_middle, *d_up_middle;
    uint16_t *d_inner, *active;              /* (M, F) */
    uint16_t *d_out, *d_q, *d_k, *d_v;       /* (M, D), where these were */
    uint16_t *states, *d_u, *lefts;
    float *d_states, *adjoint, *zeros, *d_w, *d_D;
    float *sums; /* of each block: ffn_bias D, up_bias F, norms 3 x 3 D, v_bias D, q_bias D, down_bias 3 R */
} Backward;

static int64_t sums_width(Sizes s) { return 12 * s.width + s.inner + 3 * s.rank; }

static void ffn_rows_back(void *pass, int64_t row, Room own) {
    Backward *b = pass;
    Layer *l = &b->layer;
    int64_t d = l->s.width, r = l->s.rank, wide = l->s.inner, at = row * d;
    float *sums = b->sums + row / SIDE * sums_width(l->s);
    uint16_t *d_n = take(&own, SIDE * d * 2), *low = b->low + at, *d_inner = b->d_inner + row * wide;
    narrow(SIDE * d, b->grad + at, low);
    sum_rows_bf16(SIDE, d, low, sums);
    times(low, d, d, r, l->m.down_A, NULL, b->d_down_middle + row * r, r);
    times(b->d_down_middle + row * r, r, r, wide, l->m.down_B, NULL, d_inner, wide);
    gelu_rows_backward(SIDE, wide, l->k.inner + row * wide, l->p.up_bias, b->active + row * wide, d_inner, sums + d,
                       l->tables);
    times(d_inner, wide, wide, r, l->m.up_A, NULL, b->d_up_middle + row * r, r);
    times(b->d_up_middle + row * r, r, r, d, l->m.up_B, NULL, d_n, d);
    norm_rows_backward_bf16(SIDE, d, l->k.x3 + at, l->k.stats3 + 2 * row, l->p.gain3, l->p.shift3, d_n, NULL,
                            b->grad + at, b->grad_x + at, b->low_2 + at, b->n + at, sums + d + wide);
}

static void out_rows_back(void *pass, int64_t row, Room own) {
    Backward *b = pass;
    Layer *l = &b->layer;
    int64_t d = l->s.width, at = row * d;
    times(b->low_2 + at, d, d, d, l->m.out, NULL, b->d_out + at, d);
    sum_rows_bf16(SIDE, d, b->d_out + at, b->sums + row / SIDE * sums_width(l->s) + 10 * d + l->s.inner);
}

static void attention_rows_back(void *pass, int64_t row, Room own) {
    Backward *b = pass;
    Layer *l = &b->layer;
    int64_t d = l->s.width, r = l->s.rank, at = row * d;
    float *sums = b->sums + row / SIDE * sums_width(l->s) + l->s.inner;
    uint16_t *d_n = take(&own, SIDE * d * 2), *middle = b->d_middle + row * 3 * r;
    sum_rows_bf16(SIDE, d, b->d_q + at, sums + 11 * d);
    times(b->d_q + at, d, d, r, l->m.q_up, NULL, middle, 3 * r);
    times(b->d_k + at, d, d, r, l->m.k_up, NULL, middle + r, 3 * r);
    times(b->d_v + at, d, d, r, l->m.v_up, NULL, middle + 2 * r, 3 * r);
    sum_rows_bf16(SIDE, 3 * r, middle, sums + 12 * d);
    times(middle, 3 * r, 3 * r, d, l->m.down, NULL, d_n, d);
    norm_rows_backward_bf16(SIDE, d, l->k.x2 + at, l->k.stats2 + 2 * row, l->p.gain2, l->p.shift2, d_n, NULL,
                            b->grad_x + at, b->grad_3 + at, b->low + at, b->n + at, sums + 4 * d);
    times_float(b->low + at, d, l->s.states, l->m.C, b->d_states + row * l->s.states);
    narrow(SIDE * l->s.states, l->k.states + row * l->s.states, b->states + row * l->s.states);
}

static void recurrence_rows_back(void *pass, int64_t row, Room own) {
    Backward *b = pass;
    Layer *l = &b->layer;
    int64_t d = l->s.width, n = l->s.states, at = row * d;
    uint16_t *more = take(&own, SIDE * d * 2), *low = take(&own, SIDE * d * 2);
    narrow(SIDE * n, b->adjoint + row * n, b->d_u + row * n);
    times(b->d_u + row * n, n, n, d, l->m.B, NULL, more, d);
    norm_rows_backward_bf16(SIDE, d, l->k.x1 + at, l->k.stats1 + 2 * row, l->p.gain1, l->p.shift1, b->d_q + at, more,
                            b->grad_3 + at, b->grad_x + at, low, NULL,
                            b->sums + row / SIDE * sums_width(l->s) + l->s.inner + 7 * d);
}

/* dA = the sum over time of adjoint_t s_{t-1}^T, in float32. */
CLONES static void transition_gradient(Sizes s, const float *adjoint, const float *states, float *to) {
    int64_t n = s.states;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float sums[MAX_STATE] = {0};
        for (int64_t t = 0; t < s.batch * s.steps; t++) {
            if (t % s.steps == 0) continue;
            float factor = adjoint[t * n + i];
            for (int64_t j = 0; j < n; j++) sums[j] += factor * states[(t - 1) * n + j];
        }
        memcpy(to + i * n, sums, n * sizeof(float));
    }
}

static int gradients(Backward *b, const Outer *jobs, int count) {
    int64_t tokens = b->layer.tokens;
    int failed = 0;
#pragma omp parallel
    {
        uint32_t *panels = aligned_alloc(64, SIDE * tokens * 2);
        if (!panels) {
#pragma omp atomic write
            failed = 1;
        }
        begin_blocks();
#pragma omp barrier
        if (!failed) outer_products(tokens, jobs, count, b->lefts, panels);
        end_blocks();
        free(panels);
    }
    return failed;
}

static void room_backward(Backward *b, Room *room, uint32_t **words) {
    Sizes s = b->layer.s;
    int64_t m = b->layer.tokens, sizes[MATRICES][2], wide = m * s.width, n = m * s.states;
    int64_t highs = s.width + 6 * s.rank > 4 * s.rank ? s.width + 6 * s.rank : 4 * s.rank;
    const float *from[MATRICES];
    *words = take(room, 4 * matrix_sizes(s, &b->layer.p, sizes, from));
    b->grad_3 = take(room, 4 * wide);
    b->low = take(room, 2 * wide);
    b->low_2 = take(room, 2 * wide);
    b->n = take(room, 2 * wide);
    b->d_middle = take(room, 2 * m * 3 * s.rank);
    b->d_down_middle = take(room, 2 * m * s.rank);
    b->d_up_middle = take(room, 2 * m * s.rank);
    int64_t both = room->taken;
    b->d_inner = take(room, 2 * m * s.inner);
    b->active = take(room, 2 * m * s.inner);
    int64_t end = room->taken;
    room->taken = both;
    b->d_out = take(room, 2 * wide);
    b->d_q = take(room, 2 * wide);
    b->d_k = take(room, 2 * wide);
    b->d_v = take(room, 2 * wide);
    room->taken = end > room->taken ? end : room->taken;
    b->states = take(room, 2 * n);
    b->d_u = take(room, 2 * n);
    b->lefts = take(room, 2 * m * highs);
    b->d_states = take(room, 4 * n);
    b->adjoint = take(room, 4 * n);
    b->zeros = take(room, 4 * s.batch * (2 * s.width + s.states));
    b->d_w = take(room, 4 * s.batch * s.width);
    b->d_D = take(room, 4 * s.batch * s.width);
    b->sums = take(room, 4 * b->layer.chunks * sums_width(s));
}

static int ffn_back(Backward *b) {
    Layer *l = &b->layer;
    int64_t d = l->s.width, r = l->s.rank, f = l->s.inner;
    const Outer jobs[] = {
        {l->k.down_middle, b->low, r, r, d, b->g.down_A, 1},
        {b->d_down_middle, b->active, r, r, f, b->g.down_B, 0},
        {l->k.up_middle, b->d_inner, r, r, f, b->g.up_A, 1},
        {b->d_up_middle, b->n, r, r, d, b->g.up_B, 0},
    };
    return for_blocks(b, l->tokens, 2 * SIDE * d, ffn_rows_back) || gradients(b, jobs, 4);
}

static int attention_back(Backward *b) {
    Layer *l = &b->layer;
    int64_t d = l->s.width, r = l->s.rank;
    const Outer jobs[] = {
        {b->low_2, l->k.attended, d, d, d, b->g.out, 0},
        {l->k.middle, b->d_q, 3 * r, r, d, b->g.q_up, 1},
        {l->k.middle + r, b->d_k, 3 * r, r, d, b->g.k_up, 1},
        {l->k.middle + 2 * r, b->d_v, 3 * r, r, d, b->g.v_up, 1},
        {b->d_middle, b->n, 3 * r, 3 * r, d, b->g.down, 0},
    };
    return for_blocks(b, l->tokens, 64, out_rows_back) ||
           i3_attention_backward_bf16(l->s.batch, l->s.steps, l->s.heads, d / l->s.heads, l->k.q, l->k.k, l->k.v,
                                      l->p.q_bias, b->d_out, l->k.log_sums, b->d_q, b->d_k, b->d_v) ||
           for_blocks(b, l->tokens, 2 * SIDE * d, attention_rows_back) || gradients(b, jobs, 5);
}

static int recurrence_back(Backward *b) {
    Layer *l = &b->layer;
    Sizes s = l->s;
    int64_t d = s.width, n = s.states;
    const Outer jobs[] = {
        {b->states, b->low, n, n, d, b->g.C, 1},
        {b->d_u, l->k.n1, n, n, d, b->g.B, 0},
    };
    memset(b->zeros, 0, 4 * s.batch * (2 * d + n));
    memset(b->d_w, 0, 4 * s.batch * d);
    memset(b->d_D, 0, 4 * s.batch * d);
    if (i3_state_scan(s.batch, s.steps, n, l->p.A, b->d_states, b->zeros + 2 * s.batch * d, b->adjoint, 1) ||
        i3_ema_backward_bf16(s.batch, s.steps, d, b->grad_3, l->k.n1, l->p.w, l->p.D, b->zeros,
                             b->zeros + s.batch * d, b->d_q, b->d_w, b->d_D))
        return 1;
    transition_gradient(s, b->adjoint, l->k.states, b->g.A);
    return for_blocks(b, l->tokens, 4 * SIDE * d, recurrence_rows_back) || gradients(b, jobs, 2);
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
        reduce(all[i].chunks, all[i].stride, all[i].from, all[i].count, all[i].to);
}

/* grads: addresses as in Parts, to be filled; that of k_bias is zero and left to the caller. grad, grad_x: (M, D).
 * kept must be whole. Returns 1 when there is no memory. */
int i3_layer_backward(const int64_t *sizes, float *const *parts, void *const *kept, float eps, const float *tables,
                      float *const *grads, const float *grad, float *grad_x) {
    Backward b = {.layer = layer_of(sizes, parts, kept, eps, tables), .grad = grad, .grad_x = grad_x};
    memcpy(&b.g, grads, sizeof(b.g));
    Room room = {NULL, 0};
    uint32_t *words;
    room_backward(&b, &room, &words);
    room = (Room){aligned_alloc(64, room.taken), 0};
    if (!room.at) return 1;
    room_backward(&b, &room, &words);
#pragma omp parallel
    pack_all(b.layer.s, &b.layer.p, 0, words, &b.layer.m);
    int failed = ffn_back(&b) || attention_back(&b) || recurrence_back(&b);
    if (!failed) vectors_back(&b);
    free(room.at);
    return failed;
}

#endif
