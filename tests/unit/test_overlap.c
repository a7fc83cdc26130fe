/*
 * test_overlap.c - INV-6: when damaged refcounts make the allocator hand out a cluster that holds
 * metadata, the write is refused with the kind's name, nothing but the corrupt bit reaches the
 * file, and the image takes no more writes. One case for each kind of table.
 */
#include "base/bytes.h"
#include "image/image.h"
#include "test.h"

#define CLUSTER 4096u

static const struct image_options writable = {
    .writable = true, .lazy_refcounts = -1, .overlap = OVERLAP_ALL};

static int write_at(struct image *img, uint64_t off, struct qk_error *err)
{
    static uint8_t buf[CLUSTER];
    memset(buf, 0x5a, sizeof(buf));
    return image_writev(img, guest_off(off), &(struct iovec){buf, sizeof(buf)}, 1, 0, err);
}

/* An image with one guest cluster written; *places: header, table, block, L1, L2 by kind. */
static struct qk_io *make_image(uint64_t places[5])
{
    struct create_params p = {
        .size_bytes = 1 << 20, .version = 3, .cluster_bits = 12, .refcount_order = 4};
    struct qk_io *io = NULL;
    struct image *img = NULL;
    uint8_t entry[8];
    uint32_t count;
    CHECK_OK(io_mem_open(NULL, 0, 0, &io, NULL));
    CHECK_OK(image_create(io, &p, NULL));
    CHECK_OK(image_open(io, &writable, &img, NULL));
    CHECK_OK(write_at(img, 0, NULL));
    const struct header *h = image_header(img);
    CHECK_OK(image_flush(img, NULL));
    CHECK_OK(io_read(io, h->reftable_off, entry, sizeof(entry), NULL));
    places[0] = 0;
    places[1] = h->reftable_off;
    places[2] = load_be64(entry);
    places[3] = h->l1_off;
    places[4] = l1_entry_host(image_l1(img, &count)[0]);
    CHECK_OK(image_close(img, NULL));
    return io;
}

static uint8_t *copy_file(struct qk_io *io, size_t *len)
{
    const uint8_t *data = io_mem_data(io, len);
    uint8_t *copy = malloc(*len);
    memcpy(copy, data, *len);
    return copy;
}

static void test_kind(unsigned kind, const char *name)
{
    uint64_t places[5];
    struct qk_io *io = make_image(places);
    struct image *img;
    struct qk_error err = {0};
    size_t before_len, after_len;
    /* The table's cluster becomes the lowest free one. */
    CHECK_OK(io_write(io, places[2] + places[kind] / CLUSTER * 2, "\0\0", 2, 0, NULL));
    uint8_t *before = copy_file(io, &before_len);
    REQUIRE(image_open(io, &writable, &img, NULL) == 0);
    CHECK_ERR(write_at(img, 8 * CLUSTER, &err), -EIO);
    CHECK(strstr(err.text, name) != NULL);
    CHECK_EQ(err.offset, places[kind]);
    CHECK_ERR(write_at(img, 0, &err), -EIO);
    CHECK_OK(image_close(img, NULL));
    uint8_t *after = copy_file(io, &after_len);
    CHECK(load_be64(after + 72) & INCOMPAT_CORRUPT);
    memcpy(after + 72, before + 72, 8);
    CHECK_EQ(after_len, before_len);
    CHECK_MEM(after, before, before_len < after_len ? before_len : after_len);
    free(before);
    free(after);
    io_close(io, NULL);
}

int main(void)
{
    static const char *const names[] = {"qcow2_header", "refcount table", "refcount block",
                                        "active L1 table", "active L2 table"};
    for (unsigned kind = 0; kind < 5; kind++)
        test_kind(kind, names[kind]);
    return TEST_SUMMARY();
}
