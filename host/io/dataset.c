#include "dataset.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/json.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/status.h"
#include "file_map.h"
#include "template.h"
#include "text_lines.h"

struct row {
    size_t first; /* where its tokens start in the lists */
    uint32_t n_tokens, n_prompt;
    const char *id, *task;
    double difficulty;
    uint64_t line;
};

struct tp_dataset {
    struct tp_arena arena; /* id strings */
    struct tp_id_list ids, labels;
    struct row *rows;
    size_t n_rows, capacity;
    struct tp_dataset_counts counts;
};

/* What reading one file needs, beside the result. */
struct reader {
    struct tp_dataset *dataset;
    const struct tp_tokenizer *tokenizer;
    struct tp_dataset_options options;
    const struct tp_template *chat_template; /* chosen at the first row of messages */
    struct tp_arena arena;                   /* of one row */
};

static const char KINDS[] = "input_ids, messages, prompt and completion, instruction and output, or text";

static void count_dropped(struct reader *r, const char *text, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes; i++) r->dataset->counts.n_bytes_dropped += !tp_tokenizer_has_byte(r->tokenizer, (unsigned char)text[i]);
}

static enum talpa_status encode_segments(struct reader *r, const struct tp_template_segments *segments)
{
    struct tp_dataset *d = r->dataset;
    if (tp_tokenizer_add_bos(r->tokenizer)) {
        TP_TRY(tp_tokenizer_bpe_push(&d->ids, tp_tokenizer_bos(r->tokenizer)));
        TP_TRY(tp_tokenizer_bpe_push(&d->labels, TP_DATASET_IGNORED));
    }
    for (size_t i = 0; i < segments->n_segments; i++)
        if (!segments->segments[i].is_special_parsed) count_dropped(r, segments->segments[i].text, segments->segments[i].n_bytes);
    return tp_template_encode(&d->ids, &d->labels, r->tokenizer, segments);
}

/* prompt (NULL: none), text, EOS */
static enum talpa_status read_raw(struct reader *r, const char *prompt, const char *text)
{
    struct tp_template_segment list[3] = {{.text = prompt ? prompt : "", .n_bytes = prompt ? strlen(prompt) : 0},
                                          {.text = text, .n_bytes = strlen(text), .is_labelled = true},
                                          {.text = "", .is_labelled = true, .is_eos = true}};
    return encode_segments(r, &(struct tp_template_segments){list, 3});
}

static enum talpa_status read_prompt(struct reader *r, const struct tp_json_value *row)
{
    const char *prompt, *completion;
    TP_TRY(tp_json_get_string(&prompt, row, "prompt"));
    TP_TRY(tp_json_get_string(&completion, row, "completion"));
    return read_raw(r, prompt, completion);
}

static enum talpa_status read_text(struct reader *r, const struct tp_json_value *row)
{
    const char *text;
    TP_TRY(tp_json_get_string(&text, row, "text"));
    return read_raw(r, NULL, text);
}

static enum talpa_status read_instruction(struct reader *r, const struct tp_json_value *row)
{
    const char *instruction, *input, *output;
    TP_TRY(tp_json_get_string(&instruction, row, "instruction"));
    TP_TRY(tp_json_get_string_or(&input, row, "input", ""));
    TP_TRY(tp_json_get_string(&output, row, "output"));
    struct tp_template_segments segments;
    TP_TRY(tp_template_instruction(&segments, &r->arena, instruction, input, output));
    return encode_segments(r, &segments);
}

static enum talpa_status read_messages(struct reader *r, const struct tp_json_value *row)
{
    const struct tp_json_value *list = tp_json_get(row, "messages");
    if (tp_json_type(list) != TP_JSON_ARRAY)
        return tp_fail(TALPA_E_DATA, "messages: found %s, expected an array of {\"role\", \"content\"}",
                       tp_json_type_name(tp_json_type(list)));
    if (!r->chat_template)
        TP_TRY(tp_template_select(&r->chat_template, r->options.chat_template, tp_tokenizer_chat_template(r->tokenizer)));
    const size_t n = (size_t)tp_json_length(list);
    struct tp_template_message *messages = tp_arena_array(&r->arena, n, sizeof *messages);
    if (!messages) return TALPA_E_DEVICE;
    bool has_assistant = false;
    size_t i = 0;
    for (const struct tp_json_value *m = tp_json_first(list); m; m = tp_json_next(m), i++) {
        if (tp_json_type(m) != TP_JSON_OBJECT)
            return tp_fail(TALPA_E_DATA, "messages[%zu]: found %s, expected an object with role and content", i,
                           tp_json_type_name(tp_json_type(m)));
        enum talpa_status status = tp_json_get_string(&messages[i].role, m, "role");
        if (status == TALPA_OK) status = tp_json_get_string(&messages[i].content, m, "content");
        TP_TRY(tp_context(status, "messages[%zu]", i));
        has_assistant = has_assistant || strcmp(messages[i].role, "assistant") == 0;
    }
    struct tp_template_segments segments;
    TP_TRY(tp_template_messages(&segments, &r->arena, r->chat_template, messages, n, false));
    if (!has_assistant) return tp_fail(TALPA_E_DATA, "messages: found no assistant's turn, expected one to learn from");
    return encode_segments(r, &segments);
}

