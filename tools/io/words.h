/*
 * words.h - from the words of a command to values and back, in qemu-io's words: byte counts,
 * patterns, lists of lengths. Complaints go to stdout.
 */
#ifndef TOOLS_IO_WORDS_H
#define TOOLS_IO_WORDS_H

#include <stddef.h>
#include <stdint.h>

/* The most that one request may carry: what fits an int, in whole sectors. */
#define REQUEST_MAX_BYTES UINT64_C(2147483136)
#define SECTOR_BYTES      512u

/* Bytes with an optional suffix, at most INT64_MAX. -EINVAL or -ERANGE: reported. */
int word_bytes(const char *text, uint64_t *bytes);

/* A byte value, 0 to 255, decimal, octal or hexadecimal. -EINVAL: reported. */
int word_pattern(const char *text, uint8_t *pattern);

/*
 * `count` lengths, at least one; *total is their sum, at most REQUEST_MAX_BYTES. The caller frees
 * *lengths, which is NULL on failure. Negative errno: reported.
 */
int word_lengths(char *const *text, int count, size_t **lengths, uint64_t *total);

/* "1 MiB", "1.500 KiB", "17 bytes": three decimals unless they are zero. */
#define AMOUNT_TEXT_MAX 40
char *amount_text(double bytes, char buf[AMOUNT_TEXT_MAX]);

#endif
