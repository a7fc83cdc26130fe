/*
 * zero.c - see zero.h. The test works on blocks that compilers turn into vector instructions, and
 * looks at the first bytes apart, because data nearly always shows itself there.
 */
#include "job/zero.h"
#include "base/checked.h"

#include <string.h>

#define BLOCK_BYTES 256
#define SECTOR      512

static uint64_t load_u64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static bool block_is_zero(const uint8_t *p)
{
    uint64_t any = 0;
    for (size_t i = 0; i < BLOCK_BYTES; i += sizeof(uint64_t))
        any |= load_u64(p + i);
    return any == 0;
}

bool bytes_are_zero(const void *p, size_t len)
{
    const uint8_t *b = p;
    if (len >= sizeof(uint64_t) && (load_u64(b) | load_u64(b + len - sizeof(uint64_t))))
        return false;
    for (; len >= BLOCK_BYTES; b += BLOCK_BYTES, len -= BLOCK_BYTES)
        if (!block_is_zero(b))
            return false;
    for (; len; b++, len--)
        if (*b)
            return false;
    return true;
}

size_t bytes_first_difference(const uint8_t *a, const uint8_t *b, size_t len)
{
    size_t at = 0;
    for (; len - at >= SECTOR; at += SECTOR)
        if (memcmp(a + at, b + at, SECTOR) != 0)
            break;
    while (at < len && a[at] == b[at])
        at++;
    return at;
}

struct sparse_rule sparse_rule_of(uint64_t sparse_bytes)
{
    uint64_t bytes = max_u64(sparse_bytes, SECTOR);
    return (struct sparse_rule){
        .min_bytes = (size_t)bytes,
        .unit = (size_t)1 << log2_floor(bytes),
    };
}

/* Bytes from buf on whose units are all zero (or all not): up to the next change. */
static size_t same_units(const struct sparse_rule *rule, const uint8_t *buf, size_t len,
                         uint64_t off, bool *zero)
{
    size_t at = 0;
    for (bool first = true; at < len; first = false) {
        size_t rest = rule->unit - (size_t)((off + at) & (rule->unit - 1));
        size_t take = (size_t)min_u64(rest, len - at);
        bool is_zero = bytes_are_zero(buf + at, take);
        if (first)
            *zero = is_zero;
        else if (is_zero != *zero)
            break;
        at += take;
    }
    return at;
}

size_t sparse_run(const struct sparse_rule *rule, const uint8_t *buf, size_t len, uint64_t off,
                  bool *zero)
{
    size_t run = same_units(rule, buf, len, off, zero);
    if (*zero)
        return run;
    for (size_t at = run; at < len;) {
        bool hole;
        size_t more = same_units(rule, buf + at, len - at, off + at, &hole);
        if (hole && more >= rule->min_bytes)
            break;
        at += more;
        if (!hole)
            run = at;
    }
    return run;
}
