/* talpa eval */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "flags_common.h"
#include "options.h"
#include "output.h"
#include "profile.h"
#include "program.h"
#include "talpa/eval.h"

struct eval {
    struct talpa_eval_options options;
    const char *model, *device, *output_file, *profile, *suite, *baseline, *metric;
    int format, by, base_dtype, compute_dtype, dispatch, limit;
    struct output output;
    bool terminal, shown;
};

static struct eval *running; /* whose progress line is on the terminal */

/* ---- progress ---- */

static void erase(void)
{
    if (running && running->shown) fputs("\r\033[K", stderr);
    if (running) running->shown = false;
}

static bool on_sample(void *user, const struct talpa_eval_sample *sample, int64_t n_rows)
{
    struct eval *eval = user;
    if (options_verbosity < 0 || !eval->terminal) return true;
    fprintf(stderr, "\rrow %" PRId64 "/%" PRId64 "\033[K", sample->index + 1, n_rows);
    fflush(stderr);
    eval->shown = true;
    return true;
}

static void on_routes(void *user, const struct talpa_route_summary *summary)
{
    (void)user;
    erase();
    if (options_verbosity >= 0) talpa_route_summary_print(stderr, summary);
}

static void on_note(void *user, const char *line)
{
    (void)user;
    erase();
    program_note("%s", line);
}

/* ---- results ---- */

static const char *digest_text(char text[24], uint64_t digest)
{
    if (!digest) return NULL;
    snprintf(text, 24, "%016" PRIx64, digest);
    return text;
}

static const char *by_text(const struct talpa_eval_score *score)
{
    static const char *const names[] = {"letter", "generation", "text"};
    return score->metric == TALPA_METRIC_OPTION_LETTER ? names[score->by] : NULL;
}

enum { MAX_FIELDS = 24 };

/* Every record of a list has the same fields; md shows what people compare, the other formats everything. */
static size_t make_fields(struct field *fields, char text[2][24], const struct talpa_eval_row *row, bool brief, bool compared)
{
    const struct talpa_eval_score *score = &row->score;
    size_t n = 0;
    fields[n++] = field_text("task", score->task);
    fields[n++] = field_text("metric", talpa_metric_name(score->metric));
    if (!brief) fields[n++] = field_text("by", by_text(score));
    fields[n++] = field_int("n", score->n);
    fields[n++] = field_real("value", score->value);
    fields[n++] = field_real("stderr", score->standard_error);
    if (!brief) {
        fields[n++] = score->has_em ? field_real("em", score->em) : field_null("em");
        fields[n++] = score->has_em ? field_real("em_stderr", score->em_error) : field_null("em_stderr");
        fields[n++] = field_int("n_too_long", score->n_too_long);
        fields[n++] = field_int("n_resumed", score->n_resumed);
        fields[n++] = field_int("n_tokens", score->n_tokens);
        fields[n++] = field_int("few_shot", score->few_shot);
        fields[n++] = field_int("seed", (int64_t)score->seed);
        fields[n++] = field_text("model", digest_text(text[0], score->model_digest));
        fields[n++] = field_text("adapter", digest_text(text[1], score->adapter_digest));
    }
    if (compared) {
        fields[n++] = row->has_baseline ? field_real("baseline", row->baseline) : field_null("baseline");
        fields[n++] = row->has_baseline ? field_real("difference", row->difference) : field_null("difference");
        fields[n++] = row->has_baseline ? field_real("difference_stderr", row->difference_error) : field_null("difference_stderr");
        fields[n++] = row->has_baseline ? field_bool("paired", row->is_paired) : field_null("paired");
    }
    fields[n++] = field_real("elapsed_s", score->elapsed_s);
    return n;
}

/* The mean of a suite as a last record of its own; its other fields are null. */
static void print_mean(struct eval *eval, const struct talpa_eval_table *table, bool brief)
{
    struct field fields[MAX_FIELDS];
    char text[2][24];
    const struct talpa_eval_row row = {.score = {.task = "mean"}};
    const size_t n = make_fields(fields, text, &row, brief, eval->baseline != NULL);
    for (size_t i = 1; i < n; ++i) {
        if (!strcmp(fields[i].name, "value")) fields[i] = field_real("value", table->mean);
        else if (!strcmp(fields[i].name, "stderr")) fields[i] = field_real("stderr", table->mean_error);
        else fields[i] = field_null(fields[i].name);
    }
    output_record(&eval->output, (enum output_format)eval->format, fields, n);
}

