/*
 * test_tools.c - the pure parts of tools/common: lists of options, sizes and numbers, parsing from
 * a table, the JSON writer and rows. Messages go to a scratch stderr; their text is compared with
 * qemu-img's by tests/cli.
 */
#include "test.h"

#include "common/open.h"
#include "common/options.h"
#include "common/report.h"
#include "common/rows.h"
#include "common/units.h"

#include <fcntl.h>
#include <unistd.h>

/* ---- lists ------------------------------------------------------------------------------- */

static void check_items(const char *text, const char *const *expected)
{
    KEYVALS_CLEANUP struct keyvals list = {0};
    CHECK(keyvals_add_list(&list, text));
    size_t i = 0;
    for (; expected[i] && i < list.count; i++)
        CHECK_STR(list.item[i], expected[i]);
    CHECK_EQ(list.count, i);
    CHECK(!expected[i]);
    CHECK(list.item && !list.item[list.count]);
}
#define ITEMS(text_, ...) check_items(text_, (const char *const[]){__VA_ARGS__, NULL})

static void test_lists(void)
{
    ITEMS("a=1", "a=1");
    ITEMS("a=1,b=2", "a=1", "b=2");
    ITEMS("a=x,,y,b", "a=x,y", "b");
    ITEMS("a=1,,,b=2", "a=1,", "b=2");
    ITEMS("a=,,,,", "a=,,");
    ITEMS("a==b", "a==b");
    static const char *const malformed[] = {"", ",", ",a=1", "a=1,", "a=1,,,", ",,a"};
    for (size_t i = 0; i < sizeof(malformed) / sizeof(*malformed); i++) {
        KEYVALS_CLEANUP struct keyvals list = {0};
        CHECK(!keyvals_add_list(&list, malformed[i]));
        CHECK_EQ(list.count, 0);
    }
}

static void test_list_access(void)
{
    KEYVALS_CLEANUP struct keyvals list = {0};
    CHECK(keyvals_add_list(&list, "a=1,ab=2,a=3,flag"));
    CHECK_STR(keyvals_get(&list, "a"), "3");
    CHECK_STR(keyvals_get(&list, "ab"), "2");
    CHECK_STR(keyvals_get(&list, "flag"), "");
    CHECK(!keyvals_get(&list, "fla"));
    keyvals_remove(&list, "a");
    CHECK_EQ(list.count, 2);
    CHECK(!keyvals_get(&list, "a"));
    CHECK_STR(list.item[0], "ab=2");
    keyvals_add(&list, "c", "x,y=z");
    CHECK_STR(keyvals_get(&list, "c"), "x,y=z");
    CHECK(keyvals_wants_help("a=1,help"));
    CHECK(keyvals_wants_help("?"));
    CHECK(!keyvals_wants_help("a=help"));
    CHECK(!keyvals_wants_help("helper"));
}

/* ---- numbers ----------------------------------------------------------------------------- */

static void test_sizes(void)
{
    static const struct {
        const char *text;
        int ret;
        uint64_t value;
    } cases[] = {
        {"0", 0, 0},
        {"512", 0, 512},
        {"1k", 0, 1024},
        {"1K", 0, 1024},
        {"64b", 0, 64},
        {"1.5G", 0, UINT64_C(3) << 29},
        {"0x200", 0, 512},
        {"7E", 0, UINT64_C(7) << 60},
        {"9223372036854775807", 0, INT64_MAX},
        {"9223372036854775808", -ERANGE, 0},
        {"8E", -ERANGE, 0},
        {"18446744073709551616", -ERANGE, 0},
        {"", -EINVAL, 0},
        {"k", -EINVAL, 0},
        {"-1", -EINVAL, 0},
        {"1x", -EINVAL, 0},
        {"1kk", -EINVAL, 0},
        {"1e3", -EINVAL, 0},
        {"0x1k", 0, 1024},
        {"0x1z", -EINVAL, 0},
        {"1.5", -EINVAL, 0},
        {".", -EINVAL, 0},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        uint64_t value = 0;
        CHECK_EQ(size_parse("thing", cases[i].text, 0, 0, &value), cases[i].ret);
        CHECK_EQ(value, cases[i].value);
    }
    uint64_t value = 77;
    CHECK_ERR(size_parse("thing", "511", 512, 1024, &value), -ERANGE);
    CHECK_ERR(size_parse("thing", "1025", 512, 1024, &value), -ERANGE);
    CHECK_EQ(value, 77);
    CHECK_OK(size_parse("thing", "1k", 512, 1024, &value));
}

