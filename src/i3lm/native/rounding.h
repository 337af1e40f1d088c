/* Draws for rounding at random: functions of a position and a seed, so that a resumed run draws the same (rounding.py). */

#pragma once
#include <stdint.h>

/* 32 well mixed bits (the finaliser of MurmurHash3, Appleby, public domain). */
static inline uint32_t mix(uint32_t at, uint32_t seed) {
    uint32_t h = at * 0x9e3779b1u ^ seed;
    h = (h ^ (h >> 16)) * 0x85ebca6bu;
    h = (h ^ (h >> 13)) * 0xc2b2ae35u;
    return h ^ (h >> 16);
}
