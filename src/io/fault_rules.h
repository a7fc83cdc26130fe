/*
 * fault_rules.h - blkdebug's rules as data: parsing them from pairs and from files. No I/O on the
 * store and no locking; fault.c does both.
 */
#ifndef QK_IO_FAULT_RULES_H
#define QK_IO_FAULT_RULES_H

#include "base/vector.h"
#include "io/fault.h"

enum fault_action { FAULT_INJECT, FAULT_SET_STATE, FAULT_SUSPEND };

struct fault_rule {
    enum fault_action action;
    int64_t event; /* index of fault_event_name */
    int64_t state; /* 0: any */
    int64_t error, once, immediately;
    int64_t sector;  /* -1: any */
    int64_t iotypes; /* bits of enum fault_iotype */
    int64_t new_state;
    bool active;
    bool resumed; /* suspend: the waiting request may go on */
    char *tag;
};

DEFINE_VECTOR(fault_rules, struct fault_rule *)

/* -1: there is no such event. */
int64_t fault_event_index(const char *name);
void fault_rule_free(struct fault_rule *rule);
void fault_rules_clear(struct fault_rules *rules);
/* Appends a rule made of pairs. */
int fault_rules_add(struct fault_rules *rules, const char *group,
                    const struct fault_option *options, size_t count, struct qk_error *err);
/* Appends all rules of a file. Errors name the file and the line. */
int fault_rules_read(struct fault_rules *rules, const char *path, struct qk_error *err);

#endif
