/*
 * check_lasting.c - two fields of bits, in which each finding has BITS_EACH (check_lasting.h).
 */
#include "img/check_lasting.h"
#include "common/report.h"

#include <stdlib.h>
#include <string.h>

#define FIELD_BITS  (UINT64_C(1) << 25)
#define FIELD_BYTES ((size_t)(FIELD_BITS / 8))
#define BITS_EACH   3u

static uint64_t *field_new(void)
{
    uint64_t *field = xmalloc(FIELD_BYTES);
    memset(field, 0, FIELD_BYTES);
    return field;
}

void lasting_begin(struct lasting *l)
{
    *l = (struct lasting){.now = field_new()};
}

void lasting_next(struct lasting *l)
{
    free(l->before);
    *l = (struct lasting){.before = l->now, .now = field_new()};
}

void lasting_free(struct lasting *l)
{
    free(l->now);
    free(l->before);
    *l = (struct lasting){0};
}

static uint64_t mix(uint64_t hash, uint64_t value)
{
    hash = (hash ^ value) * UINT64_C(0x9e3779b97f4a7c15);
    return hash ^ hash >> 32;
}

static uint64_t mix_bytes(uint64_t hash, const char *bytes, size_t length)
{
    for (size_t n; length; bytes += n, length -= n) {
        uint64_t word = 0;
        n = length < sizeof(word) ? length : sizeof(word);
        memcpy(&word, bytes, n);
        hash = mix(hash, word);
    }
    return hash;
}

/* What tells a finding from all others; its text has the values. */
static uint64_t fingerprint(const struct qk_problem *p, const char *text, size_t length)
{
    uint64_t hash = mix(mix(mix(p->number, p->file_off), p->guest_off), p->found);
    if (p->snapshot)
        hash = mix_bytes(hash, p->snapshot, strlen(p->snapshot));
    if (p->bitmap)
        hash = mix_bytes(hash, p->bitmap, strlen(p->bitmap));
    return mix(mix_bytes(hash, text, length), length);
}

bool lasting_found(struct lasting *l, const struct qk_problem *problem, const char *text,
                   size_t length)
{
    const uint64_t print = fingerprint(problem, text, length);
    uint64_t at[BITS_EACH];
    bool lasts = true;
    for (unsigned i = 0; i < BITS_EACH; i++) {
        at[i] = mix(print, i + 1) % FIELD_BITS;
        lasts = lasts && (!l->before || (l->before[at[i] / 64] >> at[i] % 64 & 1));
    }
    for (unsigned i = 0; lasts && i < BITS_EACH; i++)
        l->now[at[i] / 64] |= UINT64_C(1) << at[i] % 64;
    l->kept[problem->severity] += lasts;
    return lasts;
}

uint64_t lasting_count(const struct lasting *l)
{
    return l->kept[QK_SEVERITY_NONE] + l->kept[QK_SEVERITY_LEAK] + l->kept[QK_SEVERITY_CORRUPTION] +
           l->kept[QK_SEVERITY_ERROR];
}
