/*
 * faces.h - the programs inside the program: main.c chooses one by the name it was called by.
 * argv[0] is that name; the rest is what the face gets as arguments.
 */
#ifndef TOOLS_COMMON_FACES_H
#define TOOLS_COMMON_FACES_H

#include "common/options.h"

int img_main(int argc, char **argv);
int io_main(int argc, char **argv);

/* The options of the io face, for lists of all options. */
extern const struct cmd_desc desc_io;

#endif
