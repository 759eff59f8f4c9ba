/* What a session takes on a device. */
#include <stdlib.h>

#include "session.h"

enum talpa_status tp_session_count(struct talpa_session *s)
{
    struct tp_ledger ledger = {0};
    enum talpa_status status = TALPA_OK;
    for (int pass = 0; pass < TP_N_PASSES && status == TALPA_OK; pass++) status = tp_program_set_count(&ledger, &s->graph[pass].set);
    if (status == TALPA_OK) {
        s->info.adapter_bytes = s->adapter ? (size_t)s->adapter->n_trainable * sizeof(float) : 0;
        s->info.weight_bytes = ledger.weight_bytes + ledger.packed_bytes - s->info.adapter_bytes;
        s->info.cache_bytes = ledger.state_bytes;
        s->info.activation_bytes = ledger.arena_bytes + ledger.input_bytes;
        s->info.device_bytes = ledger.total_bytes;
        s->info.device_peak_bytes = ledger.peak_bytes;
    }
    tp_ledger_free(&ledger);
    return status;
}

static enum talpa_status plan(struct talpa_session *s, struct talpa_model *model, const struct talpa_device_caps *caps,
                              const struct talpa_session_options *o)
{
    struct tp_plan_options options;
    bool keeps_native = false;
    TP_TRY(tp_session_settle(s, model, o));
    const bool sparse = tp_adapter_is_sparse(s->adapter, o->dispatch);
    for (int pass = 0; pass < TP_N_PASSES; pass++) {
        TP_TRY(tp_session_build(s, (enum tp_pass)pass));
        TP_TRY(tp_session_plan_options(&options, o, (enum tp_pass)pass));
        TP_TRY(tp_program_set_plan(&s->graph[pass].set, &keeps_native, s->graph[pass].graph, caps, &options, !sparse, sparse));
    }
    return tp_session_count(s);
}

enum talpa_status talpa_session_plan(struct talpa_session_info *out, struct talpa_model *model, const struct talpa_device_caps *caps,
                                     const struct talpa_session_options *options)
{
    struct talpa_session *session = calloc(1, sizeof *session);
    if (!session) return tp_fail_memory("session", sizeof *session);
    const enum talpa_status status = plan(session, model, caps, options);
    if (status == TALPA_OK) *out = session->info;
    talpa_session_close(session);
    return status;
}

static void print(const struct talpa_session *s, FILE *file, bool json)
{
    static const char *const names[TP_N_PASSES] = {[TP_PASS_PROMPT] = "prompt", [TP_PASS_DECODE] = "decode"};
    for (int i = 0; i < TP_N_PASSES; i++) {
        const int pass = i == 0 ? TP_PASS_DECODE : TP_PASS_PROMPT;
        const struct tp_program_set *set = &s->graph[pass].set;
        const struct tp_plan *shown = set->plans[TP_DISPATCH_DENSE] ? set->plans[TP_DISPATCH_DENSE] : set->plans[TP_DISPATCH_SPARSE];
        if (json) {
            fprintf(file, "%s\"%s\": ", i ? ",\n" : "{", names[pass]);
            tp_plan_print_json(shown, file);
        } else {
            fprintf(file, "%s pass of up to %d rows, %d launches:\n", names[pass], (int)s->graph[pass].max_rows, shown->phase[TP_PHASE_BATCH].n);
            tp_plan_print(shown, file);
        }
    }
    if (json) fputs("}", file);
}

enum talpa_status talpa_session_print(FILE *file, struct talpa_model *model, const struct talpa_device_caps *caps,
                                      const struct talpa_session_options *options, bool json)
{
    struct talpa_session *session = calloc(1, sizeof *session);
    if (!session) return tp_fail_memory("session", sizeof *session);
    const enum talpa_status status = plan(session, model, caps, options);
    if (status == TALPA_OK) print(session, file, json);
    talpa_session_close(session);
    return status;
}
