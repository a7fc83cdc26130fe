/*
 * snapshot.h - which internal snapshot a text on the command line means: "snapshot.id=ID",
 * "snapshot.name=NAME", both, or a text that is one of them.
 */
#ifndef TOOLS_COMMON_SNAPSHOT_H
#define TOOLS_COMMON_SNAPSHOT_H

#include "common/open.h"

struct snapshot_choice {
    const char *text;   /* as given; NULL: no snapshot is asked for */
    const char *either; /* an id or a name; NULL: these two say it */
    const char *id, *name;
    struct keyvals list;
};
#define SNAPSHOT_CLEANUP __attribute__((cleanup(snapshot_choice_free)))

/* text may be NULL and has to live as long. -1 to go on, or 1 with the error printed. */
int snapshot_choice_parse(const char *text, struct snapshot_choice *choice);
void snapshot_choice_free(struct snapshot_choice *choice);
/* The image is to be opened as it was then. */
void snapshot_choice_request(const struct snapshot_choice *choice, struct image_request *request);

/* The row of -l for commands that read an image; `id_` is another where l is taken. */
#define OPT_SNAPSHOT_AS(id_)                                                                       \
    OPT_ROW_(id_, "internal-snapshot", "SNAPSHOT", "read an internal snapshot, by id or name",     \
             OPT_KIND_TEXT)
#define OPT_SNAPSHOT_ROW OPT_SNAPSHOT_AS('l')

#endif