/* The numbers of an array: ids of the vocabulary, or (labels) -100 too. */
static enum talpa_status read_numbers(struct tp_id_list *out, const struct reader *r, const struct tp_json_value *array, const char *field,
                                      bool is_label)
{
    if (tp_json_type(array) != TP_JSON_ARRAY)
        return tp_fail(TALPA_E_DATA, "%s: found %s, expected an array of token ids", field, tp_json_type_name(tp_json_type(array)));
    const int64_t n_vocabulary = (int64_t)tp_tokenizer_n_tokens(r->tokenizer);
    size_t i = 0;
    for (const struct tp_json_value *v = tp_json_first(array); v; v = tp_json_next(v), i++) {
        int64_t id;
        TP_TRY(tp_context(tp_json_as_int(&id, v, "token id"), "%s[%zu]", field, i));
        if ((id < 0 || id >= n_vocabulary) && !(is_label && id == TP_DATASET_IGNORED))
            return tp_fail(TALPA_E_DATA, "%s[%zu]: found %" PRId64 ", expected 0..%" PRId64 "%s", field, i, id, n_vocabulary - 1,
                           is_label ? " or -100" : "");
        TP_TRY(tp_tokenizer_bpe_push(out, (int32_t)id));
    }
    return TALPA_OK;
}

static enum talpa_status read_ids(struct reader *r, const struct tp_json_value *row)
{
    struct tp_dataset *d = r->dataset;
    const size_t first = d->ids.n_ids;
    const struct tp_json_value *labels = tp_json_get(row, "labels");
    TP_TRY(read_numbers(&d->ids, r, tp_json_get(row, "input_ids"), "input_ids", false));
    if (tp_json_type(labels) != TP_JSON_NULL) {
        TP_TRY(read_numbers(&d->labels, r, labels, "labels", true));
        if (d->labels.n_ids != d->ids.n_ids)
            return tp_fail(TALPA_E_DATA, "labels: found %zu, expected %zu as in input_ids", d->labels.n_ids - first, d->ids.n_ids - first);
    }
    for (size_t i = d->labels.n_ids; i < d->ids.n_ids; i++) TP_TRY(tp_tokenizer_bpe_push(&d->labels, d->ids.ids[i]));
    return TALPA_OK;
}

static enum talpa_status read_row(struct reader *r, const struct tp_json_value *row)
{
    if (tp_json_type(row) != TP_JSON_OBJECT)
        return tp_fail(TALPA_E_DATA, "found %s, expected one JSON object per line with %s", tp_json_type_name(tp_json_type(row)), KINDS);
    if (tp_json_get(row, "input_ids")) return read_ids(r, row);
    if (tp_json_get(row, "messages")) return read_messages(r, row);
    if (tp_json_get(row, "prompt") || tp_json_get(row, "completion")) return read_prompt(r, row);
    if (tp_json_get(row, "instruction")) return read_instruction(r, row);
    if (tp_json_get(row, "text")) return read_text(r, row);
    return tp_fail(TALPA_E_DATA, "found no field of a known kind, expected %s", KINDS);
}

static enum talpa_status read_id(const char **out, struct reader *r, const struct tp_json_value *row)
{
    const struct tp_json_value *id = tp_json_get(row, "id");
    *out = "";
    if (tp_json_type(id) == TP_JSON_NULL) return TALPA_OK;
    if (tp_json_type(id) == TP_JSON_STRING) {
        const char *text;
        TP_TRY(tp_json_as_string(&text, id, "id"));
        *out = tp_arena_strdup(&r->dataset->arena, text);
    } else {
        int64_t number;
        if (tp_json_type(id) != TP_JSON_NUMBER || tp_json_as_int(&number, id, "id") != TALPA_OK)
            return tp_fail(TALPA_E_DATA, "id: found %s, expected a string or a whole number", tp_json_type_name(tp_json_type(id)));
        *out = tp_arena_printf(&r->dataset->arena, "%" PRId64, number);
    }
    return *out ? TALPA_OK : TALPA_E_DEVICE;
}

