/* main.c - the multi-call program. */
#include "qcowkit.h"
int main(void)
{
    return 0;
}
