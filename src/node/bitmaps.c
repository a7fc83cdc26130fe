/*
 * bitmaps.c - reading the bitmap directory, entry by entry. Each entry has a fixed part, extra
 * data whose length it states, the name, and is padded to 8 bytes. The bitmaps' own tables and
 * bits are not looked at: they can claim any size.
 */
#include "node/bitmaps.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "node/node.h"

enum {
    EXTENSION_BYTES = 24,
    FIXED_BYTES = 24,
    NAME_BYTES_MAX = 1023,
    GRANULARITY_BITS_MAX = 31,
    TYPE_DIRTY_TRACKING = 1,
    DIRECTORY_BYTES_MAX = 64 << 20, /* QEMU's limit */
};

#define FLAG_IN_USE 1u
#define FLAG_AUTO   2u
#define FLAGS_KNOWN 7u

void bitmaps_free(struct bitmap_list *list)
{
    if (!list)
        return;
    for (uint32_t i = 0; i < list->count; i++)
        free(list->row[i].name);
    free(list->row);
    free(list);
}

static const struct header_extension *extension(const struct image *img)
{
    if (!(image_header(img)->autoclear & AUTOCLEAR_BITMAPS))
        return NULL;
    return header_extensions_find(image_extensions(img), HEXT_BITMAPS);
}

uint32_t bitmaps_count(const struct image *img)
{
    const struct header_extension *ext = extension(img);
    return ext && ext->len >= EXTENSION_BYTES ? load_be32(ext->data) : 0;
}

static int bad_directory(const struct image *img, uint64_t off, const char *what,
                         struct qk_error *err)
{
    return qk_fail_at(err, -EINVAL, WHERE(image_file(img)->name, "bitmap directory", off),
                      "The bitmap directory is malformed: %s", what);
}

/* Takes the entry at `p`, of which `left` bytes are there. Its length, 0: malformed. */
static size_t decode_entry(const uint8_t *p, size_t left, struct bitmap_row *row)
{
    if (left < FIXED_BYTES)
        return 0;
    uint32_t name = load_be16(p + 18), extra = load_be32(p + 20);
    uint64_t bytes = FIXED_BYTES + (uint64_t)extra + name;
    row->flags = load_be32(p + 12);
    row->granularity_bits = p[17];
    if (bytes > left || !name || name > NAME_BYTES_MAX || p[16] != TYPE_DIRTY_TRACKING ||
        p[17] > GRANULARITY_BITS_MAX || row->flags & ~FLAGS_KNOWN)
        return 0;
    row->name = strndup((const char *)p + FIXED_BYTES + extra, name);
    return (size_t)min_u64(round_up(bytes, 8), left);
}

static int decode_directory(const struct image *img, const uint8_t *bytes, size_t len,
                            struct bitmap_list *list, struct qk_error *err)
{
    uint64_t off = load_be64(extension(img)->data + 16);
    size_t at = 0;
    for (uint32_t i = 0; i < list->count; i++) {
        size_t entry = decode_entry(bytes + at, len - at, &list->row[i]);
        if (!entry)
            return bad_directory(img, off + at, "an entry has impossible fields", err);
        if (!list->row[i].name)
            return qk_fail_nomem(err);
        at += entry;
    }
    return 0;
}

int bitmaps_read(const struct image *img, struct bitmap_list **out, struct qk_error *err)
{
    uint32_t count = bitmaps_count(img);
    uint64_t bytes = count ? load_be64(extension(img)->data + 8) : 0;
    uint64_t off = count ? load_be64(extension(img)->data + 16) : 0, file_bytes;
    int ret = io_size(image_file(img), &file_bytes, err);
    if (ret < 0)
        return ret;
    if (bytes > DIRECTORY_BYTES_MAX || !range_within(off, bytes, file_bytes) ||
        count > bytes / FIXED_BYTES)
        return bad_directory(img, off, "its place or size is impossible", err);
    CLEANUP_FREE uint8_t *directory = malloc(bytes + 1);
    struct bitmap_list *list = calloc(1, sizeof(*list));
    if (list)
        list->row = calloc((size_t)count + 1, sizeof(*list->row));
    if (!directory || !list || !list->row) {
        bitmaps_free(list);
        return qk_fail_nomem(err);
    }
    list->count = count;
    ret = bytes ? io_read(image_file(img), off, directory, bytes, err) : 0;
    if (ret == 0)
        ret = decode_directory(img, directory, bytes, list, err);
    if (ret < 0)
        bitmaps_free(list);
    else
        *out = list;
    return ret;
}

static int load_bitmaps(struct node *node, struct qk_error *err)
{
    LOCK_SCOPE(&node->guard);
    return node->bitmaps ? 0 : bitmaps_read(node->image, &node->bitmaps, err);
}

int qk_disk_bitmap(struct qk_disk *disk, uint32_t index, struct qk_bitmap_info *info,
                   struct qk_error *err)
{
    struct node *node = disk->node;
    size_t size = info->struct_size;
    if (!node->image || index >= bitmaps_count(node->image))
        return qk_fail(err, -EINVAL, "There is no bitmap number %u", index);
    int ret = load_bitmaps(node, err);
    if (ret < 0)
        return ret;
    const struct bitmap_row *row = &node->bitmaps->row[index];
    const struct qk_bitmap_info full = {
        .struct_size = size,
        .name = row->name,
        .granularity = UINT64_C(1) << row->granularity_bits,
        .in_use = row->flags & FLAG_IN_USE,
        .enabled = row->flags & FLAG_AUTO,
    };
    memcpy(info, &full, (size_t)min_u64(size, sizeof(full)));
    return 0;
}
