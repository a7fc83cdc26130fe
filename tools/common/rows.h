/*
 * rows.h - results described once and printed either as text or as JSON.
 *
 * A `struct rows` is filled in the order of the text output; the JSON output has the layout of
 * qemu's pretty printer and the key order given by a list (qemu prints the keys of an object in
 * an order of its own, which each command notes down in one such list).
 *
 * json_* is the writer below it, for output that streams (map, progress).
 */
#ifndef TOOLS_COMMON_ROWS_H
#define TOOLS_COMMON_ROWS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* ---- JSON writer ------------------------------------------------------------------------- */

struct json {
    FILE *out;
    bool compact; /* {"a": 1, "b": 2} on one line instead of the 4-space layout */
    unsigned depth;
    bool has_items; /* the innermost object or array has one already */
};

#define JSON_PRETTY(file_)                                                                         \
    {                                                                                              \
        .out = (file_)                                                                             \
    }
#define JSON_COMPACT(file_)                                                                        \
    {                                                                                              \
        .out = (file_), .compact = true                                                            \
    }

/* key is NULL at the top and inside arrays. No newline follows the outermost close. */
void json_open(struct json *json, const char *key, char bracket); /* '{' or '[' */
void json_close(struct json *json, char bracket);                 /* '}' or ']' */
void json_text(struct json *json, const char *key, const char *value);
void json_uint(struct json *json, const char *key, uint64_t value);
void json_int(struct json *json, const char *key, int64_t value);
void json_bool(struct json *json, const char *key, bool value);
/* A value that is JSON already, printed as it is. */
void json_raw(struct json *json, const char *key, const char *value);

/* ---- rows -------------------------------------------------------------------------------- */

enum row_kind {
    ROW_TEXT,
    ROW_UINT,
    ROW_INT,
    ROW_BOOL,
    ROW_SIZE,
    ROW_SIZE_BYTES,
    ROW_OBJECT,
    ROW_LIST,
    ROW_BLOCK
};

struct row {
    const char *key;   /* JSON; NULL: text only */
    const char *label; /* text, "LABEL: value"; NULL: JSON only */
    enum row_kind kind;
    union {
        char *text;      /* owned */
        uint64_t number; /* UINT, SIZE, BOOL */
        int64_t integer;
        struct rows *rows; /* OBJECT, LIST: owned */
    } value;
};

struct rows {
    struct row *row;
    size_t count;
};
#define ROWS_CLEANUP __attribute__((cleanup(rows_free)))

/* Either key or label may be NULL. Texts are copied; key and label must outlive the rows. */
void rows_text(struct rows *rows, const char *key, const char *label, const char *value);
void rows_uint(struct rows *rows, const char *key, const char *label, uint64_t value);
void rows_int(struct rows *rows, const char *key, const char *label, int64_t value);
void rows_bool(struct rows *rows, const char *key, const char *label, bool value);
/* Text "64 KiB"; JSON the number. */
void rows_size(struct rows *rows, const char *key, const char *label, uint64_t bytes);
/* Text "64 KiB (65536 bytes)"; JSON the number. */
void rows_size_bytes(struct rows *rows, const char *key, const char *label, uint64_t bytes);
/* An object: text "LABEL:" and its rows indented, or with an empty label its rows alone at the
 * level of the others; returns the rows to fill. */
struct rows *rows_object(struct rows *rows, const char *key, const char *label);
/* An array: fill it with rows_object (key NULL) or rows_text... (key NULL). */
struct rows *rows_list(struct rows *rows, const char *key, const char *label);
/* Whole lines of text, printed as they are; not in JSON. */
void rows_block(struct rows *rows, const char *text);
void rows_free(struct rows *rows);

/* Prints "label: value" lines. */
void rows_print(const struct rows *rows, FILE *out, unsigned indent);
/*
 * Prints the items; the caller opens and closes the object around them. `order` is a
 * NULL-terminated list of keys, used for nested objects too; keys not in it come last in the
 * order added. NULL: as added.
 */
void rows_json(const struct rows *rows, struct json *json, const char *const *order);
/* The whole object and a newline. */
void rows_print_json(const struct rows *rows, FILE *out, const char *const *order);

#endif
