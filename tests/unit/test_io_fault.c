/*
 * test_io_fault.c - blkdebug: events, states, once, sector, iotype and errno of rules; rules files
 * and their errors; limits; breakpoints; failing the nth request.
 */
#include "io/fault.h"
#include "io_test.h"

#include <pthread.h>

static struct qk_io *open_fault(const char *config)
{
    struct qk_io *mem = NULL, *io = NULL;
    struct qk_error err = {0};
    CHECK_OK(io_mem_open(NULL, 65536, 0, &mem, NULL));
    if (!CHECK_OK(io_fault_open(mem, config, &io, &err)))
        printf("    %s\n", err.text);
    return io;
}

/* Rules in short: "inject-error event=read_aio errno=28". */
static int add_rule(struct qk_io *io, const char *text, struct qk_error *err)
{
    char copy[200], *save = NULL;
    struct fault_option options[10];
    size_t count = 0;
    snprintf(copy, sizeof(copy), "%s", text);
    const char *group = strtok_r(copy, " ", &save);
    for (char *word; (word = strtok_r(NULL, " ", &save)); count++) {
        char *equals = strchr(word, '=');
        *equals = '\0';
        options[count] = (struct fault_option){word, equals + 1};
    }
    return fault_add_rule(io, group, options, count, err);
}

static int write_one(struct qk_io *io, uint64_t off)
{
    static const uint8_t sector[512] = {1};
    return io_write(io, off, sector, 512, 0, NULL);
}

static int read_one(struct qk_io *io, uint64_t off)
{
    uint8_t sector[512];
    return io_read(io, off, sector, 512, NULL);
}

/* ---- rules ---- */

static void test_event_then_fail(void)
{
    struct qk_io *io = open_fault(NULL);
    CHECK_OK(add_rule(io, "inject-error event=l2_update errno=28", NULL));
    CHECK_OK(write_one(io, 0));
    io_event(io, "read_aio");
    CHECK_OK(write_one(io, 0));
    io_event(io, "l2_update");
    CHECK_ERR(write_one(io, 0), -ENOSPC);
    CHECK_ERR(read_one(io, 0), -ENOSPC);
    CHECK_ERR(io_flush(io, NULL), -ENOSPC);
    CHECK_ERR(io_zero(io, 0, 512, 0, NULL), -ENOSPC);
    CHECK_ERR(io_discard(io, 0, 512, NULL), -ENOSPC);
    struct qk_extent e;
    CHECK_OK(io_status(io, 0, 512, 0, &e, NULL));
    CHECK_OK(io_resize(io, 70000, QK_PREALLOC_OFF, NULL));
    io_event(io, "no such event");
    CHECK_ERR(write_one(io, 0), -ENOSPC);
    CHECK_EQ(fault_injected(io, 1u << FAULT_WRITE), 2);
    CHECK_EQ(fault_injected(io, 1u << FAULT_READ | 1u << FAULT_FLUSH), 2);
    fault_clear(io);
    CHECK_OK(write_one(io, 0));
    CHECK_OK(io_close(io, NULL));
}

static void test_once(void)
{
    struct qk_io *io = open_fault(NULL);
    CHECK_OK(add_rule(io, "inject-error event=write_aio once=on immediately=on", NULL));
    for (int i = 0; i < 2; i++) {
        io_event(io, "write_aio");
        CHECK_EQ(write_one(io, 0), i ? 0 : -EIO);
        CHECK_OK(write_one(io, 0));
    }
    CHECK_OK(io_close(io, NULL));
}

static void test_sector_and_iotype(void)
{
    struct qk_io *io = open_fault(NULL);
    CHECK_OK(add_rule(io, "inject-error event=none sector=0x2 iotype=write errno=5", NULL));
    CHECK_OK(add_rule(io, "inject-error event=none iotype=block-status errno=7", NULL));
    struct qk_extent e;
    CHECK_OK(write_one(io, 512));
    CHECK_ERR(write_one(io, 1024), -EIO);
    CHECK_OK(write_one(io, 1025));
    CHECK_ERR(write_one(io, 513), -EIO);
    CHECK_OK(read_one(io, 1024));
    CHECK_OK(io_flush(io, NULL));
    CHECK_ERR(io_status(io, 0, 512, 0, &e, NULL), -E2BIG);
    CHECK_OK(io_close(io, NULL));
}

