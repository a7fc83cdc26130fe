/*
 * test.h - the whole unit-test harness: counting checks and a closing line. A test is one program;
 * main() calls its cases and ends with `return TEST_SUMMARY();`. A failed check prints where and
 * what, is counted, and the program goes on. Counters are atomic, so threads may check too.
 *
 *     CHECK(cond);                    CHECK_EQ(actual, expected);      integers, values printed
 *     CHECK_OK(call);                 CHECK_STR(actual, expected);     strings, NULL allowed
 *     CHECK_ERR(call, -EINVAL);       CHECK_MEM(actual, expected, len);
 *     REQUIRE(cond);                  as CHECK, but leaves the function (void) on failure
 *     SKIP("why");                    counts one skipped case
 */
#ifndef QK_TEST_H
#define QK_TEST_H

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Atomic unsigned long test_passed, test_failed, test_skipped;

/* Where a check stands in the source. */
struct test_place {
    const char *file;
    int line;
    const char *what;
};
#define TEST_PLACE(what_) ((struct test_place){__FILE__, __LINE__, (what_)})

/* Counts one check; true when it held. The caller prints the values behind a failure. */
static inline bool test_count(bool held, struct test_place place)
{
    if (held) {
        atomic_fetch_add(&test_passed, 1);
        return true;
    }
    atomic_fetch_add(&test_failed, 1);
    printf("%s:%d: failed: %s\n", place.file, place.line, place.what);
    return false;
}

static inline bool test_eq(intmax_t actual, intmax_t expected, struct test_place place)
{
    bool held = test_count(actual == expected, place);

    if (!held)
        printf("    actual   %" PRIdMAX " (0x%" PRIxMAX ")\n    expected %" PRIdMAX " (0x%" PRIxMAX
               ")\n",
               actual, (uintmax_t)actual, expected, (uintmax_t)expected);
    return held;
}

static inline bool test_str(const char *actual, const char *expected, struct test_place place)
{
    bool same = actual && expected ? strcmp(actual, expected) == 0 : actual == expected;
    bool held = test_count(same, place);

    if (!held)
        printf("    actual   \"%s\"\n    expected \"%s\"\n", actual ? actual : "(null)",
               expected ? expected : "(null)");
    return held;
}

static inline bool test_mem(const void *actual, const void *expected, size_t len,
                            struct test_place place)
{
    const unsigned char *a = actual, *e = expected;
    bool held = test_count(memcmp(a, e, len) == 0, place);
    size_t at = 0;

    if (held)
        return true;
    while (a[at] == e[at])
        at++;
    printf("    first difference at byte %zu of %zu: actual 0x%02x, expected 0x%02x\n", at, len,
           a[at], e[at]);
    return false;
}

#define CHECK(cond_) test_count(!!(cond_), TEST_PLACE(#cond_))
#define CHECK_EQ(actual_, expected_)                                                               \
    test_eq((intmax_t)(actual_), (intmax_t)(expected_), TEST_PLACE(#actual_ " == " #expected_))
#define CHECK_OK(call_) test_eq((intmax_t)(call_), 0, TEST_PLACE(#call_ " succeeds"))
#define CHECK_ERR(call_, code_)                                                                    \
    test_eq((intmax_t)(call_), (code_), TEST_PLACE(#call_ " fails with " #code_))
#define CHECK_STR(actual_, expected_)                                                              \
    test_str((actual_), (expected_), TEST_PLACE(#actual_ " == " #expected_))
#define CHECK_MEM(actual_, expected_, len_)                                                        \
    test_mem((actual_), (expected_), (len_), TEST_PLACE(#actual_ " == " #expected_))
#define REQUIRE(cond_)                                                                             \
    do {                                                                                           \
        if (!test_count(!!(cond_), TEST_PLACE(#cond_)))                                            \
            return;                                                                                \
    } while (0)
#define SKIP(why_) (printf("skipped: %s\n", (why_)), (void)atomic_fetch_add(&test_skipped, 1))

/* Prints the closing line; the program's exit status. */
static inline int test_summary(void)
{
    unsigned long passed = test_passed, failed = test_failed, skipped = test_skipped;

    if (passed + failed + skipped == 0) {
        printf("no check ran\n");
        failed = 1;
    }
    printf("%lu passed, %lu failed", passed, failed);
    if (skipped)
        printf(", %lu skipped", skipped);
    printf("\n");
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
#define TEST_SUMMARY() test_summary()

#endif
