/* version.c - the version of the library that runs. */
#include "qcowkit.h"

#define TEXT2(x_) #x_
#define TEXT(x_)  TEXT2(x_)

const char *qk_version(void)
{
    return TEXT(QK_VERSION_MAJOR) "." TEXT(QK_VERSION_MINOR) "." TEXT(QK_VERSION_PATCH);
}
