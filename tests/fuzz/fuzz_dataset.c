/* libFuzzer: JSONL rows. The first byte sets the limits; whatever is accepted must keep the promises of dataset.h. */
#include <stdint.h>
#include <stdlib.h>

#include "io/dataset.h"
#include "talpa/log.h"

static void check(bool holds)
{
    if (!holds) abort();
}

static void ignore(void *user, enum talpa_log_level level, const char *line)
{
    (void)user;
    (void)level;
    (void)line;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct tp_tokenizer *tokenizer;
    if (!tokenizer) {
        talpa_log_set(ignore, NULL);
        check(tp_tokenizer_byte_level(&tokenizer) == TALPA_OK);
    }
    if (size == 0) return 0;
    static const char *const templates[] = {NULL, "chatml", "chatml-smollm", "alpaca"};
    const struct tp_dataset_options options = {
        .max_tokens = data[0] & 31, .refuse_long = data[0] & 32, .chat_template = templates[data[0] >> 6]};
    struct tp_dataset *d = NULL;
    if (tp_dataset_parse(&d, (const char *)data + 1, size - 1, "fuzz", tokenizer, &options) != TALPA_OK) {
        check(d == NULL && talpa_error_message()[0] != '\0');
        return 0;
    }
    const struct tp_dataset_counts counts = tp_dataset_counts(d);
    const size_t n = tp_dataset_n_examples(d);
    uint64_t n_tokens = 0, n_labelled = 0, line = 0;
    for (size_t i = 0; i < n; i++) {
        const struct tp_dataset_example e = tp_dataset_example(d, i);
        check(e.n_tokens > 1 && (options.max_tokens == 0 || e.n_tokens <= options.max_tokens) && e.n_prompt < e.n_tokens);
        check(e.line > line && e.id);
        line = e.line;
        n_tokens += e.n_tokens;
        for (uint32_t k = 0; k < e.n_tokens; k++) {
            check(e.ids[k] >= 0 && e.ids[k] < 259 && (e.labels[k] == TP_DATASET_IGNORED || (e.labels[k] >= 0 && e.labels[k] < 259)));
            check(e.labels[k] == TP_DATASET_IGNORED || k >= e.n_prompt);
            n_labelled += k > 0 && e.labels[k] != TP_DATASET_IGNORED;
        }
    }
    check(n > 0 && n_tokens == counts.n_tokens && n_labelled == counts.n_labelled_tokens);
    check(counts.n_rows == n + counts.n_skipped + counts.n_empty && counts.n_truncated <= n && counts.n_bytes_dropped == 0);
    tp_dataset_close(d);
    return 0;
}
