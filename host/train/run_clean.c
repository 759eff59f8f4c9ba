/* What earlier runs left in an output folder. */
#include <ctype.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/status.h"
#include "io/folder.h"
#include "train/run_folder.h"

int tp_run_folder_checkpoint_step(const char *name)
{
    static const char prefix[] = "checkpoint-";
    if (strncmp(name, prefix, sizeof prefix - 1)) return -1;
    const char *digits = name + sizeof prefix - 1;
    const size_t n = strspn(digits, "0123456789");
    if (n < 1 || n > 10 || digits[n]) return -1;
    const unsigned long long step = strtoull(digits, NULL, 10);
    return step <= INT_MAX ? (int)step : -1;
}

/* What files and folders of ours are called until they are complete: "NAME.tmp-<pid>-<n>" (atomic_file.h), ".checkpoint-<n>.tmp-<pid>". */
static bool is_temporary(const char *name)
{
    static const char *const own[] = {"adapter_config.json", "adapter_model.safetensors", "talpa_adapter.json", "moelora_train.json", "trainer_log.jsonl",
                                      "train_results.json",  "train_config.json",         "training_loss.svg",  "routing.svg",
                                      ".best"};
    const char *suffix = strstr(name, ".tmp-");
    if (!suffix || !isdigit((unsigned char)suffix[5]) || suffix[5 + strspn(suffix + 5, "0123456789-")]) return false;
    const size_t n = (size_t)(suffix - name);
    bool is_own = !strncmp(name, ".checkpoint-", 12);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) is_own |= strlen(own[i]) == n && !strncmp(name, own[i], n);
    return is_own;
}

struct names {
    struct tp_run_folder *folder;
    const char **name;
    int n, room;
    bool (*wanted)(const char *name);
};

static enum talpa_status collect(void *user, const char *name)
{
    struct names *names = user;
    if (!names->wanted(name)) return TALPA_OK;
    if (names->n == names->room) {
        const int room = names->room ? 2 * names->room : 16;
        const char **larger = realloc(names->name, (size_t)room * sizeof *larger);
        if (!larger) return tp_fail_memory("names", (unsigned long long)room * sizeof *larger);
        names->name = larger;
        names->room = room;
    }
    const char *copy = tp_arena_strdup(&names->folder->arena, name);
    if (!copy) return TALPA_E_DEVICE;
    names->name[names->n++] = copy;
    return TALPA_OK;
}

static enum talpa_status list(struct names *names, struct tp_run_folder *folder, const char *path, bool (*wanted)(const char *name))
{
    *names = (struct names){.folder = folder, .wanted = wanted};
    return tp_folder_visit(path, collect, names);
}

static enum talpa_status clean(struct tp_run_folder *folder, const char *path)
{
    struct names names;
    const enum talpa_status status = list(&names, folder, path, is_temporary);
    for (int i = 0; i < names.n && status == TALPA_OK; i++) {
        const char *left = tp_arena_printf(&folder->arena, "%s/%s", path, names.name[i]);
        if (left) tp_folder_remove(left);
        tp_log(TALPA_LOG_INFO, "%s/%s: left by a run that was killed, removed", path, names.name[i]);
    }
    free(names.name);
    return status;
}

enum talpa_status tp_run_folder_clean(struct tp_run_folder *folder)
{
    TP_TRY(clean(folder, folder->path));
    const char *best = tp_folder_has(folder->path, "best") ? tp_run_folder_file(folder, "best") : NULL;
    return best ? clean(folder, best) : TALPA_OK;
}

static bool is_checkpoint(const char *name) { return tp_run_folder_checkpoint_step(name) >= 0; }

static int newest_first(const void *a, const void *b)
{
    const int x = tp_run_folder_checkpoint_step(*(const char *const *)a), y = tp_run_folder_checkpoint_step(*(const char *const *)b);
    return x > y ? -1 : x < y;
}

static enum talpa_status move(struct tp_run_folder *folder, const char *name, const char *target)
{
    const char *from = tp_run_folder_file(folder, name), *parent = tp_run_folder_file(folder, target);
    const char *to = parent ? tp_arena_printf(&folder->arena, "%s/%s", parent, name) : NULL;
    if (!from || !to) return TALPA_E_DEVICE;
    TP_TRY(tp_folder_rename(from, to, parent));
    return tp_folder_sync(folder->path);
}

enum talpa_status tp_run_folder_set_aside(const char **moved, struct tp_run_folder *folder, int first_step)
{
    struct names names;
    const char *target = NULL;
    enum talpa_status status = list(&names, folder, folder->path, is_checkpoint);
    if (status == TALPA_OK && names.n) qsort(names.name, (size_t)names.n, sizeof *names.name, newest_first);
    /* Newest first: should a crash come in between, what remains is an older state of the same run. */
    for (int i = 0; i < names.n && status == TALPA_OK && tp_run_folder_checkpoint_step(names.name[i]) > first_step; i++) {
        for (int n = 1; !target && status == TALPA_OK; n++) {
            char name[32];
            snprintf(name, sizeof name, "previous-%d", n);
            if (tp_folder_has(folder->path, name)) continue;
            target = tp_arena_strdup(&folder->arena, name);
            const char *path = target ? tp_run_folder_file(folder, target) : NULL;
            status = path ? tp_folder_create(path) : TALPA_E_DEVICE;
        }
        if (status == TALPA_OK) status = move(folder, names.name[i], target);
    }
    static const char *const own[] = {"best", "trainer_log.jsonl"};
    for (int i = 0; i < 2 && status == TALPA_OK && target && !first_step; i++)
        if (tp_folder_has(folder->path, own[i])) status = move(folder, own[i], target);
    free(names.name);
    if (status == TALPA_OK) *moved = target;
    return status;
}

enum talpa_status tp_run_folder_rotate(struct tp_run_folder *folder, int keep)
{
    struct names names;
    enum talpa_status status = list(&names, folder, folder->path, is_checkpoint);
    if (status == TALPA_OK && names.n) qsort(names.name, (size_t)names.n, sizeof *names.name, newest_first);
    for (int i = keep; i < names.n && status == TALPA_OK; i++) {
        const char *path = tp_run_folder_file(folder, names.name[i]);
        const char *doomed = path ? tp_arena_printf(&folder->arena, "%s/.%s.tmp-0", folder->path, names.name[i]) : NULL;
        status = doomed ? tp_folder_rename(path, doomed, folder->path) : TALPA_E_DEVICE;
        if (status == TALPA_OK) tp_folder_remove(doomed);
    }
    free(names.name);
    return status;
}
