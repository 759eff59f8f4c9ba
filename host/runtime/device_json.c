#include "base/json.h"
#include "base/status.h"
#include "device.h"

enum talpa_status tp_device_caps_json(struct tp_json_writer *writer, const struct talpa_device_caps *caps)
{
    tp_json_write_object_begin(writer);
    tp_json_write_string_member(writer, "platform", caps->platform);
    tp_json_write_string_member(writer, "name", caps->name);
    tp_json_write_string_member(writer, "vendor_name", caps->vendor_name);
    tp_json_write_string_member(writer, "driver_version", caps->driver_version);
    tp_json_write_string_member(writer, "device_version", caps->device_version);
    tp_json_write_string_member(writer, "c_version", caps->c_version);
    tp_json_write_string_member(writer, "type", tp_device_type_name(caps->type));
    tp_json_write_string_member(writer, "vendor", tp_device_vendor_name(caps->vendor));
    tp_json_write_int_member(writer, "global_mem_bytes", (int64_t)caps->global_mem_bytes);
    tp_json_write_int_member(writer, "max_alloc_bytes", (int64_t)caps->max_alloc_bytes);
    tp_json_write_int_member(writer, "local_mem_bytes", (int64_t)caps->local_mem_bytes);
    tp_json_write_int_member(writer, "compute_units", caps->compute_units);
    tp_json_write_int_member(writer, "clock_mhz", caps->clock_mhz);
    tp_json_write_int_member(writer, "max_work_group_size", caps->max_work_group_size);
    tp_json_write_int_member(writer, "base_align_bytes", caps->base_align_bytes);
    tp_json_write_bool_member(writer, "has_fp16", caps->has_fp16);
    tp_json_write_bool_member(writer, "has_fp64", caps->has_fp64);
    tp_json_write_bool_member(writer, "has_subgroups", caps->has_subgroups);
    tp_json_write_bool_member(writer, "unified_memory", caps->unified_memory);
    tp_json_write_bool_member(writer, "little_endian", caps->little_endian);
    tp_json_write_bool_member(writer, "in_process", caps->in_process);
    tp_json_write_string_member(writer, "cpu_features", caps->cpu_features);
    tp_json_write_object_end(writer);
    return TALPA_OK;
}
