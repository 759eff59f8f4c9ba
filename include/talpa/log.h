/* Diagnostics of the library: a level and one callback per process. */
#ifndef TALPA_LOG_H
#define TALPA_LOG_H

#ifdef __cplusplus
extern "C" {
#endif

/** Severity, most severe first. */
enum talpa_log_level { TALPA_LOG_ERROR, TALPA_LOG_WARN, TALPA_LOG_INFO, TALPA_LOG_DEBUG };

/** Receives one line without a newline. `line` is valid during the call only. May be called from any thread that uses the library, and
 *  from two at once. It must not call the library. */
typedef void (*talpa_log_function)(void *user, enum talpa_log_level level, const char *line);

/** Sends all further lines to `function` with `user`; NULL restores the default, which writes "talpa: level: line" to standard error.
 *  To be called while no other thread uses the library. */
void talpa_log_set(talpa_log_function function, void *user);

/** Sets the least severe level that is still passed on. At first it is that of the environment variable TALPA_LOG (error, warn, info or
 *  debug), or warn if the variable is unset or unknown. */
void talpa_log_level_set(enum talpa_log_level level);

#ifdef __cplusplus
}
#endif
#endif
