/*
 * source.h - opening an image of which an internal snapshot may be wanted (-l of convert and
 * measure).
 */
#ifndef TOOLS_IMG_SOURCE_H
#define TOOLS_IMG_SOURCE_H

#include "common/open.h"

/* As open_image; what goes wrong with request->snapshot is said in qemu-img's words. */
int source_open(const char *name, const struct image_request *request, struct qk_disk **out);

/* The target is a file of the source's chain, or a data file of it: true after saying so. Where no lock would tell. */
bool source_is_target(struct qk_disk *source, const char *target);

/*
 * The id or name that -l asks for: ID_OR_NAME itself, or what "snapshot.id=ID" and
 * "snapshot.name=NAME" say. *snapshot is owned by the caller; NULL when `text` is. -1 to go on, or
 * 1 with the error printed.
 */
int source_parse_snapshot(const char *text, char **snapshot);

#endif
