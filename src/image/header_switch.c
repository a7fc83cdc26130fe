/*
 * header_switch.c - changing anything in the header cluster from one state to another, with nothing
 * between: fixed fields, extensions and the backing file name. Bytes that the old state does not
 * use are written first and made stable; all bytes that mean something to it change in one sector,
 * whose write is the switch. Relies on a sector being written whole or not at all.
 *
 * A layout where that is not so is not taken. Others are tried: the backing file name behind
 * everything that the old state uses, and the list of feature names, which is for people only, left
 * out. In an image with clusters of 512 bytes all is one sector.
 */
#include "image/image_int.h"

#define SECTOR UINT64_C(512)

struct switching {
    struct image *img;
    struct header h;               /* the new fields */
    struct header_extensions exts; /* the new list; data is borrowed */
    const char *backing_name;      /* NULL: none */
    uint8_t *new_used;
    uint8_t *old_used;         /* a byte for each byte of the cluster: the old state reads it */
    size_t old_end;            /* behind the last one of them */
    uint8_t *cluster;          /* the new state */
    struct header_words words; /* what it says, known before it is written */
};

static bool changed_type(const struct header_change *change, uint32_t type,
                         const struct header_extension **ext)
{
    for (size_t i = 0; i < change->ext_count; i++)
        if (change->exts[i].type == type) {
            *ext = &change->exts[i];
            return true;
        }
    return false;
}

static int append(struct switching *s, const struct header_extension *ext)
{
    return ext->data ? header_extension_vec_append(&s->exts.list, *ext) : 0;
}

/* Old order, new contents; what is new comes last, but before the feature names. */
static int new_list(struct switching *s, const struct header_change *change)
{
    const struct header_extensions *old = &s->img->exts;
    const struct header_extension *names = NULL, *ext;
    int ret = 0;
    for (size_t i = 0; i < old->list.len && ret == 0; i++) {
        const struct header_extension *had = &old->list.ptr[i];
        if (had->type == HEXT_FEATURE_NAMES)
            names = had;
        else
            ret = append(s, changed_type(change, had->type, &ext) ? ext : had);
    }
    for (size_t i = 0; i < change->ext_count && ret == 0; i++)
        if (!header_extensions_find(old, change->exts[i].type))
            ret = append(s, &change->exts[i]);
    if (ret == 0 && names)
        ret = append(s, names);
    return ret;
}

/* Marks bytes that a state of the header means something by; returns the end of the last. */
static size_t mark_range(uint8_t *used, uint64_t size, uint64_t off, uint64_t len)
{
    if (off >= size || !len)
        return 0;
    len = min_u64(len, size - off);
    memset(used + off, 1, len);
    return (size_t)(off + len);
}

static size_t mark_state(uint8_t *used, uint64_t size, const struct header *h,
                         const struct header_extensions *exts)
{
    uint64_t at = h->version >= 3 ? h->header_bytes : QCOW2_V2_HEADER_BYTES;
    memset(used, 0, size);
    for (size_t i = 0; i < exts->list.len; i++)
        at += 8 + round_up(exts->list.ptr[i].len, 8);
    at += 8; /* the end marker */
    size_t end = mark_range(used, size, 0, at);
    if (!h->backing_name_off)
        return end;
    return (size_t)max_u64(end, mark_range(used, size, h->backing_name_off, h->backing_name_len));
}

/* What the new state does not use stays as the old one left it: it may be in use until the switch.
 */
static void keep_unused(struct switching *s)
{
    mark_state(s->new_used, s->img->g.cluster_bytes, &s->h, &s->exts);
    for (size_t i = 0; i < s->img->g.cluster_bytes; i++)
        if (!s->new_used[i])
            s->cluster[i] = s->img->header_cluster[i];
}

/* All bytes that both states use and that differ are in one sector: *sector. */
static bool one_sector(const struct switching *s, uint64_t *sector)
{
    const uint8_t *old = s->img->header_cluster;
    bool found = false;
    *sector = 0;
    for (size_t i = 0; i < s->old_end; i++) {
        if (!s->old_used[i] || old[i] == s->cluster[i])
            continue;
        if (found && i / SECTOR != *sector)
            return false;
        *sector = i / SECTOR;
        found = true;
    }
    return true;
}

