#include "golden.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "talpa/device.h"

static const char *shared_path(const char *part, const char *file)
{
    static char path[4096];
    const char *root = getenv("TALPA_SHARED");
    if (root) snprintf(path, sizeof path, "%s/%s/", root, part);
    else snprintf(path, sizeof path, "%s/../shared/%s/", TALPA_SOURCE_DIR, part);
    if (access(path, R_OK)) {
        fprintf(stderr, "skipped: %s is not there\n", path);
        exit(77);
    }
    strncat(path, file, sizeof path - strlen(path) - 1);
    return path;
}

const char *golden_path(const char *file) { return shared_path("golden", file); }
const char *golden_data_path(const char *file) { return shared_path("data", file); }

const char *golden_model_path(void)
{
    static char path[4096];
    static const char name[] = "models/SmolLM2-135M-Instruct.Q4_1.gguf";
    const char *model = getenv("TALPA_TEST_MODEL"), *cache = getenv("TALPA_CACHE_DIR"), *xdg = getenv("XDG_CACHE_HOME"),
               *home = getenv("HOME");
    if (model) snprintf(path, sizeof path, "%s", model);
    else if (cache) snprintf(path, sizeof path, "%s/%s", cache, name);
    else if (xdg) snprintf(path, sizeof path, "%s/talpa/%s", xdg, name);
    else snprintf(path, sizeof path, "%s/.cache/talpa/%s", home ? home : "", name);
    if (access(path, R_OK)) {
        fprintf(stderr, "skipped: no base model at %s (tools/setup --model)\n", path);
        exit(77);
    }
    return path;
}

void golden_ok(enum talpa_status status)
{
    if (status != TALPA_OK) fail_msg("%s\n%s", talpa_error_message(), talpa_error_build_log());
}

static void *tensor(const struct tp_safetensors *file, const char *name, enum tp_safetensors_type type, size_t *n)
{
    struct tp_safetensors_tensor t;
    golden_ok(tp_safetensors_get(&t, file, name));
    assert_int_equal(t.type, type);
    void *copy = malloc(t.n_bytes ? t.n_bytes : 1);
    memcpy(copy, t.data, t.n_bytes);
    if (n) *n = t.n_bytes / 4;
    return copy;
}

float *golden_f32(const struct tp_safetensors *file, const char *name, size_t *n) { return tensor(file, name, TP_SAFETENSORS_F32, n); }
int32_t *golden_i32(const struct tp_safetensors *file, const char *name, size_t *n) { return tensor(file, name, TP_SAFETENSORS_I32, n); }

struct tp_json *golden_json(const char *file)
{
    struct tp_json *json = NULL;
    golden_ok(tp_json_parse_file(&json, golden_path(file)));
    return json;
}

const struct tp_json_value *golden_at(const struct tp_json *json, const char *keys)
{
    const struct tp_json_value *value = tp_json_root(json);
    char copy[512];
    snprintf(copy, sizeof copy, "%s", keys);
    for (char *save, *key = strtok_r(copy, "/", &save); key; key = strtok_r(NULL, "/", &save)) value = tp_json_get(value, key);
    return value;
}

static double number_of(const struct tp_json_value *value, const char *what)
{
    double x = NAN;
    if (tp_json_type(value) != TP_JSON_NULL) golden_ok(tp_json_as_double(&x, value, what));
    return x;
}

double *golden_numbers(const struct tp_json *json, const char *keys, size_t *n)
{
    const struct tp_json_value *array = golden_at(json, keys);
    if (tp_json_type(array) != TP_JSON_ARRAY) fail_msg("no array '%s'", keys);
    *n = (size_t)tp_json_length(array);
    double *numbers = malloc((*n + 1) * sizeof *numbers);
    size_t i = 0;
    for (const struct tp_json_value *v = tp_json_first(array); v; v = tp_json_next(v)) numbers[i++] = number_of(v, keys);
    return numbers;
}

double golden_number(const struct tp_json *json, const char *keys) { return number_of(golden_at(json, keys), keys); }

static struct talpa_device_caps device(size_t *index)
{
    struct talpa_device_caps *caps, chosen;
    size_t n;
    if (talpa_device_list(&caps, &n) != TALPA_OK || talpa_device_select(index, caps, n, NULL) != TALPA_OK) {
        fprintf(stderr, "skipped: %s\n", talpa_error_message());
        exit(77);
    }
    chosen = caps[*index];
    free(caps);
    return chosen;
}

size_t golden_device(void)
{
    size_t index;
    device(&index);
    return index;
}

bool golden_is_quick(void)
{
    size_t index;
    const struct talpa_device_caps caps = device(&index);
    return caps.type != TALPA_DEVICE_CPU || caps.in_process;
}
