/* name.c - prefixes and directories of names (see name.h). Pure text work. */
#include "node/name.h"

#include <stdlib.h>
#include <string.h>

bool name_has_protocol(const char *name)
{
    return name[strcspn(name, ":/")] == ':';
}

size_t name_protocol(const char *name)
{
    return name_has_protocol(name) ? strcspn(name, ":") : 0;
}

bool name_is_json(const char *name)
{
    return !strncmp(name, "json:", 5);
}

bool name_is_local(const char *name)
{
    return !name_has_protocol(name) || !strncmp(name, "file:", 5);
}

const char *name_strip_file(const char *name)
{
    return strncmp(name, "file:", 5) ? name : name + 5;
}

char *name_resolve(const char *base, const char *name)
{
    const char *slash = strrchr(base, '/');
    if (name[0] == '/' || name_has_protocol(name) || !slash)
        return strdup(name);
    size_t dir = (size_t)(slash - base) + 1, len = strlen(name);
    char *full = malloc(dir + len + 1);
    if (!full)
        return NULL;
    memcpy(full, base, dir);
    memcpy(full + dir, name, len + 1);
    return full;
}