static void test_numbers(void)
{
    uint64_t value = 77;
    CHECK_ERR(number_parse("thing", "", 0, 0, &value), -EINVAL);
    CHECK_ERR(number_parse("thing", "-1", 0, 0, &value), -EINVAL);
    CHECK_ERR(number_parse("thing", "1k", 0, 0, &value), -EINVAL);
    CHECK_ERR(number_parse("thing", "17", 1, 16, &value), -ERANGE);
    CHECK_ERR(number_parse("thing", "99999999999999999999", 0, 0, &value), -ERANGE);
    CHECK_EQ(value, 77);
    CHECK_OK(number_parse("thing", "0x10", 1, 16, &value));
    CHECK_EQ(value, 16);
}

/* ---- parsing ----------------------------------------------------------------------------- */

enum { OPT_LONG = OPT_LOCAL };

static const struct opt_desc table[] = {
    OPT_FORMAT,
    OPT_QUIET,
    OPT_SHARE,
    OPT_ROW_OUTPUT,
    OPT_ROW_OBJECT,
    {'o', NULL, "OPTIONS", "options", OPT_KIND_TEXT, NULL, 0, 0, NULL},
    {OPT_LONG, "long", "SIZE", "a size", OPT_KIND_SIZE, "long size", 0, 0, NULL},
    OPT_END,
};
static const struct cmd_desc desc = {.name = "verb", .operands = "FILE", .options = table};

/* Parses the words behind "verb" and returns what opts_parse says. */
static int parse(struct opts *opts, char **words)
{
    int count = 0;
    while (words[count])
        count++;
    return opts_parse(&desc, count, words, opts);
}
#define WORDS(...) ((char *[]){(char[]){"verb"}, __VA_ARGS__, NULL})

static void test_parse(void)
{
    OPTS_CLEANUP struct opts opts;
    CHECK_EQ(parse(&opts, WORDS("-qf", "raw", "a", "-fqcow2", "--long=4k", "b", "-oa", "-o", "b",
                                "--", "-x")),
             -1);
    CHECK_EQ(opts.operand_count, 3);
    CHECK_STR(opts.operand[0], "a");
    CHECK_STR(opts.operand[2], "-x");
    CHECK(opts_given(&opts, 'q'));
    CHECK(!opts_given(&opts, 'U'));
    CHECK_STR(opts_string(&opts, 'f'), "qcow2");
    CHECK_STR(opts_nth(&opts, 'o', 0), "a");
    CHECK_STR(opts_nth(&opts, 'o', 1), "b");
    CHECK(!opts_nth(&opts, 'o', 2));
    CHECK_EQ(opts_number(&opts, OPT_LONG, 1), 4096);
    CHECK_EQ(opts_number(&opts, OPT_PROGRESS_FD, 5), 5);
    CHECK(!opts_json(&opts));
}

static void test_parse_many_letters(void)
{
    OPTS_CLEANUP struct opts opts;
    CHECK_EQ(parse(&opts, WORDS("-qUqUqUqUqUqUqUqU", "--output=json", "--force-share")), -1);
    CHECK(opts_json(&opts));
    CHECK_EQ(opts.value_count, 18);
}

static void check_refused(char **words)
{
    OPTS_CLEANUP struct opts opts;
    CHECK_EQ(parse(&opts, words), 1);
}

static void test_parse_refuses(void)
{
    check_refused(WORDS("-x"));
    check_refused(WORDS("--bogus"));
    check_refused(WORDS("-f"));
    check_refused(WORDS("--long"));
    check_refused(WORDS("--long=x"));
    check_refused(WORDS("--output=xml"));
    check_refused(WORDS("--force-share=yes"));
    check_refused(WORDS("--object=secret,id=a"));
    check_refused(WORDS("--object=secret,data=a"));
    check_refused(WORDS("--object=machine,id=a"));
}

static void test_option_lists(void)
{
    OPTS_CLEANUP struct opts opts;
    KEYVALS_CLEANUP struct keyvals list = {0};
    bool help;
    CHECK_EQ(parse(&opts, WORDS("-o", "a=1,lazy", "-o", "nocow")), -1);
    CHECK_EQ(opts_keyvals(&opts, 'o', &list, &help), -1);
    CHECK(!help);
    CHECK_STR(list.item[1], "lazy=on");
    CHECK_STR(list.item[2], "cow=off");
}

