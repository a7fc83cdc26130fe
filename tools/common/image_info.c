/*
 * image_info.c - rows on what only images of one format have (image_info.h), in qemu's order.
 */
#include "common/image_info.h"

#include <string.h>

static int add_bitmaps(struct rows *data, struct qk_disk *disk, uint32_t count,
                       struct qk_error *err)
{
    if (!count)
        return 0;
    struct rows *list = rows_list(data, "bitmaps", "bitmaps");
    for (uint32_t i = 0; i < count; i++) {
        struct qk_bitmap_info bitmap = QK_BITMAP_INFO_INIT;
        int ret = qk_disk_bitmap(disk, i, &bitmap, err);
        if (ret)
            return ret;
        struct rows *rows = rows_object(list, NULL, NULL);
        struct rows *flags = rows_list(rows, "flags", "flags");
        if (bitmap.in_use)
            rows_text(flags, NULL, NULL, "in-use");
        if (bitmap.enabled)
            rows_text(flags, NULL, NULL, "auto");
        rows_text(rows, "name", "name", bitmap.name);
        rows_uint(rows, "granularity", "granularity", bitmap.granularity);
    }
    return 0;
}

static void add_slot(struct rows *list, const struct qk_key_slot *slot)
{
    struct rows *rows = rows_object(list, NULL, NULL);
    rows_bool(rows, "active", "active", slot->active);
    if (slot->active)
        rows_uint(rows, "iters", "iters", slot->iterations);
    rows_uint(rows, "key-offset", "key offset", slot->key_offset);
    if (slot->active)
        rows_uint(rows, "stripes", "stripes", slot->stripes);
}

static int add_encryption(struct rows *data, struct qk_disk *disk, struct qk_error *err)
{
    struct qk_encryption_info info = QK_ENCRYPTION_INFO_INIT;
    int ret = qk_disk_encryption(disk, &info, err);
    if (ret)
        return ret;
    struct rows *rows = rows_object(data, "encrypt", "encrypt");
    if (!info.cipher_alg) {
        rows_text(rows, "format", "format", info.format);
        return 0;
    }
    rows_text(rows, "ivgen-alg", "ivgen alg", info.ivgen_alg);
    rows_text(rows, "hash-alg", "hash alg", info.hash_alg);
    rows_text(rows, "cipher-alg", "cipher alg", info.cipher_alg);
    rows_text(rows, "uuid", "uuid", info.uuid);
    if (info.ivgen_hash_alg)
        rows_text(rows, "ivgen-hash-alg", "ivgen hash alg", info.ivgen_hash_alg);
    rows_text(rows, "format", "format", info.format);
    rows_text(rows, "cipher-mode", "cipher mode", info.cipher_mode);
    struct rows *slots = rows_list(rows, "slots", "slots");
    for (unsigned i = 0; i < info.slot_count; i++)
        add_slot(slots, &info.slots[i]);
    rows_uint(rows, "payload-offset", "payload offset", info.payload_offset);
    rows_uint(rows, "master-key-iters", "master key iters", info.master_key_iterations);
    return 0;
}

int image_info_specific(struct rows *rows, struct qk_disk *disk, const struct qk_info *info,
                        struct qk_error *err)
{
    if (strcmp(info->format, "qcow2") != 0)
        return 0;
    const struct qk_info_qcow2 *qcow2 = &info->qcow2;
    struct rows *specific = rows_object(rows, "format-specific", "Format specific information");
    rows_text(specific, "type", NULL, info->format);
    struct rows *data = rows_object(specific, "data", "");
    bool v3 = qcow2->version >= 3;
    rows_text(data, "compat", "compat", v3 ? "1.1" : "0.10");
    rows_text(data, "compression-type", "compression type", qcow2->compression_type);
    if (v3)
        rows_bool(data, "lazy-refcounts", "lazy refcounts", qcow2->lazy_refcounts);
    int ret = add_bitmaps(data, disk, info->bitmap_count, err);
    if (ret)
        return ret;
    rows_uint(data, "refcount-bits", "refcount bits", qcow2->refcount_bits);
    if (qcow2->encryption)
        ret = add_encryption(data, disk, err);
    if (ret)
        return ret;
    if (qcow2->data_file)
        rows_text(data, "data-file", "data file", qcow2->data_file);
    if (v3 && qcow2->data_file)
        rows_bool(data, "data-file-raw", "data file raw", qcow2->data_file_raw);
    if (v3)
        rows_bool(data, "corrupt", "corrupt", qcow2->corrupt);
    if (v3)
        rows_bool(data, "extended-l2", "extended l2", qcow2->extended_l2);
    return 0;
}

static void add_child_json(struct rows *rows, const struct qk_info *info, uint64_t length)
{
    struct rows *list = rows_list(rows, "children", NULL);
    struct rows *child = rows_object(list, NULL, NULL);
    rows_text(child, "name", NULL, "file");
    struct rows *data = rows_object(child, "info", NULL);
    rows_list(data, "children", NULL);
    rows_uint(data, "virtual-size", NULL, length);
    rows_text(data, "filename", NULL, info->file_name);
    rows_text(data, "format", NULL, info->file_driver);
    if (info->actual_size != QK_OFFSET_NONE)
        rows_uint(data, "actual-size", NULL, info->actual_size);
    struct rows *specific = rows_object(data, "format-specific", NULL);
    rows_text(specific, "type", NULL, info->file_driver);
    rows_object(specific, "data", NULL);
    rows_bool(data, "dirty-flag", NULL, false);
}

void image_info_children(struct rows *rows, const struct qk_info *info)
{
    if (!info->file_name || info->file_length == QK_OFFSET_NONE)
        return;
    uint64_t length = (info->file_length + 511) / 512 * 512; /* in sectors, as QEMU has it */
    add_child_json(rows, info, length);
    struct rows *text = rows_object(rows, NULL, "Child node '/file'");
    rows_text(text, NULL, "filename", info->file_name);
    rows_text(text, NULL, "protocol type", info->file_driver);
    rows_size_bytes(text, NULL, "file length", length);
    if (info->actual_size == QK_OFFSET_NONE)
        rows_text(text, NULL, "disk size", "unavailable");
    else
        rows_size(text, NULL, "disk size", info->actual_size);
}
