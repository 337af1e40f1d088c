/* AdamW and Lion whose states have 4 or 8 bits: read, update and write back a block at a time, so that no float32 copy of a
 * state ever exists. The map of codes to numbers is in optim/blockwise.py, which does the same in torch.
 *
 * A block is 128 numbers with one scale. Byte j of a 4-bit block holds number j below and number j + 64 above. */

#include <math.h>
#include <stdint.h>

#include "numbers.h"
#include "rounding.h"
#include "rule.h"

#define BLOCK 128
#define HALF (BLOCK / 2)
#define SMALLEST 1e-30f /* a block with no larger number is all zero: its reciprocal would overflow */

typedef struct {
    uint8_t *codes;
    float *scales;
} State;

static inline int64_t code_bytes(int bits) { return bits == 4 ? HALF : BLOCK; }

static inline __attribute__((always_inline)) void unpack(const uint8_t *restrict codes, int bits,
                                                         uint8_t *restrict out) {
    if (bits == 8) {
        for (int i = 0; i < BLOCK; i++) out[i] = codes[i];
    } else {
        for (int i = 0; i < HALF; i++) out[i] = codes[i] & 15, out[HALF + i] = codes[i] >> 4;
    }
}

static inline __attribute__((always_inline)) void pack(const uint8_t *restrict in, int bits, uint8_t *restrict codes) {
    if (bits == 8) {
        for (int i = 0; i < BLOCK; i++) codes[i] = in[i];
    } else {
        for (int i = 0; i < HALF; i++) codes[i] = (uint8_t)(in[i] | in[HALF + i] << 4);
    }
}

static inline float largest(const float *x) {
    float most = 0;
#pragma omp simd reduction(max : most)
    for (int i = 0; i < BLOCK; i++) {
        float size = fabsf(x[i]);
        most = size > most ? size : most;
    }
    return most;
}

/* root -> k with E[k^2] = root^2: between k^2 and (k + 1)^2 the upper one is drawn with the share that makes the mean
 * right. `chance` is in [0, 1). */
static inline float quadratic_code(float root, float levels, float chance) {
    float low = floorf(root);
    low += chance * (2 * low + 1) < root * root - low * low ? 1.0f : 0.0f;
    return low > levels ? levels : low;
}

/* Signed numbers: x = scale k |k| / levels^2 with |k| <= levels; code k + levels. */
static inline __attribute__((always_inline)) void read_signed(State s, int64_t block, int bits, float *restrict x) {
    uint8_t codes[BLOCK];
    float levels = bits == 4 ? 7 : 127, unit = s.scales[block] / (levels * levels);
    unpack(s.codes + block * code_bytes(bits), bits, codes);
    for (int i = 0; i < BLOCK; i++) {
        float k = (float)codes[i] - levels;
        x[i] = unit * k * fabsf(k);
    }
}

static inline __attribute__((always_inline)) void write_signed(State s, int64_t block, int bits, const float *restrict x,
                                                               const float *restrict chance) {
    uint8_t codes[BLOCK];
    float levels = bits == 4 ? 7 : 127, scale = largest(x), inverse = scale > SMALLEST ? levels * levels / scale : 0;
    for (int i = 0; i < BLOCK; i++) {
        float k = quadratic_code(sqrtf(fabsf(x[i]) * inverse), levels, chance[i]);
        codes[i] = (uint8_t)(int)(levels + (x[i] < 0 ? -k : k));
    }
    s.scales[block] = scale > SMALLEST ? scale : 0;
    pack(codes, bits, s.codes + block * code_bytes(bits));
}

/* Numbers >= 0, given as roots, that must not become 0, since a step is divided by them: x = scale^2 k^2 / levels^2 with
 * k >= 1; code k - 1. */
static inline __attribute__((always_inline)) void read_unsigned(State s, int64_t block, int bits, float *restrict x) {
    uint8_t codes[BLOCK];
    float levels = bits == 4 ? 16 : 256, unit = s.scales[block] / levels;
    unpack(s.codes + block * code_bytes(bits), bits, codes);
    for (int i = 0; i < BLOCK; i++) {
        float root = unit * ((float)codes[i] + 1);
        x[i] = root * root;
    }
}

static inline __attribute__((always_inline)) void write_unsigned(State s, int64_t block, int bits,
                                                                 const float *restrict roots,
                                                                 const float *restrict chance) {
    uint8_t codes[BLOCK];
    float levels = bits == 4 ? 16 : 256, scale = largest(roots), inverse = scale > SMALLEST ? levels / scale : 0;
    for (int i = 0; i < BLOCK; i++) {
        float k = quadratic_code(roots[i] * inverse, levels, chance[i]);
        codes[i] = (uint8_t)(int)((k < 1 ? 1 : k) - 1);
    }
    s.scales[block] = scale > SMALLEST ? scale : 0;
    pack(codes, bits, s.codes + block * code_bytes(bits));
}

