/* The reading half of checkpoint.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/log.h"
#include "io/file_map.h"
#include "io/folder.h"
#include "io/safetensors.h"
#include "train/checkpoint.h"
#include "train/run_folder.h"

/* ---- finding ---- */

static enum talpa_status newest(void *user, const char *name)
{
    int *step = user;
    const int found = tp_run_folder_checkpoint_step(name);
    if (found > *step) *step = found;
    return TALPA_OK;
}

static enum talpa_status newest_of(char **path, const char *folder)
{
    int step = -1;
    TP_TRY(tp_folder_visit(folder, newest, &step));
    *path = NULL;
    if (step < 0) return TALPA_OK;
    const size_t n_bytes = strlen(folder) + 32;
    char *text = malloc(n_bytes);
    if (!text) return tp_fail_memory(folder, n_bytes);
    snprintf(text, n_bytes, "%s/checkpoint-%d", folder, step);
    *path = text;
    return TALPA_OK;
}

enum talpa_status tp_checkpoint_find(char **path, const char *from, const char *output_dir)
{
    char *found = NULL;
    if (!strcmp(from, "auto")) return newest_of(path, output_dir);
    if (!tp_folder_has(from, "checkpoint.json")) {
        const enum talpa_status status = newest_of(&found, from);
        if (status != TALPA_OK) return tp_context(status, "--resume-from");
        if (!found)
            return tp_fail(TALPA_E_NO_INPUT, "--resume-from %s: found neither checkpoint.json nor a folder checkpoint-<step>", from);
        *path = found;
        return TALPA_OK;
    }
    found = malloc(strlen(from) + 1);
    if (!found) return tp_fail_memory(from, strlen(from) + 1);
    strcpy(found, from);
    for (size_t n = strlen(found); n > 1 && found[n - 1] == '/'; n--) found[n - 1] = '\0';
    *path = found;
    return TALPA_OK;
}

/* ---- checkpoint.json ---- */

struct reader {
    struct tp_arena arena;
    const char *path;
    const struct tp_checkpoint_run *run;
    struct tp_json *json;
};

static const char *file_of(struct reader *r, const char *name) { return tp_arena_printf(&r->arena, "%s/%s", r->path, name); }

static enum talpa_status get_hex(uint64_t *out, const struct tp_json_value *object, const char *key)
{
    const char *text;
    TP_TRY(tp_json_get_string(&text, object, key));
    if (strlen(text) != TP_HASH_HEX_BYTES - 1 || strspn(text, "0123456789abcdef") != TP_HASH_HEX_BYTES - 1)
        return tp_fail(TALPA_E_DATA, "%s: found '%.40s', expected 16 hexadecimal digits", key, text);
    *out = strtoull(text, NULL, 16);
    return TALPA_OK;
}

static enum talpa_status check_seal(struct reader *r, const char *path)
{
    struct tp_file_map map;
    char hex[TP_HASH_HEX_BYTES], *at;
    uint64_t saved;
    TP_TRY(tp_file_map_open(&map, path));
    char *copy = tp_arena_strndup(&r->arena, (const char *)map.bytes, map.n_bytes);
    const size_t n_bytes = map.n_bytes;
    tp_file_map_close(&map);
    if (!copy) return TALPA_E_DEVICE;
    TP_TRY(get_hex(&saved, tp_json_root(r->json), "seal"));
    const uint64_t seal = tp_checkpoint_seal(&at, copy, n_bytes);
    if (!at || seal != saved)
        return tp_fail(TALPA_E_DATA,
                       "seal: found a text of digest %s, expected %016llx: the file was changed; resume from an older checkpoint",
                       tp_hash_hex(hex, seal), (unsigned long long)saved);
    return TALPA_OK;
}

static enum talpa_status check_file(struct reader *r, const struct tp_json_value *entry)
{
    const char *name, *path;
    int64_t n_bytes;
    uint64_t digest;
    struct tp_file_map map;
    char hex[2][TP_HASH_HEX_BYTES];
    TP_TRY(tp_json_get_string(&name, entry, "name"));
    TP_TRY(tp_json_get_int(&n_bytes, entry, "bytes"));
    TP_TRY(get_hex(&digest, entry, "xxh3"));
    if (!(path = file_of(r, name))) return TALPA_E_DEVICE;
    const enum talpa_status status = tp_file_map_open(&map, path);
    if (status != TALPA_OK) return tp_context(TALPA_E_DATA, "the checkpoint is damaged; resume from an older one");
    const uint64_t found = tp_hash_bytes(map.bytes, map.n_bytes);
    const size_t found_bytes = map.n_bytes;
    tp_file_map_close(&map);
    if (found_bytes != (size_t)n_bytes)
        return tp_fail(TALPA_E_DATA, "%s: bytes: found %zu, expected %lld: the file is damaged; resume from an older checkpoint", path,
                       found_bytes, (long long)n_bytes);
    if (found != digest)
        return tp_fail(TALPA_E_DATA, "%s: xxh3: found %s, expected %s: the file is damaged; resume from an older checkpoint", path,
                       tp_hash_hex(hex[0], found), tp_hash_hex(hex[1], digest));
    return TALPA_OK;
}

