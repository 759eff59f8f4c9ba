#include "units.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "io/dataset.h"

bool tp_eval_is_generated(enum talpa_metric metric, enum talpa_option_by by)
{
    switch (metric) {
    case TALPA_METRIC_EXACT_NUMBER:
    case TALPA_METRIC_GENERATED_LETTER:
    case TALPA_METRIC_F1_EM:
    case TALPA_METRIC_UNIT_TESTS:
    case TALPA_METRIC_EXACT:
        return true;
    case TALPA_METRIC_OPTION_LETTER:
        return by == TALPA_OPTION_BY_GENERATION;
    default:
        return false;
    }
}

struct builder {
    struct tp_eval_units *units;
    const struct talpa_model *model;
    const struct tp_eval_rows *rows;
    const char *examples;
    uint32_t ctx, stride;
};

/* ---- lists ---- */

static enum talpa_status push_unit(struct tp_eval_units *u, const char *id, const struct tp_eval_row *row)
{
    if (u->n_units == u->unit_capacity) {
        const size_t capacity = u->unit_capacity ? 2 * u->unit_capacity : 256;
        struct tp_eval_unit *units = realloc(u->units, capacity * sizeof *units);
        if (!units) return tp_fail_memory("rows", capacity * sizeof *units);
        u->units = units;
        u->unit_capacity = capacity;
    }
    u->units[u->n_units++] = (struct tp_eval_unit){.id = id, .row = row, .first_item = u->n_items};
    return TALPA_OK;
}

/* Appends a sequence to the last unit. labels[k] at rows[k]; both are in the arena already. */
static enum talpa_status push_item(struct tp_eval_units *u, const int32_t *ids, uint32_t n_ids, const uint32_t *rows, const int32_t *labels,
                                   uint32_t n_labels)
{
    if (u->n_items == u->item_capacity) {
        const size_t capacity = u->item_capacity ? 2 * u->item_capacity : 256;
        struct tp_likelihood_item *items = realloc(u->items, capacity * sizeof *items);
        if (!items) return tp_fail_memory("sequences", capacity * sizeof *items);
        u->items = items;
        u->item_capacity = capacity;
    }
    float *nll = tp_arena_array(&u->arena, n_labels, sizeof *nll);
    if (!nll) return TALPA_E_DEVICE;
    u->items[u->n_items++] =
        (struct tp_likelihood_item){.ids = ids, .n_ids = n_ids, .rows = rows, .labels = labels, .n_labels = n_labels, .nll = nll};
    u->units[u->n_units - 1].n_items++;
    if (n_ids > u->longest) u->longest = n_ids;
    if (n_labels > u->most_labels) u->most_labels = n_labels;
    return TALPA_OK;
}

static void mark_too_long(struct tp_eval_units *u)
{
    struct tp_eval_unit *unit = &u->units[u->n_units - 1];
    unit->too_long = true;
    u->n_items = unit->first_item;
    unit->n_items = 0;
    u->n_too_long++;
}

/* ---- tokens ---- */

/* Tokens of `before` followed by those of `text` (examples and prompt are one text), with BOS in front if wanted; in the arena. */
static enum talpa_status encode(const int32_t **out, uint32_t *n_out, struct builder *b, const char *before, const char *text,
                                bool with_bos)
{
    const struct tp_tokenizer *tokenizer = b->model->tokenizer;
    const size_t n_before = strlen(before), n_text = strlen(text);
    char *joined = malloc(n_before + n_text + 1);
    if (!joined) return tp_fail_memory("a prompt", n_before + n_text);
    memcpy(joined, before, n_before);
    memcpy(joined + n_before, text, n_text + 1);
    int32_t *ids;
    size_t n;
    const enum talpa_status status = tp_tokenizer_encode(&ids, &n, tokenizer, joined, n_before + n_text, false);
    free(joined);
    TP_TRY(status);
    const bool bos = with_bos && tp_tokenizer_add_bos(tokenizer);
    int32_t *kept = n < UINT32_MAX - 1 ? tp_arena_array(&b->units->arena, n + bos, sizeof *kept) : NULL;
    if (kept) {
        if (bos) kept[0] = tp_tokenizer_bos(tokenizer);
        memcpy(kept + bos, ids, n * sizeof *ids);
    }
    free(ids);
    if (!kept) return TALPA_E_DEVICE;
    *out = kept;
    *n_out = (uint32_t)(n + bos);
    return TALPA_OK;
}

static enum talpa_status no_tokens(const struct builder *b, const struct tp_eval_row *row, const char *field)
{
    return tp_fail(TALPA_E_DATA, "%s:%" PRIu64 ": %s: no token, expected text", b->rows->path, row->number, field);
}

