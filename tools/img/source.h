/*
 * source.h - what must not be the target of a conversion.
 */
#ifndef TOOLS_IMG_SOURCE_H
#define TOOLS_IMG_SOURCE_H

#include "common/open.h"

/* The target is a file of the chain of the source, or a data file there: true after saying so.
 * Where no lock would tell. */
bool source_is_target(struct qk_disk *source, const char *target);

#endif
