#include "opencl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"

const char *tp_opencl_error_name(int code)
{
    static const struct {
        int code;
        const char *name;
    } names[] = {
#define NAME(code) {code, #code}
        NAME(CL_SUCCESS), NAME(CL_DEVICE_NOT_FOUND), NAME(CL_DEVICE_NOT_AVAILABLE), NAME(CL_COMPILER_NOT_AVAILABLE),
        NAME(CL_MEM_OBJECT_ALLOCATION_FAILURE), NAME(CL_OUT_OF_RESOURCES), NAME(CL_OUT_OF_HOST_MEMORY),
        NAME(CL_PROFILING_INFO_NOT_AVAILABLE), NAME(CL_MEM_COPY_OVERLAP), NAME(CL_BUILD_PROGRAM_FAILURE), NAME(CL_MAP_FAILURE),
        NAME(CL_MISALIGNED_SUB_BUFFER_OFFSET), NAME(CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST), NAME(CL_COMPILE_PROGRAM_FAILURE),
        NAME(CL_LINKER_NOT_AVAILABLE), NAME(CL_LINK_PROGRAM_FAILURE), NAME(CL_KERNEL_ARG_INFO_NOT_AVAILABLE), NAME(CL_INVALID_VALUE),
        NAME(CL_INVALID_DEVICE_TYPE), NAME(CL_INVALID_PLATFORM), NAME(CL_INVALID_DEVICE), NAME(CL_INVALID_CONTEXT),
        NAME(CL_INVALID_QUEUE_PROPERTIES), NAME(CL_INVALID_COMMAND_QUEUE), NAME(CL_INVALID_HOST_PTR), NAME(CL_INVALID_MEM_OBJECT),
        NAME(CL_INVALID_BINARY), NAME(CL_INVALID_BUILD_OPTIONS), NAME(CL_INVALID_PROGRAM), NAME(CL_INVALID_PROGRAM_EXECUTABLE),
        NAME(CL_INVALID_KERNEL_NAME), NAME(CL_INVALID_KERNEL_DEFINITION), NAME(CL_INVALID_KERNEL), NAME(CL_INVALID_ARG_INDEX),
        NAME(CL_INVALID_ARG_VALUE), NAME(CL_INVALID_ARG_SIZE), NAME(CL_INVALID_KERNEL_ARGS), NAME(CL_INVALID_WORK_DIMENSION),
        NAME(CL_INVALID_WORK_GROUP_SIZE), NAME(CL_INVALID_WORK_ITEM_SIZE), NAME(CL_INVALID_GLOBAL_OFFSET),
        NAME(CL_INVALID_EVENT_WAIT_LIST), NAME(CL_INVALID_EVENT), NAME(CL_INVALID_OPERATION), NAME(CL_INVALID_BUFFER_SIZE),
        NAME(CL_INVALID_GLOBAL_WORK_SIZE), NAME(CL_INVALID_PROPERTY),
#undef NAME
        {-1001, "CL_PLATFORM_NOT_FOUND_KHR"},
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; ++i)
        if (names[i].code == code) return names[i].name;
    return "unknown OpenCL code";
}

bool tp_opencl_fault(struct tp_device *device, enum tp_fault_kind kind)
{
    return ++device->fault_calls[kind] == device->fault_at[kind];
}

enum talpa_status tp_opencl_read_faults(struct tp_device *device)
{
    static const char *const words[TP_N_FAULTS] = {"alloc:", "launch:", "build:"};
    const char *p = getenv("TALPA_FAULT");
    while (p && *p) {
        int kind = 0;
        while (kind < TP_N_FAULTS && strncmp(p, words[kind], strlen(words[kind])) != 0) ++kind;
        char *end = NULL;
        unsigned long long n = 0;
        if (kind < TP_N_FAULTS) {
            const char *digits = p + strlen(words[kind]);
            errno = 0;
            if (*digits >= '0' && *digits <= '9') n = strtoull(digits, &end, 10);
        }
        if (n == 0 || errno || (*end != '\0' && *end != ','))
            return tp_fail(TALPA_E_ARGUMENT, "TALPA_FAULT=%s: expected alloc:N, launch:N or build:N with N from 1, separated by commas",
                           getenv("TALPA_FAULT"));
        device->fault_at[kind] = n;
        p = *end == ',' ? end + 1 : end;
    }
    return TALPA_OK;
}
