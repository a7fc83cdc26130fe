/*
 * extensions.c - header extensions and the header cluster as a whole (Format, sections "Header
 * extensions", "Feature name table"). Extensions that are not known are carried as bytes and
 * written back as they were. Pure.
 */
#include "format/header.h"

#include "base/bytes.h"
#include "base/checked.h"

#include <ctype.h>
#include <inttypes.h>

#define EXTENSION_HEAD_BYTES 8
#define FEATURE_NAME_BYTES   46

struct feature_entry {
    uint8_t kind, bit;
    char name[FEATURE_NAME_BYTES];
};
_Static_assert(sizeof(struct feature_entry) == 48, "entries of the feature name table");

static const struct feature_entry known_features[] = {
    {0, 0, "dirty bit"},        {0, 1, "corrupt bit"},         {0, 2, "external data file"},
    {0, 3, "compression type"}, {0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"},
    {2, 0, "bitmaps"},          {2, 1, "raw external data"},
};

const uint8_t *feature_name_table(size_t *len)
{
    *len = sizeof(known_features);
    return (const uint8_t *)known_features;
}

/* A name from an image goes to a terminal: what is not plain text becomes '?'. */
static void copy_name(char buf[47], const uint8_t *name)
{
    size_t n = strnlen((const char *)name, FEATURE_NAME_BYTES);
    for (size_t i = 0; i < n; i++)
        buf[i] = (char)(name[i] >= 0x20 && name[i] < 0x7f ? name[i] : '?');
    buf[n] = 0;
}

static bool table_lookup(const uint8_t *table, size_t len, unsigned kind, unsigned bit,
                         char buf[47])
{
    for (size_t at = 0; len - at >= sizeof(struct feature_entry);
         at += sizeof(struct feature_entry)) {
        if (table[at] != kind || table[at + 1] != bit || !table[at + 2])
            continue;
        copy_name(buf, table + at + 2);
        return true;
    }
    return false;
}

const char *feature_name(const struct header_extensions *exts, unsigned kind, unsigned bit,
                         char buf[47])
{
    const struct header_extension *ext =
        exts ? header_extensions_find(exts, HEXT_FEATURE_NAMES) : NULL;
    if (ext && table_lookup(ext->data, ext->len, kind, bit, buf))
        return buf;
    size_t len;
    const uint8_t *known = feature_name_table(&len);
    return table_lookup(known, len, kind, bit, buf) ? buf : NULL;
}

/* ---- the list ---- */

/* Lengths that known types may have. */
static const struct {
    uint32_t type, min, max;
    const char *name;
} limits[] = {
    {HEXT_BACKING_FORMAT, 0, 15, "ext_backing_format"},
    {HEXT_BITMAPS, 24, 24, "bitmaps_ext"},
    {HEXT_CRYPTO, 16, 16, "CRYPTO header extension"},
    {HEXT_DATA_FILE, 0, QCOW2_MAX_BACKING_NAME, "external data file name"},
};

static int check_length(uint32_t type, uint32_t len, size_t at, struct qk_error *err)
{
    for (size_t i = 0; i < ARRAY_SIZE(limits); i++)
        if (limits[i].type == type && (len < limits[i].min || len > limits[i].max))
            return qk_fail_at(err, -EINVAL, WHERE(NULL, "header extension", at),
                              "%s: Invalid extension length %" PRIu32 ", expected %" PRIu32
                              " to %" PRIu32,
                              limits[i].name, len, limits[i].min, limits[i].max);
    return 0;
}

static int decode_one(const uint8_t *bytes, size_t at, size_t end, struct header_extension *ext,
                      struct qk_error *err)
{
    if (end - at < EXTENSION_HEAD_BYTES)
        return qk_fail_at(err, -EINVAL, WHERE(NULL, "header extension", at),
                          "Header extension too large: no room for its type and length before "
                          "offset %zu",
                          end);
    uint32_t type = load_be32(bytes + at), len = load_be32(bytes + at + 4);
    size_t room = end - at - EXTENSION_HEAD_BYTES;
    *ext = (struct header_extension){type, len, bytes + at + EXTENSION_HEAD_BYTES};
    if (len > room)
        return qk_fail_at(err, -EINVAL, WHERE(NULL, "header extension", at),
                          "Header extension too large: type 0x%08" PRIx32 " has length %" PRIu32
                          ", expected at most %zu",
                          type, len, room);
    return check_length(type, len, at, err);
}

int header_extensions_decode(const uint8_t *bytes, size_t start, size_t end,
                             struct header_extensions *out, struct qk_error *err)
{
    *out = (struct header_extensions){0};
    for (size_t at = start; at < end;) {
        struct header_extension ext;
        int ret = decode_one(bytes, at, end, &ext, err);
        if (ret == 0 && ext.type == HEXT_END)
            return 0;
        if (ret == 0 && header_extension_vec_append(&out->list, ext) < 0)
            ret = qk_fail_nomem(err);
        if (ret < 0) {
            header_extensions_free(out);
            return ret;
        }
        /* the padding may lie beyond the end */
        at += EXTENSION_HEAD_BYTES + round_up(ext.len, 8);
    }
    return 0;
}

/* Says what is wrong with the extension at `at`, and gives it the length that its type asks for.
 * False: what follows it cannot be found. */
static bool mend_one(size_t at, size_t end, struct header_extension *ext,
                     struct extension_fault *fault)
{
    *fault = (struct extension_fault){.off = at};
    if (end - at < EXTENSION_HEAD_BYTES)
        return false;
    fault->type = ext->type;
    fault->len = ext->len;
    for (size_t i = 0; i < ARRAY_SIZE(limits); i++) {
        if (limits[i].type != ext->type || limits[i].min != limits[i].max)
            continue;
        fault->known = limits[i].max <= end - at - EXTENSION_HEAD_BYTES;
        ext->len = fault->right_len = limits[i].max;
    }
    return fault->known;
}

/* Each type shall be there once. The first one that contradicts what came before it is told. */
struct seen_types {
    struct header_extension last[ARRAY_SIZE(limits)];
    bool told[ARRAY_SIZE(limits)];
};

static bool says_again(struct seen_types *seen, const struct header_extension *ext)
{
    for (size_t i = 0; i < ARRAY_SIZE(limits); i++) {
        if (limits[i].type != ext->type)
            continue;
        const struct header_extension before = seen->last[i];
        bool differs = before.data && (before.len != ext->len ||
                                       (ext->len && memcmp(before.data, ext->data, ext->len)));
        bool tell = differs && !seen->told[i];
        seen->last[i] = *ext;
        seen->told[i] |= differs;
        return tell;
    }
    return false;
}

int header_extensions_decode_for_check(const uint8_t *bytes, size_t start, size_t end,
                                       struct header_extensions *out,
                                       struct extension_fault_vec *faults, struct qk_error *err)
{
    *out = (struct header_extensions){0};
    struct seen_types seen = {0};
    bool more = true;
    for (size_t at = start; at < end && more;) {
        struct header_extension ext;
        struct extension_fault fault;
        int ret = 0;
        if (decode_one(bytes, at, end, &ext, NULL) < 0) {
            more = mend_one(at, end, &ext, &fault);
            ret = extension_fault_vec_append(faults, fault);
        } else {
            more = ext.type != HEXT_END;
        }
        if (ret == 0 && more)
            ret = header_extension_vec_append(&out->list, ext);
        const struct extension_fault again = {at, ext.type, ext.len, 0, false, true};
        if (ret == 0 && more && says_again(&seen, &ext))
            ret = extension_fault_vec_append(faults, again);
        if (ret < 0) {
            header_extensions_free(out);
            return qk_fail_nomem(err);
        }
        at += EXTENSION_HEAD_BYTES + round_up(more ? ext.len : 0, 8);
    }
    return 0;
}

void header_extensions_free(struct header_extensions *exts)
{
    header_extension_vec_free(&exts->list);
}

const struct header_extension *header_extensions_find(const struct header_extensions *exts,
                                                      uint32_t type)
{
    for (size_t i = exts->list.len; i > 0; i--)
        if (exts->list.ptr[i - 1].type == type)
            return &exts->list.ptr[i - 1];
    return NULL;
}

/* ---- the header cluster ---- */

struct cursor {
    uint8_t *out;
    size_t at, size;
};

/* Room for len bytes, padded to 8; NULL when there is none. */
static uint8_t *cursor_take(struct cursor *c, size_t len)
{
    size_t padded = len <= SIZE_MAX - 7 ? (len + 7) & ~(size_t)7 : len;
    if (len > c->size - c->at)
        return NULL;
    uint8_t *p = c->out + c->at;
    c->at = padded > c->size - c->at ? c->size : c->at + padded;
    return p;
}

static bool put_extension(struct cursor *c, const struct header_extension *ext)
{
    uint8_t *head = cursor_take(c, EXTENSION_HEAD_BYTES);
    uint8_t *data = head ? cursor_take(c, ext->len) : NULL;
    if (!data)
        return false;
    store_be32(head, ext->type);
    store_be32(head + 4, ext->len);
    if (ext->len)
        memcpy(data, ext->data, ext->len);
    return true;
}

static bool put_fixed(struct cursor *c, const struct header_layout *layout)
{
    struct header *h = layout->h;
    uint32_t bytes = h->version == 2 ? QCOW2_V2_HEADER_BYTES : h->header_bytes;
    uint8_t *p = cursor_take(c, bytes);
    if (!p)
        return false;
    header_encode(h, p);
    if (bytes > QCOW2_FULL_HEADER_BYTES && layout->unknown_fields)
        memcpy(p + QCOW2_FULL_HEADER_BYTES, layout->unknown_fields,
               bytes - QCOW2_FULL_HEADER_BYTES);
    return true;
}

static bool put_extensions(struct cursor *c, const struct header_extensions *exts)
{
    static const struct header_extension end = {HEXT_END, 0, NULL};
    for (size_t i = 0; exts && i < exts->list.len; i++)
        if (!put_extension(c, &exts->list.ptr[i]))
            return false;
    return put_extension(c, &end);
}

int header_layout(const struct header_layout *layout, uint8_t *out, size_t size,
                  struct qk_error *err)
{
    struct cursor c = {out, 0, size};
    struct header *h = layout->h;
    size_t name_len = layout->backing_name ? strlen(layout->backing_name) : 0;
    memset(out, 0, size);
    if (name_len > QCOW2_MAX_BACKING_NAME)
        return qk_fail(err, -EINVAL, "Backing file name too long");
    bool fits = put_fixed(&c, layout) && put_extensions(&c, layout->exts);
    if (name_len && c.at < layout->name_from)
        c.at = layout->name_from < size ? layout->name_from : size;
    if (!fits || name_len > size - c.at)
        return qk_fail_at(err, -ENOSPC, WHERE(NULL, "header", 0),
                          "Header extensions and backing file name do not fit in %zu bytes", size);
    h->backing_name_off = name_len ? c.at : 0;
    h->backing_name_len = (uint32_t)name_len;
    if (name_len)
        memcpy(out + c.at, layout->backing_name, name_len);
    header_encode(h, out);
    return 0;
}
