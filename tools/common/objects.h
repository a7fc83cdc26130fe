/*
 * objects.h - `--object TYPE,id=NAME,...`: which user-creatable objects are accepted. They are
 * remembered by opts_nth(opts, OPT_OBJECT, n) for the features that use them.
 */
#ifndef TOOLS_COMMON_OBJECTS_H
#define TOOLS_COMMON_OBJECTS_H

#include <stdbool.h>

/* True when the type is known and an id is given; else false after printing why. */
bool object_accept(const char *text);

#endif