static enum talpa_status encode_prompt(const int32_t **out, uint32_t *n, struct builder *b, const struct tp_eval_row *row,
                                       const char *prompt)
{
    TP_TRY(encode(out, n, b, b->examples, prompt, true));
    return *n ? TALPA_OK : no_tokens(b, row, "prompt");
}

/* The sequence prompt + continuation, the continuation scored. The last token is a label only. */
static enum talpa_status push_continuation(struct builder *b, const int32_t *prompt, uint32_t n_prompt, const int32_t *tail,
                                           uint32_t n_tail)
{
    struct tp_arena *arena = &b->units->arena;
    int32_t *ids = tp_arena_array(arena, (size_t)n_prompt + n_tail, sizeof *ids);
    uint32_t *rows = tp_arena_array(arena, n_tail, sizeof *rows);
    if (!ids || !rows) return TALPA_E_DEVICE;
    memcpy(ids, prompt, n_prompt * sizeof *ids);
    memcpy(ids + n_prompt, tail, n_tail * sizeof *ids);
    for (uint32_t k = 0; k < n_tail; k++) rows[k] = n_prompt - 1 + k;
    return push_item(b->units, ids, n_prompt + n_tail - 1, rows, ids + n_prompt, n_tail);
}

/* ---- kinds ---- */

static enum talpa_status build_prompt(struct builder *b, const struct tp_eval_row *row)
{
    struct tp_eval_unit *unit = &b->units->units[b->units->n_units - 1];
    TP_TRY(encode_prompt(&unit->prompt, &unit->n_prompt, b, row, row->prompt));
    if (unit->n_prompt >= b->ctx) mark_too_long(b->units);
    else if (unit->n_prompt > b->units->longest) b->units->longest = unit->n_prompt;
    return TALPA_OK;
}

static enum talpa_status build_options(struct builder *b, const struct tp_eval_row *row)
{
    struct tp_eval_units *u = b->units;
    const bool by_text = u->by == TALPA_OPTION_BY_TEXT;
    const uint32_t n = (uint32_t)row->n_choices;
    const char *text = row->prompt;
    const int32_t *prompt, *tails[26];
    uint32_t n_prompt, n_tail[26], longest = 0;
    if (by_text) TP_TRY(tp_eval_rows_without_options(&text, &u->arena, b->rows->path, row));
    TP_TRY(encode_prompt(&prompt, &n_prompt, b, row, text));
    u->units[u->n_units - 1].n_options = n;
    for (uint32_t i = 0; i < n; i++) {
        const char letter[2] = {(char)('A' + i), '\0'};
        TP_TRY(encode(&tails[i], &n_tail[i], b, " ", by_text ? row->choices[i] : letter, false));
        if (!n_tail[i]) return no_tokens(b, row, "choices");
        if (n_tail[i] > longest) longest = n_tail[i];
    }
    if (n_prompt + longest > b->ctx) {
        mark_too_long(u);
        return TALPA_OK;
    }
    if (longest > 1) {
        for (uint32_t i = 0; i < n; i++) TP_TRY(push_continuation(b, prompt, n_prompt, tails[i], n_tail[i]));
        return TALPA_OK;
    }
    /* Every option is one token: one pass over the prompt answers for all of them. */
    uint32_t *rows = tp_arena_array(&u->arena, n, sizeof *rows);
    int32_t *labels = tp_arena_array(&u->arena, n, sizeof *labels);
    if (!rows || !labels) return TALPA_E_DEVICE;
    for (uint32_t i = 0; i < n; i++) {
        rows[i] = n_prompt - 1;
        labels[i] = tails[i][0];
    }
    return push_item(u, prompt, n_prompt, rows, labels, n);
}

/* Rows of other kinds (messages, instruction, input_ids) as training and `talpa score` read them, without the closing EOS. */
static enum talpa_status push_example(struct builder *b, const struct tp_dataset_example *example)
{
    struct tp_eval_units *u = b->units;
    uint32_t n = 0;
    int32_t *ids = tp_arena_array(&u->arena, example->n_tokens, sizeof *ids),
            *labels = tp_arena_array(&u->arena, example->n_tokens, sizeof *labels);
    uint32_t *rows = tp_arena_array(&u->arena, example->n_tokens, sizeof *rows);
    if (!ids || !labels || !rows) return TALPA_E_DEVICE;
    memcpy(ids, example->ids, example->n_tokens * sizeof *ids);
    for (uint32_t p = 1; p < example->n_tokens; p++)
        if (example->labels[p] != TP_DATASET_IGNORED) {
            rows[n] = p - 1;
            labels[n++] = example->labels[p];
        }
    if (n > 1 && labels[n - 1] == tp_tokenizer_eos(b->model->tokenizer)) n--;
    if (example->n_tokens > b->ctx) {
        mark_too_long(u);
        return TALPA_OK;
    }
    return push_item(u, ids, example->n_tokens, rows, labels, n);
}

