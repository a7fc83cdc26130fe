/*
 * commands.c - the commands of the qemu-io face, all that is said about each in one table. The
 * synopses are those of qemu-io, as programs that read its help know them; the words are ours.
 */
#include "io/io.h"

#include <stddef.h>

#define ARGS_END                                                                                   \
    {                                                                                              \
        0, false, NULL                                                                             \
    }
#define ARG_MACHINE                                                                                \
    {                                                                                              \
        'C', false, "one line of numbers for programs instead of the usual report"                 \
    }
#define ARG_QUIET                                                                                  \
    {                                                                                              \
        'q', false, "no report"                                                                    \
    }
#define ARG_DUMP                                                                                   \
    {                                                                                              \
        'v', false, "show the data"                                                                \
    }
#define ARG_VERIFY                                                                                 \
    {                                                                                              \
        'P', true, "fail unless all bytes read have this value"                                    \
    }
#define ARG_PATTERN                                                                                \
    {                                                                                              \
        'P', true, "write bytes of this value instead of 0xcd"                                     \
    }
#define ARG_FUA                                                                                    \
    {                                                                                              \
        'f', false, "the data is on stable storage when the command ends"                          \
    }
#define ARG_UNMAP                                                                                  \
    {                                                                                              \
        'u', false, "with -z: the space may be given back"                                         \
    }
#define ARG_INVALID                                                                                \
    {                                                                                              \
        'i', false, "send nothing, only count a wrong request"                                     \
    }
#define ARG_OLD                                                                                    \
    {                                                                                              \
        'p', false, "no effect, for old scripts"                                                   \
    }

static const struct arg_desc args_none[] = {ARGS_END};

static const struct arg_desc args_read[] = {
    {'b', false, "read the VM state instead of the disk"},
    ARG_MACHINE,
    {'l', true, "with -P: how many bytes are looked at"},
    ARG_OLD,
    ARG_VERIFY,
    ARG_QUIET,
    {'s', true, "with -P: the first byte that is looked at, counted from off"},
    ARG_DUMP,
    ARGS_END,
};

static const struct arg_desc args_readv[] = {
    ARG_MACHINE, ARG_VERIFY, ARG_DUMP, ARG_QUIET, ARGS_END,
};

static const struct arg_desc args_write[] = {
    {'b', false, "write to the VM state instead of the disk"},
    {'c', false, "store the data compressed"},
    ARG_FUA,
    {'n', false, "with -z: fail rather than write zeroes as data"},
    ARG_OLD,
    ARG_PATTERN,
    {'s', true, "write the content of this file, over and over"},
    ARG_MACHINE,
    ARG_QUIET,
    ARG_UNMAP,
    {'z', false, "make the range read as zero"},
    ARGS_END,
};

static const struct arg_desc args_writev[] = {
    ARG_PATTERN, ARG_MACHINE, ARG_FUA, ARG_QUIET, ARGS_END,
};

static const struct arg_desc args_aio_read[] = {
    ARG_MACHINE, ARG_VERIFY, ARG_INVALID, ARG_DUMP, ARG_QUIET, ARGS_END,
};

static const struct arg_desc args_aio_write[] = {
    ARG_PATTERN,
    ARG_MACHINE,
    ARG_FUA,
    ARG_INVALID,
    ARG_QUIET,
    ARG_UNMAP,
    {'z', false, "make the range read as zero"},
    ARGS_END,
};

static const struct arg_desc args_discard[] = {ARG_MACHINE, ARG_QUIET, ARGS_END};

static const struct arg_desc args_open[] = {
    {'r', false, "read only"},
    {'s', false, "writes go to a temporary overlay that disappears at the end"},
    {'C', false, "keep in the image what is read from its backing file"},
    {'n', false, "bypass the host's page cache: -t none"},
    {'U', false, "share the image with a program that writes to it (needs -r)"},
    {'k', false, "native asynchronous I/O: -i native"},
    {'i', true, "threads, native or io_uring"},
    {'t', true, "cache mode: none, writeback, writethrough, directsync or unsafe"},
    {'d', true, "what discards do to the file: ignore or unmap"},
    {'o', true, "options of the driver, key=value,..."},
    ARGS_END,
};

static const struct arg_desc args_reopen[] = {
    {'r', false, "read only from now on"},
    {'w', false, "writable from now on"},
    {'c', true, "cache mode from now on"},
    {'o', true, "options that change, key=value,..."},
    ARGS_END,
};

static const struct arg_desc args_truncate[] = {
    {'m', true, "what a growing image allocates: off, metadata, falloc or full"},
    ARGS_END,
};

