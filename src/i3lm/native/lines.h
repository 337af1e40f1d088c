/* Documents that are lines of a text, taken apart in place: plain lines, or conversations
 * `[INST] user [/INST] assistant ...`. Included by text.c.
 *
 * Only what is written exactly as data/documents.py writes it is handled here. Any other line is
 * marked for Python, which knows the whole of the rules and the messages for the user. */

#include "blake2b.h"

enum { LINE_BLANK, LINE_HERE, LINE_FOR_PYTHON };
enum { BOS = 2, EOS = 3, INST = 4, END_INST = 5 };

/* The length of the tag at `at` that begins turn number `turn`, 0 if another or none is there. */
static int64_t tag_at(const uint8_t *s, int64_t at, int64_t end, int64_t turn) {
    if (turn % 2) return end - at >= 7 && memcmp(s + at, "[/INST]", 7) == 0 ? 7 : 0;
    return end - at >= 6 && memcmp(s + at, "[INST]", 6) == 0 ? 6 : 0;
}

/* The bytes of the white space (as str.strip knows it) that s[begin:end] begins with, or 0. */
static int space_after(const uint8_t *s, int64_t begin, int64_t end) {
    int64_t size = end - begin;
    const uint8_t *p = s + begin;
    if (size < 1) return 0;
    if (p[0] < 0x80) return p[0] == ' ' || (p[0] >= 9 && p[0] <= 13) || (p[0] >= 28 && p[0] <= 31);
    if (size < 2) return 0;
    if (p[0] == 0xC2) return p[1] == 0x85 || p[1] == 0xA0 ? 2 : 0;
    if (size < 3) return 0;
    int last = p[2];
    if (p[0] == 0xE2 && p[1] == 0x80) {
        return (last >= 0x80 && last <= 0x8A) || last == 0xA8 || last == 0xA9 || last == 0xAF ? 3 : 0;
    }
    return (p[0] == 0xE2 && p[1] == 0x81 && last == 0x9F) ||
                   (p[0] == 0xE1 && p[1] == 0x9A && last == 0x80) ||
                   (p[0] == 0xE3 && p[1] == 0x80 && last == 0x80)
               ? 3
               : 0;
}

static int has_space_at_end(const uint8_t *s, int64_t begin, int64_t end) {
    for (int64_t at = end - 1; at >= begin && at >= end - 3; at--) {
        if ((s[at] & 0xC0) != 0x80) return space_after(s, at, end) > 0;
    }
    return 0;
}

static int is_blank(const uint8_t *s, int64_t begin, int64_t end) {
    while (begin < end) {
        int step = space_after(s, begin, end);
        if (step == 0) return 0;
        begin += step;
    }
    return 1;
}

/* Whether a special token is written at `at`, which holds '<'. */
static int special_at(const uint8_t *s, int64_t at, int64_t end) {
    return end - at >= 5 &&
           (memcmp(s + at, "<unk>", 5) == 0 || memcmp(s + at, "<pad>", 5) == 0 ||
            memcmp(s + at, "<bos>", 5) == 0 || memcmp(s + at, "<eos>", 5) == 0);
}

/* Where the next '[' or '<' is, or `end`: eight bytes at a time where the first is the lowest. */
static int64_t next_mark(const uint8_t *s, int64_t at, int64_t end) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    const uint64_t ones = 0x0101010101010101u, highs = ones << 7;
    for (; at + 8 <= end; at += 8) {
        uint64_t word, square, angle, found;
        memcpy(&word, s + at, 8);
        square = word ^ ones * '[';
        angle = word ^ ones * '<';
        found = (((square - ones) & ~square) | ((angle - ones) & ~angle)) & highs;
        if (found) return at + (__builtin_ctzll(found) >> 3);
    }
#endif
    while (at < end && s[at] != '[' && s[at] != '<') at++;
    return at;
}

/* Finds the content of turn number `turn`, whose tag is at *at; moves *at to the next tag or `end`.
 * Returns 0 unless tag and content are written as they must be. */
