/*
 * probe.h - which format a file's first bytes look like. Only what a program that probes (we, or
 * QEMU) would take for that format matters, not whether the rest is sound. Pure.
 */
#ifndef QK_NODE_PROBE_H
#define QK_NODE_PROBE_H

#include <stddef.h>
#include <stdint.h>

#define PROBE_BYTES       2048u /* looked at when an image is opened */
#define PROBE_GUARD_BYTES 512u  /* no write may make these look like another format */

/* Name of the format, "raw" when nothing else fits. */
const char *probe_format(const uint8_t *bytes, size_t len);

#endif
