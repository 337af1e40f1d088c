/* Passes of the optimizers over parameters and gradients, float32. */

#include <stdint.h>

#include "numbers.h"

#define SPAN 65536 /* numbers that are summed at a time: the sum does not depend on the number of threads */
#define TILE 16

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

/* The two passes of Muon over a matrix (optim/muon.py): into the batch that is orthogonalised, and back. Tall
 * matrices are transposed on the way, tile by tile. */

/* m <- m + (1 - beta) (g - m); out <- g + beta (m - g), the Nesterov step, transposed if asked. */
CLONES
static void gather_tile(int64_t rows, int64_t columns, int64_t row, int64_t column, const float *restrict grad,
                        float *restrict momentum, float beta, float *restrict out, int transposed) {
    float tile[TILE][TILE];
    int64_t height = rows - row < TILE ? rows - row : TILE, width = columns - column < TILE ? columns - column : TILE;
    for (int64_t r = 0; r < height; r++) {
        int64_t at = (row + r) * columns + column;
        for (int64_t c = 0; c < width; c++) {
            float g = grad[at + c], m = momentum[at + c];
            m += (1 - beta) * (g - m);
            momentum[at + c] = m;
            tile[r][c] = g + beta * (m - g);
        }
    }
    if (transposed)
        for (int64_t c = 0; c < width; c++)
            for (int64_t r = 0; r < height; r++) out[(column + c) * rows + row + r] = tile[r][c];
    else
        for (int64_t r = 0; r < height; r++)
            for (int64_t c = 0; c < width; c++) out[(row + r) * columns + column + c] = tile[r][c];
}

int i3_muon_gather(int64_t rows, int64_t columns, const float *grad, float *momentum, float beta, float *out,
                   int64_t transposed) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row += TILE)
        for (int64_t column = 0; column < columns; column += TILE)
            gather_tile(rows, columns, row, column, grad, momentum, beta, out, transposed);
    return 0;
}

/* p <- keep p - rate * direction. */
CLONES
static void apply_tile(int64_t rows, int64_t columns, int64_t row, int64_t column, float *restrict p,
                       const float *restrict direction, float keep, float rate, int transposed) {
    float tile[TILE][TILE];
    int64_t height = rows - row < TILE ? rows - row : TILE, width = columns - column < TILE ? columns - column : TILE;
    if (transposed)
        for (int64_t c = 0; c < width; c++)
            for (int64_t r = 0; r < height; r++) tile[r][c] = direction[(column + c) * rows + row + r];
    else
        for (int64_t r = 0; r < height; r++)
            for (int64_t c = 0; c < width; c++) tile[r][c] = direction[(row + r) * columns + column + c];
    for (int64_t r = 0; r < height; r++) {
        int64_t at = (row + r) * columns + column;
        for (int64_t c = 0; c < width; c++) p[at + c] = keep * p[at + c] - rate * tile[r][c];
    }
}

int i3_muon_apply(int64_t rows, int64_t columns, float *p, const float *direction, float keep, float rate,
                  int64_t transposed) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row += TILE)
        for (int64_t column = 0; column < columns; column += TILE)
            apply_tile(rows, columns, row, column, p, direction, keep, rate, transposed);
    return 0;
}
