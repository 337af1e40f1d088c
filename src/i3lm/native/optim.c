/* Passes over gradients, float32. */

#include <stdint.h>

#include "numbers.h"

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