static enum talpa_status check_files(struct reader *r)
{
    const struct tp_json_value *files = tp_json_get(tp_json_root(r->json), "files");
    if (tp_json_length(files) != TP_CHECKPOINT_N_FILES)
        return tp_fail(TALPA_E_DATA, "files: found %lld, expected %d", (long long)tp_json_length(files), TP_CHECKPOINT_N_FILES);
    for (const struct tp_json_value *entry = tp_json_first(files); entry; entry = tp_json_next(entry)) TP_TRY(check_file(r, entry));
    return TALPA_OK;
}

static const char *const plan_keys[2] = {"plan_digest_dense", "plan_digest_sparse"};

static enum talpa_status get_text(char *out, size_t size, const struct tp_json_value *object, const char *key)
{
    const char *text;
    TP_TRY(tp_json_get_string(&text, object, key));
    snprintf(out, size, "%s", text);
    return TALPA_OK;
}

enum talpa_status tp_checkpoint_check_plan(const struct tp_checkpoint *c, const struct tp_checkpoint_run *run)
{
    for (int i = 0; i < 2; i++) {
        char own[TP_HASH_HEX_BYTES];
        tp_checkpoint_plan_digest(own, run->plans[i]);
        if (!strcmp(c->plan_digest[i], own)) continue;
        const struct talpa_device_caps *caps = run->caps;
        if (!run->options->allow_plan_change)
            return tp_fail(TALPA_E_DATA,
                           "%s: found %s (%s, driver %s), expected %s (%s, driver %s): kernels, device or driver are not those of the "
                           "checkpoint, so the bits "
                           "may differ; --allow-plan-change accepts that",
                           plan_keys[i], c->plan_digest[i], c->device, c->driver, own, caps->name, caps->driver_version);
        tp_log(TALPA_LOG_WARN, "%s was %s (%s, driver %s), is %s (%s, driver %s)", plan_keys[i], c->plan_digest[i], c->device, c->driver,
               own, caps->name, caps->driver_version);
    }
    return TALPA_OK;
}

static enum talpa_status read_best(struct tp_best *best, const struct tp_json_value *root)
{
    const struct tp_json_value *saved = tp_json_get(root, "best");
    int64_t step, n_worse;
    uint64_t bits;
    TP_TRY(tp_json_get_int(&step, saved, "step"));
    TP_TRY(tp_json_get_int(&n_worse, saved, "evaluations_since"));
    TP_TRY(get_hex(&bits, saved, "loss_bits"));
    TP_TRY(get_hex(&best->digest, saved, "digest"));
    memcpy(&best->loss, &bits, sizeof bits);
    best->step = (int)step;
    best->n_worse = (int)n_worse;
    return TALPA_OK;
}

static enum talpa_status read_steering(struct tp_checkpoint *c, const struct tp_json_value *saved)
{
    double *const numbers[] = {&c->steer.log_bound, &c->steer.gain, &c->steer.last_error, &c->steer.measured};
    c->is_steered = saved != NULL;
    for (int i = 0; saved && i < TP_CHECKPOINT_N_STEERING; i++) {
        char key[32];
        uint64_t bits;
        snprintf(key, sizeof key, "%s_bits", tp_checkpoint_steering[i]);
        TP_TRY(get_hex(&bits, saved, key));
        memcpy(numbers[i], &bits, sizeof bits);
        if (!isfinite(*numbers[i])) return tp_fail(TALPA_E_DATA, "steering: %s: found %g, expected a finite number", key, *numbers[i]);
    }
    return saved ? tp_json_get_int(&c->steer.n_steps, saved, "steps") : TALPA_OK;
}