static int next_turn(const uint8_t *s, int64_t *at, int64_t end, int64_t turn,
                     int64_t *content, int64_t *content_end) {
    int64_t length = tag_at(s, *at, end, turn);
    if (length == 0 || *at + length >= end || s[*at + length] != ' ') return 0;
    int64_t k = *content = *at + length + 1;
    for (; (k = next_mark(s, k, end)) < end; k++) {
        if (s[k] == '[' && (tag_at(s, k, end, 0) || tag_at(s, k, end, 1))) break;
        if (s[k] == '<' && special_at(s, k, end)) return 0;
    }
    *at = k;
    if (k < end && s[--k] != ' ') return 0;
    *content_end = k;
    return k > *content && !space_after(s, *content, k) && !has_space_at_end(s, *content, k);
}

static int is_conversation(const uint8_t *s, int64_t begin, int64_t end) {
    int64_t turn = 0, content, content_end;
    for (int64_t at = begin; at < end; turn++) {
        if (!next_turn(s, &at, end, turn, &content, &content_end)) return 0;
    }
    return turn > 0 && turn % 2 == 0;
}

/* Finds the lines of a text: where each begins and ends, how many code points it has, its digest
 * (unless `digests` is null), and its kind. The arrays have room for a line more than there are line ends. Returns how many. */
int64_t i3_lines_scan(const uint8_t *s, int64_t size, int32_t tagged, const uint8_t *salt,
                      int64_t *begins, int64_t *ends, int64_t *characters, uint8_t *digests,
                      uint8_t *kinds) {
    int64_t count = 0;
    for (int64_t begin = 0; begin < size; count++) {
        const uint8_t *found = memchr(s + begin, '\n', (size_t)(size - begin));
        int64_t end = found ? found - s : size, codes = 0;
        for (int64_t k = begin; k < end; k++) codes += (s[k] & 0xC0) != 0x80;
        begins[count] = begin;
        ends[count] = end;
        characters[count] = codes;
        int python = tagged && !is_conversation(s, begin, end);
        kinds[count] = is_blank(s, begin, end) ? LINE_BLANK : python ? LINE_FOR_PYTHON : LINE_HERE;
        begin = end + 1;
    }
    if (digests != NULL) blake2b_16_lines(s, count, begins, ends, kinds, LINE_HERE, salt, digests);
    return count;
}

/* Encodes the selected lines, `<bos>` ids `<eos>` each; `out` has room for two ids more a line than
 * there are bytes. out_ends[] gets, for every line, where the ids end after it. */
void i3_lines_encode(const Tokenizer *t, const uint8_t *s, int64_t lines, const int64_t *begins,
                     const int64_t *ends, const uint8_t *selected, int32_t tagged, uint16_t *out,
                     int64_t *out_ends) {
    uint16_t *to = out;
    for (int64_t n = 0; n < lines; n++) {
        if (selected[n]) {
            int64_t at = begins[n], content, content_end;
            *to++ = BOS;
            if (!tagged) to += i3_text_encode(t, s + at, ends[n] - at, to);
            for (int64_t turn = 0; tagged && at < ends[n]; turn++) {
                if (!next_turn(s, &at, ends[n], turn, &content, &content_end)) break;
                *to++ = turn % 2 ? END_INST : INST;
                to += i3_text_encode(t, s + content, content_end - content, to);
            }
            *to++ = EOS;
        }
        out_ends[n] = to - out;
    }
}

/* Counts the selected lines as i3_text_count does documents, each turn of a conversation as one. */
int64_t i3_lines_count(const uint8_t *s, int64_t lines, const int64_t *begins, const int64_t *ends,
                       const uint8_t *selected, int32_t tagged, const uint8_t *common,
                       int64_t *characters, int64_t *pairs, int64_t *triples, uint64_t *rare) {
    ByteCounts bytes = {{0}};
    int64_t found = 0;
    for (int64_t n = 0; n < lines; n++) {
        if (!selected[n]) continue;
        int64_t at = begins[n], content = at, content_end = ends[n];
        for (int64_t turn = 0; at < ends[n]; turn++) {
            if (!tagged) at = ends[n];
            else if (!next_turn(s, &at, ends[n], turn, &content, &content_end)) break;
            count_bytes(s + content, content_end - content, bytes);
            found += count_document(s + content, content_end - content, common, characters, pairs,
                                    triples, rare + found);
        }
    }
    add_ascii(bytes, characters);
    return found;
}
