/* Status codes and the thread-local error record.
 *
 * Every function of the library that can fail returns `enum talpa_status`: TALPA_OK (0) or a negative code. Outputs come first in the
 * argument list and are written only on success. The library never prints, exits or asserts on input. */
#ifndef TALPA_STATUS_H
#define TALPA_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

/** Result of every fallible call. The comment names the process exit code that the command line maps it to. */
enum talpa_status {
    TALPA_OK = 0,
    TALPA_E_FAILED = -1,      /**< the work itself failed (1) */
    TALPA_E_ARGUMENT = -2,    /**< wrong flag, argument or combination (2) */
    TALPA_E_CHECK = -3,       /**< a check or bound did not hold (3) */
    TALPA_E_DATA = -65,       /**< malformed or mismatching input file (65) */
    TALPA_E_NO_INPUT = -66,   /**< input file missing or unreadable (66) */
    TALPA_E_NO_DEVICE = -69,  /**< no usable OpenCL device, or the device lacks what is needed (69) */
    TALPA_E_INTERNAL = -70,   /**< a defect of the library (70) */
    TALPA_E_DEVICE = -71,     /**< device lost, out of device or host memory, or a driver error (71) */
    TALPA_E_CREATE = -73,     /**< an output could not be created, or is in use (73) */
    TALPA_E_IO = -74,         /**< writing or reading failed half-way, for instance a full disk (74) */
    TALPA_E_INTERRUPTED = -75 /**< stopped by a signal after saving (75) */
};

/** Message chain of the last failure in this thread, outermost context first ("adapter x: layer 3 q_proj: ..."). Owned by the library,
 *  valid until the next failing call of this thread. Never NULL; empty if nothing failed yet. */
const char *talpa_error_message(void);

/** OpenCL error code of the last failure in this thread, 0 if it had none. */
int talpa_error_opencl(void);

/** Compiler output of the last failed kernel build in this thread; empty string if the last failure was none. */
const char *talpa_error_build_log(void);

/** Process exit code for a status (users of the C API may use it or not). */
int talpa_exit_code(enum talpa_status status);

#ifdef __cplusplus
}
#endif
#endif
