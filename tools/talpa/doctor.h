/* What `talpa doctor` looks at. Each check appends findings; nothing here changes the machine. */
#ifndef DOCTOR_H
#define DOCTOR_H

#include <stdbool.h>
#include <stddef.h>

#include "talpa/device.h"

enum doctor_state { DOCTOR_OK, DOCTOR_NOTE, DOCTOR_PROBLEM };

struct doctor_finding {
    enum doctor_state state;
    const char *topic; /**< static: "icd", "devices", "hardware", "access", "container", "environment", "cache", "memory" */
    char found[512];   /**< what is there */
    char advice[512];  /**< what to do about it, "" if nothing */
};

struct doctor_report {
    struct doctor_finding *findings;
    size_t n;
    bool out_of_memory;
};
void doctor_free(struct doctor_report *report);

void doctor_add(struct doctor_report *report, enum doctor_state state, const char *topic, const char *advice, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

/** The loader's folder of driver files, and whether each driver's library can be loaded. */
void doctor_check_icd(struct doctor_report *report);
/** The devices that talpa sees (n 0: none, `message` says why); graphics hardware on the PCI bus without an OpenCL device of its vendor. */
void doctor_check_devices(struct doctor_report *report, const struct talpa_device_caps *caps, size_t n, const char *message);
/** Device nodes that drivers need, and whether this user may open them; containers. */
void doctor_check_access(struct doctor_report *report);
/** Environment variables that change what drivers do; caches; memory. */
void doctor_check_environment(struct doctor_report *report);

/** What to install for a vendor, as one line; static. */
const char *doctor_packages(enum talpa_vendor vendor);

#endif