static enum talpa_status read_state(struct tp_checkpoint *c, struct reader *r)
{
    const struct tp_json_value *root = tp_json_root(r->json);
    int64_t version, step, cursor, total_examples;
    const char *dispatch;
    TP_TRY(tp_json_get_int(&version, root, "format_version"));
    if (version != TP_CHECKPOINT_FORMAT_VERSION)
        return tp_fail(TALPA_E_DATA, "format_version: found %lld, expected %d: it was made by another version", (long long)version,
                       TP_CHECKPOINT_FORMAT_VERSION);
    TP_TRY(tp_json_get_int(&step, root, "step"));
    TP_TRY(tp_json_get_int(&cursor, root, "data_cursor"));
    TP_TRY(tp_json_get_int(&total_examples, root, "total_examples"));
    TP_TRY(tp_json_get_int(&c->total_tokens, root, "total_tokens"));
    TP_TRY(tp_json_get_double(&c->elapsed_s, root, "elapsed_time"));
    TP_TRY(tp_json_get_string(&dispatch, root, "dispatch"));
    TP_TRY(read_best(&c->best, root));
    TP_TRY(read_steering(c, tp_json_get(root, "steering")));
    TP_TRY(get_hex(&c->digest, root, "digest"));
    TP_TRY(get_hex(&c->digest_state, root, "digest_state"));
    if (step < 1 || step > INT32_MAX) return tp_fail(TALPA_E_DATA, "step: found %lld, expected at least 1", (long long)step);
    if (cursor < 0) return tp_fail(TALPA_E_DATA, "data_cursor: found %lld, expected at least 0", (long long)cursor);
    c->step = (int)step;
    c->cursor = (uint64_t)cursor;
    c->total_examples = total_examples < 0 ? UINT64_MAX : (uint64_t)total_examples;
    c->sparse = !strcmp(dispatch, "sparse");
    TP_TRY(tp_train_config_compare(r->run->config, tp_json_get(root, "config"), r->run->options->allow_schedule_change));
    if (c->step > r->run->total_steps)
        return tp_fail(TALPA_E_DATA,
                       "step: found %d, expected at most %d: --max-steps or --num-train-epochs asks for less than is done already", c->step,
                       r->run->total_steps);
    for (int i = 0; i < 2; i++) TP_TRY(get_text(c->plan_digest[i], sizeof c->plan_digest[i], root, plan_keys[i]));
    TP_TRY(get_text(c->device, sizeof c->device, root, "device"));
    return get_text(c->driver, sizeof c->driver, root, "driver");
}

/* ---- tensors ---- */

static enum talpa_status get_tensor(struct tp_safetensors_tensor *out, const struct tp_safetensors *file, const char *name,
                                    enum tp_safetensors_type type, size_t n_elements)
{
    TP_TRY(tp_safetensors_get(out, file, name));
    if (out->type != type || out->n_bytes != n_elements * tp_safetensors_type_bytes(type))
        return tp_fail(TALPA_E_DATA, "%s: tensor '%s': found %s of %zu bytes, expected %s of %zu", tp_safetensors_label(file), name,
                       tp_safetensors_type_name(out->type), out->n_bytes, tp_safetensors_type_name(type),
                       n_elements * tp_safetensors_type_bytes(type));
    return TALPA_OK;
}

static enum talpa_status read_before(struct tp_losses *before, const struct tp_safetensors *file)
{
    struct tp_safetensors_tensor sum, n;
    if (!tp_safetensors_has(file, "eval_before.sum")) return TALPA_OK;
    TP_TRY(tp_safetensors_get(&sum, file, "eval_before.sum"));
    const size_t n_examples = sum.n_bytes / sizeof *before->sum;
    TP_TRY(get_tensor(&sum, file, "eval_before.sum", TP_SAFETENSORS_I64, n_examples));
    TP_TRY(get_tensor(&n, file, "eval_before.n", TP_SAFETENSORS_I32, n_examples));
    before->sum = malloc(sum.n_bytes + 1);
    before->n = malloc(n.n_bytes + 1);
    if (!before->sum || !before->n) return tp_fail_memory("eval_before", sum.n_bytes);
    memcpy(before->sum, sum.data, sum.n_bytes);
    memcpy(before->n, n.data, n.n_bytes);
    before->n_examples = n_examples;
    return TALPA_OK;
}

