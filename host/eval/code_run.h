/* Runs Python that a model wrote, away from everything else: its own process group and empty folder, no standard streams, limits on time,
 * memory, files and processes, and no network where the system lets an ordinary user cut it. This stops accidents, not an attacker: it is
 * only used when the user asked for it. */
#ifndef TP_CODE_RUN_H
#define TP_CODE_RUN_H

#include <stdbool.h>

#include "talpa/status.h"

enum { TP_CODE_PATH_BYTES = 1024 };

/** Limits of one run. */
struct tp_code_limits {
    int cpu_s, wall_s;       /* seconds of processor and of clock */
    long memory_bytes, file_bytes;
};
/** 5 s of processor, 10 s of clock, 1 GiB, files of 1 MiB. */
struct tp_code_limits tp_code_limits_default(void);

/** A Python interpreter: `path` is what python3 (or the environment's TALPA_PYTHON) says its executable is. */
struct tp_code_runner {
    char path[TP_CODE_PATH_BYTES];
};

/** Finds the interpreter. TALPA_E_FAILED if there is none. */
enum talpa_status tp_code_runner_open(struct tp_code_runner *out);

enum tp_code_outcome { TP_CODE_PASSED, TP_CODE_FAILED, TP_CODE_TIMED_OUT };

/** Runs `source` with python3 -I; passed means that its last line was reached, which leaving early does not do. `no_network` (may be NULL)
 *  says whether the network could be cut. TALPA_E_CREATE, TALPA_E_IO or TALPA_E_DEVICE if the run could not be made. Blocks until the
 *  program and everything it started has ended. */
enum talpa_status tp_code_run(enum tp_code_outcome *outcome, bool *no_network, const struct tp_code_runner *runner, const char *source,
                              const struct tp_code_limits *limits);

#endif
