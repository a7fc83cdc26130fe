/*
 * crc32c.h - the Castagnoli checksum (RFC 3720, appendix B.4) of bytes. Pure; uses the processor's
 * instruction where there is one.
 */
#ifndef QK_BASE_CRC32C_H
#define QK_BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Continues from `crc`, the sum of what came before; 0 to begin. */
uint32_t crc32c(uint32_t crc, const void *bytes, size_t len);

#endif
