/* The tokenizer files of a Hugging Face model folder. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/json.h"
#include "base/status.h"
#include "file_map.h"
#include "tokenizer.h"

struct folder {
    struct tp_arena arena;
    const char *path;
    struct tp_json *config, *generation, *model_config;
    struct tp_tokenizer_extras extras;
};

/* Path of a file of the folder, and whether it is there. */
static enum talpa_status find(const char **path, bool *is_there, struct folder *f, const char *name)
{
    *path = tp_arena_printf(&f->arena, "%s/%s", f->path, name);
    if (!*path) return TALPA_E_DEVICE;
    *is_there = access(*path, F_OK) == 0;
    return TALPA_OK;
}

static enum talpa_status read_json(struct tp_json **out, struct folder *f, const char *name)
{
    const char *path;
    bool is_there;
    TP_TRY(find(&path, &is_there, f, name));
    return is_there ? tp_json_parse_file(out, path) : TALPA_OK;
}

/* An id, or a list of ids; null and absent are none. */
static enum talpa_status read_ids(struct folder *f, const struct tp_json *json, const char *key, const char *file, int64_t *first)
{
    const struct tp_json_value *value = json ? tp_json_get(tp_json_root(json), key) : NULL;
    if (tp_json_type(value) == TP_JSON_NULL) return TALPA_OK;
    const bool is_list = tp_json_type(value) == TP_JSON_ARRAY;
    for (const struct tp_json_value *v = is_list ? tp_json_first(value) : value; v; v = is_list ? tp_json_next(v) : NULL) {
        int64_t id;
        TP_TRY(tp_context(tp_json_as_int(&id, v, key), "%s/%s", f->path, file));
        if (*first < 0) *first = id;
        if (strcmp(key, "eos_token_id") == 0 && f->extras.n_end_ids < TP_TOKENIZER_MAX_ENDS) f->extras.end_ids[f->extras.n_end_ids++] = id;
    }
    return TALPA_OK;
}

static enum talpa_status read_template(struct folder *f)
{
    const char *path;
    bool is_there;
    struct tp_file_map map = {0};
    TP_TRY(find(&path, &is_there, f, "chat_template.jinja"));
    if (!is_there) return TALPA_OK;
    TP_TRY(tp_file_map_open(&map, path));
    f->extras.chat_template = tp_arena_strndup(&f->arena, (const char *)map.bytes, map.n_bytes);
    tp_file_map_close(&map);
    return f->extras.chat_template ? TALPA_OK : TALPA_E_DEVICE;
}

static enum talpa_status read_extras(struct folder *f)
{
    f->extras = (struct tp_tokenizer_extras){.bos_id = -1, .eos_id = -1, .pad_id = -1};
    TP_TRY(read_json(&f->config, f, "tokenizer_config.json"));
    TP_TRY(read_json(&f->generation, f, "generation_config.json"));
    TP_TRY(read_json(&f->model_config, f, "config.json"));
    if (f->config) f->extras.config = tp_json_root(f->config);
    TP_TRY(read_ids(f, f->model_config, "bos_token_id", "config.json", &f->extras.bos_id));
    TP_TRY(read_ids(f, f->model_config, "eos_token_id", "config.json", &f->extras.eos_id));
    TP_TRY(read_ids(f, f->model_config, "pad_token_id", "config.json", &f->extras.pad_id));
    TP_TRY(read_ids(f, f->generation, "eos_token_id", "generation_config.json", &f->extras.eos_id));
    return read_template(f);
}

static enum talpa_status load(struct tp_tokenizer **out, struct folder *f)
{
    const char *json_path, *model_path, *added_path;
    bool has_json, has_model, has_added;
    TP_TRY(find(&json_path, &has_json, f, "tokenizer.json"));
    TP_TRY(find(&model_path, &has_model, f, "tokenizer.model"));
    TP_TRY(find(&added_path, &has_added, f, "added_tokens.json"));
    if (!has_json && !has_model)
        return tp_fail(TALPA_E_NO_INPUT, "%s: found neither tokenizer.json nor tokenizer.model, expected one of them", f->path);
    TP_TRY(read_extras(f));
    if (has_json) {
        struct tp_json *json;
        TP_TRY(tp_json_parse_file(&json, json_path));
        const enum talpa_status status = tp_tokenizer_from_json(out, tp_json_root(json), &f->extras, json_path);
        tp_json_free(json);
        return status;
    }
    if (has_added && !tp_json_get(f->extras.config, "added_tokens_decoder"))
        return tp_fail(TALPA_E_DATA, "%s: is not read without a tokenizer.json; save the tokenizer anew with a current transformers",
                       added_path);
    struct tp_file_map map;
    TP_TRY(tp_file_map_open(&map, model_path));
    const enum talpa_status status = tp_tokenizer_from_model(out, map.bytes, map.n_bytes, &f->extras, model_path);
    tp_file_map_close(&map);
    return status;
}

enum talpa_status tp_tokenizer_from_folder(struct tp_tokenizer **out, const char *folder)
{
    struct folder f = {.path = folder};
    const enum talpa_status status = load(out, &f);
    tp_json_free(f.config);
    tp_json_free(f.generation);
    tp_json_free(f.model_config);
    tp_arena_free(&f.arena);
    return status;
}