static bool lay_out(struct switching *s, size_t name_from, uint64_t *sector, struct qk_error *err)
{
    struct image *img = s->img;
    bool keeps_unknown = s->h.header_bytes == img->h.header_bytes;
    struct header_layout layout = {
        .h = &s->h,
        .unknown_fields = keeps_unknown ? img->header_cluster + QCOW2_FULL_HEADER_BYTES : NULL,
        .exts = &s->exts,
        .backing_name = s->backing_name,
        .name_from = name_from,
    };
    if (header_layout(&layout, s->cluster, img->g.cluster_bytes, err) < 0)
        return false;
    keep_unused(s);
    if (one_sector(s, sector))
        return true;
    qk_fail_at(err, -ENOSPC, WHERE(img->file->name, "header", 0),
               "no room in the header cluster to change it in one step");
    return false;
}

static bool drop_feature_names(struct switching *s)
{
    struct header_extension_vec *list = &s->exts.list;
    if (!list->len || list->ptr[list->len - 1].type != HEXT_FEATURE_NAMES)
        return false;
    list->len--;
    return true;
}

static bool find_layout(struct switching *s, uint64_t *sector, struct qk_error *err)
{
    size_t behind = (size_t)round_up(s->old_end, 8);
    do {
        if (lay_out(s, 0, sector, err) || lay_out(s, behind, sector, err))
            return true;
    } while (drop_feature_names(s));
    return false;
}

/* Writes what differs in [from, to). */
static int write_range(struct switching *s, uint64_t from, uint64_t to, struct qk_error *err)
{
    const uint8_t *old = s->img->header_cluster;
    while (from < to && old[from] == s->cluster[from])
        from++;
    while (from < to && old[to - 1] == s->cluster[to - 1])
        to--;
    if (from == to)
        return 0;
    from = from / SECTOR * SECTOR;
    to = min_u64(round_up(to, SECTOR), s->img->g.cluster_bytes);
    int ret = io_write(s->img->file, from, s->cluster + from, to - from, 0, err);
    image_note_unsynced(s->img);
    return ret;
}

static int write_switch(struct switching *s, uint64_t sector, struct qk_error *err)
{
    uint64_t start = sector * SECTOR, end = start + SECTOR;
    int ret = write_range(s, 0, start, err);
    if (ret == 0)
        ret = write_range(s, end, s->img->g.cluster_bytes, err);
    if (ret == 0)
        ret = io_flush(s->img->file, err);
    if (ret < 0)
        return ret;
    ret = write_range(s, start, end, err);
    if (ret == 0)
        ret = io_flush(s->img->file, err);
    if (ret < 0)
        header_io_restore(s->img, sector);
    return ret;
}

static int prepare(struct switching *s, const struct header_change *change, struct qk_error *err)
{
    struct image *img = s->img;
    s->h = change->fixed ? *change->fixed : img->h;
    s->h.autoclear = (s->h.autoclear & ~change->autoclear_clear) | change->autoclear_set;
    const char *name = change->backing_name ? change->backing_name : img->backing_name;
    s->backing_name = name && *name ? name : NULL;
    s->cluster = aligned_alloc(4096, round_up(img->g.cluster_bytes, 4096));
    s->old_used = malloc(img->g.cluster_bytes);
    s->new_used = malloc(img->g.cluster_bytes);
    if (!s->cluster || !s->old_used || !s->new_used || new_list(s, change) < 0)
        return qk_fail_nomem(err);
    s->old_end = mark_state(s->old_used, img->g.cluster_bytes, &img->h, &img->exts);
    return 0;
}

/* The new state is the one on disk: the image in memory follows, which cannot fail. */
static void adopt(struct switching *s)
{
    struct image *img = s->img;
    header_adopt(img, &s->h);
    header_words_adopt(img, &s->words);
    free(img->header_cluster);
    img->header_cluster = TAKE(s->cluster);
}

int header_io_switch(struct image *img, const struct header_change *change, struct qk_error *err)
{
    LOCK_SCOPE(&img->header_lock);
    struct switching s = {.img = img};
    uint64_t sector;
    int ret = prepare(&s, change, err);
    if (ret == 0 && !find_layout(&s, &sector, err))
        ret = -ENOSPC;
    if (ret == 0)
        ret = header_words_parse(img, &s.h, s.cluster, &s.words, err);
    if (ret == 0)
        ret = write_switch(&s, sector, err);
    if (ret == 0)
        adopt(&s);
    header_words_free(&s.words);
    header_extensions_free(&s.exts);
    free(s.old_used);
    free(s.new_used);
    free(s.cluster);
    return ret;
}
