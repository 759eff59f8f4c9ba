/* talpa inspect */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "flags_common.h"
#include "options.h"
#include "output.h"
#include "program.h"
#include "talpa/adapter.h"
#include "talpa/infer.h"
#include "talpa/train.h"
#include "train_flags.h"

struct inspect {
    struct train_flags flags;
    const char *model, *lora, *device, *fake_device, *output_file;
    int format;
    bool tensors, graph, plan;
};

enum { FORMAT_TEXT, FORMAT_JSON };

static void shape_text(char *text, size_t size, struct talpa_shape shape, const char *separator)
{
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; i < shape.rank && used < size; ++i)
        used += (size_t)snprintf(text + used, size - used, "%s%" PRId64, i ? separator : "", shape.dim[i]);
}

/** Counts and bytes by element type. */
struct totals {
    size_t n[TALPA_N_DTYPES], bytes[TALPA_N_DTYPES];
};

static struct totals count_tensors(const struct talpa_model *model)
{
    struct totals totals = {{0}, {0}};
    for (size_t i = 0; i < talpa_model_n_tensors(model); ++i) {
        const struct talpa_tensor_info tensor = talpa_model_tensor(model, i);
        ++totals.n[tensor.dtype];
        totals.bytes[tensor.dtype] += tensor.n_bytes;
    }
    return totals;
}

static size_t model_fields(struct field *fields, const struct talpa_model_info *info, const char *digest)
{
    size_t n = 0;
    fields[n++] = field_text("architecture", info->architecture);
    fields[n++] = field_text("name", info->name);
    fields[n++] = field_text("path", info->path);
    fields[n++] = field_int("n_layers", info->n_layers);
    fields[n++] = field_int("d_model", info->d_model);
    fields[n++] = field_int("n_heads", info->n_heads);
    fields[n++] = field_int("n_kv_heads", info->n_kv_heads);
    fields[n++] = field_int("head_dim", info->head_dim);
    fields[n++] = field_int("d_ff", info->d_ff);
    fields[n++] = field_int("vocab_size", info->vocab_size);
    fields[n++] = field_int("context_length", info->context_length);
    fields[n++] = field_real("rope_theta", info->rope_theta);
    fields[n++] = field_real("rms_norm_eps", info->rms_norm_eps);
    fields[n++] = field_bool("tied_embeddings", info->tied_embeddings);
    fields[n++] = field_int("n_parameters", info->n_parameters);
    fields[n++] = field_int("weight_bytes", (int64_t)info->weight_bytes);
    fields[n++] = field_text("digest", digest);
    return n;
}

static void print_lines(FILE *file, const struct field *fields, size_t n)
{
    for (size_t i = 0; i < n; ++i) {
        fprintf(file, "%-16s ", fields[i].name);
        switch (fields[i].kind) {
        case FIELD_REALS:
        case FIELD_NULL:
            fputs("-\n", file);
            break;
        case FIELD_TEXT:
            fprintf(file, "%s\n", fields[i].text);
            break;
        case FIELD_INT:
            fprintf(file, "%" PRId64 "\n", fields[i].integer);
            break;
        case FIELD_REAL:
            fprintf(file, "%g\n", fields[i].real);
            break;
        case FIELD_BOOL:
            fputs(fields[i].integer ? "yes\n" : "no\n", file);
            break;
        }
    }
}

static void print_model_text(FILE *file, const struct talpa_model *model, const struct field *fields, size_t n_fields, bool list)
{
    const struct totals totals = count_tensors(model);
    print_lines(file, fields, n_fields);
    fprintf(file, "%-16s %zu\n", "tensors", talpa_model_n_tensors(model));
    for (int i = 0; i < TALPA_N_DTYPES; ++i)
        if (totals.n[i])
            fprintf(file, "  %-14s %zu tensors, %.1f MiB\n", talpa_dtype_name((enum talpa_dtype)i), totals.n[i],
                    (double)totals.bytes[i] / 1048576.0);
    for (size_t i = 0; list && i < talpa_model_n_tensors(model); ++i) {
        const struct talpa_tensor_info tensor = talpa_model_tensor(model, i);
        char shape[96];
        shape_text(shape, sizeof shape, tensor.shape, " x ");
        fprintf(file, "%-32s %-5s %-18s %zu bytes\n", tensor.name, talpa_dtype_name(tensor.dtype), shape, tensor.n_bytes);
    }
}