static enum talpa_status build_nll(struct builder *b, const struct tp_eval_row *row)
{
    if (row->prompt && row->completion) {
        const int32_t *prompt, *tail;
        uint32_t n_prompt, n_tail;
        TP_TRY(encode_prompt(&prompt, &n_prompt, b, row, row->prompt));
        TP_TRY(encode(&tail, &n_tail, b, "", row->completion, false));
        if (!n_tail) return no_tokens(b, row, "completion");
        if (n_prompt + n_tail <= b->ctx) return push_continuation(b, prompt, n_prompt, tail, n_tail);
        mark_too_long(b->units);
        return TALPA_OK;
    }
    if (*b->examples)
        return tp_fail(TALPA_E_DATA, "%s:%" PRIu64 ": worked examples (--few-shot) need rows with prompt and completion", b->rows->path,
                       row->number);
    struct tp_dataset *dataset;
    char label[512];
    snprintf(label, sizeof label, "%.480s:%" PRIu64, b->rows->path, row->number);
    TP_TRY(tp_dataset_parse(&dataset, row->line, row->n_line, label, b->model->tokenizer, NULL));
    const struct tp_dataset_example example = tp_dataset_example(dataset, 0);
    const enum talpa_status status = push_example(b, &example);
    tp_dataset_close(dataset);
    return status;
}

/* Windows of a text: each has up to `ctx` tokens and scores those that the window before it did not, so all but the first window's start
 * see at least ctx - stride tokens before them. */
static enum talpa_status build_windows(struct builder *b, const struct tp_eval_row *row, bool unit_per_window)
{
    struct tp_eval_units *u = b->units;
    const int32_t *ids;
    uint32_t n;
    TP_TRY(encode(&ids, &n, b, "", row->text, true));
    if (n < 2)
        return tp_fail(TALPA_E_DATA, "%s:%" PRIu64 ": text: found %" PRIu32 " tokens, expected 2 or more", b->rows->path, row->number, n);
    uint32_t scored = 1; /* tokens that are done; the first has nothing before it */
    for (uint32_t start = 0; scored < n; start += b->stride) {
        const uint32_t end = n - start > b->ctx ? start + b->ctx : n, count = end - scored;
        if (unit_per_window && start) {
            const char *id = tp_arena_printf(&u->arena, "window-%zu", u->n_units);
            if (!id) return TALPA_E_DEVICE;
            TP_TRY(push_unit(u, id, row));
        }
        uint32_t *rows = tp_arena_array(&u->arena, count, sizeof *rows);
        if (!rows) return TALPA_E_DEVICE;
        for (uint32_t k = 0; k < count; k++) rows[k] = scored - 1 - start + k;
        TP_TRY(push_item(u, ids + start, end - 1 - start, rows, ids + scored, count));
        scored = end;
    }
    return TALPA_OK;
}

static enum talpa_status build(struct builder *b, bool is_text)
{
    struct tp_eval_units *u = b->units;
    for (size_t i = 0; i < b->rows->n_rows; i++) {
        const struct tp_eval_row *row = &b->rows->rows[i];
        TP_TRY(push_unit(u, is_text ? "window-0" : row->id, row));
        if (tp_eval_is_generated(u->metric, u->by)) TP_TRY(build_prompt(b, row));
        else if (u->metric == TALPA_METRIC_OPTION_LETTER) TP_TRY(build_options(b, row));
        else if (u->metric == TALPA_METRIC_TOKEN_NLL) TP_TRY(build_nll(b, row));
        else TP_TRY(build_windows(b, row, is_text));
    }
    return TALPA_OK;
}

enum talpa_status tp_eval_units_create(struct tp_eval_units *out, const struct talpa_model *model, const struct tp_eval_rows *rows,
                                       const char *examples, enum talpa_metric metric, enum talpa_option_by by, uint32_t ctx,
                                       uint32_t stride, bool is_text)
{
    struct tp_eval_units units = {.metric = metric, .by = by};
    struct builder builder = {.units = &units, .model = model, .rows = rows, .examples = examples, .ctx = ctx, .stride = stride};
    const enum talpa_status status = build(&builder, is_text);
    if (status == TALPA_OK) *out = units;
    else tp_eval_units_free(&units);
    return status;
}

void tp_eval_units_free(struct tp_eval_units *units)
{
    free(units->units);
    free(units->items);
    tp_arena_free(&units->arena);
    *units = (struct tp_eval_units){0};
}
