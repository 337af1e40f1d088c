/* The tokenizer's rule (tokenizer/rule.py) over UTF-8, and counting by it.
 *
 * ASCII goes through tables that stay in the second-level cache: a pair of bytes gives the id of the
 * 2-chunk and a row of ids by third byte; characters beyond ASCII go through a hash table. Text is
 * UTF-8 that Python made, so it is valid; still nothing outside of [text, text + size) is read. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__GNUC__)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#else
#define UNLIKELY(x) (x)
#endif

#define FIRST_BYTE 6 /* id of the byte token <0x00> */
#define BITS 21      /* a chunk's number: code point + 1 in 21 bits each, first character highest */

/* id 0 is <unk>, which the rule never gives: here it means "not in the vocabulary". */
typedef struct {
    uint16_t id;     /* of the 2-chunk */
    uint16_t row[2]; /* rows of `third`: [0] common trigrams only, [1] every 3-chunk; row 0 is empty */
    uint16_t unused;
} Pair;

typedef struct {
    uint64_t key;
    uint16_t id;
} Slot;

typedef struct {
    Pair pairs[128 * 128];
    uint16_t single[128];
    uint8_t common[1 << 15];
    uint16_t (*third)[128];
    Slot *slots;
    uint64_t mask;
} Tokenizer;

static uint64_t hash(uint64_t key) {
    key *= 0x9E3779B97F4A7C15u;
    return key ^ key >> 29;
}

static uint16_t find(const Tokenizer *t, uint64_t key) {
    for (uint64_t at = hash(key) & t->mask;; at = (at + 1) & t->mask) {
        if (t->slots[at].key == key) return t->slots[at].id;
        if (t->slots[at].key == 0) return 0;
    }
}

static int is_common(const uint8_t *common, unsigned a, unsigned b, unsigned c) {
    return ((a ^ 0x60) | (b ^ 0x60) | (c ^ 0x60)) < 32 &&
           common[(a & 31) << 10 | (b & 31) << 5 | (c & 31)];
}

void i3_text_free(Tokenizer *t) {
    if (t == NULL) return;
    free(t->third);
    free(t->slots);
    free(t);
}

/* keys: `count` distinct chunk numbers, whose ids are `first`, first + 1, ...; NULL without memory. */
Tokenizer *i3_text_new(const uint64_t *keys, int64_t count, int64_t first, const uint8_t *common) {
    Tokenizer *t = calloc(1, sizeof *t);
    if (t == NULL) return NULL;
    memcpy(t->common, common, sizeof t->common);
    uint64_t size = 16;
    while (size < 4 * (uint64_t)count) size *= 2;
    t->mask = size - 1;
    t->slots = calloc(size, sizeof *t->slots);
    t->third = calloc(2 * (size_t)count + 1, sizeof *t->third);
    if (t->slots == NULL || t->third == NULL) {
        i3_text_free(t);
        return NULL;
    }
    unsigned rows = 1;
    for (int64_t k = 0; k < count; k++) {
        uint16_t id = (uint16_t)(first + k);
        uint64_t at = hash(keys[k]) & t->mask;
        while (t->slots[at].key != 0) at = (at + 1) & t->mask;
        t->slots[at].key = keys[k];
        t->slots[at].id = id;

        uint64_t field = ((uint64_t)1 << BITS) - 1;
        uint64_t a = (keys[k] >> 2 * BITS) - 1, b = (keys[k] >> BITS & field) - 1;
        uint64_t c = (keys[k] & field) - 1; /* an absent character is huge here */
        if (a < 128 && (keys[k] >> BITS & field) == 0) t->single[a] = id;
        if (a >= 128 || b >= 128) continue;
        Pair *pair = &t->pairs[a << 7 | b];
        if ((keys[k] & field) == 0) pair->id = id;
        if (c >= 128) continue;
        for (int any = !is_common(common, a, b, c); any < 2; any++) {
            /* 16,384 pairs have 32,768 rows at the most: 16 bits do. */
            if (pair->row[any] == 0) pair->row[any] = (uint16_t)rows++;
            t->third[pair->row[any]][c] = id;
        }
    }
    return t;
}

