/*
 * create.h - the options of a creation as the library uses them: checked texts on one side, the
 * parameters of image_create on the other. Shared by creating and measuring.
 */
#ifndef QK_NODE_CREATE_H
#define QK_NODE_CREATE_H

#include "image/image.h"
#include "node/options.h"

struct create_format {
    const char *name;
    const struct qk_option_desc *options;
    size_t count;
    bool on_file;               /* the options of a file may be given too */
    const char *const *implied; /* "key=value" that resolving adds, NULL-terminated */
};

/* One creation. Strings in params point into opts. */
struct create_plan {
    const struct create_format *format;
    struct options opts;         /* checked, sizes in bytes; keys as given */
    struct create_params params; /* size_bytes 0 unless has_size; raw: only size and prealloc */
    bool has_size, nocow, keep_data_file;
    uint64_t extent_size_hint;
    const struct qk_secrets *secrets; /* the caller's; NULL: none */
    struct create_encryption encryption;
    struct image_secret secret; /* of it */
};

/* Fails with qemu-img's text for a format that cannot be created. */
int create_find_format(const char *name, const struct create_format **out, struct qk_error *err);

/* The options of `format`, with the syntax of each value checked: plan->opts, has_size and
 * size_bytes are set. Release with create_plan_free, also after a failure. */
int create_plan_parse(struct create_plan *plan, const char *format, const char *const *options,
                      struct qk_error *err);
/* The meaning of the values: the rest of the plan. Refuses what this version cannot make. */
int create_plan_judge(struct create_plan *plan, struct qk_error *err);
/* What encrypt.* say; a part of it. Strings point into opts, so the plan must stay in its place. */
int create_judge_encryption(struct create_plan *plan, struct qk_error *err);
/* Its key, in the oracle's order after everything else that can be wrong with the options. */
int create_judge_secret(struct create_plan *plan, struct qk_error *err);
void create_plan_free(struct create_plan *plan);
#define CREATE_PLAN_CLEANUP __attribute__((cleanup(create_plan_free)))

/* Every key that may be given, in the order in which qemu-img prints them: the format's own, then
 * those of a file that are not among them. NULL past the end. */
const struct qk_option_desc *create_option_at(const struct create_format *format, size_t index);

#endif
