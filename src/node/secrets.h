/*
 * secrets.h - the set of named secrets that a caller gives along (struct qk_secrets). The set is
 * the caller's: the library looks into it while a call runs and keeps nothing.
 */
#ifndef QK_NODE_SECRETS_H
#define QK_NODE_SECRETS_H

#include "image/image.h"

/* The secret of that name, with data NULL when there is none. secrets may be NULL. */
struct image_secret secrets_find(const struct qk_secrets *secrets, const char *id);

#endif
