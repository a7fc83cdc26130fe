/*
 * option_rows.h - the options of qcow2 images that both `create` and `amend` take, as rows of
 * struct qk_option_desc in qemu-img's order, and how the kinds of values are called.
 */
#ifndef QK_NODE_OPTION_ROWS_H
#define QK_NODE_OPTION_ROWS_H

#define TEXT   "str"
#define SIZE   "size"
#define NUMBER "num"
#define SWITCH "bool (on/off)"

#define ROW_ITER_TIME                                                                              \
    {                                                                                              \
        "encrypt.iter-time", NUMBER, "Time to spend in PBKDF in milliseconds", NULL, true          \
    }
#define ROWS_DISK                                                                                  \
    {"size", SIZE, "Virtual disk size", NULL, true},                                               \
        {"compat", TEXT, "Compatibility level (v2 [0.10] or v3 [1.1])", NULL, true},               \
        {"backing_file", TEXT, "File name of a base image", NULL, true},                           \
        {"backing_fmt", TEXT, "Image format of the base image", NULL, true},                       \
        {"data_file", TEXT, "File name of an external data file", NULL, true},                     \
    {                                                                                              \
        "data_file_raw", SWITCH, "The external data file must stay valid as a raw image", NULL,    \
            true                                                                                   \
    }
#define ROWS_REFCOUNTS                                                                             \
    {"lazy_refcounts", SWITCH, "Postpone refcount updates", NULL, true},                           \
    {                                                                                              \
        "refcount_bits", NUMBER, "Width of a reference count entry in bits", NULL, true            \
    }

#endif
