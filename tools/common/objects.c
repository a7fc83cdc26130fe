/*
 * objects.c - checking `--object` definitions, with qemu's messages for wrong ones, and loading
 * secrets. Nothing that is printed has a secret in it.
 */
#include "common/objects.h"
#include "common/options.h"
#include "common/report.h"

#include <stdlib.h>
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

/* A word of the list is wiped when the list goes: it may be the secret itself. */
static void wipe(struct keyvals *list)
{
    for (size_t i = 0; i < list->count; i++)
        explicit_bzero(list->item[i], strlen(list->item[i]));
    keyvals_free(list);
}

static bool is_item(const char *item, const char *key)
{
    size_t length = strlen(key);
    return !strncmp(item, key, length) && item[length] == '=';
}

/* The library takes everything but the type. */
static bool add_secret(const struct keyvals *list, struct qk_secrets **secrets)
{
    struct qk_error err = {0};
    const char **definition = xmalloc((list->count + 1) * sizeof(*definition));
    size_t count = 0;
    for (size_t i = 0; i < list->count; i++) {
        bool type = (i == 0 && !strchr(list->item[0], '=')) || is_item(list->item[i], "qom-type");
        if (!type)
            definition[count++] = list->item[i];
    }
    definition[count] = NULL;
    int ret = *secrets ? 0 : qk_secrets_new(secrets, &err);
    if (!ret)
        ret = qk_secrets_define(*secrets, definition, &err);
    free(definition);
    if (ret)
        report_qk(&err);
    return !ret;
}

static bool accept(const struct keyvals *list, struct qk_secrets **secrets)
{
    const char *type = type_of(list);
    if (!known_type(type)) {
        report_error("Parameter 'qom-type' does not accept value '%s'", type);
        return false;
    }
    if (!keyvals_get(list, "id")) {
        report_error("Parameter 'id' is missing");
        return false;
    }
    return strcmp(type, "secret") || add_secret(list, secrets);
}

bool object_accept(const char *text, struct qk_secrets **secrets)
{
    __attribute__((cleanup(wipe))) struct keyvals list = {0};
    if (keyvals_add_list(&list, text))
        return accept(&list, secrets);
    report_error("Invalid parameter ''");
    return false;
}