static inline void draw(int64_t block, uint32_t seed, float *restrict first, float *restrict second) {
    for (int i = 0; i < BLOCK; i++) {
        uint32_t at = place((uint32_t)(block * BLOCK + i));
        first[i] = first_draw(at, seed), second[i] = second_draw(at, seed);
    }
}

static inline int64_t load_block(int64_t count, int64_t block, const float *restrict from, float *restrict to) {
    int64_t left = count - block * BLOCK, size = left < BLOCK ? left : BLOCK;
    if (size == BLOCK) {
        memcpy(to, from + block * BLOCK, sizeof(float) * BLOCK);
    } else {
        memset(to, 0, sizeof(float) * BLOCK);
        memcpy(to, from + block * BLOCK, sizeof(float) * (size_t)size);
    }
    return size;
}

static inline __attribute__((always_inline)) void adamw_block(int64_t count, int64_t block, float *p, const float *grad,
                                                              State mean, State square, int bits, uint32_t seed,
                                                              Rule rule) {
    float w[BLOCK], g[BLOCK], m[BLOCK], v[BLOCK], chance1[BLOCK], chance2[BLOCK];
    int64_t size = load_block(count, block, p, w);
    load_block(count, block, grad, g);
    read_signed(mean, block, bits, m);
    read_unsigned(square, block, bits, v);
    draw(block, seed, chance1, chance2);
    for (int i = 0; i < BLOCK; i++) {
        m[i] += (1 - rule.beta1) * (g[i] - m[i]);
        v[i] = sqrtf(v[i] + (1 - rule.beta2) * (g[i] * g[i] - v[i]));
        w[i] -= rule.lr * (rule.decay * w[i] + rule.unbias1 * m[i] / (v[i] * rule.unbias2 + rule.eps));
    }
    memcpy(p + block * BLOCK, w, sizeof(float) * (size_t)size);
    write_signed(mean, block, bits, m, chance1);
    write_unsigned(square, block, bits, v, chance2);
}

#include "states_avx512.h"

static inline __attribute__((always_inline)) void lion_block(int64_t count, int64_t block, float *p, const float *grad,
                                                             State mean, int bits, uint32_t seed, Rule rule) {
    float w[BLOCK], g[BLOCK], m[BLOCK], chance1[BLOCK], chance2[BLOCK];
    int64_t size = load_block(count, block, p, w);
    load_block(count, block, grad, g);
    read_signed(mean, block, bits, m);
    draw(block, seed, chance1, chance2);
    for (int i = 0; i < BLOCK; i++) {
        float c = m[i] + (1 - rule.beta1) * (g[i] - m[i]);
        float sign = c > 0 ? 1.0f : c < 0 ? -1.0f : 0.0f;
        w[i] -= rule.lr * (rule.decay * w[i] + sign);
        m[i] += (1 - rule.beta2) * (g[i] - m[i]);
    }
    memcpy(p + block * BLOCK, w, sizeof(float) * (size_t)size);
    write_signed(mean, block, bits, m, chance1);
}

/* Blocks [begin, end): one function for each width of code, so that each is compiled with it as a constant. */
#define SPANS(BITS)                                                                                               \
    CLONES static void adamw_span##BITS(int64_t begin, int64_t end, int64_t count, float *p, const float *g,      \
                                        State mean, State square, uint32_t seed, const Rule *rule) {              \
        int64_t b = begin;                                                                                        \
        if (HAS_AVX512) {                                                                                         \
            int64_t whole = count / BLOCK < end ? count / BLOCK : end;                                            \
            adamw_avx512_##BITS(begin, whole, p, g, mean, square, seed, rule);                                    \
            b = whole > begin ? whole : begin;                                                                    \
        }                                                                                                         \
        for (; b < end; b++) adamw_block(count, b, p, g, mean, square, BITS, seed, *rule);                        \
    }                                                                                                             \
    CLONES static void lion_span##BITS(int64_t begin, int64_t end, int64_t count, float *p, const float *g,       \
                                       State mean, uint32_t seed, const Rule *rule) {                             \
        for (int64_t b = begin; b < end; b++) lion_block(count, b, p, g, mean, BITS, seed, *rule);                \
    }                                                                                                             \
    CLONES static void read_span##BITS(int64_t begin, int64_t end, int64_t count, State s, float *x) {            \
        for (int64_t b = begin; b < end; b++) {                                                                   \
            float out[BLOCK];                                                                                     \
            int64_t left = count - b * BLOCK;                                                                     \
            read_signed(s, b, BITS, out);                                                                         \
            memcpy(x + b * BLOCK, out, sizeof(float) * (size_t)(left < BLOCK ? left : BLOCK));                    \
        }                                                                                                         \
    }                                                                                                             \
    CLONES static void write_span##BITS(int64_t begin, int64_t end, int64_t count, State s, const float *x,       \
                                        uint32_t seed) {                                                          \
        for (int64_t b = begin; b < end; b++) {                                                                   \
            float in[BLOCK], chance1[BLOCK], chance2[BLOCK];                                                      \
            load_block(count, b, x, in);                                                                          \
            draw(b, seed, chance1, chance2);                                                                      \
            write_signed(s, b, BITS, in, chance1);                                                                \
        }                                                                                                         \
    }

