/* UTF-8 (RFC 3629): shortest form only, no surrogates, up to U+10FFFF. */
#ifndef TP_UTF8_H
#define TP_UTF8_H

#include <stddef.h>
#include <stdint.h>

/** Decodes the code point at the start of `text` into *code_point and returns its bytes (1..4), or returns 0, leaving *code_point, if the
 *  bytes are malformed or cut off, or n_bytes is 0. */
size_t tp_utf8_decode(uint32_t *code_point, const char *text, size_t n_bytes);

#endif
