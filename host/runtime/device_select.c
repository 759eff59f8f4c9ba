/* Choice of a device among capability records: no driver is called here. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "device.h"

const char *tp_device_type_name(enum talpa_device_type type)
{
    switch (type) {
    case TALPA_DEVICE_CPU: return "cpu";
    case TALPA_DEVICE_GPU: return "gpu";
    case TALPA_DEVICE_ACCELERATOR: return "accelerator";
    }
    return "unknown";
}

const char *tp_device_vendor_name(enum talpa_vendor vendor)
{
    switch (vendor) {
    case TALPA_VENDOR_AMD: return "amd";
    case TALPA_VENDOR_INTEL: return "intel";
    case TALPA_VENDOR_NVIDIA: return "nvidia";
    case TALPA_VENDOR_POCL: return "pocl";
    case TALPA_VENDOR_MESA: return "mesa";
    case TALPA_VENDOR_OTHER: break;
    }
    return "other";
}

static bool contains(const char *text, const char *part)
{
    for (; *text; ++text) {
        size_t i = 0;
        while (part[i] && tolower((unsigned char)text[i]) == tolower((unsigned char)part[i])) ++i;
        if (!part[i]) return true;
    }
    return false;
}

static bool matches(const struct talpa_device_caps *caps, const char *selector)
{
    const char *const prefixes[] = {caps->platform, tp_device_vendor_name(caps->vendor), caps->vendor_name};
    for (size_t i = 0; i < sizeof prefixes / sizeof prefixes[0]; ++i) {
        char text[sizeof caps->platform + sizeof caps->name + 1];
        snprintf(text, sizeof text, "%s:%s", prefixes[i], caps->name);
        if (contains(text, selector)) return true;
    }
    return false;
}

static int type_preference(enum talpa_device_type type)
{
    return type == TALPA_DEVICE_GPU ? 2 : type == TALPA_DEVICE_ACCELERATOR ? 1 : 0;
}

static bool is_better(const struct talpa_device_caps *a, const struct talpa_device_caps *b)
{
    const int type_a = type_preference(a->type), type_b = type_preference(b->type);
    if (type_a != type_b) return type_a > type_b;
    if (a->compute_units != b->compute_units) return a->compute_units > b->compute_units;
    return a->in_process && !b->in_process;
}

static enum talpa_status fail_with_list(const struct talpa_device_caps *caps, size_t n, const char *selector, const char *source)
{
    char list[2048] = "";
    for (size_t i = 0; i < n; ++i) {
        const size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, "%s%zu = %s:%s", i ? ", " : "", i, caps[i].platform, caps[i].name);
    }
    return tp_fail(TALPA_E_NO_DEVICE, "%s '%s' matches no device; expected an index or a part of one of: %s", source, selector, list);
}

enum talpa_status talpa_device_select(size_t *index, const struct talpa_device_caps *caps, size_t n, const char *selector)
{
    if (n == 0) return tp_fail(TALPA_E_NO_DEVICE, "no OpenCL device to choose from");
    const char *source = "device";
    if (!selector || !*selector) {
        selector = getenv("TALPA_DEVICE");
        source = "TALPA_DEVICE";
    }
    if (!selector || !*selector) {
        size_t best = 0;
        for (size_t i = 1; i < n; ++i)
            if (is_better(&caps[i], &caps[best])) best = i;
        *index = best;
        return TALPA_OK;
    }
    if (strspn(selector, "0123456789") == strlen(selector)) {
        char *end;
        const unsigned long long value = strtoull(selector, &end, 10);
        if (value >= n) return fail_with_list(caps, n, selector, source);
        *index = (size_t)value;
        return TALPA_OK;
    }
    for (size_t i = 0; i < n; ++i) {
        if (matches(&caps[i], selector)) {
            *index = i;
            return TALPA_OK;
        }
    }
    return fail_with_list(caps, n, selector, source);
}