SPANS(4)
SPANS(8)

#define CHUNK 64 /* blocks that a thread takes at a time: 32 KB of float32 */

#define FOR_SPANS(call4, call8)                                                          \
    do {                                                                                 \
        int64_t blocks = (count + BLOCK - 1) / BLOCK;                                    \
        _Pragma("omp parallel for schedule(static) if (blocks > 2 * CHUNK)")             \
        for (int64_t begin = 0; begin < blocks; begin += CHUNK) {                        \
            int64_t end = begin + CHUNK < blocks ? begin + CHUNK : blocks;               \
            if (bits == 4) call4;                                                        \
            else call8;                                                                  \
        }                                                                                \
    } while (0)

/* The same over tensors, of which threads take spans as they come. */
#define FOR_TENSORS(call4, call8)                                                        \
    do {                                                                                 \
        _Pragma("omp parallel")                                                          \
        for (int64_t t = 0; t < tensors; t++) {                                          \
            int64_t count = counts[t], blocks = (count + BLOCK - 1) / BLOCK;             \
            _Pragma("omp for schedule(dynamic) nowait")                                  \
            for (int64_t begin = 0; begin < blocks; begin += CHUNK) {                    \
                int64_t end = begin + CHUNK < blocks ? begin + CHUNK : blocks;           \
                if (bits == 4) call4;                                                    \
                else call8;                                                              \
            }                                                                            \
        }                                                                                \
    } while (0)

/* Settings as in rule.h; counts, addresses and seeds are those of each tensor. */
int i3_adamw_states(int64_t tensors, int64_t bits, const int64_t *counts, const int64_t *seeds, float *const *p,
                    const float *const *g, uint8_t *const *mean_codes, float *const *mean_scales,
                    uint8_t *const *square_codes, float *const *square_scales, float lr, float beta1, float beta2,
                    float decay, float eps, float unbias1, float unbias2) {
    Rule rule = {lr, beta1, beta2, decay, eps, unbias1, unbias2};
#define MEAN (State){mean_codes[t], mean_scales[t]}
#define SQUARE (State){square_codes[t], square_scales[t]}
    FOR_TENSORS(adamw_span4(begin, end, count, p[t], g[t], MEAN, SQUARE, (uint32_t)seeds[t], &rule),
                adamw_span8(begin, end, count, p[t], g[t], MEAN, SQUARE, (uint32_t)seeds[t], &rule));
    return 0;
}

int i3_lion_states(int64_t tensors, int64_t bits, const int64_t *counts, const int64_t *seeds, float *const *p,
                   const float *const *g, uint8_t *const *mean_codes, float *const *mean_scales, float lr, float beta1,
                   float beta2, float decay) {
    Rule rule = {lr, beta1, beta2, decay, 0, 0, 0};
    FOR_TENSORS(lion_span4(begin, end, count, p[t], g[t], MEAN, (uint32_t)seeds[t], &rule),
                lion_span8(begin, end, count, p[t], g[t], MEAN, (uint32_t)seeds[t], &rule));
    return 0;
}

int i3_read_states(int64_t count, int64_t bits, uint8_t *codes, float *scales, float *x) {
    State s = {codes, scales};
    FOR_SPANS(read_span4(begin, end, count, s, x), read_span8(begin, end, count, s, x));
    return 0;
}

int i3_write_states(int64_t count, int64_t bits, uint8_t *codes, float *scales, const float *x, int64_t seed) {
    State s = {codes, scales};
    FOR_SPANS(write_span4(begin, end, count, s, x, (uint32_t)seed), write_span8(begin, end, count, s, x, (uint32_t)seed));
    return 0;
}
