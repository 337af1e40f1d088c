/* Products of bfloat16 matrices with float32 sums, 32 rows by 32 columns at a time: AMX tiles where the processor has
 * them, AVX512-BF16 else. One factor is packed in tiles; the other lies in rows, or is packed too.
 *
 * A packed right factor (depth, columns) is a list of panels of 16 columns; a panel holds, for every 32 of the depth, 16
 * rows of 16 words, a word being two neighbours along the depth (what both kinds of instructions take). */

#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "numbers.h"

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma" WIDE_VECTORS)))
#define LANES 16
#define SIDE 32        /* rows and columns of a block of results, and the depth of a tile */
#define TILE 256       /* words of a tile */

/* Rows of a left factor: `row` numbers apart; `step` to the next 32 columns, `half` to the last 16 rows of 32. */
typedef struct {
    const uint16_t *at;
    int64_t row, step, half;
} Left;

static inline Left in_rows(const uint16_t *at, int64_t row) { return (Left){at, row, SIDE, LANES * row}; }

#if defined(__linux__) && (defined(__clang__) || __GNUC__ >= 11)
#define HAS_TILES
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#define AMX __attribute__((target("amx-tile,amx-bf16,avx512f")))

/* The processor has tiles of bfloat16, and the system lets this process use them. */
static inline int ask_for_tiles(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return 0;
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */) == 0;
}

/* All eight tiles: 16 rows of 64 bytes. Each thread, before its first block. */
AMX static inline void load_tile_sizes(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } sizes = {.palette = 1};
    for (int i = 0; i < 8; i++) sizes.bytes[i] = 64, sizes.rows[i] = 16;
    __asm__ volatile("ldtilecfg %0" ::"m"(sizes));
}

AMX static inline void release_tiles(void) { __asm__ volatile("tilerelease"); }

/* Tiles 0 to 3 are the sums of a block c (32, 32), which begins anew or is added to. */
AMX static inline void begin_sums(int add, const float *c, int64_t stride) {
    __asm__ volatile("" ::: "memory"); /* tiles are loaded by instructions that do not say what they read */
    if (add) {
        _tile_loadd(0, c, 4 * stride);
        _tile_loadd(1, c + LANES, 4 * stride);
        _tile_loadd(2, c + LANES * stride, 4 * stride);
        _tile_loadd(3, c + LANES * stride + LANES, 4 * stride);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
}

AMX static inline void end_sums(float *c, int64_t stride) {
    _tile_stored(0, c, 4 * stride);
    _tile_stored(1, c + LANES, 4 * stride);
    _tile_stored(2, c + LANES * stride, 4 * stride);
    _tile_stored(3, c + LANES * stride + LANES, 4 * stride);
}

AMX static inline void tile_block(Left a, int64_t steps, const uint32_t *b, const uint32_t *beside, int add, float *c,
                                  int64_t stride) {
    begin_sums(add, c, stride);
    for (int64_t s = 0; s < steps; s++) {
        _tile_loadd(4, a.at + s * a.step, 2 * a.row);
        _tile_loadd(6, b + s * TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, beside + s * TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a.at + a.half + s * a.step, 2 * a.row);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    end_sums(c, stride);
}
#else
static inline int ask_for_tiles(void) { return 0; }
static inline void load_tile_sizes(void) {}
static inline void release_tiles(void) {}
static inline void tile_block(Left a, int64_t steps, const uint32_t *b, const uint32_t *beside, int add, float *c,
                              int64_t stride) {}
#endif

AVX512 static inline void vector_block(Left a, int64_t steps, const uint32_t *b, const uint32_t *beside, int add,
                                       float *c, int64_t stride) {
    for (int64_t top = 0; top < SIDE; top += 8) {
        __m512 sums[8][2];
        const uint16_t *rows = a.at + (top < LANES ? top * a.row : a.half + (top - LANES) * a.row);
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++) {
            sums[r][0] = add ? _mm512_loadu_ps(c + (top + r) * stride) : _mm512_setzero_ps();
            sums[r][1] = add ? _mm512_loadu_ps(c + (top + r) * stride + LANES) : _mm512_setzero_ps();
        }
        for (int64_t s = 0; s < steps; s++)
            for (int64_t p = 0; p < LANES; p++) {
                __m512bh left = (__m512bh)_mm512_loadu_si512(b + s * TILE + LANES * p);
                __m512bh right = (__m512bh)_mm512_loadu_si512(beside + s * TILE + LANES * p);
#pragma GCC unroll 8
                for (int r = 0; r < 8; r++) {
                    int word;
                    memcpy(&word, rows + r * a.row + s * a.step + 2 * p, 4);
                    __m512bh value = (__m512bh)_mm512_set1_epi32(word);
                    sums[r][0] = _mm512_dpbf16_ps(sums[r][0], value, left);
                    sums[r][1] = _mm512_dpbf16_ps(sums[r][1], value, right);
                }
            }
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++) {
            _mm512_storeu_ps(c + (top + r) * stride, sums[r][0]);
            _mm512_storeu_ps(c + (top + r) * stride + LANES, sums[r][1]);
        }
    }
}

extern int i3_tiles; /* whether there are AMX tiles; `i3_attention_supported` finds out */

