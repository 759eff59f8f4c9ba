#include "profile.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/clock.h"
#include "base/map.h"
#include "base/status.h"
#include "profile_impl.h"

enum { KEY_BYTES = 768, FIRST_TRACE = 1024, MAX_SPANS = 1 << 16 };

struct tp_profile_data tp_profile_data = {.lock = PTHREAD_MUTEX_INITIALIZER};
static atomic_bool started, paused;

bool tp_profile_is_started(void) { return atomic_load_explicit(&started, memory_order_relaxed); }
bool tp_profile_is_recording(void)
{
    return atomic_load_explicit(&started, memory_order_relaxed) && !atomic_load_explicit(&paused, memory_order_relaxed);
}

/* ---- life ---- */

static void forget(struct tp_profile_data *d)
{
    tp_map_free(&d->sites);
    tp_map_free(&d->kinds);
    tp_arena_free(&d->arena);
    free(d->row);
    free(d->site);
    free(d->trace);
    free(d->span);
    d->row = NULL;
    d->site = NULL;
    d->trace = NULL;
    d->span = NULL;
    d->n_rows = d->row_room = d->n_sites = d->site_room = d->n_trace = d->trace_room = d->n_spans = d->span_room = 0;
    d->trace_limit = 0;
    d->n_devices = 0;
    d->totals = (struct talpa_profile_totals){0};
    d->peak_gflops = d->peak_gbs = 0.0;
    d->is_incomplete = false;
}

enum talpa_status talpa_profile_start(size_t n_trace)
{
    struct tp_profile_data *d = &tp_profile_data;
    pthread_mutex_lock(&d->lock);
    const bool was = atomic_exchange(&started, true);
    if (!was) {
        forget(d);
        d->trace_limit = n_trace;
        d->started_ns = tp_clock_now_ns();
        atomic_store(&paused, false);
    }
    pthread_mutex_unlock(&d->lock);
    return was ? tp_fail(TALPA_E_ARGUMENT, "a profile is started already; there is one per process") : TALPA_OK;
}

void talpa_profile_stop(void) { atomic_store(&started, false); }
void talpa_profile_pause(bool pause) { atomic_store(&paused, pause); }

void talpa_profile_free(void)
{
    atomic_store(&started, false);
    pthread_mutex_lock(&tp_profile_data.lock);
    forget(&tp_profile_data);
    pthread_mutex_unlock(&tp_profile_data.lock);
}

void talpa_profile_peaks(double gflops, double gbs)
{
    pthread_mutex_lock(&tp_profile_data.lock);
    tp_profile_data.peak_gflops = gflops;
    tp_profile_data.peak_gbs = gbs;
    pthread_mutex_unlock(&tp_profile_data.lock);
}

struct talpa_profile_totals talpa_profile_totals(void)
{
    pthread_mutex_lock(&tp_profile_data.lock);
    const struct talpa_profile_totals totals = tp_profile_data.totals;
    pthread_mutex_unlock(&tp_profile_data.lock);
    return totals;
}

/* ---- recording ---- */

/* Room for one more element; doubles. */
static bool grow(void **array, size_t n, size_t *room, size_t first, size_t element_bytes)
{
    if (n < *room) return true;
    const size_t more = *room ? 2 * *room : first;
    void *grown = realloc(*array, more * element_bytes);
    if (!grown) return false;
    *array = grown;
    *room = more;
    return true;
}

int tp_profile_add_device(const char *name)
{
    struct tp_profile_data *d = &tp_profile_data;
    pthread_mutex_lock(&d->lock);
    /* Verification and merging open devices again and again: the same name is the same track, whose clock is the same. */
    int device = 0;
    while (device < d->n_devices && strcmp(d->device[device].name, name) != 0) ++device;
    if (device == TP_PROFILE_DEVICES) device = 0;
    if (device == d->n_devices) {
        const char *copy = tp_arena_strdup(&d->arena, name);
        d->device[device] = (struct tp_profile_device){.name = copy ? copy : ""};
        ++d->n_devices;
    }
    pthread_mutex_unlock(&d->lock);
    return device;
}

/* "layers.12.q_proj" -> "layers.*.q_proj". */
static void pattern_of(char *out, size_t size, const char *scope)
{
    size_t n = 0;
    bool at_start = true;
    for (const char *c = scope; *c && n + 1 < size;) {
        const size_t digits = at_start ? strspn(c, "0123456789") : 0;
        if (digits && (c[digits] == '.' || !c[digits])) {
            out[n++] = '*';
            c += digits;
            at_start = false;
            continue;
        }
        at_start = *c == '.';
        out[n++] = *c++;
    }
    out[n] = '\0';
}

