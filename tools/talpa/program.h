/* What the verbs of the program share: messages, signals, model and device choice. */
#ifndef PROGRAM_H
#define PROGRAM_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>

#include "talpa/device.h"
#include "talpa/model.h"
#include "talpa/status.h"

/** The verbs: argv[0] is the verb; they return the exit code. */
int cmd_train(int argc, char **argv);
int cmd_routes(int argc, char **argv);
int cmd_score(int argc, char **argv);
int cmd_generate(int argc, char **argv);
int cmd_chat(int argc, char **argv);
int cmd_eval(int argc, char **argv);
int cmd_verify(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_tune(int argc, char **argv);
int cmd_doctor(int argc, char **argv);
int cmd_devices(int argc, char **argv);
int cmd_export(int argc, char **argv);
int cmd_merge(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);

/** Prints "talpa: message" on stderr, in colour on a terminal unless NO_COLOR is set. */
void program_error(const char *format, ...);
/** Prints a line on stderr unless -q was given. */
void program_note(const char *format, ...);
/** Prints the library's message and build log; returns the exit code of `status`. */
int program_fail(enum talpa_status status);
/** "out of memory"; returns 71. */
int program_fail_memory(void);

/** Whether `fd` is a terminal that understands control sequences. */
bool program_is_terminal(int fd);
/** Called before anything else is written to stderr, so that a progress line can be erased; NULL: none. */
extern void (*program_before_message)(void);

/** SIGINT and SIGTERM end the process with 130, temporary outputs removed; SIGPIPE is ignored (writing then fails with 74). */
void program_signals_default(void);

/** PoCL has a thread per CPU; this asks it to leave each on its own (POCL_AFFINITY, unless it is set). Not where this process may not use all
 *  CPUs: PoCL counts them from 0. Call it before OpenCL is used. */
void program_keep_pocl_threads(void);
/** From now on the first SIGINT or SIGTERM only sets program_stop_requested, the second ends the process with 130. */
void program_signals_stop(void);
extern volatile sig_atomic_t program_stop_requested;

/** Applies -v and -q to the library's log. */
void program_log_level(void);

/** Loads the OpenCL drivers in the background; program_device_choose and the end of the program wait for them. */
void program_drivers_load(void);
void program_drivers_wait(void);

/** A chosen device: one of the machine's, or an invented record if `fake` is a name. */
struct program_device {
    struct talpa_device_caps caps;
    size_t index;
    bool is_fake;
};
/** Returns -1, or an exit code after a message. */
int program_device_choose(struct program_device *out, const char *selector, const char *fake);
/** Which device was chosen, as a line on stderr. */
void program_device_note(const struct program_device *device);
const char *program_device_type(enum talpa_device_type type);
const char *program_device_vendor(enum talpa_vendor vendor);

#endif
