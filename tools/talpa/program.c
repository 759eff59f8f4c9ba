#include "program.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "options.h"
#include "output.h"
#include "talpa/log.h"

void (*program_before_message)(void);
volatile sig_atomic_t program_stop_requested;

bool program_is_terminal(int fd)
{
    const char *term = getenv("TERM");
    return isatty(fd) && term && strcmp(term, "dumb") != 0;
}

static bool colour(void)
{
    const char *no_color = getenv("NO_COLOR");
    return program_is_terminal(STDERR_FILENO) && !(no_color && *no_color);
}

void program_error(const char *format, ...)
{
    char text[6144];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    if (program_before_message) program_before_message();
    fprintf(stderr, "%stalpa:%s %s\n", colour() ? "\033[1;31m" : "", colour() ? "\033[0m" : "", text);
}

void program_note(const char *format, ...)
{
    if (options_verbosity < 0) return;
    char text[6144];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    if (program_before_message) program_before_message();
    fprintf(stderr, "%s\n", text);
}

int program_fail(enum talpa_status status)
{
    const char *message = talpa_error_message(), *log = talpa_error_build_log();
    const int opencl = talpa_error_opencl();
    char code[48] = "";
    if (opencl) snprintf(code, sizeof code, " (OpenCL error %d)", opencl);
    program_error("%s%s", *message ? message : "failed without a message", strstr(message, "OpenCL error") ? "" : code);
    if (log && *log) fprintf(stderr, "%s%s", log, log[strlen(log) - 1] == '\n' ? "" : "\n");
    return talpa_exit_code(status);
}

int program_fail_memory(void)
{
    program_error("out of host memory");
    return 71;
}

/* ---- signals ---- */

static void on_signal_end(int number)
{
    (void)number;
    output_remove_temporary();
    _exit(130);
}

static void on_signal_stop(int number)
{
    (void)number;
    if (program_stop_requested) {
        output_remove_temporary();
        _exit(130);
    }
    program_stop_requested = 1;
}

static void handle(void (*handler)(int))
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    sigemptyset(&action.sa_mask);
    action.sa_flags = SA_RESTART;
    action.sa_handler = handler;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

void program_signals_default(void)
{
    signal(SIGPIPE, SIG_IGN);
    handle(on_signal_end);
}

void program_signals_stop(void) { handle(on_signal_stop); }

/* ---- log ---- */

static void write_log(void *user, enum talpa_log_level level, const char *line)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};
    (void)user;
    if (program_before_message) program_before_message();
    fprintf(stderr, "talpa: %s: %s\n", names[level], line);
}

void program_log_level(void)
{
    talpa_log_set(write_log, NULL);
    if (options_verbosity > 0) talpa_log_level_set(TALPA_LOG_INFO);
    if (options_verbosity < 0) talpa_log_level_set(TALPA_LOG_ERROR);
}

/* ---- devices ---- */

static pthread_t drivers_thread;
static bool drivers_load;

static void *load_drivers(void *unused)
{
    talpa_device_load_drivers();
    return unused;
}

void program_drivers_load(void) { drivers_load = drivers_load || pthread_create(&drivers_thread, NULL, load_drivers, NULL) == 0; }

void program_drivers_wait(void)
{
    if (drivers_load) pthread_join(drivers_thread, NULL);
    drivers_load = false;
}

int program_device_choose(struct program_device *out, const char *selector, const char *fake)
{
    enum talpa_status status;
    *out = (struct program_device){.is_fake = fake != NULL};
    if (fake) {
        status = talpa_device_fake(&out->caps, fake);
        return status == TALPA_OK ? -1 : program_fail(status);
    }
    struct talpa_device_caps *caps = NULL;
    size_t n = 0;
    program_drivers_wait();
    status = talpa_device_list(&caps, &n);
    if (status == TALPA_OK) status = talpa_device_select(&out->index, caps, n, selector);
    if (status == TALPA_OK) out->caps = caps[out->index];
    free(caps);
    return status == TALPA_OK ? -1 : program_fail(status);
}

void program_device_note(const struct program_device *device)
{
    program_note("device %zu: %s (%s)", device->index, device->caps.name, device->caps.platform);
}

const char *program_device_type(enum talpa_device_type type)
{
    switch (type) {
    case TALPA_DEVICE_CPU:
        return "CPU";
    case TALPA_DEVICE_GPU:
        return "GPU";
    case TALPA_DEVICE_ACCELERATOR:
        return "accelerator";
    }
    return "?";
}

const char *program_device_vendor(enum talpa_vendor vendor)
{
    switch (vendor) {
    case TALPA_VENDOR_OTHER:
        return "other";
    case TALPA_VENDOR_AMD:
        return "amd";
    case TALPA_VENDOR_INTEL:
        return "intel";
    case TALPA_VENDOR_NVIDIA:
        return "nvidia";
    case TALPA_VENDOR_POCL:
        return "pocl";
    case TALPA_VENDOR_MESA:
        return "mesa";
    }
    return "?";
}
