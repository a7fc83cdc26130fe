/*
 * fault.c - the blkdebug store: a filter that lets requests through to its inner store, or fails
 * them as rules say (see fault.h for how rules, events and states work). Relies on fault_rules.c
 * for rules as data and on fault_limits.c for cutting requests; promises the thread-safety of
 * io.h. One lock guards rules and state, and is never held during inner I/O.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "io/fault_store.h"

#include <stdio.h>
#include <string.h>

/* ---- events ---- */

static void deactivate_all(struct fault_store *f)
{
    for (size_t i = 0; i < f->rules.len; i++)
        f->rules.ptr[i]->active = false;
}

static void remove_rule(struct fault_rules *rules, size_t i)
{
    memmove(&rules->ptr[i], &rules->ptr[i + 1], (rules->len - i - 1) * sizeof(rules->ptr[0]));
    rules->len--;
}

/* A breakpoint serves once: its rule turns into the token that the request waits with. */
static struct fault_rule *suspend(struct fault_store *f, size_t i)
{
    struct fault_rule *rule = f->rules.ptr[i];
    if (fault_rules_append(&f->suspended, rule) < 0)
        return NULL;
    remove_rule(&f->rules, i);
    return rule;
}

/* Later rules come first, so that of two set-state rules that fit the earlier one wins. Returns
 * the breakpoint that was hit, or NULL; only one counts, the others wait for the next event. */
static struct fault_rule *run_event(struct fault_store *f, int64_t event)
{
    int64_t new_state = f->state;
    struct fault_rule *hit = NULL;
    bool injected = false;
    for (size_t i = f->rules.len; i-- > 0;) {
        struct fault_rule *rule = f->rules.ptr[i];
        if (rule->event != event || (rule->state && rule->state != f->state))
            continue;
        if (rule->action == FAULT_INJECT) {
            if (!injected)
                deactivate_all(f);
            injected = rule->active = true;
        } else if (rule->action == FAULT_SET_STATE) {
            new_state = rule->new_state;
        } else if (!hit) {
            hit = suspend(f, i);
        }
    }
    f->state = new_state;
    return hit;
}

/* Before the first request or event, when all rules are in place. */
static void start(struct fault_store *f)
{
    if (f->started)
        return;
    f->started = true;
    run_event(f, fault_event_index("none"));
}

static void notify(struct fault_store *f, const char *tag, bool suspended)
{
    if (f->notify)
        f->notify(f->notify_opaque, tag, suspended);
}

static void forget_suspended(struct fault_store *f, const struct fault_rule *rule)
{
    for (size_t i = 0; i < f->suspended.len; i++) {
        if (f->suspended.ptr[i] == rule) {
            remove_rule(&f->suspended, i);
            return;
        }
    }
}

static void wait_resumed(struct fault_store *f, struct fault_rule *hit)
{
    notify(f, hit->tag, true);
    pthread_mutex_lock(&f->lock);
    while (!hit->resumed)
        pthread_cond_wait(&f->resumed, &f->lock);
    forget_suspended(f, hit);
    pthread_mutex_unlock(&f->lock);
    notify(f, hit->tag, false);
    fault_rule_free(hit);
}

void fault_event(struct qk_io *io, const char *event)
{
    struct fault_store *f = fault_store(io);
    int64_t index = fault_event_index(event);
    if (index < 0)
        return;
    pthread_mutex_lock(&f->lock);
    start(f);
    struct fault_rule *hit = run_event(f, index);
    pthread_mutex_unlock(&f->lock);
    if (hit)
        wait_resumed(f, hit);
}

/* ---- requests ---- */

static bool covers(const struct fault_rule *rule, const struct fault_request *req)
{
    if (!rule->active || !(rule->iotypes & (1 << req->type)))
        return false;
    if (rule->sector == -1)
        return true;
    uint64_t off = (uint64_t)rule->sector * 512;
    return rule->sector >= 0 && off >= req->off && off - req->off < req->len;
}

