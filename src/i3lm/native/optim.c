/* Passes over gradients, and AdamW, float32. */

#include <math.h>
#include <stdint.h>

#include "numbers.h"
#include "rule.h"

#define SPAN 65536 /* numbers that are summed at a time: the sum does not depend on the number of threads */

CLONES
static double square_sum(int64_t count, const float *x) {
    double total = 0;
    for (int64_t begin = 0; begin < count; begin += 1024) {
        int64_t end = begin + 1024 < count ? begin + 1024 : count;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = begin; i < end; i++) sum += x[i] * x[i];
        total += sum;
    }
    return total;
}

/* sums[k]: the sum of the squares of tensor k. */
int i3_square_sums(int64_t tensors, const float *const *x, const int64_t *counts, double *sums) {
    for (int64_t k = 0; k < tensors; k++) {
        int64_t spans = (counts[k] + SPAN - 1) / SPAN;
        double total = 0;
        if (spans <= 1) {
            total = square_sum(counts[k], x[k]);
        } else {
            double parts[spans];
#pragma omp parallel for schedule(static)
            for (int64_t i = 0; i < spans; i++) {
                int64_t left = counts[k] - i * SPAN;
                parts[i] = square_sum(left < SPAN ? left : SPAN, x[k] + i * SPAN);
            }
            for (int64_t i = 0; i < spans; i++) total += parts[i];
        }
        sums[k] = total;
    }
    return 0;
}

CLONES
static void adamw_span(int64_t count, float *restrict p, const float *restrict g, float *restrict m, float *restrict v,
                       Rule rule) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        m[i] += (1 - rule.beta1) * (g[i] - m[i]);
        v[i] += (1 - rule.beta2) * (g[i] * g[i] - v[i]);
        p[i] -= rule.lr * (rule.decay * p[i] + rule.unbias1 * m[i] / (sqrtf(v[i]) * rule.unbias2 + rule.eps));
    }
}

/* AdamW (arXiv 1711.05101) with states in float32; settings as in rule.h. */
int i3_adamw(int64_t tensors, const int64_t *counts, float *const *p, const float *const *g, float *const *m,
             float *const *v, float lr, float beta1, float beta2, float decay, float eps, float unbias1, float unbias2) {
    Rule rule = {lr, beta1, beta2, decay, eps, unbias1, unbias2};
#pragma omp parallel
    for (int64_t t = 0; t < tensors; t++) {
#pragma omp for schedule(dynamic) nowait
        for (int64_t begin = 0; begin < counts[t]; begin += 8192) {
            int64_t left = counts[t] - begin;
            adamw_span(left < 8192 ? left : 8192, p[t] + begin, g[t] + begin, m[t] + begin, v[t] + begin, rule);
        }
    }
    return 0;
}
