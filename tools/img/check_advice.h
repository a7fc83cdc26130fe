/*
 * check_advice.h - what comes next: after a check, the commands that tell more, repair, or take the
 * repair back, as lines that can be pasted into a shell. Printed by `qcowkit` only.
 */
#ifndef TOOLS_IMG_CHECK_ADVICE_H
#define TOOLS_IMG_CHECK_ADVICE_H

#include "img/check_findings.h"

struct check_advice {
    const char *name, *format; /* of the image, as given; format NULL: not given */
    bool image_opts, objects;  /* objects: --object was given, which is not told again */
    bool undo_beside;          /* an undo file has a place beside the image */
    bool plan;
    unsigned fix, allow;
    const char *rollback; /* see check_allow_names */
    const struct check_findings *findings;
    const struct qk_check_result *result;
};

void check_advice_print(const struct check_advice *a);

/* A word for a shell, in quotes where it needs them; to be freed. */
char *shell_word(const char *text);

#endif
