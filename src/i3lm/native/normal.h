#pragma once
#include <math.h>

#include "numbers.h"

/* The normal distribution's Phi(x) and its density, for GELU. |error| < 1e-7 (Abramowitz and Stegun, 7.1.26). */
static inline float normal(float x, float *density) {
    float e = exponential(-0.5f * x * x), z = fabsf(x) * 0.707106781f, t = 1 / (1 + 0.3275911f * z);
    float p = 1.061405429f;
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    float tail = 0.5f * p * t * e;
    *density = 0.398942280f * e;
    return x < 0 ? tail : 1 - tail;
}
