#include "opencl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/status.h"
#include "profile.h"

static char *copy_text(const char *text)
{
    const size_t n_bytes = strlen(text) + 1;
    char *copy = malloc(n_bytes);
    if (copy) memcpy(copy, text, n_bytes);
    return copy;
}

static void free_program(struct tp_program *program)
{
    while (program->kernels) {
        struct tp_kernel *kernel = program->kernels;
        program->kernels = kernel->next;
        clReleaseKernel(kernel->handle);
        free(kernel->name);
        free(kernel->held);
        free(kernel);
    }
    if (program->handle) clReleaseProgram(program->handle);
    free(program->path);
    free(program->options);
    free(program->message);
    free(program->build_log);
    free(program);
}

void tp_program_free_all(struct tp_device *device)
{
    while (device->programs) {
        struct tp_program *program = device->programs;
        device->programs = program->next;
        free_program(program);
    }
}

/* Caller frees; NULL if the driver gives none. */
static char *read_build_log(cl_program handle, cl_device_id id)
{
    size_t n_bytes = 0;
    if (clGetProgramBuildInfo(handle, id, CL_PROGRAM_BUILD_LOG, 0, NULL, &n_bytes) != CL_SUCCESS || n_bytes == 0) return NULL;
    char *text = calloc(1, n_bytes + 1);
    if (text && clGetProgramBuildInfo(handle, id, CL_PROGRAM_BUILD_LOG, n_bytes, text, NULL) != CL_SUCCESS) {
        free(text);
        return NULL;
    }
    return text;
}

/* The first line that speaks of an error, cut to fit: it belongs in the message, the rest in the log. */
static void first_error(char *out, size_t n_out, const char *build_log)
{
    const char *line = build_log ? build_log : "";
    const char *found = strstr(line, "error");
    if (found)
        for (line = found; line > build_log && line[-1] != '\n';) --line;
    const size_t n = strcspn(line, "\n");
    snprintf(out, n_out, "%.*s", (int)(n < n_out ? n : n_out - 1), line);
}

/* Remembers a failed build in `program` and reports it. */
static enum talpa_status fail_build(struct tp_program *program, const struct tp_device *device, int code, char *build_log)
{
    char line[512], message[1536];
    first_error(line, sizeof line, build_log);
    snprintf(message, sizeof message, "building %s with options '%s' on device %s failed: %s (%d)%s%s", program->path, program->options,
             device->caps.name, tp_opencl_error_name(code), code, line[0] ? ": " : "", line);
    program->status = TALPA_E_DEVICE;
    program->opencl_code = code;
    program->build_log = build_log;
    program->message = copy_text(message);
    return tp_fail_opencl(TALPA_E_DEVICE, code, build_log, "%s", message);
}

static enum talpa_status compile(struct tp_program *program, struct tp_device *device, const char *source, size_t n_bytes)
{
    if (tp_opencl_fault(device, TP_FAULT_BUILD))
        return fail_build(program, device, CL_BUILD_PROGRAM_FAILURE,
                          copy_text("<kernel>:1:1: error: build failure injected by TALPA_FAULT"));
    const bool use_cache = tp_program_cache_enabled(device);
    if (use_cache && (program->handle = tp_program_cache_load(device, source, n_bytes, program->options))) {
        ++device->counts.n_cache_hits;
        return TALPA_OK;
    }
    cl_int code = CL_SUCCESS;
    program->handle = clCreateProgramWithSource(device->context, 1, &source, &n_bytes, &code);
    if (code != CL_SUCCESS || !program->handle) return fail_build(program, device, code, NULL);
    code = clBuildProgram(program->handle, 1, &device->id, program->options, NULL, NULL);
    char *build_log = read_build_log(program->handle, device->id);
    if (code != CL_SUCCESS) {
        clReleaseProgram(program->handle);
        program->handle = NULL;
        return fail_build(program, device, code, build_log);
    }
    if (build_log && build_log[strspn(build_log, " \n")]) tp_log(TALPA_LOG_DEBUG, "building %s: %s", program->path, build_log);
    free(build_log);
    ++device->counts.n_built;
    if (tp_program_cache_grows(device) && tp_program_cache_store(device, program->handle, source, n_bytes, program->options)) ++device->counts.n_cache_stored;
    return TALPA_OK;
}

static enum talpa_status build(struct tp_program *program, struct tp_device *device)
{
    char *source;
    size_t n_bytes;
    TP_PROFILE_SPAN("build a program");
    TP_TRY(tp_program_source(&source, &n_bytes, program->path));
    const int64_t start_ns = tp_clock_now_ns();
    const enum talpa_status status = compile(program, device, source, n_bytes);
    device->counts.build_ns += (uint64_t)(tp_clock_now_ns() - start_ns);
    free(source);
    return status;
}

/* A failed build stays in the list; a program that never got as far as its compiler does not. */
static enum talpa_status find_program(struct tp_program **out, struct tp_device *device, const char *path, const char *options)
{
    for (struct tp_program *program = device->programs; program; program = program->next) {
        if (strcmp(program->path, path) != 0 || strcmp(program->options, options) != 0) continue;
        if (program->status != TALPA_OK)
            return tp_fail_opencl(program->status, program->opencl_code, program->build_log, "%s",
                                  program->message ? program->message : "an earlier build of this program failed");
        *out = program;
        return TALPA_OK;
    }
    struct tp_program *program = calloc(1, sizeof *program);
    if (!program) return tp_fail_memory("program", sizeof *program);
    program->path = copy_text(path);
    program->options = copy_text(options);
    if (!program->path || !program->options) {
        free_program(program);
        return tp_fail_memory("program", strlen(path) + strlen(options));
    }
    const enum talpa_status status = build(program, device);
    if (status != TALPA_OK && program->status == TALPA_OK) {
        free_program(program);
        return status;
    }
    program->next = device->programs;
    device->programs = program;
    if (status == TALPA_OK) *out = program;
    return status;
}

