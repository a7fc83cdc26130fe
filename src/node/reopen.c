/*
 * reopen.c - changes to a chain that is open: a backing file becomes writable (commit), and an
 * image gets another one (rebase). Exclusive: nobody uses the chain meanwhile.
 *
 * A failure leaves the chain as it was, with its locks.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "node/driver.h"
#include "node/qcow2_options.h"

void node_note_writable(struct node *node, bool writable)
{
    const struct qk_io *below = node_below(node);
    node->flags = writable ? node->flags | QK_OPEN_RDWR : node->flags & ~(unsigned)QK_OPEN_RDWR;
    node->io.writable = writable;
    node->io.can_grow = below && below->can_grow && !node->raw_sized && !node->image;
}

static int become_writable(struct node *node, struct qk_error *err)
{
    struct qk_io *below = node_below(node);
    int ret = below ? io_set_writable(below, true, err) : 0;
    if (ret < 0)
        return ret;
    node_note_writable(node, true);
    if (below)
        ret = node_lock_also(node, ROLE_BACKING, IO_PERM_RESIZE, err);
    if (ret == 0 && node->image)
        ret = qcow2_make_writable(node, err);
    return ret;
}

int node_make_writable(struct node *node, enum node_discard discard, struct qk_error *err)
{
    if (node->io.writable)
        return 0;
    enum node_discard before = node->discard;
    node->discard = discard;
    int ret = become_writable(node, err);
    if (ret == 0)
        return 0;
    node->discard = before;
    node_note_writable(node, false);
    if (node_below(node)) {
        node_lock(node, ROLE_BACKING, NULL);
        io_set_writable(node_below(node), false, NULL);
    }
    return ret;
}

/* Takes the layer out of the chain below node. False: it is not there. */
static bool detach_layer(struct node *node, const struct node *layer)
{
    for (; node->backing; node = node->backing) {
        if (node->backing != layer)
            continue;
        node->backing = NULL;
        image_set_backing(node->image, NULL);
        return true;
    }
    return false;
}

int node_replace_backing(struct node *node, struct node *backing, struct qk_error *err)
{
    if (backing)
        detach_layer(node, backing);
    struct node *old = TAKE(node->backing), *blank = TAKE(node->blank);
    node->backing = backing;
    image_set_backing(node->image, backing ? &backing->io : NULL);
    free(TAKE(node->backing_full));
    int ret = node_close(old, err);
    int closed = node_close(blank, ret < 0 ? NULL : err);
    return ret < 0 ? ret : closed;
}
