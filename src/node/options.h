/*
 * options.h - the option tree of an opening, flattened: "file.filename" -> "a.qcow2". It is made
 * from "key=value" strings or from the JSON object of a json: name, taken apart by the drivers
 * (each key that a driver knows is marked as used) and what is left at the end is an error.
 * Pure: no I/O.
 */
#ifndef QK_NODE_OPTIONS_H
#define QK_NODE_OPTIONS_H

#include "base/error.h"
#include "base/vector.h"

#include <stdbool.h>

enum option_kind {
    OPTION_TEXT,   /* also what came from a command line */
    OPTION_NUMBER, /* a JSON number */
    OPTION_BOOL,   /* JSON true or false, as "on" and "off" */
    OPTION_NULL,   /* JSON null, as "" */
};

struct option {
    char *key, *value; /* owned */
    enum option_kind kind;
    bool used;
};
DEFINE_VECTOR(option_vec, struct option)

struct options {
    struct option_vec list;
};

void options_free(struct options *opts);
#define OPTIONS_CLEANUP __attribute__((cleanup(options_free)))

/* Sets or replaces a key. Strings are copied. */
int options_set(struct options *opts, const char *key, const char *value, enum option_kind kind,
                struct qk_error *err);
/* Adds "key=value" strings (NULL-terminated, or NULL); a bare key means "on". */
int options_add_list(struct options *opts, const char *const *list, struct qk_error *err);
/* Adds the members of the JSON object in text; keys that are there already win. */
int options_add_json(struct options *opts, const char *text, struct qk_error *err);
/* Adds a copy of each member of from. */
int options_add_all(struct options *opts, const struct options *from, struct qk_error *err);

/* The entry, or NULL; neither marks it as used nor looks below "key.". */
struct option *options_find(const struct options *opts, const char *key);
/* Some key begins with prefix. */
bool options_has_prefix(const struct options *opts, const char *prefix);
/* The value (NULL: not there), marked as used. */
const char *options_take(struct options *opts, const char *key);
/* As take; *value stays as it is when the key is not there. */
int options_take_bool(struct options *opts, const char *key, bool *value, struct qk_error *err);
int options_take_size(struct options *opts, const char *key, uint64_t *value, struct qk_error *err);
/* Moves each "prefixREST" to `to` as "REST". */
int options_split(struct options *opts, const char *prefix, struct options *to,
                  struct qk_error *err);
/* The first key that nobody used, or NULL. */
const char *options_unused(const struct options *opts);

/* What a malformed value gets, in QEMU's words. */
int option_bad_bool(struct qk_error *err, const char *key);
int option_bad_size(struct qk_error *err, const char *key);
int option_bad_value(struct qk_error *err,
                     const char *value); /* none of the words that there are */
/* on/off/yes/no/true/false... as QEMU's options take them: 1, 0 or -EINVAL. */
int option_parse_bool(const char *text);

#endif
