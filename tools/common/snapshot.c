/* snapshot.c - see snapshot.h. */
#include "common/snapshot.h"
#include "common/report.h"

#include <string.h>

static bool keys_known(const struct keyvals *list)
{
    for (size_t i = 0; i < list->count; i++) {
        const char *item = list->item[i];
        if (strncmp(item, "snapshot.id=", 12) != 0 && strncmp(item, "snapshot.name=", 14) != 0) {
            report_error("Invalid parameter '%.*s'", (int)strcspn(item, "="), item);
            return false;
        }
    }
    return true;
}

int snapshot_choice_parse(const char *text, struct snapshot_choice *choice)
{
    *choice = (struct snapshot_choice){.text = text, .either = text};
    if (!text || strncmp(text, "snapshot.", strlen("snapshot.")) != 0)
        return -1;
    if (!keyvals_add_list(&choice->list, text) || !keys_known(&choice->list)) {
        report_error("Failed in parsing snapshot param '%s'", text);
        keyvals_free(&choice->list);
        return 1;
    }
    choice->either = NULL;
    choice->id = keyvals_get(&choice->list, "snapshot.id");
    choice->name = keyvals_get(&choice->list, "snapshot.name");
    return -1;
}

void snapshot_choice_free(struct snapshot_choice *choice)
{
    keyvals_free(&choice->list);
}

void snapshot_choice_request(const struct snapshot_choice *choice, struct image_request *request)
{
    request->snapshot = choice->either;
    request->snapshot_id = choice->id;
    request->snapshot_name = choice->name;
}
