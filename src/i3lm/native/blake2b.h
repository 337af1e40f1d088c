/* BLAKE2b (RFC 7693) of 16 bytes with a salt and no key: what hashlib.blake2b(data, digest_size=16,
 * salt=salt) gives. */

#ifndef I3_BLAKE2B_H
#define I3_BLAKE2B_H

#include <stdint.h>
#include <string.h>

static const uint64_t BLAKE_IV[8] = {
    0x6A09E667F3BCC908u, 0xBB67AE8584CAA73Bu, 0x3C6EF372FE94F82Bu, 0xA54FF53A5F1D36F1u,
    0x510E527FADE682D1u, 0x9B05688C2B3E6C1Fu, 0x1F83D9ABFB41BD6Bu, 0x5BE0CD19137E2179u,
};

static const uint8_t BLAKE_SIGMA[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
    {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
    {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
    {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
    {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
};

static uint64_t blake_load(const uint8_t *p) {
    uint64_t word = 0;
    for (int k = 7; k >= 0; k--) word = word << 8 | p[k];
    return word;
}

#define BLAKE_TURN(x, by) ((x) >> (by) | (x) << (64 - (by)))
#define BLAKE_MIX(a, b, c, d, x, y)              \
    v[a] += v[b] + (x);                          \
    v[d] ^= v[a];                                \
    v[d] = BLAKE_TURN(v[d], 32);                 \
    v[c] += v[d];                                \
    v[b] ^= v[c];                                \
    v[b] = BLAKE_TURN(v[b], 24);                 \
    v[a] += v[b] + (y);                          \
    v[d] ^= v[a];                                \
    v[d] = BLAKE_TURN(v[d], 16);                 \
    v[c] += v[d];                                \
    v[b] ^= v[c];                                \
    v[b] = BLAKE_TURN(v[b], 63);

/* The rounds, on one block or on several side by side: v, m are words, or vectors of them. */
#define BLAKE_ROUNDS                                     \
    for (int round = 0; round < 12; round++) {           \
        const uint8_t *s = BLAKE_SIGMA[round % 10];      \
        BLAKE_MIX(0, 4, 8, 12, m[s[0]], m[s[1]])         \
        BLAKE_MIX(1, 5, 9, 13, m[s[2]], m[s[3]])         \
        BLAKE_MIX(2, 6, 10, 14, m[s[4]], m[s[5]])        \
        BLAKE_MIX(3, 7, 11, 15, m[s[6]], m[s[7]])        \
        BLAKE_MIX(0, 5, 10, 15, m[s[8]], m[s[9]])        \
        BLAKE_MIX(1, 6, 11, 12, m[s[10]], m[s[11]])      \
        BLAKE_MIX(2, 7, 8, 13, m[s[12]], m[s[13]])       \
        BLAKE_MIX(3, 4, 9, 14, m[s[14]], m[s[15]])       \
    }

static void blake_compress(uint64_t h[8], const uint8_t block[128], uint64_t count, int last) {
    uint64_t v[16], m[16];
    for (int k = 0; k < 16; k++) m[k] = blake_load(block + 8 * k);
    for (int k = 0; k < 8; k++) {
        v[k] = h[k];
        v[k + 8] = BLAKE_IV[k];
    }
    v[12] ^= count;
    if (last) v[14] = ~v[14];
    BLAKE_ROUNDS
    for (int k = 0; k < 8; k++) h[k] ^= v[k] ^ v[k + 8];
}

static void blake_start(uint64_t h[8], const uint8_t salt[16]) {
    memcpy(h, BLAKE_IV, 8 * sizeof *h);
    h[0] ^= 16 | 1u << 16 | 1u << 24; /* digest size, fan-out, depth */
    h[4] ^= blake_load(salt);
    h[5] ^= blake_load(salt + 8);
}

static void blake_store(uint64_t first, uint64_t second, uint8_t digest[16]) {
    for (int k = 0; k < 8; k++) {
        digest[k] = (uint8_t)(first >> 8 * k);
        digest[k + 8] = (uint8_t)(second >> 8 * k);
    }
}

static void blake2b_16(const uint8_t *data, int64_t size, const uint8_t salt[16],
                       uint8_t digest[16]) {
    uint64_t h[8];
    blake_start(h, salt);
    int64_t at = 0;
    for (; size - at > 128; at += 128) blake_compress(h, data + at, (uint64_t)at + 128, 0);
    uint8_t rest[128] = {0};
    memcpy(rest, data + at, (size_t)(size - at));
    blake_compress(h, rest, (uint64_t)size, 1);
    blake_store(h[0], h[1], digest);
}

#if defined(__x86_64__) && defined(__GNUC__)
#define BLAKE_LANES 8
typedef uint64_t BlakeLanes __attribute__((vector_size(8 * BLAKE_LANES)));

__attribute__((target("avx512f"))) static void
blake_compress_lanes(uint64_t h[8][BLAKE_LANES], const uint8_t *const blocks[BLAKE_LANES],
                     const uint64_t count[BLAKE_LANES], const uint64_t last[BLAKE_LANES]) {
    uint64_t words[16][BLAKE_LANES];
    BlakeLanes v[16], m[16], other;
    for (int lane = 0; lane < BLAKE_LANES; lane++) {
        for (int k = 0; k < 16; k++) memcpy(&words[k][lane], blocks[lane] + 8 * k, 8);
    }
    memcpy(m, words, sizeof m);
    memcpy(v, h, 8 * sizeof *v);
    for (int k = 0; k < 8; k++) v[k + 8] = (BlakeLanes){0} + BLAKE_IV[k];
    memcpy(&other, count, sizeof other);
    v[12] ^= other;
    memcpy(&other, last, sizeof other);
    v[14] ^= other;
    BLAKE_ROUNDS
    for (int k = 0; k < 8; k++) {
        memcpy(&other, h[k], sizeof other);
        other ^= v[k] ^ v[k + 8];
        memcpy(h[k], &other, sizeof other);
    }
}

/* Eight lines at once: a lane that comes to the end of its line takes the next one. */
static void blake2b_16_lanes(const uint8_t *s, int64_t lines, const int64_t *begins,
                             const int64_t *ends, const uint8_t *kinds, int kind,
                             const uint8_t salt[16], uint8_t *digests) {
    uint64_t start[8], h[8][BLAKE_LANES] = {{0}}, count[BLAKE_LANES] = {0}, last[BLAKE_LANES];
    uint8_t rest[BLAKE_LANES][128] = {{0}};
    const uint8_t *blocks[BLAKE_LANES];
    int64_t line[BLAKE_LANES], at[BLAKE_LANES], next = 0;
    int busy = BLAKE_LANES;
    blake_start(start, salt);
    for (int lane = 0; lane < BLAKE_LANES; lane++) last[lane] = ~(uint64_t)0, line[lane] = -1;
    for (;;) {
        for (int lane = 0; lane < BLAKE_LANES; lane++) {
            if (last[lane] && line[lane] < lines) { /* done with its line; `lines` is none */
                if (line[lane] >= 0) blake_store(h[0][lane], h[1][lane], digests + 16 * line[lane]);
                while (next < lines && kinds[next] != kind) next++;
                line[lane] = next;
                busy -= next == lines;
                if (next == lines) {
                    blocks[lane] = rest[lane];
                    continue;
                }
                at[lane] = begins[next++];
                for (int k = 0; k < 8; k++) h[k][lane] = start[k];
            }
            if (line[lane] == lines) continue;
            int64_t left = ends[line[lane]] - at[lane], size = left < 128 ? left : 128;
            last[lane] = left > 128 ? 0 : ~(uint64_t)0;
            blocks[lane] = s + at[lane];
            if (last[lane]) {
                memset(rest[lane], 0, 128);
                memcpy(rest[lane], s + at[lane], (size_t)size);
                blocks[lane] = rest[lane];
            }
            at[lane] += size;
            count[lane] = (uint64_t)(at[lane] - begins[line[lane]]);
        }
        if (busy == 0) return;
        blake_compress_lanes(h, blocks, count, last);
    }
}
#endif

/* The digests of the lines of one kind. */
static void blake2b_16_lines(const uint8_t *s, int64_t lines, const int64_t *begins,
                             const int64_t *ends, const uint8_t *kinds, int kind,
                             const uint8_t salt[16], uint8_t *digests) {
#ifdef BLAKE_LANES
    if (__builtin_cpu_supports("avx512f")) {
        blake2b_16_lanes(s, lines, begins, ends, kinds, kind, salt, digests);
        return;
    }
#endif
    for (int64_t n = 0; n < lines; n++) {
        if (kinds[n] == kind) blake2b_16(s + begins[n], ends[n] - begins[n], salt, digests + 16 * n);
    }
}

#endif
