/*
 * test_harness.c - the harness tests itself: a check that cannot fail would make every other test
 * worthless. Failures are provoked, and the counters are read and set back.
 */
#include "test.h"

/* Runs the failing checks and takes their count back out of the total. */
static unsigned long provoke_failures(void)
{
    unsigned long before = test_failed;
    unsigned long provoked;

    printf("six failures follow on purpose:\n");
    CHECK(1 == 2);
    CHECK_EQ(3, 4);
    CHECK_OK(-EIO);
    CHECK_ERR(0, -EINVAL);
    CHECK_STR("a", NULL);
    CHECK_MEM("abc", "abd", 3);
    provoked = test_failed - before;
    test_failed = before;
    return provoked;
}

int main(void)
{
    unsigned long provoked = provoke_failures();

    CHECK_EQ(provoked, 6);
    CHECK_STR(NULL, NULL);
    CHECK_MEM("abc", "abc", 3);
    return TEST_SUMMARY();
}
