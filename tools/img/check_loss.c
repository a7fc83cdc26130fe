/*
 * check_loss.c - what the damage of an image costs, as lines: one for the disk and for each
 * snapshot of which something cannot be read any more, with the first ranges (check_findings.h).
 */
#include "common/report.h"
#include "img/check_findings.h"

#include <inttypes.h>
#include <stdio.h>

static void print_whose(const struct qk_check_loss *l)
{
    if (!l->snapshot) {
        printf("  the disk: ");
        return;
    }
    printf("  snapshot ");
    put_text(stdout, l->snapshot);
    printf(" (");
    put_text(stdout, l->snapshot_name);
    printf("): ");
}

void findings_on_loss(void *findings, const struct qk_check_loss *loss)
{
    struct check_findings *f = findings;
    if (f->json) {
        check_json_loss(f->json, loss);
        return;
    }
    if (f->mute)
        return;
    progress_clear(f->progress);
    if (!f->losses++)
        printf("What the damage costs, of what the guest can read:\n");
    print_whose(loss);
    printf("%s %" PRIu64 " of %" PRIu64 " bytes, in %" PRIu64 " range%s:\n",
           loss->at_least ? "more than" : "up to", loss->bytes, loss->disk_bytes, loss->range_total,
           loss->range_total == 1 ? "" : "s");
    for (unsigned i = 0; i < loss->range_count; i++)
        printf("    0x%" PRIx64 " to 0x%" PRIx64 "\n", loss->ranges[i].off,
               loss->ranges[i].off + loss->ranges[i].bytes - 1);
    if (loss->range_total > loss->range_count)
        printf("    and %" PRIu64 " more\n", loss->range_total - loss->range_count);
}