/* Reads the character at `at` (at < size): its code point plus one; moves `at` behind it. */
static uint64_t next_code(const uint8_t *s, int64_t size, int64_t *at) {
    static const uint8_t lead[4] = {0x7F, 0x1F, 0x0F, 0x07};
    unsigned first = s[(*at)++];
    int more = first < 0xC0 ? 0 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
    uint64_t code = first & lead[more];
    for (; more > 0 && *at < size; more--) code = code << 6 | (s[(*at)++] & 0x3F);
    return code + 1;
}

/* The up to three characters at `at`, where each ends, and whether the rule asks for all three. */
typedef struct {
    uint64_t code[3];
    int64_t end[3];
    int count, all;
} Window;

static Window look(const uint8_t *s, int64_t size, int64_t at, const uint8_t *common) {
    Window w = {{0, 0, 0}, {0, 0, 0}, 0, 0};
    int after_space = at > 0 && s[at - 1] == ' ';
    while (w.count < 3 && at < size) {
        w.code[w.count] = next_code(s, size, &at);
        w.end[w.count++] = at;
    }
    w.all = w.count == 3 &&
            (after_space || (at < size && s[at] == ' ') ||
             (w.code[0] <= 128 && w.code[1] <= 128 && w.code[2] <= 128 &&
              is_common(common, (unsigned)w.code[0] - 1, (unsigned)w.code[1] - 1,
                        (unsigned)w.code[2] - 1)));
    return w;
}

/* One token (or the bytes of one character) at `at`; returns where it ends. */
static int64_t step(const Tokenizer *t, const uint8_t *s, int64_t size, int64_t at,
                    uint16_t **out) {
    Window w = look(s, size, at, t->common);
    uint64_t key = w.code[0] << 2 * BITS;
    uint16_t id;
    if (w.all && (id = find(t, key | w.code[1] << BITS | w.code[2]))) {
        *(*out)++ = id;
        return w.end[2];
    }
    if (w.count > 1 && (id = find(t, key | w.code[1] << BITS))) {
        *(*out)++ = id;
        return w.end[1];
    }
    if ((id = find(t, key))) {
        *(*out)++ = id;
    } else {
        for (; at < w.end[0]; at++) *(*out)++ = (uint16_t)(FIRST_BYTE + s[at]);
    }
    return w.end[0];
}

/* Encodes `size` bytes; `out` has room for `size` ids. Returns their number. */
int64_t i3_text_encode(const Tokenizer *t, const uint8_t *s, int64_t size, uint16_t *out) {
    uint16_t *begin = out;
    int64_t at = 0;
    unsigned before = 0; /* the byte before `at`; a text begins after none */
    while (at + 4 <= size) {
        unsigned a = s[at], b = s[at + 1], c = s[at + 2];
        if (UNLIKELY((a | b | c) & 0x80)) {
            at = step(t, s, size, at, &out);
            before = s[at - 1];
            continue;
        }
        const Pair *pair = &t->pairs[a << 7 | b];
        unsigned any = (before == ' ') | (s[at + 3] == ' ');
        uint16_t long_id = t->third[pair->row[any]][c];
        uint16_t id = long_id ? long_id : pair->id;
        if (UNLIKELY(id == 0)) {
            if ((*out = t->single[a]) != 0) {
                out++;
                at++;
            } else {
                at = step(t, s, size, at, &out);
            }
        } else {
            *out++ = id;
            at += 2 + (long_id != 0);
        }
        before = s[at - 1];
    }
    while (at < size) { /* the last three bytes: conversations have many ends */
        int64_t left = size - at;
        unsigned a = s[at], b = left > 1 ? s[at + 1] : 0, c = left > 2 ? s[at + 2] : 0;
        const Pair *pair = &t->pairs[(a & 127) << 7 | (b & 127)];
        uint16_t long_id = left > 2 ? t->third[pair->row[before == ' ']][c & 127] : 0;
        uint16_t id = left == 1 ? t->single[a & 127] : long_id ? long_id : pair->id;
        if (UNLIKELY(id == 0 || (a | b | c) & 0x80)) {
            at = step(t, s, size, at, &out);
        } else {
            *out++ = id;
            at += left == 1 ? 1 : 2 + (long_id != 0);
        }
        before = s[at - 1];
    }
    return out - begin;
}

