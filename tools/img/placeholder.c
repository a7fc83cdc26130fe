/* placeholder.c - weak stand-ins while verbs are being built in parallel; goes away. */
#include "common/faces.h"
#include "common/report.h"
#include "img/commands.h"
#define WEAK __attribute__((weak))
static const struct opt_desc none[] = {OPT_END};
#define VERB(v_) \
    WEAK const struct cmd_desc desc_##v_ = {.name = #v_, .summary = "", .operands = "", .options = none, .refusal = "not built"}; \
    WEAK int cmd_##v_(int argc, char **argv) { (void)argc; (void)argv; return 1; }
VERB(bench) VERB(check) VERB(compare) VERB(convert) VERB(create) VERB(dd) VERB(info) VERB(map) VERB(measure) VERB(resize)
WEAK int io_main(int argc, char **argv) { (void)argc; (void)argv; return 1; }
