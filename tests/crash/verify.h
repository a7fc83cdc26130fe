/*
 * verify.h - whether an image is what a crash (or failed I/O) may leave: leaks at most, every byte
 * one of those that the model allows, and still so after more writes.
 */
#ifndef QK_CRASH_VERIFY_H
#define QK_CRASH_VERIFY_H

#include "recorder.h"

struct verify_options {
    struct moment at;
    struct qk_io *backing; /* NULL: none */
    struct qk_io *data;    /* the data file, a memory store that go_on changes; NULL: none */
    const struct model *model;
    bool unborn;        /* the file need not be an image yet */
    bool damaged;       /* the image is being repaired: look at it after another repair */
    bool go_on;         /* also write more and look again; changes mem */
    const char *oracle; /* path of qemu-img to ask as well, or NULL */
};

/* mem is a memory store, which a dirty image is repaired in. False, with a reason, when not. */
bool verify_image(struct qk_io *mem, const struct verify_options *opts, char text[MODEL_TEXT]);

#endif
