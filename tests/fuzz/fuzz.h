/* fuzz.h - the entry point that libFuzzer and driver.c share. */
#ifndef QK_TEST_FUZZ_H
#define QK_TEST_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