static void print_model_json(FILE *file, const struct talpa_model *model, const struct field *fields, size_t n_fields, bool list)
{
    const struct totals totals = count_tensors(model);
    fputs("\"model\": ", file);
    output_object(file, fields, n_fields);
    fprintf(file, ",\n\"n_tensors\": %zu,\n\"dtypes\": {", talpa_model_n_tensors(model));
    bool first = true;
    for (int i = 0; i < TALPA_N_DTYPES; ++i)
        if (totals.n[i]) {
            fprintf(file, "%s\"%s\": {\"n_tensors\": %zu, \"n_bytes\": %zu}", first ? "" : ", ", talpa_dtype_name((enum talpa_dtype)i),
                    totals.n[i], totals.bytes[i]);
            first = false;
        }
    fputs("}", file);
    if (!list) return;
    fputs(",\n\"tensors\": [\n", file);
    for (size_t i = 0; i < talpa_model_n_tensors(model); ++i) {
        const struct talpa_tensor_info tensor = talpa_model_tensor(model, i);
        char shape[96];
        shape_text(shape, sizeof shape, tensor.shape, ", ");
        fputs(i ? ",\n{\"name\": " : "{\"name\": ", file);
        output_string(file, tensor.name, strlen(tensor.name), false);
        fprintf(file, ", \"dtype\": \"%s\", \"shape\": [%s], \"n_bytes\": %zu}", talpa_dtype_name(tensor.dtype), shape, tensor.n_bytes);
    }
    fputs("\n]", file);
}

static void print_adapter(FILE *file, bool json, const struct field *fields, size_t n_fields, const char *lines)
{
    if (!json) {
        print_lines(file, fields, n_fields);
        fputs(lines, file);
        if (*lines && lines[strlen(lines) - 1] != '\n') fputc('\n', file);
        return;
    }
    fputs("\"adapter\": ", file);
    output_object(file, fields, n_fields);
    fputs(",\n\"adapter_tensors\": [", file);
    for (bool first = true; *lines; first = false) {
        const size_t n = strcspn(lines, "\n");
        if (!first) fputs(",\n", file);
        output_string(file, lines, n, false);
        lines += n + (lines[n] == '\n');
    }
    fputs("]", file);
}

/** Graph and plan as text: the library prints them for a capability record, with no device touched. */
static int print_plan(const struct inspect *inspect, struct output *output, struct talpa_model *model)
{
    /* The graph is the same for every device, so that showing it needs none. */
    const char *fake = inspect->fake_device ? inspect->fake_device : inspect->plan || inspect->device ? NULL : "cpu";
    struct program_device device;
    const int code = program_device_choose(&device, inspect->device, fake);
    if (code >= 0) return code;
    struct talpa_memory_plan memory;
    struct talpa_session_options session;
    talpa_session_default(&session);
    session.lora = inspect->lora;
    session.base_dtype = inspect->flags.options.base_dtype;
    const struct talpa_train_options *train = &inspect->flags.options;
    if (inspect->format == FORMAT_JSON) {
        fputs("{\"train\": ", output->file);
        enum talpa_status status = talpa_train_print_json(output->file, model, &device.caps, train);
        if (status == TALPA_OK) fputs(",\n\"generate\": ", output->file);
        if (status == TALPA_OK) status = talpa_session_print(output->file, model, &device.caps, &session, true);
        if (status != TALPA_OK) return program_fail(status);
        fputs("}\n", output->file);
        return -1;
    }
    enum talpa_status status = talpa_train_print(output->file, model, &device.caps, train, inspect->graph, inspect->plan);
    if (status == TALPA_OK && inspect->plan) status = talpa_train_plan_memory(&memory, model, &device.caps, train);
    if (status == TALPA_OK && inspect->plan) train_memory_print(output, OUTPUT_MD, model, &device.caps, &memory);
    if (status == TALPA_OK && inspect->plan) status = talpa_session_print(output->file, model, &device.caps, &session, false);
    return status == TALPA_OK ? -1 : program_fail(status);
}

