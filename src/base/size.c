/*
 * size.c - sizes as people write them ("64k", "1.5G") and as qemu-img prints them ("1.5 GiB").
 */
#include "base/checked.h"
#include "base/error.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char suffixes[] = "BKMGTPE";

static int suffix_shift(char c)
{
    const char *at = c ? strchr(suffixes, toupper((unsigned char)c)) : NULL;
    return at ? (int)(at - suffixes) * 10 : -1;
}

/* Reads ".ddd" as an exact fraction of 2^shift; returns how many characters, 0 if none. */
static size_t parse_fraction(const char *text, double *fraction)
{
    *fraction = 0;
    if (text[0] != '.')
        return 0;
    double unit = 0.1;
    size_t n = 1;
    for (; isdigit((unsigned char)text[n]); n++, unit /= 10)
        *fraction += (text[n] - '0') * unit;
    return n;
}

int qk_parse_size(const char *text, char unit, uint64_t *bytes)
{
    while (isspace((unsigned char)*text))
        text++;
    if (!isdigit((unsigned char)*text) && *text != '.')
        return -EINVAL;
    bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
    char *end = (char *)text;
    errno = 0;
    unsigned long long whole = *text == '.' ? 0 : strtoull(text, &end, hex ? 16 : 10);
    if (errno)
        return -ERANGE;
    double fraction = 0;
    if (!hex) {
        size_t n = parse_fraction(end, &fraction);
        if (n == 1 && end == text)
            return -EINVAL;
        end += n;
    }
    int shift = suffix_shift(*end);
    if (shift >= 0) {
        if (hex)
            return -EINVAL;
        end++;
    } else {
        shift = suffix_shift(unit);
    }
    if (*end || shift < 0 || (fraction > 0 && shift == 0))
        return -EINVAL;
    uint64_t value;
    if (!try_mul_u64(whole, UINT64_C(1) << shift, &value) ||
        !try_add_u64(value, (uint64_t)(fraction * (double)(UINT64_C(1) << shift) + 0.5), &value) ||
        value > INT64_MAX)
        return -ERANGE;
    *bytes = value;
    return 0;
}

char *qk_format_size(uint64_t bytes, char buf[QK_SIZE_TEXT_MAX])
{
    static const char *const prefix[] = {"", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"};
    int exponent;
    frexp((double)bytes / (1000.0 / 1024.0), &exponent);
    unsigned i = exponent > 0 ? (unsigned)(exponent - 1) / 10 : 0;
    snprintf(buf, QK_SIZE_TEXT_MAX, "%0.3g %sB", (double)bytes / (double)(UINT64_C(1) << (i * 10)),
             prefix[i]);
    return buf;
}