const struct command io_commands[] = {
    {"abort", NULL, do_abort, 0, 0, COMMAND_NO_FILE, NULL, "end as a crash would, by abort(3)",
     NULL, NULL},
    {"aio_flush", NULL, do_aio_flush, 0, 0, 0, NULL, "wait for all requests under way", NULL, NULL},
    {"aio_read", NULL, do_aio_read, 2, -1, 0, "[-Ciqv] [-P pattern] off len [len..]",
     "start a read", args_aio_read,
     " Starts to read from offset off into one buffer per length and goes on at\n"
     " once. The outcome is printed when the request has ended, at the latest by\n"
     " aio_flush, close or the end; it does not change the exit status.\n"
     "\n Example:\n 'aio_read -v 512 1k 1k' - read 2 KiB at offset 512 and show them\n"},
    {"aio_write", NULL, do_aio_write, 2, -1, COMMAND_WRITES,
     "[-Cfiquz] [-P pattern] off len [len..]", "start a write", args_aio_write,
     " Starts to write at offset off from one buffer per length and goes on at\n"
     " once. The outcome is printed when the request has ended, at the latest by\n"
     " aio_flush, close or the end; it does not change the exit status.\n"
     "\n Example:\n 'aio_write -P 7 512 1k 1k' - write 2 KiB of bytes 7 at offset 512\n"},
    {"alloc", "a", do_alloc, 1, 2, 0, "offset [count]",
     "count how much of a range the image itself holds", NULL, NULL},
    {"break", NULL, do_break, 2, 2, 0, "event tag",
     "stop the next request that comes to an event, and call it tag", NULL, NULL},
    {"close", "c", do_close, 0, 0, 0, NULL, "close the image", NULL, NULL},
    {"discard", "d", do_discard, 2, -1, COMMAND_WRITES, "[-Cq] off len",
     "say that a range is not needed", args_discard,
     " Frees the clusters that lie in the range as a whole; they then read as zero.\n"
     "\n Example:\n 'discard 64k 1M' - give up 1 MiB at offset 64 KiB\n"},
    {"flush", "f", do_flush, 0, 0, 0, NULL, "make all writes stable", NULL, NULL},
    {"help", "?", do_help, 0, 1, COMMAND_NO_FILE, "[command]", "explain one command, or list all",
     NULL, NULL},
    {"info", "i", do_info, 0, 0, 0, NULL, "describe the image", NULL, NULL},
    {"length", "l", do_length, 0, 0, 0, NULL, "show the size of the disk", NULL, NULL},
    {"map", NULL, do_map, 0, 0, 0, NULL, "show which ranges the image itself holds", NULL, NULL},
    {"open", "o", do_open, 1, -1, COMMAND_NO_FILE,
     "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]", "open an image", args_open,
     " Opens the image that all later commands work on, for reading and writing\n"
     " unless -r is given.\n"
     "\n Example:\n 'open -o driver=raw disk.img' - open a raw image\n"},
    {"quit", "q", do_quit, 0, -1, COMMAND_NO_FILE, NULL, "end", NULL, NULL},
    {"read", "r", do_read, 2, -1, 0, "[-abCqv] [-P pattern [-s off] [-l len]] off len",
     "read a range", args_read,
     " Reads len bytes at offset off, and can show them or check what they are.\n"
     "\n Example:\n 'read -P 0 -s 512 0 1k' - check that bytes 512 to 1023 are zero\n"},
    {"readv", NULL, do_readv, 2, -1, 0, "[-Cqv] [-P pattern] off len [len..]",
     "read a range into several buffers", args_readv,
     " Reads from offset off into one buffer per length, in one request.\n"
     "\n Example:\n 'readv -v 512 1k 1k' - read 2 KiB at offset 512 and show them\n"},
    {"remove_break", NULL, do_remove_break, 1, 1, 0, "tag",
     "remove a breakpoint and let its request go on", NULL, NULL},
    {"reopen", NULL, do_reopen, 0, -1, 0, "[(-r|-w)] [-c cache] [-o options]",
     "open the image again with other options", args_reopen,
     " What is not given stays as it was. When the image cannot be opened so, it\n"
     " stays open as before.\n"
     "\n Example:\n 'reopen -o lazy-refcounts=on' - defer refcount updates from now on\n"},
    {"resume", NULL, do_resume, 1, 1, 0, "tag", "let a stopped request go on", NULL, NULL},
    {"sigraise", NULL, do_sigraise, 1, 1, COMMAND_NO_FILE, "signal",
     "raise a signal in this program", args_none,
     " Results printed so far are written out first.\n"
     "\n Example:\n 'sigraise 9' - be killed\n"},
    {"sleep", NULL, do_sleep, 1, 1, COMMAND_NO_FILE, NULL, "wait for so many milliseconds", NULL,
     NULL},
    {"truncate", "t", do_truncate, 1, 3, COMMAND_WRITES, "[-m prealloc_mode] off",
     "change the size of the disk", args_truncate, NULL},
    {"wait_break", NULL, do_wait_break, 1, 1, 0, "tag", "wait until a request has stopped", NULL,
     NULL},
    {"write", "w", do_write, 2, -1, COMMAND_WRITES,
     "[-bcCfnquz] [-P pattern | -s source_file] off len", "write a range", args_write,
     " Writes len bytes at offset off: all of one value, or from a file.\n"
     "\n Example:\n 'write -P 0x5a 512 1k' - write 1 KiB of bytes 0x5a at offset 512\n"},
    {"writev", NULL, do_writev, 2, -1, COMMAND_WRITES, "[-Cfq] [-P pattern] off len [len..]",
     "write a range from several buffers", args_writev,
     " Writes at offset off from one buffer per length, in one request.\n"
     "\n Example:\n 'writev -P 7 512 1k 1k' - write 2 KiB of bytes 7 at offset 512\n"},
    {NULL, NULL, NULL, 0, 0, 0, NULL, NULL, NULL, NULL},
};