static void print_table(struct eval *eval, const struct talpa_eval_table *table)
{
    const enum output_format format = (enum output_format)eval->format;
    const bool single = !eval->suite, brief = format == OUTPUT_MD;
    output_begin(&eval->output, format, single);
    for (size_t i = 0; i < table->n_rows; ++i) {
        struct field fields[MAX_FIELDS];
        char text[2][24];
        output_record(&eval->output, format, fields, make_fields(fields, text, &table->rows[i], brief, eval->baseline != NULL));
    }
    if (!single && table->has_mean) print_mean(eval, table, brief);
    output_end(&eval->output, format, single);
    for (size_t i = 0; i < table->n_rows && brief; ++i) {
        const struct talpa_eval_score *score = &table->rows[i].score;
        if (by_text(score)) fprintf(eval->output.file, "\n%s: options compared by %s", score->task, by_text(score));
        if (score->has_em) fprintf(eval->output.file, "\n%s: exact match %.9g ± %.3g", score->task, score->em, score->em_error);
        if (score->n_too_long) fprintf(eval->output.file, "\n%s: %" PRId64 " rows longer than the context", score->task, score->n_too_long);
        if (i + 1 == table->n_rows) fputc('\n', eval->output.file);
    }
}

/* ---- running ---- */

static enum talpa_status evaluate(struct eval *eval, struct talpa_model *model, size_t device, struct talpa_eval_table *table,
                                  struct talpa_eval_row *only)
{
    const struct talpa_eval_callbacks callbacks = {.sample = on_sample, .note = on_note, .user = eval};
    enum talpa_status status;
    if (eval->suite) {
        status = talpa_eval_suite(table, model, device, eval->suite, &eval->options, &callbacks);
    } else {
        status = talpa_eval(&only->score, model, device, &eval->options, &callbacks);
        if (status == TALPA_OK) *table = (struct talpa_eval_table){.rows = only, .n_rows = 1};
    }
    erase();
    if (status == TALPA_OK && eval->baseline) status = talpa_eval_compare(table, eval->baseline, eval->options.output_dir);
    return status;
}

static int run(struct eval *eval)
{
    struct talpa_model *model = NULL;
    struct program_device device;
    struct talpa_eval_table table = {0};
    struct talpa_eval_row only = {0};
    enum talpa_status status = talpa_model_open(&model, eval->model);
    int code = status == TALPA_OK ? program_device_choose(&device, eval->device, NULL) : program_fail(status);
    if (code < 0) code = output_open(&eval->output, eval->output_file);
    if (code < 0) {
        program_device_note(&device);
        status = evaluate(eval, model, device.index, &table, &only);
        if (status == TALPA_OK) {
            print_table(eval, &table);
            code = output_close(&eval->output);
        } else {
            output_discard(&eval->output);
            code = program_fail(status);
        }
    }
    if (eval->suite) talpa_eval_table_free(&table);
    talpa_model_close(model);
    return code;
}

static int check(struct eval *eval, const struct options *options)
{
    struct talpa_eval_options *o = &eval->options;
    if (!eval->model) return flags_fail_model(options);
    if (!eval->suite && !o->data && !o->text)
        return options_fail(options, "nothing to evaluate: give --data FILE.jsonl, -f FILE.txt (perplexity) or --suite FILE.json");
    if (eval->suite && (o->data || o->text || o->samples))
        return options_fail(options, "--suite: the suite names its data; leave out --data, -f and --samples");
    if (o->data && o->text) return options_fail(options, "--data and -f: give one of both");
    if (o->output_dir && o->samples) return options_fail(options, "--samples: --output-dir has samples of its own: give one of both");
    if (o->few_shot && !o->few_shot_data && !eval->suite)
        return options_fail(options, "--few-shot %d needs --few-shot-data: a JSONL file of worked examples", o->few_shot);
    if (eval->metric && talpa_metric_parse(&o->metric, eval->metric) != TALPA_OK)
        return options_fail(options, "--metric: %s", talpa_error_message());
    if (o->routes.log || o->routes.map) o->routes.summary = on_routes;
    o->by = (enum talpa_option_by)eval->by;
    o->limit = eval->limit;
    o->base_dtype = (enum talpa_base_dtype)eval->base_dtype;
    o->compute_dtype = (enum talpa_compute_dtype)eval->compute_dtype;
    o->dispatch = (enum talpa_expert_dispatch)eval->dispatch;
    return -1;
}

