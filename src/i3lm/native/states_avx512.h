/* Whole blocks of AdamW in AVX-512: what adamw_block of states.c does, in two sweeps over a block. Included by states.c.
 *
 * Roots and quotients are estimates of 14 bits, with one step of Newton's where they go into a weight. A code needs the
 * root's whole part alone: where the estimate falls on the wrong side of a level, the draw lands on that level all the same,
 * since the share of the upper one is then next to 0 or 1. */

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define HAS_AVX512 \
    (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
#define INLINE512 AVX512 static inline __attribute__((always_inline))
#define WIDE 16
#define PARTS (BLOCK / WIDE)

/* 1 / sqrt(x) to a last place or two; 0 for x = 0. */
INLINE512 __m512 inverse_root(__m512 x) {
    __mmask16 some = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
    __m512 r = _mm512_maskz_rsqrt14_ps(some, x), half = _mm512_mul_ps(_mm512_mul_ps(x, r), _mm512_set1_ps(-0.5f));
    return _mm512_mul_ps(r, _mm512_fmadd_ps(half, r, _mm512_set1_ps(1.5f)));
}

/* quadratic_code of states.c for 16 numbers, by root and square; `draw` has 16 bits. */
INLINE512 __m512 levels_of(__m512 root, __m512 square, __m512i draw, __m512 most) {
    __m512 low = _mm512_roundscale_ps(root, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 step = _mm512_fmadd_ps(low, _mm512_set1_ps(2.0f / 65536), _mm512_set1_ps(1.0f / 65536));
    __m512 bar = _mm512_mul_ps(_mm512_cvtepi32_ps(draw), step);
    __mmask16 up = _mm512_cmp_ps_mask(bar, _mm512_fnmadd_ps(low, low, square), _CMP_LT_OQ);
    return _mm512_min_ps(_mm512_mask_add_ps(low, up, low, _mm512_set1_ps(1)), most);
}

/* Part i of a block's codes; of 4 bits a number the upper ones may be anything. */
INLINE512 __m512i load_codes(const uint8_t *codes, int bits, int i) {
    if (bits == 8) return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(codes + WIDE * i)));
    __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(codes + WIDE * (i % (PARTS / 2)))));
    return i < PARTS / 2 ? both : _mm512_srli_epi32(both, 4);
}

/* k |k| of signed codes, k^2 of unsigned ones. Of 4 bits there are 16, as many as a register holds. */
INLINE512 __m512 signed_squares(__m512i codes, int bits) {
    if (bits == 4) {
        return _mm512_permutexvar_ps(codes, _mm512_setr_ps(-49, -36, -25, -16, -9, -4, -1, 0, 1, 4, 9, 16, 25, 36, 49, 64));
    }
    __m512 k = _mm512_cvtepi32_ps(_mm512_sub_epi32(codes, _mm512_set1_epi32(127)));
    return _mm512_mul_ps(k, _mm512_abs_ps(k));
}

INLINE512 __m512 squares(__m512i codes, int bits) {
    if (bits == 4) {
        return _mm512_permutexvar_ps(codes, _mm512_setr_ps(1, 4, 9, 16, 25, 36, 49, 64, 81, 100, 121, 144, 169, 196, 225, 256));
    }
    __m512 k = _mm512_cvtepi32_ps(_mm512_add_epi32(codes, _mm512_set1_epi32(1)));
    return _mm512_mul_ps(k, k);
}

INLINE512 void store_codes(uint8_t *codes, int bits, const __m512i *parts) {
    for (int i = 0; i < (bits == 8 ? PARTS : PARTS / 2); i++) {
        __m512i part = bits == 8 ? parts[i] : _mm512_or_si512(parts[i], _mm512_slli_epi32(parts[i + PARTS / 2], 4));
        _mm_storeu_si128((__m128i *)(codes + WIDE * i), _mm512_cvtepi32_epi8(part));
    }
}

/* What the first sweep over a block leaves to the second. */
typedef struct {
    __m512 means[PARTS], roots[PARTS];
    float scale1, scale2;
} Moved;

INLINE512 void adamw_move(int64_t block, float *p, const float *grad, State mean, State square, int bits,
                          const Rule *rule, Moved *to) {
    const float levels1 = bits == 4 ? 7 : 127, levels2 = bits == 4 ? 16 : 256;
    const float unit = square.scales[block] / levels2;
    const uint8_t *codes1 = mean.codes + block * code_bytes(bits), *codes2 = square.codes + block * code_bytes(bits);
    const __m512 unit1 = _mm512_set1_ps(mean.scales[block] / (levels1 * levels1)), unit2 = _mm512_set1_ps(unit * unit);
    const __m512 take1 = _mm512_set1_ps(1 - rule->beta1), take2 = _mm512_set1_ps(1 - rule->beta2);
    const __m512 rate = _mm512_set1_ps(-rule->lr * rule->unbias1), unbias2 = _mm512_set1_ps(rule->unbias2);
    const __m512 eps = _mm512_set1_ps(rule->eps), left = _mm512_set1_ps(-rule->lr * rule->decay);
    __m512 most1 = _mm512_setzero_ps(), most2 = most1;
    p += block * BLOCK, grad += block * BLOCK;
    for (int i = 0; i < PARTS; i++) {
        __m512 w = _mm512_loadu_ps(p + WIDE * i), g = _mm512_loadu_ps(grad + WIDE * i);
        __m512 m = _mm512_mul_ps(unit1, signed_squares(load_codes(codes1, bits, i), bits));
        __m512 v = _mm512_mul_ps(unit2, squares(load_codes(codes2, bits, i), bits));
        m = _mm512_fmadd_ps(take1, _mm512_sub_ps(g, m), m);
        v = _mm512_fmadd_ps(take2, _mm512_fmsub_ps(g, g, v), v);
        v = _mm512_min_ps(_mm512_set1_ps(3e38f), v); /* infinity has no root in inverse_root; NaN stays */
        __m512 root = _mm512_mul_ps(v, inverse_root(v));
        __m512 divisor = _mm512_fmadd_ps(root, unbias2, eps), inverse = _mm512_rcp14_ps(divisor);
        inverse = _mm512_mul_ps(inverse, _mm512_fnmadd_ps(divisor, inverse, _mm512_set1_ps(2)));
        w = _mm512_fmadd_ps(left, w, w);
        _mm512_storeu_ps(p + WIDE * i, _mm512_fmadd_ps(_mm512_mul_ps(rate, m), inverse, w));
        most1 = _mm512_max_ps(most1, _mm512_abs_ps(m));
        most2 = _mm512_max_ps(most2, root);
        to->means[i] = m, to->roots[i] = root;
    }
    to->scale1 = _mm512_reduce_max_ps(most1);
    to->scale2 = _mm512_reduce_max_ps(most2);
}

