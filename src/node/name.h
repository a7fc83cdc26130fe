/*
 * name.h - names of disks as texts: protocol prefixes, and where a name found inside an image
 * points to. Pure: nothing is opened or looked at.
 */
#ifndef QK_NODE_NAME_H
#define QK_NODE_NAME_H

#include <stdbool.h>
#include <stddef.h>

/* Length of the protocol in front of the first ':' that comes before any '/'; 0: a file name.
 * "nbd:unix:x" -> 3, "./a:b" -> 0, ":x" -> 0. */
size_t name_protocol(const char *name);
/* There is a ':' before any '/', even with nothing in front of it. */
bool name_has_protocol(const char *name);
bool name_is_json(const char *name);
/* A name of a local file: no protocol, or "file:". */
bool name_is_local(const char *name);
/* The name without a "file:" in front. */
const char *name_strip_file(const char *name);

/* `name` as seen from the directory of `base` (a plain file name). Absolute names and names with a
 * protocol stay as they are. Malloc'ed; NULL: no memory. */
char *name_resolve(const char *base, const char *name);

#endif
