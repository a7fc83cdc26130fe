/*
 * snapshots.c - reading the snapshot table entry by entry. Each entry has a fixed part, extra data
 * whose length it states, id and name, and is padded to 8 bytes.
 */
#include "node/snapshots.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"

enum {
    FIXED_BYTES = 40,
    EXTRA_KNOWN_BYTES = 24, /* large vm state size, disk size, icount */
    EXTRA_BYTES_MAX = 1024, /* QEMU's limit */
};

struct entry_sizes {
    uint32_t extra, id, name;
};

void snapshots_free(struct snapshot_list *list)
{
    if (!list)
        return;
    for (uint32_t i = 0; i < list->count; i++) {
        free(list->row[i].id);
        free(list->row[i].name);
    }
    free(list->row);
    free(list);
}

static int bad_entry(struct qk_io *file, uint64_t off, struct qk_error *err)
{
    return qk_fail_at(err, -EINVAL, WHERE(file->name, "snapshot table", off),
                      "Snapshot table entry at %#llx is malformed", (unsigned long long)off);
}

static struct entry_sizes decode_fixed(const uint8_t *fixed, struct snapshot_row *row)
{
    row->date_sec = load_be32(fixed + 16);
    row->date_nsec = load_be32(fixed + 20);
    row->vm_clock_ns = load_be64(fixed + 24);
    row->vm_state_bytes = load_be32(fixed + 32);
    return (struct entry_sizes){
        .id = load_be16(fixed + 12), .name = load_be16(fixed + 14), .extra = load_be32(fixed + 36)};
}

static void decode_extra(const uint8_t *extra, uint32_t len, uint64_t disk_bytes,
                         struct snapshot_row *row)
{
    row->vm_state_bytes = len >= 8 ? load_be64(extra) : row->vm_state_bytes;
    row->disk_bytes = len >= 16 ? load_be64(extra + 8) : disk_bytes;
    row->icount = len >= 24 ? load_be64(extra + 16) : UINT64_MAX;
}

static char *copy_text(const uint8_t *bytes, uint32_t len)
{
    char *text = malloc((size_t)len + 1);
    if (!text)
        return NULL;
    memcpy(text, bytes, len);
    text[len] = '\0';
    return text;
}

/* Reads the entry at *off and moves on to the next. */
static int read_entry(const struct image *img, uint64_t file_bytes, uint64_t *off,
                      struct snapshot_row *row, struct qk_error *err)
{
    struct qk_io *file = image_file(img);
    uint8_t fixed[FIXED_BYTES];
    if (!range_within(*off, sizeof(fixed), file_bytes))
        return bad_entry(file, *off, err);
    int ret = io_read(file, *off, fixed, sizeof(fixed), err);
    if (ret < 0)
        return ret;
    struct entry_sizes sizes = decode_fixed(fixed, row);
    uint32_t len = sizes.id + sizes.name;
    if (sizes.extra > EXTRA_BYTES_MAX ||
        !range_within(*off + FIXED_BYTES, sizes.extra + len, file_bytes))
        return bad_entry(file, *off, err);
    len += sizes.extra;
    CLEANUP_FREE uint8_t *rest = malloc(len ? len : 1);
    if (!rest)
        return qk_fail_nomem(err);
    ret = len ? io_read(file, *off + FIXED_BYTES, rest, len, err) : 0;
    if (ret < 0)
        return ret;
    decode_extra(rest, sizes.extra, image_size(img), row);
    row->id = copy_text(rest + sizes.extra, sizes.id);
    row->name = copy_text(rest + sizes.extra + sizes.id, sizes.name);
    *off = round_up(*off + FIXED_BYTES + len, 8);
    return row->id && row->name ? 0 : qk_fail_nomem(err);
}

int snapshots_read(const struct image *img, struct snapshot_list **out, struct qk_error *err)
{
    const struct header *h = image_header(img);
    uint64_t file_bytes, off = h->snapshots_off;
    int ret = io_size(image_file(img), &file_bytes, err);
    if (ret < 0)
        return ret;
    if (h->snapshot_count &&
        (off > file_bytes || h->snapshot_count > (file_bytes - off) / FIXED_BYTES))
        return bad_entry(image_file(img), off, err);
    struct snapshot_list *list = calloc(1, sizeof(*list));
    if (list)
        list->row = calloc(h->snapshot_count ? h->snapshot_count : 1, sizeof(*list->row));
    if (!list || !list->row) {
        snapshots_free(list);
        return qk_fail_nomem(err);
    }
    list->count = h->snapshot_count;
    for (uint32_t i = 0; i < list->count && ret == 0; i++)
        ret = read_entry(img, file_bytes, &off, &list->row[i], err);
    if (ret < 0) {
        snapshots_free(list);
        return ret;
    }
    *out = list;
    return 0;
}