/* The second of two writes, as in blkdebug's documentation. */
static void test_states(void)
{
    struct qk_io *io = open_fault(NULL);
    CHECK_OK(add_rule(io, "set-state event=write_aio state=1 new_state=2", NULL));
    CHECK_OK(add_rule(io, "inject-error event=write_aio state=2 once=on", NULL));
    for (int i = 0; i < 4; i++) {
        io_event(io, "write_aio");
        CHECK_EQ(write_one(io, 0), i == 1 ? -EIO : 0);
    }
    CHECK_OK(io_close(io, NULL));
}

/* Of two rules that change the state the first wins; a rule of errno 0 shields later ones. */
static void test_precedence(void)
{
    struct qk_io *io = open_fault(NULL);
    CHECK_OK(add_rule(io, "set-state event=write_aio new_state=2", NULL));
    CHECK_OK(add_rule(io, "set-state event=write_aio new_state=3", NULL));
    CHECK_OK(add_rule(io, "inject-error event=read_aio state=2 errno=0 sector=0", NULL));
    CHECK_OK(add_rule(io, "inject-error event=read_aio state=2 errno=28", NULL));
    CHECK_OK(add_rule(io, "inject-error event=read_aio state=3 errno=5", NULL));
    io_event(io, "write_aio");
    io_event(io, "read_aio");
    CHECK_OK(read_one(io, 0));
    CHECK_ERR(read_one(io, 512), -ENOSPC);
    CHECK_OK(io_close(io, NULL));
}

/* The store names the events of its own writes. */
static void test_own_events(void)
{
    static const char *const rules[] = {
        "inject-error event=pwritev errno=28 once=on",
        "inject-error event=pwritev_zero errno=28 once=on",
        "inject-error event=pwritev_done errno=28 once=on",
    };
    for (size_t i = 0; i < ARRAY_SIZE(rules); i++) {
        struct qk_io *io = open_fault(NULL);
        CHECK_OK(add_rule(io, rules[i], NULL));
        CHECK_OK(read_one(io, 0));
        CHECK_EQ(write_one(io, 0), i == 0 ? -ENOSPC : 0);
        CHECK_EQ(io_zero(io, 0, 512, 0, NULL), i ? -ENOSPC : 0);
        CHECK_OK(io_close(io, NULL));
    }
}

static void test_bad_rules(void)
{
    static const char *const cases[][2] = {
        {"inject-error errno=5", "Missing event name for rule"},
        {"inject-error event=bogus", "invalid parameter value: bogus"},
        {"inject-error event=l1_grow.alloc_table", "invalid parameter value: l1_grow.alloc_table"},
        {"inject-error event=none errno=x", "Parameter 'errno' expects a number"},
        {"inject-error event=none errno=-5", "Parameter 'errno' is out of range"},
        {"inject-error event=none once=maybe", "Parameter 'once' expects 'on' or 'off'"},
        {"inject-error event=none iotype=x", "invalid parameter value: x"},
        {"inject-error event=none new_state=1",
         "[inject-error] section doesn't support the option 'new_state'"},
        {"set-state event=none errno=1", "[set-state] section doesn't support the option 'errno'"},
        {"other event=none", "There is no option group 'other'"},
    };
    struct qk_io *io = open_fault(NULL);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct qk_error err = {0};
        CHECK_ERR(add_rule(io, cases[i][0], &err), -EINVAL);
        CHECK_STR(err.text, cases[i][1]);
    }
    CHECK_OK(read_one(io, 0));
    CHECK_OK(io_close(io, NULL));
}

static void test_event_names(void)
{
    size_t count = 0;
    struct qk_io *io = open_fault(NULL);
    for (const char *name; (name = fault_event_name(count)); count++) {
        char rule[100];
        snprintf(rule, sizeof(rule), "inject-error event=%s once=on", name);
        CHECK_OK(add_rule(io, rule, NULL));
    }
    CHECK_EQ(count, 48);
    CHECK_OK(io_close(io, NULL));
}