/* Encodes documents that lie one after another and end at ends[]; each sees only itself.
 * `out` has room for ends[documents - 1] ids; out_ends[] gets where each document's ids end. */
void i3_text_encode_batch(const Tokenizer *t, const uint8_t *s, const int64_t *ends,
                          int64_t documents, uint16_t *out, int64_t *out_ends) {
    int64_t begin = 0, total = 0;
    for (int64_t d = 0; d < documents; d++) {
        total += i3_text_encode(t, s + begin, ends[d] - begin, out + total);
        out_ends[d] = total;
        begin = ends[d];
    }
}

/* Counts one document by the rule with every chunk known. `pairs` (128 x 128) and `triples`
 * (128 x 128 x 128) count ASCII chunks, `characters` every code point; the numbers of the
 * other chunks go to `rare` in order, one per occurrence. Returns how many. */
static int64_t count_document(const uint8_t *s, int64_t size, const uint8_t *common,
                              int64_t *characters, int64_t *pairs, int64_t *triples,
                              uint64_t *rare) {
    int64_t at = 0, found = 0;
    while (at < size) {
        if (at > 0 && at + 4 <= size) {
            unsigned a = s[at], b = s[at + 1], c = s[at + 2];
            if (!((a | b | c) & 0x80)) {
                unsigned pair = a << 7 | b;
                if ((s[at - 1] == ' ') | (s[at + 3] == ' ') | is_common(common, a, b, c)) {
                    triples[pair << 7 | c]++;
                    at += 3;
                } else {
                    pairs[pair]++;
                    at += 2;
                }
                continue;
            }
        }
        Window w = look(s, size, at, common);
        int take = w.all ? 3 : w.count < 2 ? w.count : 2;
        int ascii = 1;
        for (int k = 0; k < take; k++) {
            if (w.code[k] > 128) {
                characters[w.code[k] - 1]++;
                ascii = 0;
            }
        }
        at = w.end[take - 1];
        if (take == 1) continue; /* a last character by itself is no chunk */
        if (take == 2) w.code[2] = 0;
        if (!ascii) {
            rare[found++] = w.code[0] << 2 * BITS | w.code[1] << BITS | w.code[2];
        } else if (take == 3) {
            triples[(w.code[0] - 1) << 14 | (w.code[1] - 1) << 7 | (w.code[2] - 1)]++;
        } else {
            pairs[(w.code[0] - 1) << 7 | (w.code[1] - 1)]++;
        }
    }
    return found;
}

/* Four tables: runs of one byte do not wait for each other. */
typedef int64_t ByteCounts[4][256];

static void count_bytes(const uint8_t *s, int64_t size, ByteCounts bytes) {
    for (int64_t k = 0; k < size; k++) bytes[k & 3][s[k]]++;
}

static void add_ascii(ByteCounts bytes, int64_t *characters) {
    for (int k = 0; k < 128; k++) {
        characters[k] += bytes[0][k] + bytes[1][k] + bytes[2][k] + bytes[3][k];
    }
}

/* Counts documents that lie one after another and end at ends[]. `rare` has room for a third of
 * the bytes: a chunk with a character beyond ASCII takes three. Returns how many it got. */
int64_t i3_text_count(const uint8_t *s, const int64_t *ends, int64_t documents,
                      const uint8_t *common, int64_t *characters, int64_t *pairs,
                      int64_t *triples, uint64_t *rare) {
    ByteCounts bytes = {{0}};
    int64_t begin = 0, found = 0;
    count_bytes(s, documents > 0 ? ends[documents - 1] : 0, bytes);
    add_ascii(bytes, characters);
    for (int64_t d = 0; d < documents; d++) {
        found += count_document(s + begin, ends[d] - begin, common, characters, pairs, triples,
                                rare + found);
        begin = ends[d];
    }
    return found;
}

#include "lines.h"
