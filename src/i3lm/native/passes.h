/* Passes over a block of rows that the whole layer (layer.c) shares with the calls of one pass each: tensor.c and
 * layer.h, gelu.c, attention.c say what they compute. bfloat16 is uint16_t. */

#pragma once
#include <stdint.h>

#define ROWS 32 /* rows of a chunk; kernels.py has the same number */
#define CHUNKS(rows) (((rows) + ROWS - 1) / ROWS)
#define CHUNK_ROWS(rows, k) ((rows) - (k) * ROWS < ROWS ? (rows) - (k) * ROWS : ROWS)
#define BLOCK 128 /* channels that one thread carries through time: 512 bytes of each row */
#define MAX_STATE 256

/* Has memory brought into the cache while something else is computed: what keeps a layer's values has left it. */
static inline void ask_for(const void *from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)from + i);
}

void norm_rows_bf16(int64_t rows, int64_t dim, const float *x, const uint16_t *add, const float *shift, float *y,
                    const float *gain, const float *bias, float eps, uint16_t *n, uint16_t *hat, float *stats);
void norm_rows_backward_bf16(int64_t rows, int64_t dim, const float *x, const uint16_t *hat,
                             const float *stats, const float *gain,
                             const float *bias, const uint16_t *dn, const uint16_t *more, const float *dy, float *dx,
                             uint16_t *dx_low, uint16_t *n, float *partial);
void add_row_bf16(int64_t count, const float *x, const uint16_t *add, const float *shift, float *y);
void sum_rows_bf16(int64_t rows, int64_t dim, const uint16_t *x, float *sum);
int i3_ema_forward_bf16(int64_t batch, int64_t steps, int64_t channels, const uint16_t *x, const float *w,
                        const float *scale, const float *residual, float *carry, float *out);
int i3_ema_backward_bf16(int64_t batch, int64_t steps, int64_t channels, const float *grad, const uint16_t *x,
                         const float *w, const float *scale, const float *carry, float *lambda, uint16_t *grad_x,
                         float *grad_w, float *grad_scale);
double loss_rows_bf16(int64_t rows, int64_t classes, uint16_t *logits, const float *bias, const int64_t *targets,
                      float *bias_grad, float *work);
void narrow(int64_t count, const float *x, uint16_t *y);
int i3_state_scan(int64_t batch, int64_t steps, int64_t n, const float *columns, const float *u, float *state,
                  float *out, int64_t reverse);

/* table: of Phi, (3, 32), and behind it that of GELU's slope. */
void gelu_rows(int64_t rows, int64_t dim, const uint16_t *x, const float *shift, uint16_t *y, const float *tables);
void gelu_rows_backward(int64_t rows, int64_t dim, const uint16_t *x, const float *shift, uint16_t *y, uint16_t *dy,
                        float *sums, const float *tables);

int i3_attention_supported(void);
int i3_attention_forward_bf16(int64_t batch, int64_t steps, int64_t heads, int64_t size, const uint16_t *q,
                              const uint16_t *k, const uint16_t *v, const float *q_bias, const float *v_bias,
                              uint16_t *y, float *log_sums);
int i3_attention_backward_bf16(int64_t batch, int64_t steps, int64_t heads, int64_t size, const uint16_t *q,
                               const uint16_t *k, const uint16_t *v, const float *q_bias, const uint16_t *grad,
                               const float *log_sums, uint16_t *dq, uint16_t *dk, uint16_t *dv);
