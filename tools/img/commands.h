/*
 * commands.h - every verb of the qemu-img face: a description and a function, defined together
 * in cmd_<verb>.c. verbs.c has the table of them.
 *
 * A command gets argv[0] = the verb, returns the exit status and prints its own errors.
 */
#ifndef TOOLS_IMG_COMMANDS_H
#define TOOLS_IMG_COMMANDS_H

#include "common/options.h"

struct verb {
    const struct cmd_desc *desc;
    int (*run)(int argc, char **argv);
};

/* Sorted by name; ended by a NULL desc. */
extern const struct verb img_verbs[];

extern const struct cmd_desc desc_amend, desc_bench, desc_bitmap, desc_check, desc_commit,
    desc_compare, desc_convert, desc_create, desc_dd, desc_info, desc_map, desc_measure,
    desc_rebase, desc_resize, desc_snapshot, desc_undo;

int cmd_amend(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_bitmap(int argc, char **argv);
int cmd_check(int argc, char **argv);
int cmd_commit(int argc, char **argv);
int cmd_compare(int argc, char **argv);
int cmd_convert(int argc, char **argv);
int cmd_create(int argc, char **argv);
int cmd_dd(int argc, char **argv);
int cmd_info(int argc, char **argv);
int cmd_map(int argc, char **argv);
int cmd_measure(int argc, char **argv);
int cmd_rebase(int argc, char **argv);
int cmd_resize(int argc, char **argv);
int cmd_snapshot(int argc, char **argv);
int cmd_undo(int argc, char **argv);

#endif
