/* verbs.c - the table of the qemu-img face's verbs. */
#include "img/commands.h"

const struct verb img_verbs[] = {
    {&desc_amend, cmd_amend},
    {&desc_bench, cmd_bench},
    {&desc_bitmap, cmd_bitmap},
    {&desc_check, cmd_check},
    {&desc_commit, cmd_commit},
    {&desc_compare, cmd_compare},
    {&desc_convert, cmd_convert},
    {&desc_create, cmd_create},
    {&desc_dd, cmd_dd},
    {&desc_info, cmd_info},
    {&desc_map, cmd_map},
    {&desc_measure, cmd_measure},
    {&desc_rebase, cmd_rebase},
    {&desc_resize, cmd_resize},
    {&desc_snapshot, cmd_snapshot},
    {&desc_undo, cmd_undo},
    {NULL, NULL},
};