static enum talpa_status create_kernel(struct tp_kernel **out, const struct tp_device *device, struct tp_program *program, const char *name)
{
    cl_int code = CL_SUCCESS;
    cl_kernel handle = clCreateKernel(program->handle, name, &code);
    if (code != CL_SUCCESS || !handle) {
        char names[1024] = "";
        clGetProgramInfo(program->handle, CL_PROGRAM_KERNEL_NAMES, sizeof names - 1, names, NULL);
        const enum talpa_status status = code == CL_INVALID_KERNEL_NAME ? TALPA_E_INTERNAL : TALPA_E_DEVICE;
        return tp_fail_opencl(status, code, NULL, "kernel '%s' of %s on device %s: %s (%d); the file has: %s", name, program->path,
                              device->caps.name, tp_opencl_error_name(code), code, names);
    }
    struct tp_kernel *kernel = calloc(1, sizeof *kernel);
    char *text = copy_text(name);
    cl_uint n_args = 0;
    code = clGetKernelInfo(handle, CL_KERNEL_NUM_ARGS, sizeof n_args, &n_args, NULL);
    struct tp_kernel_arg *held = code == CL_SUCCESS ? calloc((size_t)n_args + 1, sizeof *held) : NULL;
    if (!kernel || !text || !held) {
        clReleaseKernel(handle);
        free(held);
        free(kernel);
        free(text);
        return code == CL_SUCCESS ? tp_fail_memory("kernel", sizeof *kernel)
                                  : tp_fail_opencl(TALPA_E_DEVICE, code, NULL, "kernel '%s' of %s: its arguments cannot be counted: %s",
                                                   name, program->path, tp_opencl_error_name(code));
    }
    *kernel = (struct tp_kernel){.name = text, .program = program, .device = device, .handle = handle, .n_args = n_args, .held = held};
    kernel->next = program->kernels;
    program->kernels = kernel;
    *out = kernel;
    return TALPA_OK;
}

enum talpa_status tp_program_kernel(struct tp_kernel **out, struct tp_device *device, const char *path, const char *name,
                                    const char *options)
{
    char all[2048];
    if (!options) options = "";
    if (strstr(options, "-cl-fast-relaxed-math"))
        return tp_fail(TALPA_E_INTERNAL, "kernel '%s' of %s: -cl-fast-relaxed-math is never used: results would depend on the driver", name,
                       path);
    while (*options == ' ') ++options;
    const int n = snprintf(all, sizeof all, "%s%s%s", options, *options ? " " : "", strstr(options, "-cl-std=") ? "" : "-cl-std=CL1.2");
    if (n < 0 || (size_t)n >= sizeof all)
        return tp_fail(TALPA_E_INTERNAL, "kernel '%s' of %s: options are longer than %zu bytes", name, path, sizeof all - 1);
    struct tp_program *program = NULL;
    TP_TRY(find_program(&program, device, path, all));
    for (struct tp_kernel *kernel = program->kernels; kernel; kernel = kernel->next) {
        if (strcmp(kernel->name, name) != 0) continue;
        *out = kernel;
        return TALPA_OK;
    }
    return create_kernel(out, device, program, name);
}

enum talpa_status tp_kernel_info(struct tp_kernel_info *info, const struct tp_kernel *kernel)
{
    struct tp_kernel_info found = {0};
    cl_ulong local_mem = 0, private_mem = 0;
    const cl_device_id id = kernel->device->id;
    cl_int code = clGetKernelWorkGroupInfo(kernel->handle, id, CL_KERNEL_WORK_GROUP_SIZE, sizeof(size_t), &found.max_work_group_size,
                                           NULL);
    if (code == CL_SUCCESS)
        code = clGetKernelWorkGroupInfo(kernel->handle, id, CL_KERNEL_PREFERRED_WORK_GROUP_SIZE_MULTIPLE, sizeof(size_t),
                                        &found.preferred_multiple, NULL);
    if (code == CL_SUCCESS)
        code = clGetKernelWorkGroupInfo(kernel->handle, id, CL_KERNEL_LOCAL_MEM_SIZE, sizeof local_mem, &local_mem, NULL);
    if (code == CL_SUCCESS)
        code = clGetKernelWorkGroupInfo(kernel->handle, id, CL_KERNEL_PRIVATE_MEM_SIZE, sizeof private_mem, &private_mem, NULL);
    if (code != CL_SUCCESS)
        return tp_fail_opencl(TALPA_E_DEVICE, code, NULL, "kernel %s of %s: its limits cannot be read: %s (%d)", kernel->name,
                              kernel->program->path, tp_opencl_error_name(code), code);
    found.local_mem_bytes = local_mem;
    found.private_mem_bytes = private_mem;
    *info = found;
    return TALPA_OK;
}

const char *tp_kernel_name(const struct tp_kernel *kernel) { return kernel->name; }
const char *tp_kernel_path(const struct tp_kernel *kernel) { return kernel->program->path; }
void tp_program_keep(struct tp_device *device) { device->keeps_programs = true; }
struct tp_program_counts tp_program_counts(const struct tp_device *device) { return device->counts; }
