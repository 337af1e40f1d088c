/* Muon's products in AMX tiles (products.h), to 16 bits: a number is the sum of a high and a low one of bfloat16, and of
 * the four products of such halves that of the two low ones is left out. Along the depth a factor lies as high, low.
 *
 * Sides are multiples of 32. Several times the speed of float32 vectors; without tiles the vectors are faster. */

#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#include "products.h"
#endif

#ifdef HAS_TILES
#define LEAST_SIDE 24 /* a smaller map is mostly padding */
#define ROOM_OF_TERMS(n) ((n) * (2 * (n) + 3 * SPAN)) /* floats: both factors of a symmetric product, or of a span */

static inline void begin_tiles(void) {
    if (i3_tiles > 0) load_tile_sizes();
}

static inline void end_tiles(void) {
    if (i3_tiles > 0) release_tiles();
}

/* 16 numbers of bfloat16 as float32. */
AVX512 static inline __m512 widened(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

/* Two rows of 16 numbers, even and odd, as high + rest. */
AVX512 static inline __m512i split(const float *even, const float *odd, __m512i *rest) {
    __m512 first = _mm512_loadu_ps(even), second = _mm512_loadu_ps(odd);
    __m512i high = low_rows(first, second);
    *rest = low_rows(_mm512_sub_ps(first, widened(_mm512_castsi512_si256(high))),
                     _mm512_sub_ps(second, widened(_mm512_extracti64x4_epi64(high, 1))));
    return high;
}

/* A left factor (rows, 2 n) of x (rows, n). */
AVX512 static inline void split_left(int64_t rows, int64_t n, const float *x, uint16_t *left) {
    for (int64_t i = 0; i < rows; i++, x += n, left += 2 * n)
        for (int64_t j = 0; j < n; j += 2 * LANES) {
            __m512i rest, high = split(x + j, x + j + LANES, &rest);
            _mm512_storeu_si512(left + j, high);
            _mm512_storeu_si512(left + n + j, rest);
        }
}

AVX512 static inline void store_rows(__m512i rows, uint16_t *even, uint16_t *odd) {
    _mm256_storeu_si256((__m256i *)even, _mm512_castsi512_si256(rows));
    _mm256_storeu_si256((__m256i *)odd, _mm512_extracti64x4_epi64(rows, 1));
}

/* The words of a panel of a right factor, 16 columns of twice the depth. */
static inline int64_t panel_of(int64_t depth) { return LANES * depth; }

/* A right factor of x (n, n), which gives the left one too where `left` is not null. */
AVX512 static inline void split_right(int64_t n, const float *x, uint32_t *right, uint16_t *left) {
    for (int64_t k = 0; k < n; k += 2, x += 2 * n)
        for (int64_t j = 0; j < n; j += LANES) {
            __m512i rest, high = split(x + j, x + n + j, &rest);
            uint32_t *at = right + j / LANES * panel_of(n) + k / 2 * LANES;
            _mm512_storeu_si512(at, interleaved(high));
            _mm512_storeu_si512(at + panel_of(n) / 2, interleaved(rest));
            if (left) {
                uint16_t *row = left + k * 2 * n + j;
                store_rows(high, row, row + 2 * n);
                store_rows(rest, row + n, row + 3 * n);
            }
        }
}

/* c (32, 32) (+)= a x two panels of a right factor, over a depth of 32 `steps`; `low`: from a's high half to its low. */
AMX static inline void tile_terms(Left a, int64_t low, int64_t steps, const uint32_t *right, int add, float *c,
                                  int64_t stride) {
    const uint32_t *beside = right + 2 * steps * TILE;
    begin_sums(add, c, stride);
    for (int64_t s = 0; s < steps; s++) {
        const uint16_t *top = a.at + s * a.step, *bottom = top + a.half;
        _tile_loadd(4, top, 2 * a.row);
        _tile_loadd(6, right + s * TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, beside + s * TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, bottom, 2 * a.row);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(4, top + low, 2 * a.row);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(4, bottom + low, 2 * a.row);
        _tile_dpbf16ps(2, 4, 6);
        _tile_dpbf16ps(3, 4, 7);
        _tile_loadd(6, right + (steps + s) * TILE, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, beside + (steps + s) * TILE, 64);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(4, top, 2 * a.row);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
    }
    end_sums(c, stride);
}

/* Copies what is above the diagonal below it, to the last number: what is left of asymmetry grows with every round. */
AVX512 static inline void tile_mirror(int64_t n, float *c) {
    for (int64_t i = 0; i < n; i += SIDE) {
        for (int64_t r = i; r < i + SIDE; r++)
            for (int64_t k = i; k < r; k++) c[r * n + k] = c[k * n + r];
        for (int64_t j = i + SIDE; j < n; j += SIDE) transposed_block_to_float(c + i * n + j, n, 0, c + j * n + i, n);
    }
}

/* c = a b, all (n, n) and symmetric. */
AVX512 static inline void tile_symmetric(int64_t n, const float *a, const float *b, float *c, void *room) {
    uint16_t *left = room;
    uint32_t *right = (uint32_t *)(left + 2 * n * n);
    split_right(n, b, right, a == b ? left : NULL);
    if (a != b) split_left(n, n, a, left);
    for (int64_t j = 0; j < n; j += SIDE)
        for (int64_t i = 0; i <= j; i += SIDE)
            tile_terms(in_rows(left + i * 2 * n, 2 * n), n, n / SIDE, right + j / LANES * panel_of(n), 0, c + i * n + j, n);
    tile_mirror(n, c);
}

/* Adds the Gram matrix of x (SPAN, n) to the blocks of c (n, n) on and above the diagonal. */
AVX512 static inline void tile_gram(int64_t n, const float *x, float *c, void *room) {
    uint16_t *rows = room, *left = rows + 2 * SPAN * n;
    uint32_t *right = (uint32_t *)(left + 2 * SPAN * n);
    split_left(SPAN, n, x, rows);
    for (int64_t j = 0; j < n; j += LANES)
        for (int64_t half = 0; half < 2; half++) {
            pack_left(SPAN, rows + half * n + j, 2 * n, left + (2 * j + half * LANES) * SPAN);
            pack_low(SPAN, rows + half * n + j, 2 * n, right + j * SPAN + half * panel_of(SPAN) / 2);
        }
    for (int64_t j = 0; j < n; j += SIDE)
        for (int64_t i = 0; i <= j; i += SIDE)
            tile_terms(in_tiles(left + i * 2 * SPAN, 2 * SPAN), SPAN * LANES, SPAN / SIDE, right + j * SPAN, 1, c + i * n + j, n);
}

/* out = x q, both (SPAN, n); `right`: q as a right factor. What is behind it is overwritten. */
AVX512 static inline void tile_rows(int64_t n, const float *x, uint32_t *right, float *out) {
    uint16_t *left = (uint16_t *)(right + n / LANES * panel_of(n));
    split_left(SPAN, n, x, left);
    for (int64_t j = 0; j < n; j += SIDE)
        for (int64_t i = 0; i < SPAN; i += SIDE)
            tile_terms(in_rows(left + i * 2 * n, 2 * n), n, n / SIDE, right + j / LANES * panel_of(n), 0, out + i * n + j, n);
}
#else
#define ROOM_OF_TERMS(n) 0
static inline void begin_tiles(void) {}
static inline void end_tiles(void) {}
static inline void split_right(int64_t n, const float *x, uint32_t *right, uint16_t *left) {}
static inline void tile_mirror(int64_t n, float *c) {}
static inline void tile_symmetric(int64_t n, const float *a, const float *b, float *c, void *room) {}
static inline void tile_gram(int64_t n, const float *x, float *c, void *room) {}
static inline void tile_rows(int64_t n, const float *x, uint32_t *right, float *out) {}
#endif
