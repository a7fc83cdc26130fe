/*
 * json.c - the JSON writer of rows.h: a stream with qemu's pretty layout (4 spaces, one item per
 * line, an empty array on two lines) or on one line. Output is pure ASCII: anything else is
 * written as \u escapes, bytes that are not UTF-8 as the replacement character. A stream is written
 * by one thread, and needs no lock for each byte: there may be millions of items.
 */
#include "common/rows.h"
#include "common/units.h"

#include <inttypes.h>
#include <string.h>

static void new_line(struct json *json)
{
    putc_unlocked('\n', json->out);
    for (unsigned i = 0; i < json->depth; i++)
        fputs_unlocked("    ", json->out);
}

/* Length of the UTF-8 sequence at `at`, its code point in *point; 0 when it is malformed. */
static size_t decode(const unsigned char *at, uint32_t *point)
{
    static const struct {
        unsigned char mask, lead;
        uint32_t least;
    } form[] = {{0x80, 0x00, 0}, {0xe0, 0xc0, 0x80}, {0xf0, 0xe0, 0x800}, {0xf8, 0xf0, 0x10000}};
    for (size_t n = 0; n < 4; n++) {
        if ((at[0] & form[n].mask) != form[n].lead)
            continue;
        uint32_t value = at[0] & (unsigned char)~form[n].mask;
        for (size_t i = 1; i <= n; i++) {
            if ((at[i] & 0xc0) != 0x80)
                return 0;
            value = value << 6 | (at[i] & 0x3f);
        }
        *point = value;
        bool surrogate = value >= 0xd800 && value < 0xe000;
        return value < form[n].least || value > 0x10ffff || surrogate ? 0 : n + 1;
    }
    return 0;
}

static void write_point(FILE *out, uint32_t point)
{
    static const char escaped[] = "\"\\\b\f\n\r\t", letter[] = "\"\\bfnrt";
    const char *at = point && point < 128 ? strchr(escaped, (int)point) : NULL;
    if (at)
        fprintf(out, "\\%c", letter[at - escaped]);
    else if (point >= 0x20 && point < 0x7f)
        fputc((int)point, out);
    else if (point < 0x10000)
        fprintf(out, "\\u%04X", point);
    else
        fprintf(out, "\\u%04X\\u%04X", 0xd800 + ((point - 0x10000) >> 10),
                0xdc00 + ((point - 0x10000) & 0x3ff));
}

/* How many bytes from `at` on stand for themselves: nearly always all of them. */
static size_t plain_length(const unsigned char *at)
{
    size_t n = 0;
    while (at[n] >= 0x20 && at[n] < 0x7f && at[n] != '"' && at[n] != '\\')
        n++;
    return n;
}

static void write_text(FILE *out, const char *text)
{
    const unsigned char *at = (const unsigned char *)text;
    putc_unlocked('"', out);
    while (*at) {
        uint32_t point = 0xfffd;
        size_t plain = plain_length(at), length = plain ? plain : decode(at, &point);
        if (plain)
            fwrite_unlocked(at, 1, plain, out);
        else
            write_point(out, length ? point : 0xfffd);
        at += length ? length : 1;
    }
    putc_unlocked('"', out);
}

static void start_item(struct json *json, const char *key)
{
    if (json->has_items)
        fputs_unlocked(json->compact ? ", " : ",", json->out);
    if (json->depth && !json->compact)
        new_line(json);
    json->has_items = true;
    if (key) {
        write_text(json->out, key);
        fputs_unlocked(": ", json->out);
    }
}

void json_open(struct json *json, const char *key, char bracket)
{
    start_item(json, key);
    putc_unlocked(bracket, json->out);
    json->depth++;
    json->has_items = false;
}

void json_close(struct json *json, char bracket)
{
    json->depth--;
    if (!json->compact)
        new_line(json);
    putc_unlocked(bracket, json->out);
    json->has_items = json->depth > 0;
}

void json_text(struct json *json, const char *key, const char *value)
{
    start_item(json, key);
    write_text(json->out, value);
}

void json_uint(struct json *json, const char *key, uint64_t value)
{
    char digits[DIGITS_MOST];
    start_item(json, key);
    fwrite_unlocked(digits, 1, put_digits(digits, value, 10), json->out);
}

void json_int(struct json *json, const char *key, int64_t value)
{
    start_item(json, key);
    fprintf(json->out, "%" PRId64, value);
}

void json_bool(struct json *json, const char *key, bool value)
{
    json_raw(json, key, value ? "true" : "false");
}

void json_raw(struct json *json, const char *key, const char *value)
{
    start_item(json, key);
    fputs_unlocked(value, json->out);
}
