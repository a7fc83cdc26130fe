/*
 * info.c - what is known of an open disk: qk_disk_info, qk_disk_snapshot and the change of size.
 * Strings that are made on first demand are kept in the node, so that they live as long as it.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "node/driver.h"

#include <string.h>

/* ---- information ------------------------------------------------------------------------- */

static uint64_t occupied_bytes(struct node *node)
{
    uint64_t bytes;
    return io_allocated(&node->io, &bytes, NULL) < 0 ? QK_OFFSET_NONE : bytes;
}

static uint64_t file_length(struct node *node)
{
    struct qk_io *below = node_below(node);
    uint64_t bytes;
    return !below || io_size(below, &bytes, NULL) < 0 ? QK_OFFSET_NONE : bytes;
}

static void fill_common(struct node *node, struct qk_info *info)
{
    info->name = node->shown_name;
    info->format = node->driver->name;
    info->virtual_size = node_size(node);
    info->actual_size = occupied_bytes(node);
    info->file_length = file_length(node);
    info->read_only = !node->io.writable;
    info->zero_init = node->io.zero_init;
    info->can_zero = node->io.ops->zero;
    info->can_discard = node->io.ops->discard;
    info->probed = node->probed;
    info->file_name = node->file ? node->file->shown_name : NULL;
    info->file_driver = node->file ? node->file->driver->name : NULL;
}

/* The resolved name was kept when the backing file was opened; else it is made now. */
static const char *backing_full(struct node *node, const char *name)
{
    LOCK_SCOPE(&node->guard);
    if (!node->backing_full)
        chain_backing_name(node, name, &node->backing_full, NULL);
    return node->backing_full;
}

static const char *data_file_name(struct node *node)
{
    LOCK_SCOPE(&node->guard);
    if (!node->data_file)
        node->data_file = image_data_file_name(node->image);
    return node->data_file;
}

static void fill_qcow2(struct node *node, struct qk_info *info)
{
    static const char *const encryption[] = {NULL, "aes", "luks"};
    const struct header h = image_header_copy(node->image);
    info->cluster_size = UINT32_C(1) << h.cluster_bits;
    info->encrypted = h.crypt_method != CRYPT_NONE;
    info->dirty = h.incompatible & INCOMPAT_DIRTY;
    info->backing_file = image_backing_name(node->image);
    info->backing_format = image_backing_format(node->image);
    if (info->backing_file)
        info->backing_full = backing_full(node, info->backing_file);
    info->data_file_full = node->data ? node->data->shown_name : NULL;
    info->snapshot_count = h.snapshot_count;
    info->bitmap_count = image_bitmap_count(node->image);
    info->vm_state_off = image_vm_state_off(node->image);
    info->qcow2 = (struct qk_info_qcow2){
        .version = h.version,
        .refcount_bits = 1u << h.refcount_order,
        .compression_type = h.compression_type == COMPRESSION_ZSTD ? "zstd" : "zlib",
        .lazy_refcounts = h.compatible & COMPAT_LAZY_REFCOUNTS,
        .corrupt = h.incompatible & INCOMPAT_CORRUPT,
        .extended_l2 = h.incompatible & INCOMPAT_EXTENDED_L2,
        .data_file_raw = h.autoclear & AUTOCLEAR_DATA_FILE_RAW,
        .data_file = data_file_name(node),
        .encryption = h.crypt_method < ARRAY_SIZE(encryption) ? encryption[h.crypt_method] : NULL,
        .incompatible = h.incompatible,
        .compatible = h.compatible,
        .autoclear = h.autoclear,
    };
}

int qk_disk_info(struct qk_disk *disk, struct qk_info *info, struct qk_error *err)
{
    struct qk_info full = QK_INFO_INIT;
    size_t size = info->struct_size;
    if (size < sizeof(size))
        return qk_fail(err, -EINVAL, "struct_size of the information is not set");
    fill_common(disk->node, &full);
    if (disk->node->image)
        fill_qcow2(disk->node, &full);
    full.struct_size = size;
    memcpy(info, &full, (size_t)min_u64(size, sizeof(full)));
    return 0;
}

/* ---- encryption -------------------------------------------------------------------------- */

