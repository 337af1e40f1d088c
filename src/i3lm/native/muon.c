/* The two passes of Muon over a matrix (optim/muon.py), float32: into the batch that is orthogonalised, and back.
 * Tall matrices are transposed on the way, tile by tile. */

#include <stdint.h>

#include "numbers.h"

#define TILE 16

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