/* Members that say what a row is; where they have another type they are somebody else's and do not count. */
static enum talpa_status read_about(struct row *out, struct reader *r, const struct tp_json_value *row)
{
    struct tp_dataset *d = r->dataset;
    const struct tp_json_value *task = tp_json_get(row, "task"), *difficulty = tp_json_get(row, "difficulty");
    out->difficulty = NAN;
    if (tp_json_type(difficulty) == TP_JSON_NUMBER) TP_TRY(tp_json_as_double(&out->difficulty, difficulty, "difficulty"));
    if (tp_json_type(task) != TP_JSON_STRING) return TALPA_OK;
    const char *text, *last = d->n_rows ? d->rows[d->n_rows - 1].task : NULL;
    TP_TRY(tp_json_as_string(&text, task, "task"));
    out->task = last && !strcmp(last, text) ? last : tp_arena_strdup(&d->arena, text);
    return out->task ? TALPA_OK : TALPA_E_DEVICE;
}

/* Takes the tokens from `first` on as an example, cuts them, or drops them. */
static enum talpa_status finish_row(struct reader *r, size_t first, const struct tp_json_value *json, uint64_t line)
{
    struct tp_dataset *d = r->dataset;
    size_t n = d->ids.n_ids - first, n_prompt = 0;
    if (n == 0) {
        d->counts.n_empty++;
        return TALPA_OK;
    }
    int32_t *ids = d->ids.ids + first, *labels = d->labels.ids + first;
    while (n_prompt < n && labels[n_prompt] == TP_DATASET_IGNORED) n_prompt++;
    const size_t n_max = r->options.max_tokens ? r->options.max_tokens : UINT32_MAX, n_rest = n - n_prompt;
    bool is_kept = true, is_truncated = false;
    if (n > n_max && r->options.refuse_long)
        return tp_fail(TALPA_E_DATA, "found %zu tokens, expected at most %zu; shorten the row or raise the length", n, n_max);
    if (n_rest > n_max) {
        d->counts.n_skipped++;
        is_kept = false;
    } else if (n > n_max && n_rest > 0) {
        const size_t n_cut = n - n_max;
        const bool keeps_bos = n_prompt > n_cut && tp_tokenizer_add_bos(r->tokenizer) && ids[0] == tp_tokenizer_bos(r->tokenizer);
        memmove(ids + keeps_bos, ids + n_cut + keeps_bos, (n_max - keeps_bos) * sizeof *ids);
        memmove(labels + keeps_bos, labels + n_cut + keeps_bos, (n_max - keeps_bos) * sizeof *labels);
        n = n_max;
        n_prompt -= n_cut;
        is_truncated = true;
    }
    uint64_t n_labelled = 0;
    for (size_t i = 1; is_kept && i < n; i++) n_labelled += labels[i] != TP_DATASET_IGNORED;
    if (is_kept && n_labelled == 0) {
        d->counts.n_empty++;
        is_kept = false;
    }
    if (!is_kept) {
        d->ids.n_ids = d->labels.n_ids = first;
        return TALPA_OK;
    }
    if (d->n_rows == d->capacity) {
        const size_t capacity = d->capacity ? 2 * d->capacity : 64;
        struct row *rows = realloc(d->rows, capacity * sizeof *rows);
        if (!rows) return tp_fail_memory("dataset", capacity * sizeof *rows);
        d->rows = rows;
        d->capacity = capacity;
    }
    struct row row = {.first = first, .n_tokens = (uint32_t)n, .n_prompt = (uint32_t)n_prompt, .line = line};
    TP_TRY(read_id(&row.id, r, json));
    TP_TRY(read_about(&row, r, json));
    d->rows[d->n_rows++] = row;
    d->ids.n_ids = d->labels.n_ids = first + n;
    d->counts.n_truncated += is_truncated;
    d->counts.n_tokens += n;
    d->counts.n_labelled_tokens += n_labelled;
    return TALPA_OK;
}

static enum talpa_status read_line(struct reader *r, const char *text, size_t n_bytes, const char *label, uint64_t line)
{
    char *place = tp_arena_printf(&r->arena, "%s:%" PRIu64, label, line);
    if (!place) return TALPA_E_DEVICE;
    struct tp_json *json;
    TP_TRY(tp_json_parse(&json, text, n_bytes, place));
    const size_t first = r->dataset->ids.n_ids;
    enum talpa_status status = read_row(r, tp_json_root(json));
    if (status == TALPA_OK) status = finish_row(r, first, tp_json_root(json), line);
    tp_json_free(json);
    return tp_context(status, "%s", place);
}

