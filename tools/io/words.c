/*
 * words.c - values in a command's words (words.h). Which texts are sizes is the library's rule;
 * the messages and the way amounts are printed are qemu-io's.
 */
#include "io/words.h"
#include "common/report.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A suffix after hexadecimal digits reads badly: is 0x1b 27 or 1 byte? */
static void warn_hex_suffix(const char *text)
{
    while (isspace((unsigned char)*text))
        text++;
    text += *text == '+';
    if (text[0] == '0' && tolower((unsigned char)text[1]) == 'x' &&
        !isxdigit((unsigned char)text[strlen(text) - 1]))
        report_warning("Using a multiplier suffix on hex numbers is deprecated: %s", text);
}

int word_bytes(const char *text, uint64_t *bytes)
{
    int ret = qk_parse_size(text, 'B', bytes);
    if (ret == -ERANGE)
        printf("Parsing error: argument too large -- %s\n", text);
    else if (ret)
        printf("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- %s\n",
               text);
    else
        warn_hex_suffix(text);
    return ret;
}

int word_pattern(const char *text, uint8_t *pattern)
{
    char *end;
    errno = 0;
    long value = strtol(text, &end, 0);
    if (errno || end == text || *end || value < 0 || value > UINT8_MAX) {
        printf("%s is not a valid pattern byte\n", text);
        return -EINVAL;
    }
    *pattern = (uint8_t)value;
    return 0;
}

static int add_length(const char *text, size_t *length, uint64_t *total)
{
    uint64_t bytes;
    int ret = word_bytes(text, &bytes);
    if (ret)
        return ret;
    if (bytes > REQUEST_MAX_BYTES) {
        printf("Argument '%s' exceeds maximum size %" PRIu64 "\n", text, REQUEST_MAX_BYTES);
        return -EINVAL;
    }
    if (bytes > REQUEST_MAX_BYTES - *total) {
        printf("The total number of bytes exceed the maximum size %" PRIu64 "\n",
               REQUEST_MAX_BYTES);
        return -EINVAL;
    }
    *length = (size_t)bytes;
    *total += bytes;
    return 0;
}

int word_lengths(char *const *text, int count, size_t **lengths, uint64_t *total)
{
    int ret = 0;
    *total = 0;
    *lengths = xmalloc((size_t)count * sizeof(**lengths));
    for (int i = 0; i < count && !ret; i++)
        ret = add_length(text[i], &(*lengths)[i], total);
    if (ret) {
        free(*lengths);
        *lengths = NULL;
    }
    return ret;
}

static void drop_zero_decimals(char *text)
{
    char *point = strchr(text, '.');
    if (point && strspn(point + 1, "0") == strlen(point + 1))
        *point = '\0';
}

char *amount_text(double bytes, char buf[AMOUNT_TEXT_MAX])
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    size_t unit = 0;
    for (; bytes >= 1024 && unit + 1 < sizeof(units) / sizeof(*units); unit++)
        bytes /= 1024;
    char number[AMOUNT_TEXT_MAX - 8];
    snprintf(number, sizeof(number), unit ? "%.3f" : "%f", bytes);
    drop_zero_decimals(number);
    snprintf(buf, AMOUNT_TEXT_MAX, "%s %s", number, units[unit]);
    return buf;
}