/* Number of the kind (row) of a launch, -1 without memory. `key` ends with its place in the model. */
static int64_t row_of(struct tp_profile_data *d, const struct tp_profile_launch *launch)
{
    char pattern[256], kernel[256], key[KEY_BYTES];
    pattern_of(pattern, sizeof pattern, launch->scope);
    if (launch->is_transfer) snprintf(kernel, sizeof kernel, "-");
    else snprintf(kernel, sizeof kernel, "%s:%s", launch->path, launch->name);
    const int n = snprintf(key, sizeof key, "%s\n%s\n%s\n%s", launch->op, launch->pass, kernel, pattern);
    const size_t n_key = n < (int)sizeof key ? (size_t)n : sizeof key - 1;
    int64_t index;
    if (tp_map_get(&index, &d->kinds, key, n_key)) return index;
    index = (int64_t)d->n_rows;
    if (!grow((void **)&d->row, d->n_rows, &d->row_room, 64, sizeof *d->row)) return -1;
    const struct talpa_profile_row row = {.op = tp_arena_strdup(&d->arena, launch->op),
                                          .pass = tp_arena_strdup(&d->arena, launch->pass),
                                          .kernel = tp_arena_strdup(&d->arena, kernel),
                                          .scope = tp_arena_strdup(&d->arena, pattern)};
    if (!row.op || !row.pass || !row.kernel || !row.scope) return -1;
    if (tp_map_put(&d->kinds, key, n_key, index) != TALPA_OK) return -1;
    d->row[d->n_rows++] = row;
    return index;
}

/* The kind with the exact place: what a trace shows. */
static struct tp_profile_site *site_of(struct tp_profile_data *d, const struct tp_profile_launch *launch)
{
    char key[KEY_BYTES];
    const int n = snprintf(key, sizeof key, "%s\n%s\n%s\n%s\n%s", launch->op, launch->pass, launch->path, launch->name, launch->scope);
    const size_t n_key = n < (int)sizeof key ? (size_t)n : sizeof key - 1;
    int64_t index;
    if (tp_map_get(&index, &d->sites, key, n_key)) return &d->site[index];
    if (!grow((void **)&d->site, d->n_sites, &d->site_room, 256, sizeof *d->site)) return NULL;
    const int64_t row = row_of(d, launch);
    const char *scope = tp_arena_strdup(&d->arena, launch->scope);
    if (row < 0 || !scope || tp_map_put(&d->sites, key, n_key, (int64_t)d->n_sites) != TALPA_OK) return NULL;
    d->site[d->n_sites] = (struct tp_profile_site){.row = (size_t)row, .scope = scope};
    return &d->site[d->n_sites++];
}

static void add_trace(struct tp_profile_data *d, const struct tp_profile_launch *launch, size_t site)
{
    if (d->n_trace >= d->trace_limit) return;
    if (!grow((void **)&d->trace, d->n_trace, &d->trace_room, FIRST_TRACE, sizeof *d->trace)) {
        d->trace_limit = d->n_trace;
        return;
    }
    d->trace[d->n_trace++] = (struct tp_profile_event){.start_ns = launch->start_ns, .end_ns = launch->end_ns, .flops = launch->flops,
                                                       .bytes = launch->bytes, .site = (uint32_t)site, .device = (uint32_t)launch->device};
}

void tp_profile_add(const struct tp_profile_launch *launch)
{
    struct tp_profile_data *d = &tp_profile_data;
    pthread_mutex_lock(&d->lock);
    struct tp_profile_site *site = site_of(d, launch);
    struct tp_profile_device *device = &d->device[launch->device];
    const double ns = launch->end_ns > launch->start_ns ? (double)(launch->end_ns - launch->start_ns) : 0.0;
    if (!site) {
        d->is_incomplete = true;
    } else {
        struct talpa_profile_row *row = &d->row[site->row];
        row->n++;
        row->total_ns += ns;
        row->flops += launch->flops;
        row->bytes += launch->bytes;
        add_trace(d, launch, (size_t)(site - d->site));
    }
    /* The host sees a launch queued a little after the device's clock does; the smallest distance is the difference of the clocks. */
    const int64_t offset = launch->host_ns - (int64_t)launch->queued_ns;
    if (!device->has_offset || offset < device->offset_ns) device->offset_ns = offset;
    device->has_offset = true;
    const int64_t start = (int64_t)launch->start_ns + offset, end = (int64_t)launch->end_ns + offset;
    const bool first = d->totals.n_launches + d->totals.n_transfers == 0;
    if (first || start < d->first_ns) d->first_ns = start;
    if (first || end > d->last_ns) d->last_ns = end;
    d->totals.span_ns = (double)(d->last_ns - d->first_ns);
    if (launch->is_transfer) {
        d->totals.n_transfers++;
        d->totals.transfer_ns += ns;
    } else {
        d->totals.n_launches++;
        d->totals.launch_ns += ns;
        d->totals.flops += launch->flops;
        d->totals.bytes += launch->bytes;
    }
    d->totals.n_traced = d->n_trace;
    pthread_mutex_unlock(&d->lock);
}

int64_t tp_profile_begin(void) { return tp_profile_is_recording() ? tp_clock_now_ns() : 0; }

void tp_profile_end(const char *name, int64_t begun)
{
    struct tp_profile_data *d = &tp_profile_data;
    if (!begun || !tp_profile_is_recording()) return;
    const int64_t now = tp_clock_now_ns();
    pthread_mutex_lock(&d->lock);
    if (d->trace_limit && d->n_trace < d->trace_limit && d->n_spans < MAX_SPANS &&
        grow((void **)&d->span, d->n_spans, &d->span_room, FIRST_TRACE, sizeof *d->span))
        d->span[d->n_spans++] = (struct tp_profile_host_span){.name = name, .begun_ns = begun, .ended_ns = now};
    pthread_mutex_unlock(&d->lock);
}

void tp_profile_span_end(const struct tp_profile_span *span) { tp_profile_end(span->name, span->begun); }