static enum talpa_status check_result(const struct tp_dataset *d, const char *label, uint32_t max_tokens)
{
    const struct tp_dataset_counts *c = &d->counts;
    if (c->n_rows == 0) return tp_fail(TALPA_E_DATA, "%s: found no row, expected one JSON object per line with %s", label, KINDS);
    if (d->n_rows == 0)
        return tp_fail(TALPA_E_DATA,
                       "%s: no example is left of %" PRIu64 " rows: %" PRIu64 " longer than %u tokens, %" PRIu64
                       " without anything to predict",
                       label, c->n_rows, c->n_skipped, (unsigned)max_tokens, c->n_empty);
    if (d->n_rows > UINT32_MAX) return tp_fail(TALPA_E_DATA, "%s: %zu examples, expected less than 2^32; split the file", label, d->n_rows);
    if (c->n_truncated)
        tp_log(TALPA_LOG_WARN, "%s: %" PRIu64 " of %" PRIu64 " rows longer than %u tokens: prompt cut from the left", label, c->n_truncated,
               c->n_rows, (unsigned)max_tokens);
    if (c->n_skipped)
        tp_log(TALPA_LOG_WARN, "%s: %" PRIu64 " of %" PRIu64 " rows skipped: the completion alone is longer than %u tokens", label,
               c->n_skipped, c->n_rows, (unsigned)max_tokens);
    if (c->n_empty) tp_log(TALPA_LOG_WARN, "%s: %" PRIu64 " of %" PRIu64 " rows skipped: nothing to predict", label, c->n_empty, c->n_rows);
    if (c->n_bytes_dropped)
        tp_log(TALPA_LOG_WARN, "%s: %" PRIu64 " bytes of text left out: the vocabulary has no token for them", label, c->n_bytes_dropped);
    return TALPA_OK;
}

enum talpa_status tp_dataset_parse(struct tp_dataset **out, const char *bytes, size_t n_bytes, const char *label,
                                   const struct tp_tokenizer *tokenizer, const struct tp_dataset_options *options)
{
    struct tp_dataset *d = calloc(1, sizeof *d);
    if (!d) return tp_fail_memory("dataset", sizeof *d);
    struct reader r = {.dataset = d, .tokenizer = tokenizer};
    if (options) r.options = *options;
    enum talpa_status status = TALPA_OK;
    /* A wrong flag is refused even if no row needs it. */
    if (r.options.chat_template) status = tp_template_select(&r.chat_template, r.options.chat_template, NULL);
    for (struct tp_text_lines line = tp_text_lines_of(bytes, n_bytes); status == TALPA_OK && tp_text_lines_next(&line);) {
        d->counts.n_rows++;
        status = read_line(&r, line.text, line.n_bytes, label, line.number);
        tp_arena_free(&r.arena);
    }
    if (status == TALPA_OK) status = check_result(d, label, r.options.max_tokens);
    if (status == TALPA_OK)
        *out = d;
    else
        tp_dataset_close(d);
    return status;
}

enum talpa_status tp_dataset_open(struct tp_dataset **out, const char *path, const struct tp_tokenizer *tokenizer,
                                  const struct tp_dataset_options *options)
{
    struct tp_file_map map;
    TP_TRY(tp_file_map_open(&map, path));
    const enum talpa_status status = tp_dataset_parse(out, (const char *)map.bytes, map.n_bytes, path, tokenizer, options);
    tp_file_map_close(&map);
    return status;
}

void tp_dataset_close(struct tp_dataset *dataset)
{
    if (!dataset) return;
    tp_arena_free(&dataset->arena);
    free(dataset->ids.ids);
    free(dataset->labels.ids);
    free(dataset->rows);
    free(dataset);
}

size_t tp_dataset_n_examples(const struct tp_dataset *dataset) { return dataset->n_rows; }

struct tp_dataset_example tp_dataset_example(const struct tp_dataset *dataset, size_t i)
{
    const struct row *row = &dataset->rows[i];
    return (struct tp_dataset_example){
        dataset->ids.ids + row->first, dataset->labels.ids + row->first, row->n_tokens, row->n_prompt, row->id, row->line,
        row->task, row->difficulty};
}

struct tp_dataset_counts tp_dataset_counts(const struct tp_dataset *dataset) { return dataset->counts; }

void tp_dataset_permutation(uint32_t *out, uint32_t n, uint64_t seed, uint64_t epoch)
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    for (uint32_t i = 0; i < n; i++) out[i] = i;
    for (uint32_t i = n; i-- > 1;) {
        const uint32_t counter[4] = {i, (uint32_t)epoch, (uint32_t)(epoch >> 32),
                                     0x64617461}; /* "data": apart from other uses of the seed */
        uint32_t u[4];
        tp_rng_philox(u, counter, key);
        /* j = floor((u1 u0) * (i + 1) / 2^64), in two 32-bit halves: uneven by less than 2^-32. */
        const uint64_t bound = (uint64_t)i + 1, low = u[0] * bound;
        const uint32_t j = (uint32_t)((u[1] * bound + (low >> 32)) >> 32);
        const uint32_t swap = out[i];
        out[i] = out[j];
        out[j] = swap;
    }
}
