/* Models in folders as Hugging Face lays them out: config.json, model.safetensors (or an index and its parts), tokenizer files. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "arch.h"
#include "base/json.h"

enum { MAX_SHARDS = 1024 };

struct reader {
    const struct tp_arch *arch;
    struct tp_map shard_of; /* tensor -> shard */
    struct tp_map used;
};

static char *join(struct talpa_model *model, const char *name) { return tp_arena_printf(&model->arena, "%s/%s", model->path, name); }

/* ---- files ---- */

static enum talpa_status open_shard(struct talpa_model *model, struct reader *reader, const char *path)
{
    struct tp_safetensors **shard = &model->shards[model->n_shards];
    TP_TRY(tp_safetensors_open(shard, path));
    model->n_shards++;
    for (int64_t i = 0; i < tp_safetensors_n_tensors(*shard); i++) {
        const char *name = tp_safetensors_name(*shard, i);
        int64_t other;
        if (tp_map_get_string(&other, &reader->shard_of, name))
            return tp_fail(TALPA_E_DATA, "%s: tensor '%s' is also in %s", path, name, tp_safetensors_label(model->shards[other]));
        TP_TRY(tp_map_put_string(&reader->shard_of, name, model->n_shards - 1));
    }
    return TALPA_OK;
}

/* The index names files of the folder; each is opened once, and must hold what the index says. */
static enum talpa_status open_listed(struct talpa_model *model, struct reader *reader, const struct tp_json_value *list,
                                     struct tp_map *files)
{
    if (tp_json_type(list) != TP_JSON_OBJECT || !tp_json_first(list))
        return tp_fail(TALPA_E_DATA, "weight_map: missing, empty or no object");
    for (const struct tp_json_value *member = tp_json_first(list); member; member = tp_json_next(member)) {
        const char *tensor = tp_json_key(member), *file;
        int64_t shard, found;
        TP_TRY(tp_context(tp_json_as_string(&file, member, tensor), "weight_map"));
        if (!*file || *file == '.' || strchr(file, '/'))
            return tp_fail(TALPA_E_DATA, "weight_map: '%.200s' is in '%.200s', expected a file of the same folder", tensor, file);
        if (!tp_map_get_string(&shard, files, file)) {
            if (model->n_shards == MAX_SHARDS) return tp_fail(TALPA_E_DATA, "weight_map names more than %d files", MAX_SHARDS);
            char *path = join(model, file);
            if (!path) return TALPA_E_DEVICE;
            TP_TRY(open_shard(model, reader, path));
            shard = model->n_shards - 1;
            TP_TRY(tp_map_put_string(files, file, shard));
        }
        if (!tp_map_get_string(&found, &reader->shard_of, tensor) || found != shard)
            return tp_fail(TALPA_E_DATA, "weight_map: '%.200s' is said to be in %.200s, which does not hold it", tensor, file);
    }
    return TALPA_OK;
}

static enum talpa_status open_files(struct talpa_model *model, struct reader *reader)
{
    char *single = join(model, "model.safetensors"), *index = join(model, "model.safetensors.index.json");
    model->shards = tp_arena_array(&model->arena, MAX_SHARDS, sizeof *model->shards);
    if (!single || !index || !model->shards) return TALPA_E_DEVICE;
    if (access(single, F_OK) == 0) return open_shard(model, reader, single);
    if (access(index, F_OK) != 0)
        return tp_fail(TALPA_E_NO_INPUT,
                       "%s: there is neither model.safetensors nor model.safetensors.index.json (other weight formats, such as "
                       "pytorch_model.bin, are not read)",
                       model->path);
    struct tp_json *json;
    struct tp_map files = {0};
    TP_TRY(tp_json_parse_file(&json, index));
    const enum talpa_status status = open_listed(model, reader, tp_json_get(tp_json_root(json), "weight_map"), &files);
    tp_map_free(&files);
    tp_json_free(json);
    return tp_context(status, "%s", index);
}

/* ---- weights ---- */

static enum talpa_status find(struct tp_safetensors_tensor *tensor, const char **label, const struct talpa_model *model,
                              const struct reader *reader, const char *name)
{
    int64_t shard;
    if (!tp_map_get_string(&shard, &reader->shard_of, name))
        return tp_fail(TALPA_E_DATA, "%s: there is no tensor '%s', which a %s model of this configuration has", model->path, name,
                       model->architecture);
    *label = tp_safetensors_label(model->shards[shard]);
    return tp_safetensors_get(tensor, model->shards[shard], name);
}