/* ---- files ---- */

static void put_file(const char *name, const char *text)
{
    FILE *f = fopen(name, "w");
    if (!f || fputs(text, f) < 0 || fclose(f))
        abort();
}

static void test_file(void)
{
    put_file("rules",
             "# two rules\n\n[set-state]\nevent = \"write_aio\"\n  new_state=\"4\"  \n"
             "[inject-error \"id\"]\nstate = \"4\"\nevent\t= \"write_aio\"\nerrno = \"28\"");
    struct qk_io *io = open_fault("rules");
    REQUIRE(io);
    CHECK_STR(io->name, "blkdebug:rules:memory");
    io_event(io, "write_aio");
    CHECK_OK(write_one(io, 0));
    io_event(io, "write_aio");
    CHECK_ERR(write_one(io, 0), -ENOSPC);
    CHECK_OK(io_close(io, NULL));
}

static void test_bad_files(void)
{
    static const char *const cases[][2] = {
        {"[inject-error]\nevent = \"read_aio\"\nfoo = \"1\"\n", "bad:3: Invalid parameter 'foo'"},
        {"\n[bogus]\n", "bad:2: There is no option group 'bogus'"},
        {"event = \"none\"\n", "bad:1: no group defined"},
        {"[inject-error]\nevent\n", "bad:2: parse error"},
        {"[inject-error\nevent = \"none\"\n", "bad:1: parse error"},
        {"[inject-error]\nevent = none\n",
         "bad:2: parse error: the value must stand in double quotes"},
        {"[set-state]\nnew_state = \"2\"\n\n[inject-error]\nevent = \"none\"\n",
         "bad:1: Missing event name for rule"},
        {"[inject-error]\nerrno = \"3\"\n\n\n", "bad:1: Missing event name for rule"},
        {"[inject-error]\nevent = \"bogus\"", "bad:2: invalid parameter value: bogus"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct qk_io *mem = NULL, *io = NULL;
        struct qk_error err = {0};
        put_file("bad", cases[i][0]);
        CHECK_OK(io_mem_open(NULL, 512, 0, &mem, NULL));
        CHECK_ERR(io_fault_open(mem, "bad", &io, &err), -EINVAL);
        CHECK_STR(err.text, cases[i][1]);
    }
    struct qk_io *mem = NULL, *io = NULL;
    struct qk_error err = {0};
    CHECK_OK(io_mem_open(NULL, 512, 0, &mem, NULL));
    CHECK_ERR(io_fault_open(mem, "missing", &io, &err), -ENOENT);
    CHECK_STR(err.text, "Could not read blkdebug config file: No such file or directory");
}

/* ---- limits ---- */

static int set_limits(struct qk_io *io, const char *const *pairs, struct qk_error *err)
{
    struct fault_option options[8];
    size_t count = 0;
    for (; pairs[2 * count]; count++)
        options[count] = (struct fault_option){pairs[2 * count], pairs[2 * count + 1]};
    return fault_set_limits(io, options, count, err);
}

static void test_limits_model(void)
{
    static const char *const sets[][13] = {
        {"align", "512", NULL},
        {"align", "4k", "max-transfer", "8k", NULL},
        {"max-transfer", "1000", NULL},
        {"opt-write-zero", "4k", "max-write-zero", "16k", "max-discard", "8k", NULL},
        {"align", "512", "opt-write-zero", "64k", "opt-discard", "1k", "max-discard", "2k", NULL},
    };
    for (size_t i = 0; i < ARRAY_SIZE(sets); i++) {
        struct qk_io *mem = NULL, *io = NULL;
        uint8_t *bytes = calloc(1, MODEL_MAX), *buf = malloc(MODEL_MAX);
        CHECK_OK(io_mem_open(NULL, MODEL_MAX, 0, &mem, NULL));
        CHECK_OK(io_fault_open(mem, NULL, &io, NULL));
        CHECK_OK(set_limits(io, sets[i], NULL));
        struct model m = {.io = io, .bytes = bytes, .buf = buf, .len = MODEL_MAX, .random = i};
        for (int step = 0; step < 300; step++) {
            uint64_t off = test_random(&m.random) % MODEL_MAX;
            size_t len = (size_t)min_u64(MODEL_MAX - off, test_random(&m.random) % 200000);
            if (step % 3 == 0)
                model_write(&m, off, len);
            else if (step % 3 == 1)
                model_zero(&m, off, len);
            else
                model_read(&m, off, len);
        }
        model_read(&m, 0, MODEL_MAX);
        CHECK_OK(io_close(io, NULL));
        free(bytes);
        free(buf);
    }
}

static void test_limit_pieces(void)
{
    static const char *const pairs[] = {"max-transfer", "1k", "opt-discard", "4k",
                                        "max-discard",  "8k", NULL};
    static uint8_t bytes[65536];
    struct qk_io *io = open_fault(NULL);
    memset(bytes, 1, sizeof(bytes));
    CHECK_OK(set_limits(io, pairs, NULL));
    fault_fail_nth(io, &(struct fault_nth){.iotypes = 1u << FAULT_WRITE});
    CHECK_OK(io_write(io, 0, bytes, 10000, 0, NULL));
    CHECK_EQ(fault_counted(io), 10);
    fault_fail_nth(io, &(struct fault_nth){.iotypes = 1u << FAULT_DISCARD});
    CHECK_OK(io_write(io, 0, bytes, 65536, 0, NULL));
    CHECK_OK(io_discard(io, 100, 30000, NULL));
    CHECK_EQ(fault_counted(io), 3);
    uint8_t zeroes[24576] = {0};
    CHECK_OK(io_read(io, 0, bytes, 65536, NULL));
    CHECK_MEM(bytes + 4096, zeroes, 24576);
    CHECK(bytes[4095] == 1 && bytes[28672] == 1);
    CHECK_OK(io_close(io, NULL));
}

/* A write that lies inside one block has a head only; one that ends inside another has a tail. */
static void test_rmw_events(void)
{
    static const char *const align[] = {"align", "4096", NULL};
    static const struct {
        const char *event;
        uint64_t failing_off, passing_off;
    } cases[] = {
        {"pwritev_rmw_head", 512, 0},
        {"pwritev_rmw_after_head", 512, 0},
        {"pwritev_rmw_tail", 0, 4096 - 512},
        {"pwritev_rmw_after_tail", 0, 4096 - 512},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct qk_io *io = open_fault(NULL);
        char rule[100];
        snprintf(rule, sizeof(rule), "inject-error event=%s", cases[i].event);
        CHECK_OK(set_limits(io, align, NULL));
        CHECK_EQ(io->alignment, 4096);
        CHECK_OK(add_rule(io, rule, NULL));
        CHECK_OK(write_one(io, cases[i].passing_off));
        CHECK_ERR(write_one(io, cases[i].failing_off), -EIO);
        CHECK_OK(io_close(io, NULL));
    }
}

static void test_bad_limits(void)
{
    static const char *const cases[][5] = {
        {"align", "7", NULL},
        {"align", "4k", "max-transfer", "5k", NULL},
        {"opt-write-zero", "3k", "max-write-zero", "4k", NULL},
        {"align", "512", "opt-discard", "100", NULL},
        {"max-discard", "4G", NULL},
        {"align", "x", NULL},
        {"foo", "1", NULL},
    };
    struct qk_io *io = open_fault(NULL);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct qk_error err = {0};
        CHECK_ERR(set_limits(io, cases[i], &err), -EINVAL);
        CHECK(err.text[0] != '\0');
    }
    CHECK(fault_is_limit("align") && fault_is_limit("max-discard") && !fault_is_limit("config"));
    CHECK_OK(io_close(io, NULL));
}

