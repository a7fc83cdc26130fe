/*
 * check_lasting.h - which findings last: an image that another program writes to looks damaged
 * where two of its structures were read at different times. Such findings come and go; real damage
 * is found again by every look.
 *
 * A look leaves a fingerprint of each finding that the look before it had, too, as bits in a field
 * of fixed size. So millions of findings take no more memory than one, and none that lasts is ever
 * missed. One that does not may be taken for one that does, of which the odds are below one in a
 * million as long as a hundred thousand others last.
 */
#ifndef TOOLS_IMG_CHECK_LASTING_H
#define TOOLS_IMG_CHECK_LASTING_H

#include "qcowkit.h"

#include <stdbool.h>
#include <stddef.h>

struct lasting {
    uint64_t *now, *before; /* of this look, and of the one before it; NULL: there was none */
    uint64_t kept[4];       /* findings of this look that last so far, by severity */
};

void lasting_begin(struct lasting *l);
/* Another look begins. */
void lasting_next(struct lasting *l);
void lasting_free(struct lasting *l);
/* This finding of the look was there in all looks before. `text` has `length` bytes, and need not
 * be problem->text. */
bool lasting_found(struct lasting *l, const struct qk_problem *problem, const char *text,
                   size_t length);
uint64_t lasting_count(const struct lasting *l);

#endif