static int print_all(const struct inspect *inspect, struct output *output, struct talpa_model *model)
{
    FILE *file = output->file;
    const bool json = inspect->format == FORMAT_JSON;
    struct field fields[20];
    char text[64], *lines = NULL;
    if (inspect->graph || inspect->plan) return print_plan(inspect, output, model);
    if (json) fputs("{", file);
    if (model) {
        struct talpa_model_info info;
        uint64_t digest;
        enum talpa_status status = talpa_model_info(&info, model);
        if (status == TALPA_OK) status = talpa_model_digest(&digest, model);
        if (status != TALPA_OK) return program_fail(status);
        snprintf(text, sizeof text, "%016" PRIx64, digest);
        const size_t n = model_fields(fields, &info, text);
        (json ? print_model_json : print_model_text)(file, model, fields, n, inspect->tensors);
    }
    if (inspect->lora) {
        struct talpa_adapter_config config;
        const enum talpa_status status = talpa_adapter_inspect(&config, &lines, inspect->lora);
        if (status != TALPA_OK) return program_fail(status);
        if (model) fputs(json ? ",\n" : "\n", file);
        const size_t n = train_adapter_fields(fields, &config, text, sizeof text);
        print_adapter(file, json, fields, n, lines);
        free(lines);
    }
    if (json) fputs("}\n", file);
    return -1;
}

static int run(const struct inspect *inspect)
{
    struct talpa_model *model = NULL;
    struct output output;
    const enum talpa_status status = inspect->model ? talpa_model_open(&model, inspect->model) : TALPA_OK;
    int code = status == TALPA_OK ? output_open(&output, inspect->output_file) : program_fail(status);
    if (code < 0) {
        code = print_all(inspect, &output, model);
        if (code < 0) {
            code = output_close(&output);
        } else {
            output_discard(&output);
        }
    }
    talpa_model_close(model);
    return code;
}

int cmd_inspect(int argc, char **argv)
{
    static struct inspect inspect;
    static struct options options;
    options = (struct options){.verb = "inspect",
                               .usage = "-m MODEL | --lora DIR [options]",
                               .summary = "Shows a model, an adapter, or the graph and plan that training would use."};
    const struct option table[] = {
        {.kind = OPTION_GROUP, .help = "What"},
        flag_model(&inspect.model),
        flag_lora(&inspect.lora),
        {.kind = OPTION_FLAG, .name = "tensors", .target = &inspect.tensors, .help = "list the model's tensors"},
        {.kind = OPTION_FLAG, .name = "graph", .target = &inspect.graph, .help = "print the training graph"},
        {.kind = OPTION_FLAG, .name = "plan", .target = &inspect.plan, .help = "print the launches planned for the device: of a training step, a decoded token and a prompt pass; and memory"},
        flag_device(&inspect.device),
        flag_fake_device(&inspect.fake_device),
        flag_output(&inspect.format, "md|json"),
        flag_output_file(&inspect.output_file),
    };
    options_add(&options, table, sizeof table / sizeof *table);
    train_flags_add(&options, &inspect.flags);
    int code = options_parse(&options, argc, argv);
    const bool planning = inspect.graph || inspect.plan;
    if (code < 0 && !inspect.model && (planning || !inspect.lora))
        code = options_fail(&options, planning ? "--model (-m) is missing" : "--model (-m) or --lora is missing: what to inspect");
    if (code < 0 && inspect.graph && inspect.format == FORMAT_JSON) code = options_fail(&options, "--output json: --graph is text");
    if (code < 0 && inspect.device && inspect.fake_device) code = options_fail(&options, "--device and --fake-device exclude each other");
    if (code < 0 && planning) code = train_flags_finish(&inspect.flags, &options);
    if (code < 0) {
        program_log_level();
        code = run(&inspect);
    }
    options_free(&options);
    return code;
}