/* ---- breakpoints ---- */

static atomic_int notified;

static void count_notice(void *opaque, const char *tag, bool suspended)
{
    (void)opaque;
    CHECK_STR(tag, "A");
    notified += suspended ? 1 : 100;
}

static void *write_at_event(void *arg)
{
    io_event(arg, "write_aio");
    CHECK_OK(write_one(arg, 0));
    return NULL;
}

static void test_breakpoint(void)
{
    struct qk_io *io = open_fault(NULL);
    pthread_t thread;
    uint8_t byte = 9;
    fault_set_notify(io, count_notice, NULL);
    CHECK_ERR(fault_break(io, "bogus", "A"), -ENOENT);
    CHECK_OK(fault_break(io, "write_aio", "A"));
    CHECK(!fault_is_suspended(io, "A"));
    CHECK_ERR(fault_resume(io, "A"), -ENOENT);
    pthread_create(&thread, NULL, write_at_event, io);
    while (!fault_is_suspended(io, "A"))
        usleep(100);
    CHECK_OK(io_read(io, 0, &byte, 1, NULL));
    CHECK_EQ(byte, 0);
    CHECK_OK(fault_resume(io, "A"));
    pthread_join(thread, NULL);
    CHECK_OK(io_read(io, 0, &byte, 1, NULL));
    CHECK_EQ(byte, 1);
    CHECK_EQ(notified, 101);
    write_at_event(io); /* a breakpoint serves once */
    CHECK_OK(fault_break(io, "write_aio", "A"));
    CHECK_OK(fault_remove_break(io, "A"));
    CHECK_ERR(fault_remove_break(io, "A"), -ENOENT);
    write_at_event(io);
    CHECK_OK(io_close(io, NULL));
}

