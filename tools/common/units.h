/*
 * units.h - sizes and numbers on the command line, with qemu-img's messages for bad ones; and
 * numbers as digits.
 */
#ifndef TOOLS_COMMON_UNITS_H
#define TOOLS_COMMON_UNITS_H

#include <stddef.h>
#include <stdint.h>

/*
 * Bytes with an optional suffix. On failure prints "Invalid NOUN specified. ..." and returns a
 * negative errno. max 0 means INT64_MAX.
 */
int size_parse(const char *noun, const char *text, uint64_t min, uint64_t max, uint64_t *out);

/* The same without messages but the warning that qemu-img has for "0x1k". */
int size_value(const char *text, uint64_t *out);

/* A plain unsigned number (decimal, 0x hexadecimal, 0 octal). Otherwise as size_parse. */
int number_parse(const char *noun, const char *text, uint64_t min, uint64_t max, uint64_t *out);

/* Writes the digits of a number, without an end; base: 10 or 16. Returns how many. For millions of
 * numbers: printf takes longer over one than all else does. */
#define DIGITS_MOST 20u
size_t put_digits(char *out, uint64_t value, unsigned base);

#endif
