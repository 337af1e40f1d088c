/* Matrices kept in 4 or 8 bits: groups of 32 numbers with one bfloat16 scale, x = scale k with |k| <= 7 or 127. What is
 * written is rounded at random with the right mean. stored.py does the same in torch. Codes are k + 7 or k + 127;
 * byte j of a 4-bit group holds number j below and number j + 16 above. */

#include <math.h>
#include <stdint.h>

#include "numbers.h"
#include "rounding.h"

#define GROUP 32
#define SHRUNK 0.8f /* of its range, below which a group gets a new scale (stored.py) */

CLONES
static void read_groups(int64_t begin, int64_t end, int64_t count, int bits, const uint8_t *codes,
                        const uint16_t *scales, float *x) {
    for (int64_t group = begin; group < end; group++) {
        float scale = load_bf16(scales[group]), out[GROUP];
        int64_t left = count - group * GROUP;
        if (bits == 8) {
            for (int i = 0; i < GROUP; i++) out[i] = scale * ((float)codes[group * GROUP + i] - 127);
        } else {
            const uint8_t *from = codes + group * (GROUP / 2);
            for (int i = 0; i < GROUP / 2; i++) {
                out[i] = scale * ((float)(from[i] & 15) - 7);
                out[i + GROUP / 2] = scale * ((float)(from[i] >> 4) - 7);
            }
        }
        memcpy(x + group * GROUP, out, sizeof(float) * (size_t)(left < GROUP ? left : GROUP));
    }
}

CLONES
static void write_groups(int64_t begin, int64_t end, int64_t count, int bits, uint8_t *codes, uint16_t *scales,
                         const float *x, uint32_t seed) {
    float levels = bits == 4 ? 7 : 127;
    for (int64_t group = begin; group < end; group++) {
        float in[GROUP] = {0}, most = 0;
        uint8_t out[GROUP];
        int64_t left = count - group * GROUP;
        memcpy(in, x + group * GROUP, sizeof(float) * (size_t)(left < GROUP ? left : GROUP));
#pragma omp simd reduction(max : most)
        for (int i = 0; i < GROUP; i++) {
            float size = fabsf(in[i]);
            most = size > most ? size : most;
        }
        /* A new scale rounds all numbers of the group anew, so there is one only where the largest is far within the
         * range or beyond the next level, or is drawn to be at the next level. */
        float scale = load_bf16(scales[group]);
        if (!(most <= scale * (levels + 1) && most > scale * levels * SHRUNK)) {
            scales[group] = (uint16_t)((bits_of_float(most / levels) + 0xffff) >> 16); /* rounded up: none is beyond */
            scale = load_bf16(scales[group]);
        }
        float inverse = most > 1e-30f ? 1 / scale : 0, chance[GROUP], k[GROUP];
        int beyond = 0;
        for (int i = 0; i < GROUP; i++) {
            chance[i] = levels + first_draw(place((uint32_t)(group * GROUP + i)), seed);
            k[i] = floorf(in[i] * inverse + chance[i]);
            beyond |= k[i] > 2 * levels || k[i] < 0;
        }
        if (beyond) { /* what is at the next level stays there: it is the last of the new scale */
            scales[group] = (uint16_t)((bits_of_float(scale * (levels + 1) / levels) + 0x8000) >> 16);
            inverse = 1 / load_bf16(scales[group]);
            for (int i = 0; i < GROUP; i++)
                if (k[i] <= 2 * levels && k[i] >= 0) k[i] = floorf(in[i] * inverse + chance[i]);
        }
        for (int i = 0; i < GROUP; i++) out[i] = (uint8_t)(int)(k[i] > 2 * levels ? 2 * levels : k[i] < 0 ? 0 : k[i]);
        if (bits == 8) {
            memcpy(codes + group * GROUP, out, GROUP);
        } else {
            uint8_t *to = codes + group * (GROUP / 2);
            for (int i = 0; i < GROUP / 2; i++) to[i] = (uint8_t)(out[i] | out[i + GROUP / 2] << 4);
        }
    }
}

#define SPAN 256 /* groups that a thread takes at a time */

int i3_read_groups(int64_t count, int64_t bits, const uint8_t *codes, const uint16_t *scales, float *x) {
    int64_t groups = (count + GROUP - 1) / GROUP;
#pragma omp parallel for schedule(static) if (groups > 2 * SPAN)
    for (int64_t i = 0; i < groups; i += SPAN)
        read_groups(i, i + SPAN < groups ? i + SPAN : groups, count, (int)bits, codes, scales, x);
    return 0;
}

int i3_write_groups(int64_t count, int64_t bits, uint8_t *codes, uint16_t *scales, const float *x, int64_t seed) {
    int64_t groups = (count + GROUP - 1) / GROUP;
#pragma omp parallel for schedule(static) if (groups > 2 * SPAN)
    for (int64_t i = 0; i < groups; i += SPAN)
        write_groups(i, i + SPAN < groups ? i + SPAN : groups, count, (int)bits, codes, scales, x, (uint32_t)seed);
    return 0;
}