/* ---- the nth request ---- */

static void test_nth(void)
{
    struct qk_io *io = open_fault(NULL);
    for (uint64_t nth = 1; nth <= 4; nth++) {
        for (int always = 0; always < 2; always++) {
            fault_fail_nth(io, &(struct fault_nth){.nth = nth, .error = ENOSPC, .always = always});
            for (uint64_t i = 1; i <= 5; i++) {
                bool fails = always ? i >= nth : i == nth;
                CHECK_EQ(i % 2 ? write_one(io, 0) : io_flush(io, NULL), fails ? -ENOSPC : 0);
            }
            CHECK_EQ(fault_counted(io), 5);
        }
    }
    CHECK_OK(io_close(io, NULL));
}

static void test_torn(void)
{
    struct qk_io *io = open_fault(NULL);
    uint8_t bytes[4096], back[4096];
    memset(bytes, 3, sizeof(bytes));
    fault_fail_nth(io, &(struct fault_nth){.nth = 1, .error = EIO, .torn = true});
    CHECK_ERR(io_write(io, 0, bytes, 4096, 0, NULL), -EIO);
    CHECK_OK(io_read(io, 0, back, 4096, NULL));
    CHECK_MEM(back, bytes, 2048);
    CHECK_EQ(back[2048], 0);
    CHECK_OK(io_close(io, NULL));
}

static void *hammer(void *arg)
{
    for (int i = 0; i < 500; i++) {
        io_event(arg, i % 2 ? "write_aio" : "read_aio");
        int ret = write_one(arg, (uint64_t)(i % 10) * 512);
        CHECK(ret == 0 || ret == -EIO);
    }
    return NULL;
}

static void test_threads(void)
{
    struct qk_io *io = open_fault(NULL);
    pthread_t threads[4];
    for (int i = 0; i < 50; i++)
        CHECK_OK(add_rule(io, "inject-error event=write_aio once=on", NULL));
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, hammer, io);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    io_event(io, "write_aio");
    CHECK_OK(write_one(io, 0));
    CHECK_OK(io_close(io, NULL));
}

int main(void)
{
    scratch_make();
    test_event_then_fail();
    test_once();
    test_sector_and_iotype();
    test_states();
    test_precedence();
    test_own_events();
    test_bad_rules();
    test_event_names();
    test_file();
    test_bad_files();
    test_limits_model();
    test_limit_pieces();
    test_rmw_events();
    test_bad_limits();
    test_breakpoint();
    test_nth();
    test_torn();
    test_threads();
    return TEST_SUMMARY();
}