int cmd_eval(int argc, char **argv)
{
    static struct eval eval;
    static struct options options;
    struct talpa_eval_options *o = &eval.options;
    talpa_eval_default(o);
    eval.terminal = program_is_terminal(STDERR_FILENO);
    running = &eval;
    program_before_message = erase;
    options = (struct options){
        .verb = "eval",
        .usage = "-m MODEL (--data FILE.jsonl | -f FILE.txt | --suite FILE.json) [options]",
        .summary = "Scores of a model on tasks, with standard errors. Answers are generated greedily; a row's result does not\n"
                   "depend on the batch size."};
    const struct option table[] = {
        {.kind = OPTION_GROUP, .help = "Files"},
        flag_model(&eval.model),
        flag_lora(&o->lora),
        flag_allow_other_base(&o->allow_other_base),
        flag_max_threshold(&o->max_threshold),
        {.kind = OPTION_TEXT,
         .name = "data",
         .target = &o->data,
         .argument = "FILE",
         .help = "rows, JSONL: \"prompt\" and what the metric needs"},
        {.kind = OPTION_TEXT, .name = "file", .letter = 'f', .target = &o->text, .argument = "FILE", .help = "plain text, for perplexity"},
        {.kind = OPTION_TEXT,
         .name = "suite",
         .target = &eval.suite,
         .argument = "FILE",
         .help = "several tasks: JSON, paths relative to it"},
        {.kind = OPTION_TEXT,
         .name = "task",
         .target = &o->task,
         .argument = "NAME",
         .help = "name in the results, instead of the rows' own"},
        {.kind = OPTION_TEXT,
         .name = "output-dir",
         .target = &o->output_dir,
         .argument = "DIR",
         .help = "results and samples; a run that was stopped goes on"},
        {.kind = OPTION_TEXT, .name = "samples", .target = &o->samples, .argument = "FILE", .help = "or: the samples alone, JSONL"},
        {.kind = OPTION_FLAG, .name = "overwrite", .target = &o->overwrite, .help = "start anew where the output is of other inputs"},
        {.kind = OPTION_TEXT,
         .name = "baseline",
         .target = &eval.baseline,
         .argument = "FILE",
         .help = "results to compare with, paired if both have samples"},
        flag_route_log(&o->routes.log),
        flag_route_map(&o->routes.map),
        {.kind = OPTION_GROUP, .help = "Task"},
        {.kind = OPTION_TEXT,
         .name = "metric",
         .target = &eval.metric,
         .argument = "METRIC",
         .help = "auto (from the rows), exact_number, generated_letter, option_letter, f1_em, unit_tests, exact, token_nll, perplexity"},
        {.kind = OPTION_CHOICE,
         .name = "by",
         .target = &eval.by,
         .argument = "letter|generation|text",
         .help = "option_letter: how options are compared"},
        {.kind = OPTION_INT,
         .name = "few-shot",
         .target = &o->few_shot,
         .argument = "N",
         .help = "worked examples before every prompt",
         .max = 1000},
        {.kind = OPTION_TEXT, .name = "few-shot-data", .target = &o->few_shot_data, .argument = "FILE", .help = "rows to take them from"},
        {.kind = OPTION_FLAG,
         .name = "few-shot-random",
         .target = &o->few_shot_random,
         .help = "a choice drawn with --seed instead of the first rows"},
        {.kind = OPTION_SEED, .name = "seed", .target = &o->seed, .argument = "N", .help = "of --few-shot-random"},
        {.kind = OPTION_INT, .name = "limit", .target = &eval.limit, .argument = "N", .help = "first N rows only; 0: all", .max = 1 << 30},
        {.kind = OPTION_INT,
         .name = "predict",
         .letter = 'n',
         .target = &o->max_new_tokens,
         .argument = "N",
         .help = "new tokens at most; 0: the metric's own number",
         .max = 1 << 20},
        {.kind = OPTION_INT,
         .name = "stride",
         .target = &o->stride,
         .argument = "N",
         .help = "perplexity: tokens a window adds; 0: half",
         .max = 1 << 20},
        {.kind = OPTION_FLAG,
         .name = "allow-code-execution",
         .target = &o->allow_code_execution,
         .help = "unit_tests: run Python that the model wrote (limits, no network where possible); else token_nll"},
        {.kind = OPTION_GROUP, .help = "Run and result"},
        flag_device(&eval.device),
        flag_profile(&eval.profile),
        {.kind = OPTION_INT,
         .name = "batch-size",
         .letter = 'b',
         .target = &o->batch_size,
         .argument = "N",
         .help = "rows per pass",
         .min = 1,
         .max = 4096},
        {.kind = OPTION_INT,
         .name = "ctx-size",
         .letter = 'c',
         .alias = "max-seq-length",
         .target = &o->ctx_size,
         .argument = "N",
         .help = "tokens per row, prompt and answer; 0: the model's context",
         .max = 1 << 20},
        flag_base_dtype(&eval.base_dtype),
        flag_compute_dtype(&eval.compute_dtype),
        flag_expert_dispatch(&eval.dispatch),
        flag_output(&eval.format, OUTPUT_FORMATS),
        flag_output_file(&eval.output_file),
    };
    options_add(&options, table, sizeof table / sizeof *table);
    int code = options_parse(&options, argc, argv);
    if (code < 0) code = check(&eval, &options);
    if (code < 0) {
        program_log_level();
        code = profile_begin(eval.profile);
        if (code < 0) code = profile_end(run(&eval));
    }
    options_free(&options);
    return code;
}
