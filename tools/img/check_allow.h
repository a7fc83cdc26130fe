/*
 * check_allow.h - the choices that `--allow` takes: their names, what each lets a repair do, and
 * lists of them as text. One table, for the option, its hints and the questions on a terminal.
 */
#ifndef TOOLS_IMG_CHECK_ALLOW_H
#define TOOLS_IMG_CHECK_ALLOW_H

#include "common/options.h"
#include "qcowkit.h"

struct check_choice {
    const char *name;
    unsigned bit;     /* of enum qk_allow */
    const char *does; /* "clear ...", for a question and for a hint */
};
#define CHECK_CHOICES 7
extern const struct check_choice check_choices[CHECK_CHOICES];
/* Number i, from 0 on, of all choices when `needed` are to be made: what gives up less comes first,
 * and of a table that is lost, what becomes of it. */
const struct check_choice *check_choice_at(size_t i, unsigned needed);

/* The values of option `id` -> bits, and the snapshot of "rollback=SNAPSHOT", to be freed. Returns
 * -1 to go on, or the exit status of a wrong one. */
int check_allow_option(const struct opts *opts, int id, unsigned *allow, char **rollback);

/* "entries,rollback=monday", a comma of the name doubled as the option takes it; rollback: the
 * snapshot, or NULL. To be freed. */
char *check_allow_names(unsigned bits, const char *rollback);
/* "2 findings", or what else is there for the choice to be made; to be freed. */
char *check_choice_count(const struct check_choice *choice, uint64_t n);

#endif
