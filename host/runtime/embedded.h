/*
 * The kernel sources that are part of the library: every kernels/<tier>/<stem>.cl, kernels/common/<stem>.clh and
 * kernels/tuning/<stem>.json, generated into one C file at build time (tools/cmake/embed_kernels.cmake).
 */
#ifndef TP_RUNTIME_EMBEDDED_H
#define TP_RUNTIME_EMBEDDED_H

#include <stddef.h>

/* One embedded file. All pointers are static data; nobody frees them. */
struct tp_embedded_kernel {
    const char *path; /* relative to kernels/, e.g. "generic/matmul.cl" or "common/step.clh" */
    const char *text; /* the file's bytes and a NUL after them */
    size_t n_bytes;   /* size of the file, without that NUL */
};

/* The table, sorted by path (byte order); after the last file stands one entry of NULLs. */
extern const struct tp_embedded_kernel tp_embedded_kernels[];
/* Number of files in the table, without the closing entry. */
extern const size_t tp_n_embedded_kernels;

#endif
