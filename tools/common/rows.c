/*
 * rows.c - results kept as rows and printed as text or JSON (rows.h).
 */
#include "common/rows.h"
#include "common/report.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static struct row *add(struct rows *rows, enum row_kind kind, const char *key, const char *label)
{
    /* the room doubles whenever the count is a power of two */
    if ((rows->count & (rows->count - 1)) == 0)
        rows->row = xrealloc(rows->row, (2 * rows->count + 1) * sizeof(*rows->row));
    struct row *row = &rows->row[rows->count++];
    *row = (struct row){.kind = kind, .key = key, .label = label};
    return row;
}

void rows_text(struct rows *rows, const char *key, const char *label, const char *value)
{
    add(rows, ROW_TEXT, key, label)->value.text = xstrdup(value);
}

void rows_uint(struct rows *rows, const char *key, const char *label, uint64_t value)
{
    add(rows, ROW_UINT, key, label)->value.number = value;
}

void rows_int(struct rows *rows, const char *key, const char *label, int64_t value)
{
    add(rows, ROW_INT, key, label)->value.integer = value;
}

void rows_bool(struct rows *rows, const char *key, const char *label, bool value)
{
    add(rows, ROW_BOOL, key, label)->value.number = value;
}

void rows_size(struct rows *rows, const char *key, const char *label, uint64_t bytes)
{
    add(rows, ROW_SIZE, key, label)->value.number = bytes;
}

void rows_size_bytes(struct rows *rows, const char *key, const char *label, uint64_t bytes)
{
    add(rows, ROW_SIZE_BYTES, key, label)->value.number = bytes;
}

/* The empty label tells a block from the items of a list. */
void rows_block(struct rows *rows, const char *text)
{
    add(rows, ROW_BLOCK, NULL, "")->value.text = xstrdup(text);
}

static struct rows *add_nested(struct rows *rows, enum row_kind kind, const char *key,
                               const char *label)
{
    struct rows *nested = xmalloc(sizeof(*nested));
    *nested = (struct rows){0};
    add(rows, kind, key, label)->value.rows = nested;
    return nested;
}

struct rows *rows_object(struct rows *rows, const char *key, const char *label)
{
    return add_nested(rows, ROW_OBJECT, key, label);
}

struct rows *rows_list(struct rows *rows, const char *key, const char *label)
{
    return add_nested(rows, ROW_LIST, key, label);
}

static bool is_nested(const struct row *row)
{
    return row->kind == ROW_OBJECT || row->kind == ROW_LIST;
}

void rows_free(struct rows *rows)
{
    for (size_t i = 0; i < rows->count; i++) {
        struct row *row = &rows->row[i];
        if (row->kind == ROW_TEXT || row->kind == ROW_BLOCK)
            free(row->value.text);
        if (!is_nested(row))
            continue;
        rows_free(row->value.rows);
        free(row->value.rows);
    }
    free(rows->row);
    *rows = (struct rows){0};
}

/* ---- text -------------------------------------------------------------------------------- */

static void print_value(const struct row *row, FILE *out)
{
    char size[QK_SIZE_TEXT_MAX];
    switch (row->kind) {
    case ROW_TEXT:
        put_text(out, row->value.text);
        break;
    case ROW_INT:
        fprintf(out, "%" PRId64, row->value.integer);
        break;
    case ROW_BOOL:
        fputs(row->value.number ? "true" : "false", out);
        break;
    case ROW_SIZE:
        fputs(qk_format_size(row->value.number, size), out);
        break;
    case ROW_SIZE_BYTES:
        fprintf(out, "%s (%" PRIu64 " bytes)", qk_format_size(row->value.number, size),
                row->value.number);
        break;
    default:
        fprintf(out, "%" PRIu64, row->value.number);
    }
}

/* `in_list`: the rows are numbered "[0]:" instead of having labels. */
static void print_level(const struct rows *rows, FILE *out, unsigned indent, bool in_list)
{
    for (size_t i = 0; i < rows->count; i++) {
        const struct row *row = &rows->row[i];
        if (!row->label && !in_list)
            continue;
        if (row->kind == ROW_BLOCK) {
            put_text(out, row->value.text);
            continue;
        }
        if (row->kind == ROW_OBJECT && !in_list && !*row->label) {
            print_level(row->value.rows, out, indent, false);
            continue;
        }
        fprintf(out, "%*s", (int)indent, "");
        if (in_list)
            fprintf(out, "[%zu]:", i);
        else
            fprintf(out, "%s:", row->label);
        if (!is_nested(row)) {
            fputc(' ', out);
            print_value(row, out);
        }
        fputc('\n', out);
        if (is_nested(row))
            print_level(row->value.rows, out, indent + 4, row->kind == ROW_LIST);
    }
}

void rows_print(const struct rows *rows, FILE *out, unsigned indent)
{
    print_level(rows, out, indent, false);
}

/* ---- JSON -------------------------------------------------------------------------------- */

static void json_nested(const struct row *row, struct json *json, const char *const *order)
{
    bool list = row->kind == ROW_LIST;
    json_open(json, row->key, list ? '[' : '{');
    rows_json(row->value.rows, json, order);
    json_close(json, list ? ']' : '}');
}

static void json_row(const struct row *row, struct json *json, const char *const *order)
{
    if (is_nested(row))
        json_nested(row, json, order);
    else if (row->kind == ROW_TEXT)
        json_text(json, row->key, row->value.text);
    else if (row->kind == ROW_BOOL)
        json_bool(json, row->key, row->value.number);
    else if (row->kind == ROW_INT)
        json_int(json, row->key, row->value.integer);
    else
        json_uint(json, row->key, row->value.number);
}

static size_t rank_of(const char *key, const char *const *order)
{
    size_t rank = 0;
    while (key && order && order[rank] && strcmp(order[rank], key))
        rank++;
    return rank;
}

/* An insertion sort of the row numbers by rank: stable, and the rows of one object are few. */
static void sort_by_rank(const struct rows *rows, const char *const *order, size_t *index)
{
    for (size_t i = 0; i < rows->count; i++) {
        size_t rank = rank_of(rows->row[i].key, order), at = i;
        for (; at && rank_of(rows->row[index[at - 1]].key, order) > rank; at--)
            index[at] = index[at - 1];
        index[at] = i;
    }
}

/* Items of a list have no key; all other rows without one are for the text only. */
static bool keyless_list(const struct rows *rows)
{
    for (size_t i = 0; i < rows->count; i++) {
        if (rows->row[i].key || rows->row[i].label)
            return false;
    }
    return true;
}

void rows_json(const struct rows *rows, struct json *json, const char *const *order)
{
    bool list = keyless_list(rows);
    size_t *index = xmalloc(rows->count * sizeof(*index));
    if (!list)
        sort_by_rank(rows, order, index);
    for (size_t i = 0; i < rows->count; i++) {
        const struct row *row = &rows->row[list ? i : index[i]];
        if (list || row->key)
            json_row(row, json, order);
    }
    free(index);
}

void rows_print_json(const struct rows *rows, FILE *out, const char *const *order)
{
    struct json json = JSON_PRETTY(out);
    json_open(&json, NULL, '{');
    rows_json(rows, &json, order);
    json_close(&json, '}');
    fputc('\n', out);
}
