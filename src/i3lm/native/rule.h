/* The settings of a step of AdamW or Lion: beta and decay as in the papers; unbias1 = 1 / (1 - beta1^t),
 * unbias2 = 1 / sqrt(1 - beta2^t). */

#pragma once

typedef struct {
    float lr, beta1, beta2, decay, eps, unbias1, unbias2;
} Rule;
