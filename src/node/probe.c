/*
 * probe.c - the table of signatures that QEMU probes for. Formats of the table that this library
 * cannot open are there so that such an image is not taken for a raw disk.
 */
#include "node/probe.h"
#include "base/bytes.h"
#include "base/checked.h"

struct signature {
    const char *format;
    uint32_t off, len;
    const char *bytes;
    /* a big- or little-endian 32-bit number at version_off, within [min, max]; max 0: none */
    uint32_t version_off, version_min, version_max;
    enum { VERSION_BE32, VERSION_LE32, VERSION_BE16 } version_kind;
};

static const struct signature signatures[] = {
    {"qcow2", 0, 4, "QFI\xfb", 4, 2, UINT32_MAX, VERSION_BE32},
    {"qcow", 0, 4, "QFI\xfb", 4, 1, 1, VERSION_BE32},
    {"qed", 0, 4, "QED\0", 0, 0, 0, VERSION_BE32},
    {"vmdk", 0, 4, "KDMV", 0, 0, 0, VERSION_BE32},
    {"vmdk", 0, 4, "COWD", 0, 0, 0, VERSION_BE32},
    {"vdi", 0x40, 4, "\x7f\x10\xda\xbe", 0, 0, 0, VERSION_BE32},
    {"vpc", 0, 8, "conectix", 0, 0, 0, VERSION_BE32},
    {"vhdx", 0, 8, "vhdxfile", 0, 0, 0, VERSION_BE32},
    {"luks", 0, 6, "LUKS\xba\xbe", 6, 1, 1, VERSION_BE16},
    {"parallels", 0, 16, "WithoutFreeSpace", 16, 2, 2, VERSION_LE32},
    {"parallels", 0, 16, "WithouFreSpacExt", 16, 2, 2, VERSION_LE32},
    {"cloop", 0, 21, "#!/bin/sh\n#V2.0 Forma", 0, 0, 0, VERSION_BE32},
    {"bochs", 0, 22, "Bochs Virtual HD Image", 0, 0, 0, VERSION_BE32},
};

static uint32_t version_at(const struct signature *s, const uint8_t *bytes)
{
    const uint8_t *p = bytes + s->version_off;
    switch (s->version_kind) {
    case VERSION_BE16:
        return load_be16(p);
    case VERSION_LE32:
        return __builtin_bswap32(load_be32(p));
    default:
        return load_be32(p);
    }
}

static bool signature_fits(const struct signature *s, const uint8_t *bytes, size_t len)
{
    if (s->off + s->len > len || memcmp(bytes + s->off, s->bytes, s->len))
        return false;
    if (!s->version_max)
        return true;
    if (s->version_off + 4 > len)
        return false;
    uint32_t version = version_at(s, bytes);
    return version >= s->version_min && version <= s->version_max;
}

/* A VMDK descriptor is text: comments and blank lines, then "version=1" to "version=3". */
static bool is_vmdk_text(const uint8_t *bytes, size_t len)
{
    const char *p = (const char *)bytes, *end = p + len;
    while (p < end && (*p == '#' || *p == '\r' || *p == '\n' || *p == ' ')) {
        const char *newline = memchr(p, '\n', (size_t)(end - p));
        if (*p == ' ' && newline) {
            for (const char *c = p; c < newline; c++) {
                if (*c != ' ' && *c != '\r')
                    return false;
            }
        }
        if (!newline)
            return false;
        p = newline + 1;
    }
    if (end - p < 10 || memcmp(p, "version=", 8) || p[8] < '1' || p[8] > '3')
        return false;
    return p[9] == '\n' || p[9] == '\r';
}

const char *probe_format(const uint8_t *bytes, size_t len)
{
    for (size_t i = 0; i < ARRAY_SIZE(signatures); i++) {
        if (signature_fits(&signatures[i], bytes, len))
            return signatures[i].format;
    }
    return is_vmdk_text(bytes, len) ? "vmdk" : "raw";
}
