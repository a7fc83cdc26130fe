/*
 * lost.c - names of what a repair gives up that has no guest range: snapshots, bitmaps. The plan
 * tells them beside the step that does it. Bounded: the first few by name, the others by number.
 */
#include "base/checked.h"
#include "check/internal.h"

#include <stdio.h>
#include <string.h>

#define LOST_NAME_SHOWN 64

void lost_note(struct lost *lost, const char *name)
{
    char item[LOST_NAME_SHOWN + 4];
    lost->count++;
    int n = snprintf(item, sizeof(item), "%s%.*s", lost->len ? ", " : " ", LOST_NAME_SHOWN, name);
    if (!*name || n < 0 || lost->len + (size_t)n >= sizeof(lost->names))
        return;
    memcpy(lost->names + lost->len, item, (size_t)n + 1);
    lost->len += (size_t)n;
    lost->named++;
}

const char *lost_text(struct lost *lost, const char *kind, uint64_t count)
{
    uint64_t others = count - min_u64(count, lost->named);
    if (!count)
        return NULL;
    const char *plural = count == 1 ? "" : "s";
    if (!others)
        snprintf(lost->text, sizeof(lost->text), "%s%s%s", kind, plural, lost->names);
    else if (!lost->named)
        snprintf(lost->text, sizeof(lost->text), "%" PRIu64 " %s%s", count, kind, plural);
    else
        snprintf(lost->text, sizeof(lost->text), "%s%s%s and %" PRIu64 " more", kind, plural,
                 lost->names, others);
    return lost->text;
}