/* The first active rule in the order of adding decides, also when its errno is 0. */
static int error_by_rule(struct fault_store *f, const struct fault_request *req)
{
    for (size_t i = 0; i < f->rules.len; i++) {
        struct fault_rule *rule = f->rules.ptr[i];
        if (!covers(rule, req))
            continue;
        int error = (int)rule->error;
        if (error && rule->once) {
            remove_rule(&f->rules, i);
            fault_rule_free(rule);
        }
        return error;
    }
    return 0;
}

static int error_by_count(struct fault_store *f, const struct fault_request *req)
{
    if (!(f->nth.iotypes & (1u << req->type)))
        return 0;
    f->counted++;
    if (!f->nth.nth || f->counted < f->nth.nth)
        return 0;
    return f->counted == f->nth.nth || f->nth.always ? f->nth.error : 0;
}

int fault_check(struct fault_store *f, const struct fault_request *req, struct qk_error *err)
{
    pthread_mutex_lock(&f->lock);
    start(f);
    int error = error_by_rule(f, req);
    if (!error)
        error = error_by_count(f, req);
    f->injected[req->type] += error != 0;
    pthread_mutex_unlock(&f->lock);
    return error ? qk_fail_errno(err, -error, "injected by blkdebug") : 0;
}

int fault_read_piece(struct fault_store *f, uint64_t off, const struct iovec *iov, int iovcnt,
                     struct qk_error *err)
{
    int ret = fault_check(f, &(struct fault_request){FAULT_READ, off, iov_total(iov, iovcnt)}, err);
    return ret < 0 ? ret : io_readv(f->inner, off, iov, iovcnt, err);
}

/* What a device may have done before it reported the error. */
static void write_torn(struct fault_store *f, uint64_t off, const struct iovec *iov, int iovcnt)
{
    size_t half = (size_t)round_down(iov_total(iov, iovcnt) / 2, 512);
    struct iovec *part = calloc((size_t)iovcnt, sizeof(*part));
    if (part && half)
        io_writev(f->inner, off, part, iov_slice(iov, iovcnt, 0, half, part), 0, NULL);
    free(part);
}

int fault_write_piece(struct fault_store *f, uint64_t off, const struct iovec *iov, int iovcnt,
                      unsigned flags, struct qk_error *err)
{
    const struct fault_request req = {FAULT_WRITE, off, iov_total(iov, iovcnt)};
    fault_event(&f->io, "pwritev");
    int ret = fault_check(f, &req, err);
    if (ret == 0)
        ret = io_writev(f->inner, off, iov, iovcnt, flags, err);
    else if (f->nth.torn)
        write_torn(f, off, iov, iovcnt);
    fault_event(&f->io, "pwritev_done");
    return ret;
}

int fault_zero_piece(struct fault_store *f, uint64_t off, uint64_t len, unsigned flags,
                     struct qk_error *err)
{
    fault_event(&f->io, "pwritev_zero");
    int ret = fault_check(f, &(struct fault_request){FAULT_WRITE_ZEROES, off, len}, err);
    if (ret == 0)
        ret = io_zero(f->inner, off, len, flags, err);
    fault_event(&f->io, "pwritev_done");
    return ret;
}

int fault_discard_piece(struct fault_store *f, uint64_t off, uint64_t len, struct qk_error *err)
{
    int ret = fault_check(f, &(struct fault_request){FAULT_DISCARD, off, len}, err);
    return ret < 0 ? ret : io_discard(f->inner, off, len, err);
}

static int fault_flush(struct qk_io *io, struct qk_error *err)
{
    struct fault_store *f = fault_store(io);
    int ret = fault_check(f, &(struct fault_request){.type = FAULT_FLUSH}, err);
    return ret < 0 ? ret : io_flush(f->inner, err);
}

static int fault_size(struct qk_io *io, uint64_t *size, struct qk_error *err)
{
    return io_size(fault_store(io)->inner, size, err);
}

