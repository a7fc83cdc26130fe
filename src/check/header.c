/*
 * header.c - part of phase 1: header fields that contradict each other but leave the image
 * readable, and their repair: each is one field that becomes zero or loses a bit. What makes an
 * image unreadable is judged when it is opened (format/header.h).
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "check/internal.h"

/* The field at `off` is wrong when its value is `now`, and right with `good`. */
struct field_problem {
    enum problem_id id;
    uint32_t off;
    uint64_t now, good;
};

static bool backing_name_misplaced(const struct header *h)
{
    return h->backing_name_off && h->backing_name_off < h->header_bytes;
}

static size_t field_problems(const struct check *c, struct field_problem out[3])
{
    const struct header *h = c->h;
    size_t n = 0;
    if ((h->autoclear & AUTOCLEAR_DATA_FILE_RAW) && !c->data_file)
        out[n++] = (struct field_problem){PROBLEM_AUTOCLEAR_RAW, HEADER_AUTOCLEAR_OFF, h->autoclear,
                                          h->autoclear & ~(uint64_t)AUTOCLEAR_DATA_FILE_RAW};
    if (backing_name_misplaced(h))
        out[n++] = (struct field_problem){h->backing_name_len ? PROBLEM_BACKING_INSIDE
                                                              : PROBLEM_BACKING_STRAY,
                                          HEADER_BACKING_OFF, h->backing_name_off, 0};
    return n;
}

int header_collect(struct check *c, struct qk_error *err)
{
    struct field_problem list[3];
    size_t n = field_problems(c, list);
    for (size_t i = 0; i < n; i++) {
        const struct finding f = {list[i].id, list[i].off, QK_OFFSET_NONE, list[i].good,
                                  list[i].now};
        sink_found(&c->sink, &f, list[i].now);
    }
    return count_inside(c, 0, c->g->cluster_bytes, err);
}

int header_edit(struct check *c, struct qk_error *err)
{
    struct field_problem list[3];
    size_t n = field_problems(c, list);
    for (size_t i = 0; i < n; i++) {
        if (!problem_fixable(c->opts, list[i].id))
            continue;
        uint8_t field[8];
        store_be64(field, list[i].good);
        static const struct step what = {.action = "correct field", .structure = "header"};
        const struct plan_bytes bytes = {list[i].off, field, sizeof(field)};
        int ret = plan_write(c, &what, &bytes, err);
        if (ret < 0)
            return ret;
        const struct finding f = {list[i].id, list[i].off, QK_OFFSET_NONE, list[i].good,
                                  list[i].now};
        sink_repaired(&c->sink, &f, list[i].now);
    }
    return 0;
}