/* c (32, 32) (+)= a (32, 32 steps) x two packed panels, `panel` words apart. */
static inline void block(Left a, int64_t steps, const uint32_t *b, int64_t panel, int add, float *c, int64_t stride) {
    if (i3_tiles) tile_block(a, steps, b, b + panel, add, c, stride);
    else vector_block(a, steps, b, b + panel, add, c, stride);
}

/* Around the blocks of a thread. */
static inline void begin_blocks(void) {
    if (i3_tiles) load_tile_sizes();
}

static inline void end_blocks(void) {
    if (i3_tiles) release_tiles();
}

/* ---- packing ---------------------------------------------------------------------------------------------------- */

/* 16 rows of 16 words to their columns. */
AVX512 static inline void transpose_words(__m512i r[LANES]) {
    __m512i t[LANES];
#pragma GCC unroll 8
    for (int i = 0; i < LANES; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < LANES; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* Two rows of 16 numbers, one behind the other, to 16 words. */
AVX512 static inline __m512i interleaved(__m512i rows) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, rows);
}

AVX512 static inline __m512i low_rows(__m512 even, __m512 odd) { return (__m512i)_mm512_cvtne2ps_pbh(odd, even); }

/* A panel of w^T: 16 rows of w (.., depth), float32. */
AVX512 static inline void pack_rows(int64_t depth, const float *w, uint32_t *panel) {
    for (int64_t k = 0; k < depth; k += SIDE, panel += TILE) {
        __m512i r[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            r[i] = low_rows(_mm512_loadu_ps(w + i * depth + k), _mm512_loadu_ps(w + i * depth + k + LANES));
        transpose_words(r);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) _mm512_storeu_si512(panel + LANES * i, r[i]);
    }
}

/* A panel of w (depth, ..), float32, rows `stride` apart. */
AVX512 static inline void pack_columns(int64_t depth, const float *w, int64_t stride, uint32_t *panel) {
    for (int64_t k = 0; k < depth; k += 2, panel += LANES)
        _mm512_storeu_si512(
            panel, interleaved(low_rows(_mm512_loadu_ps(w + k * stride), _mm512_loadu_ps(w + (k + 1) * stride))));
}

AVX512 static inline __m512i pair_of(const uint16_t *x, int64_t stride) {
    __m512i even = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)x));
    return interleaved(_mm512_inserti64x4(even, _mm256_loadu_si256((const __m256i *)(x + stride)), 1));
}

/* A panel of x (depth, ..), bfloat16, rows `stride` apart. */
AVX512 static inline void pack_low(int64_t depth, const uint16_t *x, int64_t stride, uint32_t *panel) {
    for (int64_t k = 0; k < depth; k += 2, panel += LANES)
        _mm512_storeu_si512(panel, pair_of(x + k * stride, stride));
}

/* 16 columns of x (depth, ..), bfloat16, to tiles of x^T, 16 rows by 32: a left factor. */
AVX512 static inline void pack_left(int64_t depth, const uint16_t *x, int64_t stride, uint16_t *tiles) {
    for (int64_t k = 0; k < depth; k += SIDE, tiles += 2 * TILE) {
        __m512i r[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) r[i] = pair_of(x + (k + 2 * i) * stride, stride);
        transpose_words(r);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) _mm512_storeu_si512(tiles + SIDE * i, r[i]);
    }
}

/* A left factor of 32 rows in tiles. */
static inline Left in_tiles(const uint16_t *at, int64_t depth) {
    return (Left){at, SIDE, 2 * TILE, LANES * depth};
}

/* ---- results ---------------------------------------------------------------------------------------------------- */

AVX512 static inline void block_to_low(const float *c, const float *bias, uint16_t *y, int64_t stride) {
    __m512 first = bias ? _mm512_loadu_ps(bias) : _mm512_setzero_ps();
    __m512 last = bias ? _mm512_loadu_ps(bias + LANES) : _mm512_setzero_ps();
    for (int64_t r = 0; r < SIDE; r++, c += SIDE, y += stride)
        _mm512_storeu_si512(y, low_rows(_mm512_add_ps(_mm512_loadu_ps(c), first),
                                        _mm512_add_ps(_mm512_loadu_ps(c + LANES), last)));
}

AVX512 static inline void put(__m512 x, int add, float *y) {
    _mm512_storeu_ps(y, add ? _mm512_add_ps(_mm512_loadu_ps(y), x) : x);
}

/* y = c (32, 32), or with `add` the sum of both; rows of y are `stride` apart. */
AVX512 static inline void block_to_float(const float *c, int add, float *y, int64_t stride) {
    for (int64_t r = 0; r < SIDE; r++, c += SIDE, y += stride) {
        put(_mm512_loadu_ps(c), add, y);
        put(_mm512_loadu_ps(c + LANES), add, y + LANES);
    }
}

/* The same with c^T; rows of c are `from` apart. */
AVX512 static inline void transposed_block_to_float(const float *c, int64_t from, int add, float *y, int64_t stride) {
    for (int64_t i = 0; i < SIDE; i += LANES)
        for (int64_t j = 0; j < SIDE; j += LANES) {
            __m512i r[LANES];
#pragma GCC unroll 16
            for (int k = 0; k < LANES; k++) r[k] = _mm512_loadu_si512(c + (i + k) * from + j);
            transpose_words(r);
#pragma GCC unroll 16
            for (int k = 0; k < LANES; k++) put(_mm512_castsi512_ps(r[k]), add, y + (j + k) * stride + i);
        }
}