static int fault_resize(struct qk_io *io, uint64_t size, enum qk_prealloc prealloc,
                        struct qk_error *err)
{
    struct fault_store *f = fault_store(io);
    int ret = fault_check(f, &(struct fault_request){.type = FAULT_RESIZE}, err);
    return ret < 0 ? ret : io_resize(f->inner, size, prealloc, err);
}

static int fault_status(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags,
                        struct qk_extent *extent, struct qk_error *err)
{
    struct fault_store *f = fault_store(io);
    int ret = fault_check(f, &(struct fault_request){FAULT_BLOCK_STATUS, off, len}, err);
    return ret < 0 ? ret : io_status(f->inner, off, len, flags, extent, err);
}

static int fault_allocated(struct qk_io *io, uint64_t *bytes, struct qk_error *err)
{
    return io_allocated(fault_store(io)->inner, bytes, err);
}

static int fault_set_perm(struct qk_io *io, unsigned used, unsigned shared, struct qk_error *err)
{
    return io_set_perm(fault_store(io)->inner, used, shared, err);
}

static int fault_set_writable(struct qk_io *io, bool writable, struct qk_error *err)
{
    struct fault_store *f = fault_store(io);
    int ret = io_set_writable(f->inner, writable, err);
    io->can_grow = f->inner->can_grow;
    return ret;
}

static int fault_close(struct qk_io *io, struct qk_error *err)
{
    struct fault_store *f = fault_store(io);
    int ret = io_close(f->inner, err);
    fault_rules_clear(&f->rules);
    fault_rules_clear(&f->suspended);
    pthread_mutex_destroy(&f->lock);
    pthread_cond_destroy(&f->resumed);
    pthread_rwlock_destroy(&f->edge_lock);
    free(f->io.name);
    free(f);
    return ret;
}

static const struct qk_io_ops fault_ops = {
    .name = "blkdebug",
    .preadv = fault_preadv,
    .pwritev = fault_pwritev,
    .zero = fault_zero,
    .discard = fault_discard,
    .flush = fault_flush,
    .size = fault_size,
    .resize = fault_resize,
    .status = fault_status,
    .allocated = fault_allocated,
    .event = fault_event,
    .set_perm = fault_set_perm,
    .set_writable = fault_set_writable,
    .close = fault_close,
};

/* ---- setting up ---- */

int fault_add_rule(struct qk_io *io, const char *group, const struct fault_option *options,
                   size_t count, struct qk_error *err)
{
    struct fault_store *f = fault_store(io);
    LOCK_SCOPE(&f->lock);
    return fault_rules_add(&f->rules, group, options, count, err);
}

static struct fault_store *new_store(struct qk_io *inner, const char *config)
{
    struct fault_store *f = calloc(1, sizeof(*f));
    if (!f)
        return NULL;
    f->io = *inner;
    f->io.ops = &fault_ops;
    f->inner = inner;
    f->state = 1;
    pthread_mutex_init(&f->lock, NULL);
    pthread_cond_init(&f->resumed, NULL);
    pthread_rwlock_init(&f->edge_lock, NULL);
    if (asprintf(&f->io.name, "blkdebug:%s:%s", config ? config : "", inner->name) < 0) {
        f->io.name = NULL;
        f->inner = NULL;
        fault_close(&f->io, NULL);
        return NULL;
    }
    return f;
}

int io_fault_open(struct qk_io *inner, const char *config, struct qk_io **out, struct qk_error *err)
{
    struct fault_store *f = new_store(inner, config);
    if (!f) {
        io_close(inner, NULL);
        return qk_fail_nomem(err);
    }
    int ret = config ? fault_rules_read(&f->rules, config, err) : 0;
    if (ret < 0) {
        fault_close(&f->io, NULL);
        return ret;
    }
    *out = &f->io;
    return 0;
}

