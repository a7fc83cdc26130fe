/*
 * spill.c - the bytes of spill.h in blocks: the last ones in memory, those before them in the file,
 * each at the place that its number gives it.
 */
#include "io/spill.h"
#include "base/checked.h"
#include "base/cleanup.h"

#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define BLOCK_BYTES ((size_t)256 << 10)

/* ---- the file ---- */

/* File systems without nameless files get one that loses its name at once. */
static int file_named(const char *folder)
{
    char name[4096];
    if (snprintf(name, sizeof(name), "%s/.qcowkit-XXXXXX", folder) >= (int)sizeof(name))
        return -1;
    int fd = mkostemp(name, O_CLOEXEC);
    if (fd >= 0)
        unlink(name);
    return fd;
}

static int file_open(const char *beside)
{
    CLEANUP_FREE char *copy = strdup(beside);
    if (!copy)
        return -1;
    const char *folder = dirname(copy);
    int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    return fd >= 0 ? fd : file_named(folder);
}

static int file_move(int fd, uint64_t off, uint8_t *bytes, size_t len, bool out)
{
    while (len) {
        ssize_t n = out ? pwrite(fd, bytes, len, (off_t)off) : pread(fd, bytes, len, (off_t)off);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        off += (uint64_t)n;
        bytes += n;
        len -= (size_t)n;
    }
    return 0;
}

static int file_write(int fd, uint64_t off, const uint8_t *bytes, size_t len)
{
    return file_move(fd, off, (uint8_t *)(uintptr_t)bytes, len, true);
}

static int file_read(int fd, uint64_t off, uint8_t *out, size_t len)
{
    return file_move(fd, off, out, len, false);
}

/* ---- blocks ---- */

int spill_init(struct spill *s, const char *beside, struct qk_error *err)
{
    *s = (struct spill){.fd = -1, .beside = beside ? strdup(beside) : NULL, .most = SPILL_MEMORY};
    return beside && !s->beside ? qk_fail_nomem(err) : 0;
}

void spill_free(struct spill *s)
{
    for (size_t i = 0; i < s->blocks; i++)
        free(s->block[i]);
    free(s->block);
    free(s->beside);
    if (s->fd >= 0)
        close(s->fd);
    *s = (struct spill){.fd = -1};
}

/* The first block that is still in memory goes to the file, if it can. */
static void push_out(struct spill *s)
{
    if (s->fd < 0 && s->beside && !s->in_vain)
        s->fd = file_open(s->beside);
    s->in_vain = s->in_vain || s->fd < 0 ||
                 file_write(s->fd, s->first * BLOCK_BYTES, s->block[s->first], BLOCK_BYTES) < 0;
    if (s->in_vain)
        return;
    free(s->block[s->first]);
    s->block[s->first++] = NULL;
}

static int block_add(struct spill *s)
{
    if ((s->blocks - s->first + 1) * BLOCK_BYTES > s->most && !s->in_vain)
        push_out(s);
    if (s->blocks == s->room) {
        size_t room = s->room ? s->room * 2 : 64;
        uint8_t **p = realloc(s->block, room * sizeof(*p));
        if (!p)
            return -ENOMEM;
        s->block = p;
        s->room = room;
    }
    s->block[s->blocks] = malloc(BLOCK_BYTES);
    if (!s->block[s->blocks])
        return -ENOMEM;
    s->blocks++;
    return 0;
}

/* As much of the range as lies in one block. */
static size_t in_block(uint64_t pos, size_t len)
{
    return (size_t)min_u64(len, BLOCK_BYTES - pos % BLOCK_BYTES);
}

static int part_write(struct spill *s, uint64_t pos, const uint8_t *bytes, size_t len)
{
    uint8_t *block = s->block[pos / BLOCK_BYTES];
    if (!block)
        return file_write(s->fd, pos, bytes, len);
    memcpy(block + pos % BLOCK_BYTES, bytes, len);
    return 0;
}

static int part_read(const struct spill *s, uint64_t pos, uint8_t *out, size_t len)
{
    const uint8_t *block = s->block[pos / BLOCK_BYTES];
    if (!block)
        return file_read(s->fd, pos, out, len);
    memcpy(out, block + pos % BLOCK_BYTES, len);
    return 0;
}

int spill_append(struct spill *s, const void *bytes, size_t len, uint64_t *pos,
                 struct qk_error *err)
{
    uint64_t end = s->len + len;
    while (s->blocks * (uint64_t)BLOCK_BYTES < end) {
        if (block_add(s) < 0)
            return qk_fail_nomem(err);
    }
    int ret = spill_write(s, s->len, bytes, len, err);
    if (ret < 0)
        return ret;
    *pos = s->len;
    s->len = end;
    return 0;
}

int spill_read(const struct spill *s, uint64_t pos, void *out, size_t len, struct qk_error *err)
{
    uint8_t *to = out;
    for (size_t n; len; pos += n, to += n, len -= n) {
        n = in_block(pos, len);
        int ret = part_read(s, pos, to, n);
        if (ret < 0)
            return qk_fail_errno(err, ret, "Could not read the plan back from its file");
    }
    return 0;
}

int spill_write(struct spill *s, uint64_t pos, const void *bytes, size_t len, struct qk_error *err)
{
    const uint8_t *from = bytes;
    for (size_t n; len; pos += n, from += n, len -= n) {
        n = in_block(pos, len);
        int ret = part_write(s, pos, from, n);
        if (ret < 0)
            return qk_fail_errno(err, ret, "Could not write the plan to its file");
    }
    return 0;
}
