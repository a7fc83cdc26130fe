/*
 * units.c - sizes and numbers of the command line. The rules of what a size is are the library's
 * (qk_parse_size); the messages are qemu-img's.
 */
#include "common/units.h"
#include "common/report.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static int out_of_range(const char *noun, uint64_t min, uint64_t max)
{
    report_error("Invalid %s specified. Must be between %" PRIu64 " and %" PRIu64 ".", noun, min,
                 max);
    return -ERANGE;
}

int size_value(const char *text, uint64_t *out)
{
    int ret = qk_parse_size(text, 'B', out);
    const char *digits = text + strspn(text, " +");
    if (!ret && digits[0] == '0' && strchr("xX", digits[1]) && digits[1] &&
        digits[2 + strspn(digits + 2, "0123456789abcdefABCDEF")])
        report_warning("Using a multiplier suffix on hex numbers is deprecated: %s", text);
    return ret;
}

int size_parse(const char *noun, const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
    uint64_t value, limit = max ? max : INT64_MAX;
    int ret = size_value(text, &value);
    if (ret == -ERANGE || (!ret && (value < min || value > limit)))
        return out_of_range(noun, min, limit);
    if (ret) {
        report_error("Invalid %s specified. You may use k, M, G, T, P or E suffixes for", noun);
        report_error("kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.");
        return ret;
    }
    *out = value;
    return 0;
}

int number_parse(const char *noun, const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
    uint64_t limit = max ? max : INT64_MAX;
    char *end = NULL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 0);
    if (!isdigit((unsigned char)text[0]) || *end) {
        report_error("Invalid %s specified", noun);
        return -EINVAL;
    }
    if (errno || value < min || value > limit)
        return out_of_range(noun, min, limit);
    *out = value;
    return 0;
}

size_t put_digits(char *out, uint64_t value, unsigned base)
{
    char digits[DIGITS_MOST];
    size_t n = 0;
    do {
        digits[n++] = "0123456789abcdef"[base == 16 ? value % 16 : value % 10];
        value = base == 16 ? value / 16 : value / 10;
    } while (value);
    for (size_t i = 0; i < n; i++)
        out[i] = digits[n - 1 - i];
    return n;
}
