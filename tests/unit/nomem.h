/*
 * nomem.h - lets the Nth allocation of memory fail. For tests in wrapped_tests of meson.build,
 * whose linker sends every call of malloc and its kin here.
 */
#ifndef QK_NOMEM_H
#define QK_NOMEM_H

#include "../alloc_wrap.h"

static _Atomic long countdown = -1; /* allocations until one fails; < 0: none does */

/* Several threads may ask: one of them gets the failure. */
static bool allocation_fails(void)
{
    return countdown >= 0 && countdown-- == 0;
}

#endif
