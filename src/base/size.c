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

/* Reads ".ddd" as a fraction of one; returns how many characters, 0 if none. */
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

/* Reads what stands in front of the suffix; a fraction is for decimal numbers only. */
static int parse_number(const char **text, uint64_t *whole, double *fraction)
{
    const char *at = *text;
    char *end;
    bool hex = at[0] == '0' && (at[1] == 'x' || at[1] == 'X');
    errno = 0;
    *whole = strtoull(at, &end, hex ? 16 : 10);
    *fraction = 0;
    int ret = errno ? -ERANGE : 0;
    if (!hex)
        end += parse_fraction(end, fraction);
    *text = end;
    return ret;
}

static int scale(uint64_t whole, double fraction, int shift, uint64_t *bytes)
{
    uint64_t factor = UINT64_C(1) << shift, value;
    if (!try_mul_u64(whole, factor, &value) ||
        !try_add_u64(value, (uint64_t)(fraction * (double)factor + 0.5), &value) ||
        value > INT64_MAX)
        return -ERANGE;
    *bytes = value;
    return 0;
}

int qk_parse_size(const char *text, char unit, uint64_t *bytes)
{
    uint64_t whole;
    double fraction;
    while (isspace((unsigned char)*text))
        text++;
    if (*text == '+')
        text++;
    if (!isdigit((unsigned char)*text))
        return -EINVAL;
    int ret = parse_number(&text, &whole, &fraction);
    int shift = suffix_shift(*text);
    if (shift >= 0)
        text++;
    else
        shift = suffix_shift(unit);
    /* text behind the number outweighs a number that is too large, as with qemu-img */
    if (*text || shift < 0 || (fraction > 0 && shift == 0))
        return -EINVAL;
    return ret < 0 ? ret : scale(whole, fraction, shift, bytes);
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
