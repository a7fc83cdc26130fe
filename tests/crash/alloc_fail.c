/* alloc_fail.c - see alloc_fail.h. */
#include "alloc_fail.h"
#include "../alloc_wrap.h"

#include <errno.h>

static _Thread_local struct {
    bool armed, always;
    uint64_t nth, counted, failed;
} state;

void alloc_fail_at(uint64_t nth, bool always)
{
    state.nth = nth;
    state.always = always;
    state.counted = state.failed = 0;
}

void alloc_arm(bool armed)
{
    state.armed = armed;
}

uint64_t alloc_counted(void)
{
    return state.counted;
}

uint64_t alloc_failed(void)
{
    return state.failed;
}

static bool allocation_fails(void)
{
    if (!state.armed)
        return false;
    state.counted++;
    if (!state.nth || state.counted < state.nth || (state.counted > state.nth && !state.always))
        return false;
    state.failed++;
    errno = ENOMEM;
    return true;
}
