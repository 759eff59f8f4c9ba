/* Shared by the tests of adapter folders: the built-in model, a folder of one's own, files as bytes. */
#ifndef ADAPTER_TEST_H
#define ADAPTER_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "adapters/adapter.h"
#include "base/dtype.h"
#include "base/json.h"
#include "base/status.h"
#include "io/safetensors.h"
#include "talpa/log.h"

#define CONFIG "adapter_config.json"
#define ABOUT "talpa_adapter.json"
#define MOELORA "moelora_train.json"
#define TENSORS "adapter_model.safetensors"

enum { MAX_TENSORS = 512 };

static struct talpa_model *model;
static char folder[64];
static int n_warnings;

static inline void count_line(void *user, enum talpa_log_level level, const char *line)
{
    (void)user;
    (void)line;
    n_warnings += level == TALPA_LOG_WARN;
}

static inline int set_up(void **state)
{
    (void)state;
    talpa_log_set(count_line, NULL);
    /* memory rather than a disk, if there is such a folder: every file is synced */
    snprintf(folder, sizeof folder, "%stest_adapter.XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm/" : "");
    return mkdtemp(folder) && talpa_model_open(&model, "random:tiny") == TALPA_OK ? 0 : -1;
}

static inline void clean(void)
{
    DIR *d = opendir(folder);
    char path[512];
    for (struct dirent *e; d && (e = readdir(d));) {
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        if (unlink(path)) rmdir(path);
    }
    if (d) closedir(d);
}

static inline int tear_down(void **state)
{
    (void)state;
    clean();
    rmdir(folder);
    talpa_model_close(model);
    return 0;
}

/* ---- files as bytes ---- */

static inline const char *path_of(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static inline char *read_bytes(const char *name, size_t *n_bytes)
{
    FILE *in = fopen(path_of(name), "rb");
    assert_non_null(in);
    fseek(in, 0, SEEK_END);
    *n_bytes = (size_t)ftell(in);
    rewind(in);
    char *bytes = calloc(1, *n_bytes + 1);
    assert_int_equal(fread(bytes, 1, *n_bytes, in), *n_bytes);
    fclose(in);
    return bytes;
}

static inline void write_bytes(const char *name, const char *bytes, size_t n_bytes)
{
    FILE *out = fopen(path_of(name), "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(bytes, 1, n_bytes, out), n_bytes);
    fclose(out);
}

static inline void write_text(const char *name, const char *text) { write_bytes(name, text, strlen(text)); }

static inline int n_files(void)
{
    int n = 0;
    DIR *d = opendir(folder);
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

/* Replaces the only occurrence of a text in a file. */
static inline void edit(const char *name, const char *from, const char *to)
{
    size_t n_bytes;
    char *bytes = read_bytes(name, &n_bytes), *at = strstr(bytes, from);
    if (!at || strstr(at + 1, from)) fail_msg("'%s' is not once in %s: %s", from, name, bytes);
    char *edited = malloc(n_bytes + strlen(to) + 1);
    const size_t before = (size_t)(at - bytes);
    memcpy(edited, bytes, before);
    strcpy(edited + before, to);
    strcat(edited, at + strlen(from));
    write_text(name, edited);
    free(edited);
    free(bytes);
}

/* ---- adapters ---- */

static inline struct talpa_adapter_config settings(enum talpa_routing routing)
{
    return (struct talpa_adapter_config){.routing = routing,
                                         .rank = 2,
                                         .n_experts = routing == TALPA_ROUTING_LORA ? 1 : 3,
                                         .top_k = 2,
                                         .alpha = 16.0,
                                         .dropout = 0.05,
                                         .modules = TALPA_MODULE_Q | TALPA_MODULE_K | TALPA_MODULE_DOWN,
                                         .contrastive = talpa_adapter_default().contrastive};
}

/* Lays out an adapter, fills it with distinct values and saves it in the emptied folder. */
static inline struct tp_adapter *save(float **bank, const struct talpa_adapter_config *config)
{
    struct tp_adapter *adapter;
    clean();
    assert_int_equal(tp_adapter_create(&adapter, model, config), TALPA_OK);
    *bank = calloc((size_t)adapter->bank_elements, sizeof **bank);
    for (int i = 0; i < adapter->n_tensors; i++) {
        const struct tp_adapter_tensor *t = &adapter->tensors[i];
        for (int k = 0; k < t->rows * t->columns; k++) (*bank)[t->offset + k] = (float)(i * 1000 + k) / 1024.0f - 3.0f;
    }
    if (tp_adapter_save(adapter, *bank, folder, model) != TALPA_OK) fail_msg("%s", talpa_error_message());
    return adapter;
}

static inline void save_default(enum talpa_routing routing)
{
    float *bank;
    const struct talpa_adapter_config config = settings(routing);
    tp_adapter_free(save(&bank, &config));
    free(bank);
}

static inline enum talpa_status load(struct talpa_adapter_config *config, bool allow_other_base)
{
    struct tp_adapter *adapter = NULL;
    float *bank = NULL;
    const enum talpa_status status = tp_adapter_load(&adapter, &bank, folder, model, allow_other_base);
    if (status == TALPA_OK && config) *config = adapter->config;
    if (status == TALPA_OK)
        assert_true(adapter && bank);
    else
        assert_true(!adapter && !bank);
    tp_adapter_free(adapter);
    free(bank);
    return status;
}

static inline void expect_loads(void)
{
    if (load(NULL, false) != TALPA_OK) fail_msg("%s", talpa_error_message());
}

static inline void expect_refused(const char *part)
{
    const enum talpa_status status = load(NULL, false);
    if (status != TALPA_E_DATA) fail_msg("expected TALPA_E_DATA for '%s', found %d %s", part, (int)status, talpa_error_message());
    if (!strstr(talpa_error_message(), part)) fail_msg("expected '%s' in: %s", part, talpa_error_message());
    if (!strstr(talpa_error_message(), folder)) fail_msg("no folder in: %s", talpa_error_message());
}

/* ---- tensors of the folder ---- */

struct table {
    struct tp_safetensors *file;
    struct tp_safetensors_tensor tensors[MAX_TENSORS];
    size_t n;
};

static inline void open_table(struct table *table)
{
    assert_int_equal(tp_safetensors_open(&table->file, path_of(TENSORS)), TALPA_OK);
    table->n = (size_t)tp_safetensors_n_tensors(table->file);
    for (size_t i = 0; i < table->n; i++) assert_int_equal(tp_safetensors_at(&table->tensors[i], table->file, (int64_t)i), TALPA_OK);
}

static inline void close_table(struct table *table)
{
    assert_int_equal(tp_safetensors_save(path_of(TENSORS), table->tensors, table->n, NULL, 0), TALPA_OK);
    tp_safetensors_close(table->file);
}

#endif