static void test_cache_modes(void)
{
    unsigned flags = 0;
    CHECK(cache_mode_flags("directsync", &flags));
    CHECK_EQ(flags, QK_OPEN_DIRECT | QK_OPEN_WRITETHROUGH);
    CHECK(!cache_mode_flags("fast", &flags));
}

/* ---- output ------------------------------------------------------------------------------ */

static void fill_rows(struct rows *rows)
{
    rows_text(rows, "name", "Name", "a\"b\\\n\t\x01\x7f\xc3\xa9\xf0\x9f\x98\x80\xff\xc0\x80z");
    rows_size_bytes(rows, "size", "Size", 1536);
    rows_bool(rows, "flag", NULL, true);
    rows_text(rows, NULL, "Note", "text only");
    rows_block(rows, "As it\nis\n");
    rows_list(rows, "none", NULL);
    struct rows *list = rows_list(rows, "list", "List");
    rows_int(list, NULL, NULL, -1);
    struct rows *object = rows_object(list, NULL, NULL);
    rows_uint(object, "max", "max", UINT64_MAX);
    struct rows *inner = rows_object(rows, "inner", "");
    rows_size(inner, "here", "Here", 0);
}

static void check_output(const char *expected, bool as_json)
{
    static const char *const order[] = {"flag", "size", NULL};
    ROWS_CLEANUP struct rows rows = {0};
    fill_rows(&rows);
    char *text = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&text, &length);
    REQUIRE(out);
    if (as_json)
        rows_print_json(&rows, out, order);
    else
        rows_print(&rows, out, 2);
    fclose(out);
    CHECK_STR(text, expected);
    free(text);
}

static void test_rows(void)
{
    check_output("{\n"
                 "    \"flag\": true,\n"
                 "    \"size\": 1536,\n"
                 "    \"name\": \"a\\\"b\\\\\\n\\t\\u0001\\u007F\\u00E9\\uD83D\\uDE00"
                 "\\uFFFD\\uFFFD\\uFFFDz\",\n"
                 "    \"none\": [\n"
                 "    ],\n"
                 "    \"list\": [\n"
                 "        -1,\n"
                 "        {\n"
                 "            \"max\": 18446744073709551615\n"
                 "        }\n"
                 "    ],\n"
                 "    \"inner\": {\n"
                 "        \"here\": 0\n"
                 "    }\n"
                 "}\n",
                 true);
    check_output("  Name: a\"b\\\n\t\x01\x7f\xc3\xa9\xf0\x9f\x98\x80\xff\xc0\x80z\n"
                 "  Size: 1.5 KiB (1536 bytes)\n"
                 "  Note: text only\n"
                 "As it\nis\n"
                 "  List:\n"
                 "      [0]: -1\n"
                 "      [1]:\n"
                 "          max: 18446744073709551615\n"
                 "  Here: 0 B\n",
                 false);
}

static void test_compact_json(void)
{
    char *text = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&text, &length);
    REQUIRE(out);
    struct json json = JSON_COMPACT(out);
    json_open(&json, NULL, '[');
    json_uint(&json, NULL, 1);
    json_open(&json, NULL, '{');
    json_int(&json, "a", -2);
    json_raw(&json, "b", "null");
    json_close(&json, '}');
    json_close(&json, ']');
    fclose(out);
    CHECK_STR(text, "[1, {\"a\": -2, \"b\": null}]");
    free(text);
}

static void test_error_text(void)
{
    struct qk_error err = {.code = EIO, .offset = QK_OFFSET_NONE};
    CHECK_STR(error_text(&err), strerror(EIO));
    strcpy(err.text, "bad entry");
    CHECK_STR(error_text(&err), "bad entry");
    strcpy(err.structure, "L2 table");
    strcpy(err.file, "a.qcow2");
    err.offset = 0x50000;
    CHECK_STR(error_text(&err), "bad entry (L2 table at offset 0x50000 of a.qcow2)");
}

int main(void)
{
    /* the messages are not what is looked at here */
    int null = open("/dev/null", O_WRONLY);
    if (null < 0 || dup2(null, STDERR_FILENO) < 0)
        return 1;
    test_lists();
    test_list_access();
    test_sizes();
    test_numbers();
    test_parse();
    test_parse_many_letters();
    test_parse_refuses();
    test_option_lists();
    test_cache_modes();
    test_rows();
    test_compact_json();
    test_error_text();
    return TEST_SUMMARY();
}
