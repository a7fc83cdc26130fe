/*
 * objects.c - checking `--object` definitions, with qemu's messages for wrong ones.
 */
#include "common/objects.h"
#include "common/options.h"
#include "common/report.h"

#include <string.h>

static const char *const known_types[] = {
    "authz-list",     "authz-list-file", "authz-pam",      "authz-simple",
    "iothread",       "secret",          "secret_keyring", "throttle-group",
    "tls-creds-anon", "tls-creds-psk",   "tls-creds-x509", "tls-cipher-suites",
};

static bool known_type(const char *type)
{
    for (size_t i = 0; i < sizeof(known_types) / sizeof(*known_types); i++) {
        if (!strcmp(known_types[i], type))
            return true;
    }
    return false;
}

/* The type is the first item, bare ("secret,id=...") or named ("qom-type=secret,id=..."). */
static const char *type_of(const struct keyvals *list)
{
    const char *named = keyvals_get(list, "qom-type");
    return named ? named : list->item[0];
}

/* A secret is a password, given here or in a file. */
static bool secret_accept(const struct keyvals *list)
{
    static const char *const keys[] = {"id", "data", "file", "format", "keyid", "iv", "qom-type"};
    for (size_t i = 1; i < list->count; i++) {
        size_t length = strcspn(list->item[i], "="), k = 0;
        while (k < sizeof(keys) / sizeof(*keys) &&
               (strlen(keys[k]) != length || strncmp(keys[k], list->item[i], length)))
            k++;
        if (k == sizeof(keys) / sizeof(*keys)) {
            report_error("Parameter '%.*s' is unexpected", (int)length, list->item[i]);
            return false;
        }
    }
    if (keyvals_get(list, "data") || keyvals_get(list, "file"))
        return true;
    report_error("Either 'file' or 'data' must be provided");
    return false;
}

bool object_accept(const char *text)
{
    KEYVALS_CLEANUP struct keyvals list = {0};
    if (!keyvals_add_list(&list, text)) {
        report_error("Invalid parameter ''");
        return false;
    }
    const char *type = type_of(&list);
    if (!known_type(type)) {
        report_error("Parameter 'qom-type' does not accept value '%s'", type);
        return false;
    }
    if (!keyvals_get(&list, "id")) {
        report_error("Parameter 'id' is missing");
        return false;
    }
    return strcmp(type, "secret") || secret_accept(&list);
}
