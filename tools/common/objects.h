/*
 * objects.h - `--object TYPE,id=NAME,...`: which user-creatable objects are accepted, and the
 * secrets among them.
 */
#ifndef TOOLS_COMMON_OBJECTS_H
#define TOOLS_COMMON_OBJECTS_H

#include "qcowkit.h"

#include <stdbool.h>

/* True when the type is known and an id is given; else false after printing why. A secret is loaded
 * and added to *secrets, a set that is made when it is needed. */
bool object_accept(const char *text, struct qk_secrets **secrets);

#endif