static enum talpa_status read_moments(struct tp_checkpoint *c, struct reader *r, const struct tp_safetensors *file)
{
    const struct tp_adapter *adapter = r->run->adapter;
    struct tp_safetensors_tensor tensor;
    float *values = tp_arena_array(&r->arena, (size_t)adapter->n_trainable + 1, sizeof *values);
    if (!values) return TALPA_E_DEVICE;
    for (int moment = 0; moment < 2; moment++)
        for (int i = 0; i < adapter->n_tensors; i++) {
            const struct tp_adapter_tensor *t = &adapter->tensors[i];
            const char *name = tp_arena_printf(&r->arena, "%s.%s", moment ? "exp_avg_sq" : "exp_avg", t->name);
            if (!name) return TALPA_E_DEVICE;
            TP_TRY(get_tensor(&tensor, file, name, TP_SAFETENSORS_F32, (size_t)t->rows * (size_t)t->columns));
            memcpy(values, tensor.data, tensor.n_bytes);
            tp_adapter_put(moment ? c->v : c->m, adapter, i, values);
        }
    TP_TRY(get_tensor(&tensor, file, "step", TP_SAFETENSORS_I32, (size_t)adapter->n_tensors));
    memcpy(c->counts, tensor.data, tensor.n_bytes);
    return read_before(&c->before, file);
}

static enum talpa_status read_tensors(struct tp_checkpoint *c, struct reader *r)
{
    const struct tp_adapter *adapter = r->run->adapter;
    const size_t n = (size_t)adapter->bank_elements;
    struct tp_adapter *saved;
    struct tp_safetensors *file;
    c->m = calloc(n, sizeof *c->m);
    c->v = calloc(n, sizeof *c->v);
    c->counts = calloc((size_t)adapter->n_tensors + 1, sizeof *c->counts);
    if (!c->m || !c->v || !c->counts) return tp_fail_memory(r->path, 2 * n * sizeof *c->m);
    TP_TRY(tp_adapter_load(&saved, &c->params, r->path, r->run->model, false));
    const bool same = saved->bank_elements == adapter->bank_elements && saved->n_tensors == adapter->n_tensors;
    tp_adapter_free(saved);
    if (!same) return tp_fail(TALPA_E_DATA, "%s: adapter_config.json: found an adapter of another size than the options make", r->path);
    const char *path = file_of(r, "optimizer.safetensors");
    if (!path) return TALPA_E_DEVICE;
    TP_TRY(tp_safetensors_open(&file, path));
    const enum talpa_status status = read_moments(c, r, file);
    tp_safetensors_close(file);
    return status;
}

static enum talpa_status read_history(struct tp_history *history, struct reader *r)
{
    struct tp_json *json;
    const char *path = file_of(r, "trainer_state.json");
    if (!path) return TALPA_E_DEVICE;
    TP_TRY(tp_json_parse_file(&json, path));
    const enum talpa_status status = tp_history_read(history, tp_json_root(json));
    tp_json_free(json);
    return tp_context(status, "%s", path);
}

static enum talpa_status read_all(struct tp_checkpoint *c, struct tp_history *history, struct reader *r)
{
    const char *path = file_of(r, "checkpoint.json");
    uint64_t digest, digest_state;
    char hex[2][TP_HASH_HEX_BYTES];
    if (!path) return TALPA_E_DEVICE;
    TP_TRY(tp_json_parse_file(&r->json, path));
    enum talpa_status status = check_seal(r, path);
    if (status == TALPA_OK) status = read_state(c, r);
    if (status != TALPA_OK) return tp_context(status, "%s", path);
    TP_TRY(check_files(r));
    TP_TRY(read_tensors(c, r));
    TP_TRY(tp_checkpoint_digest(&digest, &digest_state, c, r->run->adapter));
    if (digest != c->digest || digest_state != c->digest_state)
        return tp_fail(TALPA_E_DATA, "%s: digest_state: found %s in the tensors, expected %s", path, tp_hash_hex(hex[0], digest_state),
                       tp_hash_hex(hex[1], c->digest_state));
    return read_history(history, r);
}

enum talpa_status tp_checkpoint_open(struct tp_checkpoint *out, struct tp_history *history, const char *path,
                                     const struct tp_checkpoint_run *run)
{
    struct reader r = {.path = path, .run = run};
    struct tp_checkpoint checkpoint = {0};
    const enum talpa_status status = read_all(&checkpoint, history, &r);
    tp_json_free(r.json);
    tp_arena_free(&r.arena);
    if (status == TALPA_OK) *out = checkpoint;
    else tp_checkpoint_free(&checkpoint);
    return status;
}

void tp_checkpoint_free(struct tp_checkpoint *checkpoint)
{
    free(checkpoint->params);
    free(checkpoint->m);
    free(checkpoint->v);
    free(checkpoint->counts);
    tp_losses_free(&checkpoint->before);
    *checkpoint = (struct tp_checkpoint){0};
}
