/*
 * main.c - the multi-call program. The name it was called by chooses the face: qemu-img, qemu-io,
 * or qcowkit, whose verbs are those of qemu-img and `io` for qemu-io. Promises that a result
 * which could not be written (a full disk behind stdout) does not end with status 0.
 */
#include "common/faces.h"
#include "common/report.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* "img-create" and the like are no links of ours: any other name is the program's own face. */
static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} faces[] = {
    {"qemu-img", img_main},
    {"qemu-io", io_main},
};

static const char *base_name(const char *path)
{
    const char *slash = path ? strrchr(path, '/') : NULL;
    return slash ? slash + 1 : path;
}

static int run_face(int argc, char **argv)
{
    const char *name = argc > 0 ? base_name(argv[0]) : "qcowkit";
    for (size_t i = 0; i < sizeof(faces) / sizeof(*faces); i++) {
        if (!strcmp(name, faces[i].name)) {
            program_set_name(faces[i].name);
            return faces[i].run(argc, argv);
        }
    }
    if (argc > 1 && !strcmp(argv[1], "io"))
        return io_main(argc - 1, argv + 1);
    return img_main(argc, argv);
}

/*
 * Called with one of the standard descriptors closed, the first file that is opened would get its
 * number, and a message would be written into an image.
 */
static bool hold_standard_descriptors(void)
{
    for (int fd = 0; fd <= 2; fd++) {
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
            return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    if (!hold_standard_descriptors())
        return EXIT_FAILURE;
    signal(SIGXFSZ, SIG_IGN); /* a limit on the size of files is an error as a full disk is */
    int status = run_face(argc, argv);
    bool lost = ferror(stdout) != 0;
    if (fclose(stdout) || lost) {
        report_error("cannot write to standard output");
        return status ? status : EXIT_FAILURE;
    }
    return status;
}
