/* Draws for rounding at random: functions of a position and a seed, so that a resumed run draws the same, and even over
 * the steps (rounding.py says how). */

#pragma once
#include <stdint.h>

/* A position's place, 32 well mixed bits (the finaliser of MurmurHash3, Appleby, public domain). */
static inline uint32_t place(uint32_t at) {
    uint32_t h = at * 0x9e3779b1u;
    h = (h ^ (h >> 16)) * 0x85ebca6bu;
    h = (h ^ (h >> 13)) * 0xc2b2ae35u;
    return h ^ (h >> 16);
}

/* Two draws in [0, 1) of 16 bits. */
static inline float first_draw(uint32_t place, uint32_t seed) {
    return (float)(int32_t)((place + seed) >> 16) * (1.0f / 65536);
}

static inline float second_draw(uint32_t place, uint32_t seed) {
    return (float)(int32_t)(((place << 16 | place >> 16) + seed) >> 16) * (1.0f / 65536);
}
