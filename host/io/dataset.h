/* Training and evaluation rows from JSONL files, tokenised.
 *
 * One JSON object per line, its kind told from its keys, line by line (other keys are ignored; of several kinds the first in this list):
 *   {"input_ids": [..], "labels": [..]}        labels optional (then the ids), -100 ignored; nothing appended
 *   {"messages": [{"role", "content"}, ..]}    the chat template; loss on the assistant's content and its end marker
 *   {"prompt", "completion"}                   raw, tokenised separately and joined, then EOS; loss on completion and EOS
 *   {"instruction", "input", "output"}         the alpaca prompt, input optional, then EOS; loss on output and EOS
 *   {"text"}                                   raw, then EOS; loss on everything
 * Beside them "id", "task" (a string) and "difficulty" (a number) say what a row is; other types of the last two count as absent.
 * BOS comes first if the tokenizer adds it (not for input_ids). Special strings inside data are text. A UTF-8 byte order mark at the start,
 * CRLF and blank lines are accepted. */
#ifndef TP_DATASET_H
#define TP_DATASET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "talpa/status.h"
#include "tokenizer.h"

enum { TP_DATASET_IGNORED = -100 };

struct tp_dataset_options {
    uint32_t max_tokens;       /* longest example; 0: no limit */
    bool refuse_long;          /* an example beyond max_tokens is TALPA_E_DATA; else it is cut or skipped */
    const char *chat_template; /* name of a template for messages; NULL: the model file's own */
};

/** One example; everything is borrowed from the dataset. */
struct tp_dataset_example {
    const int32_t *ids;    /* [n_tokens], n_tokens > 1 */
    const int32_t *labels; /* [n_tokens] ids[i] where the loss falls, else -100; labels[i] belongs to ids[i]: the loss shifts them */
    uint32_t n_tokens;
    uint32_t n_prompt; /* tokens before the first label */
    const char *id;    /* the row's "id" (a string, or a whole number as text), "" if it has none */
    uint64_t line;     /* in the file, from 1 */
    const char *task;  /* the row's "task" if it is a string, else NULL */
    double difficulty; /* the row's "difficulty" if it is a number, else NaN */
};

struct tp_dataset_counts {
    uint64_t n_rows;            /* lines that hold a row */
    uint64_t n_truncated;       /* kept with a shorter prompt */
    uint64_t n_skipped;         /* left out: from the first label on alone longer than max_tokens */
    uint64_t n_empty;           /* left out: no label that a token comes before, so nothing to predict */
    uint64_t n_tokens;          /* of the examples kept */
    uint64_t n_labelled_tokens; /* labels that count in a loss: not -100, and not at the first position */
    uint64_t n_bytes_dropped;   /* bytes of text that the vocabulary has no token for */
};

/** A file's examples in file order. Read-only after opening, so threads may share it. */
struct tp_dataset;

/** Reads and tokenises a whole file; `options` may be NULL (no limit). Too long: the prompt (what stands before the first label) is cut
 *  from its left, a BOS in front is kept if there is room; if what follows is too long alone the row is skipped. Both are counted, and one
 *  warning each goes to the log. TALPA_E_NO_INPUT if the file cannot be read, TALPA_E_DATA (FILE:LINE, field, found, expected) for a bad
 *  row, or if no example is left; TALPA_E_ARGUMENT for an unknown template name. The caller owns *out; tokenizer and options are not kept.
 */
enum talpa_status tp_dataset_open(struct tp_dataset **out, const char *path, const struct tp_tokenizer *tokenizer,
                                  const struct tp_dataset_options *options);

/** As tp_dataset_open for bytes in memory; `label` takes the file name's place in messages. */
enum talpa_status tp_dataset_parse(struct tp_dataset **out, const char *bytes, size_t n_bytes, const char *label,
                                   const struct tp_tokenizer *tokenizer, const struct tp_dataset_options *options);

/** NULL is allowed. */
void tp_dataset_close(struct tp_dataset *dataset);

size_t tp_dataset_n_examples(const struct tp_dataset *dataset);

/** Example `i` in [0, n_examples). */
struct tp_dataset_example tp_dataset_example(const struct tp_dataset *dataset, size_t i);

struct tp_dataset_counts tp_dataset_counts(const struct tp_dataset *dataset);

/** Writes a permutation of 0..n-1 that depends on seed and epoch only: Fisher-Yates (Durstenfeld 1964), the step for position i drawn from
 *  Philox with key = seed and counter = (i, epoch low, epoch high, a constant of this file). Exchanges, so any n < 2^32; no allocation. */
void tp_dataset_permutation(uint32_t *out, uint32_t n, uint64_t seed, uint64_t epoch);

#endif