static void fill_luks(const struct image_luks *l, struct qk_encryption_info *info)
{
    const struct cipher_suite *s = &l->suite;
    info->format = "luks";
    info->cipher_alg = s->cipher->name;
    info->cipher_mode = cipher_mode_name(s->mode);
    info->ivgen_alg = cipher_ivgen_name(s->ivgen);
    info->ivgen_hash_alg = s->ivgen == IVGEN_ESSIV ? s->ivgen_hash->name : NULL;
    info->hash_alg = l->hash->name;
    info->uuid = l->header.uuid;
    info->payload_offset = (uint64_t)l->header.payload_sector * LUKS_SECTOR_BYTES;
    info->master_key_iterations = l->header.iterations;
    info->slot_count = LUKS_SLOTS;
    for (unsigned i = 0; i < LUKS_SLOTS; i++)
        info->slots[i] = (struct qk_key_slot){
            .active = l->header.slots[i].active,
            .iterations = l->header.slots[i].iterations,
            .stripes = l->header.slots[i].stripes,
            .key_offset = (uint64_t)l->header.slots[i].first_sector * LUKS_SECTOR_BYTES,
        };
}

int qk_disk_encryption(struct qk_disk *disk, struct qk_encryption_info *info, struct qk_error *err)
{
    const struct image *img = disk->node->image;
    struct qk_encryption_info full = QK_ENCRYPTION_INFO_INIT;
    size_t size = info->struct_size;
    if (size < sizeof(size))
        return qk_fail(err, -EINVAL, "struct_size of the information is not set");
    if (!img || image_header(img)->crypt_method == CRYPT_NONE)
        return qk_fail(err, -ENOTSUP, "The disk is not encrypted");
    full.format = "aes";
    if (image_luks(img))
        fill_luks(image_luks(img), &full);
    else if (image_header(img)->crypt_method == CRYPT_LUKS)
        return qk_fail(err, -EINVAL, "The encryption header is damaged");
    full.struct_size = size;
    memcpy(info, &full, (size_t)min_u64(size, sizeof(full)));
    return 0;
}

/* ---- size -------------------------------------------------------------------------------- */

/* A device has the size it has; to ask for that is no change. */
static int resize_device(const struct node *node, uint64_t size, struct qk_error *err)
{
    if (size == node_size(node))
        return 0;
    return qk_fail(err, -ENOTSUP, "Cannot resize device files");
}

static const struct node *bottom_of(const struct node *node)
{
    while (node->file)
        node = node->file;
    return node;
}

static int change_size(struct node *node, uint64_t size, enum qk_prealloc prealloc, unsigned flags,
                       struct qk_error *err)
{
    if (node->image)
        return image_resize(node->image, size, prealloc, flags, err);
    const struct node *bottom = bottom_of(node);
    if (!node->io.ops->resize || !bottom->io.ops->resize)
        return qk_fail(err, -ENOTSUP, "Image format driver does not support resize");
    if (bottom->driver == &host_device_driver && !node->raw_sized)
        return resize_device(node, size, err);
    /* a raw file is shared with other writers as QEMU does, but not while its length changes */
    int ret = node_lock_also(node, ROLE_DISK, IO_PERM_RESIZE, err);
    if (ret < 0)
        return ret;
    ret = io_resize(&node->io, size, prealloc, err);
    int unlocked = node_lock(node, ROLE_DISK, ret < 0 ? NULL : err);
    return ret < 0 ? ret : unlocked;
}

int qk_disk_resize(struct qk_disk *disk, uint64_t size, enum qk_prealloc prealloc, unsigned flags,
                   struct qk_error *err)
{
    struct node *node = disk->node;
    if (!node->io.writable)
        return qk_fail(err, -EROFS, "opened read-only");
    if (size < node_size(node) && !(flags & QK_RESIZE_SHRINK))
        return qk_fail(err, -EINVAL,
                       "The new size is smaller than the disk; shrinking must be "
                       "asked for");
    /* The size that is noted is that of the last change. */
    LOCK_SCOPE(&node->shape_lock);
    int ret = change_size(node, size, prealloc, flags, err);
    /* A call that failed may have changed it all the same: a disk that shrinks does so first. */
    int known = io_size(&node->io, &size, ret == 0 ? err : NULL);
    if (known == 0)
        atomic_store(&node->size, round_up(size, 512));
    return ret < 0 ? ret : known;
}