void fault_fail_nth(struct qk_io *io, const struct fault_nth *nth)
{
    struct fault_store *f = fault_store(io);
    LOCK_SCOPE(&f->lock);
    f->nth = *nth;
    f->counted = 0;
    if (!f->nth.iotypes)
        f->nth.iotypes = 1u << FAULT_READ | 1u << FAULT_WRITE | 1u << FAULT_WRITE_ZEROES |
                         1u << FAULT_DISCARD | 1u << FAULT_FLUSH | 1u << FAULT_RESIZE;
}

uint64_t fault_counted(struct qk_io *io)
{
    struct fault_store *f = fault_store(io);
    LOCK_SCOPE(&f->lock);
    return f->counted;
}

uint64_t fault_injected(struct qk_io *io, unsigned iotypes)
{
    struct fault_store *f = fault_store(io);
    uint64_t sum = 0;
    LOCK_SCOPE(&f->lock);
    for (unsigned type = 0; type < FAULT_IOTYPES; type++)
        sum += iotypes >> type & 1 ? f->injected[type] : 0;
    return sum;
}

void fault_clear(struct qk_io *io)
{
    struct fault_store *f = fault_store(io);
    LOCK_SCOPE(&f->lock);
    fault_rules_clear(&f->rules);
    f->nth = (struct fault_nth){0};
}

/* ---- breakpoints ---- */

void fault_set_notify(struct qk_io *io, fault_notify *notify_fn, void *opaque)
{
    struct fault_store *f = fault_store(io);
    f->notify = notify_fn;
    f->notify_opaque = opaque;
}

int fault_break(struct qk_io *io, const char *event, const char *tag)
{
    struct fault_store *f = fault_store(io);
    int64_t index = fault_event_index(event);
    if (index < 0)
        return -ENOENT;
    struct fault_rule *rule = calloc(1, sizeof(*rule));
    if (!rule)
        return -ENOMEM;
    *rule = (struct fault_rule){.action = FAULT_SUSPEND, .event = index, .tag = strdup(tag)};
    pthread_mutex_lock(&f->lock);
    int ret = rule->tag ? fault_rules_append(&f->rules, rule) : -ENOMEM;
    pthread_mutex_unlock(&f->lock);
    if (ret < 0)
        fault_rule_free(rule);
    return ret;
}

static int resume_tag(struct fault_store *f, const char *tag, bool all)
{
    int ret = -ENOENT;
    for (size_t i = 0; i < f->suspended.len && (all || ret < 0); i++) {
        struct fault_rule *rule = f->suspended.ptr[i];
        if (rule->resumed || strcmp(rule->tag, tag) != 0)
            continue;
        rule->resumed = true;
        ret = 0;
    }
    pthread_cond_broadcast(&f->resumed);
    return ret;
}

int fault_resume(struct qk_io *io, const char *tag)
{
    struct fault_store *f = fault_store(io);
    LOCK_SCOPE(&f->lock);
    return resume_tag(f, tag, false);
}

int fault_remove_break(struct qk_io *io, const char *tag)
{
    struct fault_store *f = fault_store(io);
    LOCK_SCOPE(&f->lock);
    int ret = resume_tag(f, tag, true);
    for (size_t i = f->rules.len; i-- > 0;) {
        struct fault_rule *rule = f->rules.ptr[i];
        if (rule->action != FAULT_SUSPEND || strcmp(rule->tag, tag) != 0)
            continue;
        remove_rule(&f->rules, i);
        fault_rule_free(rule);
        ret = 0;
    }
    return ret;
}

bool fault_is_suspended(struct qk_io *io, const char *tag)
{
    struct fault_store *f = fault_store(io);
    LOCK_SCOPE(&f->lock);
    for (size_t i = 0; i < f->suspended.len; i++) {
        if (!f->suspended.ptr[i]->resumed && !strcmp(f->suspended.ptr[i]->tag, tag))
            return true;
    }
    return false;
}