static enum talpa_status bind_tensor(struct talpa_model *model, const struct tp_tensor_spec *spec, void *user)
{
    struct reader *reader = user;
    struct tp_safetensors_tensor tensor;
    struct tp_tensor_found found = {.file_name = spec->name, .is_offset = reader->arch->has_offset_norms};
    TP_TRY(find(&tensor, &found.label, model, reader, spec->name));
    TP_TRY(tp_context(tp_safetensors_dtype(&found.type.dtype, &tensor), "%s", found.label));
    found.type.shape = tensor.shape;
    found.data = tensor.data;
    TP_TRY(tp_map_put_string(&reader->used, spec->name, 1));
    return tp_arch_bind(model, spec, &found);
}

static bool ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), n_end = strlen(end);
    return n >= n_end && !strcmp(text + n - n_end, end);
}

/* With tied embeddings some files hold the table twice; a second one that differs is not what the configuration says. */
static enum talpa_status check_tied(const struct talpa_model *model, const struct reader *reader)
{
    struct tp_safetensors_tensor table, head;
    const char *label;
    TP_TRY(find(&table, &label, model, reader, "model.embed_tokens.weight"));
    TP_TRY(find(&head, &label, model, reader, "lm_head.weight"));
    if (head.n_bytes == table.n_bytes && head.type == table.type && !memcmp(head.data, table.data, table.n_bytes)) return TALPA_OK;
    return tp_fail(TALPA_E_DATA,
                   "%s: lm_head.weight differs from model.embed_tokens.weight, but config.json ties them (tie_word_embeddings)", label);
}

/* A tensor that nobody asked for changes the model's function: better refused than ignored. The rotary frequencies that old files hold are
 * a function of rope_theta. */
static enum talpa_status refuse_unknown_tensors(const struct talpa_model *model, const struct reader *reader)
{
    for (int s = 0; s < model->n_shards; s++) {
        for (int64_t i = 0; i < tp_safetensors_n_tensors(model->shards[s]); i++) {
            const char *name = tp_safetensors_name(model->shards[s], i);
            int64_t value;
            if (tp_map_get_string(&value, &reader->used, name) || ends_with(name, ".rotary_emb.inv_freq")) continue;
            if (model->config.tied_embeddings && !strcmp(name, "lm_head.weight")) {
                TP_TRY(check_tied(model, reader));
                continue;
            }
            return tp_fail(TALPA_E_DATA, "%s: tensor '%s' is not part of a plain %s model of this configuration and would be ignored",
                           tp_safetensors_label(model->shards[s]), name, model->architecture);
        }
    }
    return TALPA_OK;
}

/* ---- folder ---- */

static enum talpa_status read_config(struct talpa_model *model, struct reader *reader, const double **factors)
{
    struct tp_json *json;
    char *path = join(model, "config.json");
    if (!path) return TALPA_E_DEVICE;
    TP_TRY(tp_context(tp_json_parse_file(&json, path), "%s is a folder, expected with config.json, model.safetensors and tokenizer.json",
                      model->path));
    const enum talpa_status status = tp_hf_config_read(model, &reader->arch, factors, tp_json_root(json));
    tp_json_free(json);
    return tp_context(status, "%s", path);
}

/* The last part of the path: what people call the model. */
static const char *folder_name(struct talpa_model *model)
{
    size_t end = strlen(model->path);
    while (end > 1 && model->path[end - 1] == '/') end--;
    size_t begin = end;
    while (begin > 0 && model->path[begin - 1] != '/') begin--;
    return tp_arena_strndup(&model->arena, model->path + begin, end - begin);
}

static enum talpa_status read_all(struct talpa_model *model, struct reader *reader)
{
    const double *factors;
    TP_TRY(read_config(model, reader, &factors));
    TP_TRY(open_files(model, reader));
    TP_TRY(tp_arch_visit(model, bind_tensor, reader));
    TP_TRY(refuse_unknown_tensors(model, reader));
    if (factors) TP_TRY(tp_arch_rotary_table(model, factors));
    return tp_tokenizer_from_folder(&model->tokenizer, model->path);
}

enum talpa_status tp_model_read_folder(struct talpa_model *model)
{
    struct reader reader = {0};
    model->name = folder_name(model);
    if (!model->name) return TALPA_E_DEVICE;
    const enum talpa_status status = read_all(model, &reader);
    tp_map_free(&reader.shard_of);
    tp_map_free(&reader.used);
    return status;
}