INLINE512 void adamw_keep(int64_t block, State mean, State square, int bits, uint32_t seed, const Moved *from) {
    const float levels1 = bits == 4 ? 7 : 127, levels2 = bits == 4 ? 16 : 256;
    const float scale1 = from->scale1, scale2 = from->scale2;
    const __m512 inverse1 = _mm512_set1_ps(scale1 > SMALLEST ? levels1 * levels1 / scale1 : 0);
    const __m512 inverse2 = _mm512_set1_ps(scale2 > SMALLEST ? levels2 / scale2 : 0);
    const __m512i ramp = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i level1 = _mm512_set1_epi32((int)levels1);
    __m512i at = _mm512_mullo_epi32(_mm512_add_epi32(ramp, _mm512_set1_epi32((int)(uint32_t)(block * BLOCK))),
                                    _mm512_set1_epi32((int)0x9e3779b1u));
    __m512i first[PARTS], second[PARTS];
    for (int i = 0; i < PARTS; i++) {
        __m512i h = _mm512_xor_si512(at, _mm512_srli_epi32(at, 16)); /* as `place` and the draws of rounding.h */
        h = _mm512_mullo_epi32(h, _mm512_set1_epi32((int)0x85ebca6bu));
        h = _mm512_mullo_epi32(_mm512_xor_si512(h, _mm512_srli_epi32(h, 13)), _mm512_set1_epi32((int)0xc2b2ae35u));
        h = _mm512_xor_si512(h, _mm512_srli_epi32(h, 16));
        at = _mm512_add_epi32(at, _mm512_set1_epi32((int)(0x9e3779b1u * WIDE)));
        __m512i draw1 = _mm512_add_epi32(h, _mm512_set1_epi32((int)seed));
        __m512i draw2 = _mm512_add_epi32(_mm512_rol_epi32(h, 16), _mm512_set1_epi32((int)seed));

        __m512 y = _mm512_mul_ps(_mm512_abs_ps(from->means[i]), inverse1);
        __m512 root = _mm512_mul_ps(y, _mm512_rsqrt14_ps(_mm512_max_ps(y, _mm512_set1_ps(SMALLEST))));
        __m512i k = _mm512_cvtps_epi32(levels_of(root, y, _mm512_srli_epi32(draw1, 16), _mm512_set1_ps(levels1)));
        __mmask16 negative = _mm512_movepi32_mask(_mm512_castps_si512(from->means[i]));
        first[i] = _mm512_mask_sub_epi32(_mm512_add_epi32(level1, k), negative, level1, k);
        root = _mm512_mul_ps(from->roots[i], inverse2);
        __m512 level = levels_of(root, _mm512_mul_ps(root, root), _mm512_srli_epi32(draw2, 16),
                                 _mm512_set1_ps(levels2));
        k = _mm512_cvtps_epi32(_mm512_max_ps(level, _mm512_set1_ps(1)));
        second[i] = _mm512_sub_epi32(k, _mm512_set1_epi32(1));
    }
    mean.scales[block] = scale1 > SMALLEST ? scale1 : 0;
    square.scales[block] = scale2 > SMALLEST ? scale2 : 0;
    store_codes(mean.codes + block * code_bytes(bits), bits, first);
    store_codes(square.codes + block * code_bytes(bits), bits, second);
}

#define AT_ONCE 4 /* blocks between the sweeps: the second need not wait for the largest numbers */

#define ADAMW_AVX512(BITS)                                                                                        \
    AVX512 static void adamw_avx512_##BITS(int64_t begin, int64_t end, float *p, const float *g, State mean,      \
                                           State square, uint32_t seed, const Rule *rule) {                       \
        Moved moved[AT_ONCE];                                                                                     \
        for (int64_t b = begin; b < end; b += AT_ONCE) {                                                          \
            int64_t stop = b + AT_ONCE < end ? b + AT_ONCE : end;                                                 \
            for (int64_t n = b; n < stop; n++) adamw_move(n, p, g, mean, square, BITS, rule, &moved[n - b]);      \
            for (int64_t n = b; n < stop; n++) adamw_keep(n, mean, square, BITS, seed, &moved[n - b]);            \
        }                                                                                                         \
    }

ADAMW_AVX512(4)
ADAMW_AVX512(8)
#else
#define HAS_AVX512 0
#define adamw_avx512_4(...) ((void)0)
#define adamw_avx512_8(...) ((void)0)
#endif
