/* talpa score */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "flags_common.h"
#include "options.h"
#include "output.h"
#include "profile.h"
#include "program.h"
#include "talpa/train.h"

struct score {
    struct talpa_score_options options;
    const char *model, *device, *output_file, *profile;
    int format, base_dtype, compute_dtype, dispatch;
    struct output output;
    int64_t n_rows, n_tokens;
    double sum;
};

enum { FORMAT_JSONL, FORMAT_JSON };

static void print_ids(FILE *file, const char *name, const int32_t *ids, size_t n)
{
    fprintf(file, ", \"%s\": [", name);
    for (size_t i = 0; i < n; ++i) fprintf(file, i ? ", %" PRId32 : "%" PRId32, ids[i]);
    fputc(']', file);
}

static bool on_row(void *user, const struct talpa_score_row *row)
{
    struct score *score = user;
    FILE *file = score->output.file;
    if (score->format == FORMAT_JSON) fputs(score->n_rows ? ",\n" : "[\n", file);
    fprintf(file, "{\"index\": %" PRId64 ", \"id\": ", row->index);
    const char *id = row->id ? row->id : "";
    output_string(file, id, strlen(id), false);
    print_ids(file, "prompt_ids", row->prompt_ids, row->n_prompt_ids);
    print_ids(file, "ids", row->ids, row->n);
    fputs(", \"logprobs\": [", file);
    for (size_t i = 0; i < row->n; ++i) {
        if (i) fputs(", ", file);
        output_real(file, (double)row->logprobs[i]);
    }
    fputs("], \"sum\": ", file);
    output_real(file, row->sum);
    fprintf(file, ", \"n\": %zu}%s", row->n, score->format == FORMAT_JSONL ? "\n" : "");
    ++score->n_rows;
    score->n_tokens += (int64_t)row->n;
    score->sum += row->sum;
    return !output_failed(&score->output);
}

static void on_routes(void *user, const struct talpa_route_summary *summary)
{
    (void)user;
    if (options_verbosity >= 0) talpa_route_summary_print(stderr, summary);
}

static int run(struct score *score)
{
    struct talpa_model *model = NULL;
    struct program_device device;
    enum talpa_status status = talpa_model_open(&model, score->model);
    int code = status == TALPA_OK ? program_device_choose(&device, score->device, NULL) : program_fail(status);
    if (code < 0) code = output_open(&score->output, score->output_file);
    if (code < 0) {
        program_device_note(&device);
        status = talpa_score(model, device.index, &score->options, on_row, score);
        if (output_failed(&score->output)) {
            code = output_close(&score->output);
        } else if (status != TALPA_OK) {
            /* Rows already on stdout stand: they are right, and the exit code says that some are missing. */
            fflush(stdout);
            output_discard(&score->output);
            code = program_fail(status);
        } else {
            if (score->format == FORMAT_JSON) fputs(score->n_rows ? "\n]\n" : "[]\n", score->output.file);
            code = output_close(&score->output);
            program_note("scored %" PRId64 " rows, %" PRId64 " tokens, %.6f per token", score->n_rows, score->n_tokens,
                         score->n_tokens ? score->sum / (double)score->n_tokens : 0.0);
        }
    }
    talpa_model_close(model);
    return code;
}

int cmd_score(int argc, char **argv)
{
    static struct score score;
    static struct options options;
    struct talpa_score_options *o = &score.options;
    talpa_score_default(o);
    score.base_dtype = (int)o->base_dtype;
    score.compute_dtype = (int)o->compute_dtype;
    score.dispatch = (int)o->dispatch;
    options = (struct options){.verb = "score",
                               .usage = "-m MODEL --data FILE [--lora DIR] [options]",
                               .summary = "Log-probabilities of every row's completion, one JSON object per line. Never truncates."};
    const struct option table[] = {
        {.kind = OPTION_GROUP, .help = "Files"},
        flag_model(&score.model),
        {.kind = OPTION_TEXT, .name = "data", .target = &o->data, .argument = "FILE", .help = "rows, JSONL"},
        flag_lora(&o->lora),
        flag_allow_other_base(&o->allow_other_base),
        flag_max_threshold(&o->max_threshold),
        flag_chat_template(&o->chat_template),
        flag_route_log(&o->routes.log),
        flag_route_map(&o->routes.map),
        {.kind = OPTION_GROUP, .help = "Run and result"},
        flag_device(&score.device),
        flag_profile(&score.profile),
        {.kind = OPTION_INT,
         .name = "batch-size",
         .letter = 'b',
         .target = &o->batch_size,
         .argument = "N",
         .help = "examples per pass at most; changes no result",
         .min = 1,
         .max = 65536},
        {.kind = OPTION_INT,
         .name = "max-seq-length",
         .letter = 'c',
         .alias = "ctx-size",
         .target = &o->max_seq_length,
         .argument = "N",
         .help = "longest row; 0: as long as needed, up to the model's context",
         .max = 1 << 20},
        {.kind = OPTION_FLAG, .name = "score-eos", .target = &o->score_eos, .help = "score the closing end-of-sequence token as well"},
        flag_base_dtype(&score.base_dtype),
        flag_compute_dtype(&score.compute_dtype),
        flag_expert_dispatch(&score.dispatch),
        {.kind = OPTION_LATER, .name = "ubatch-size", .alias = "-ub", .argument = "N", .help = "use --batch-size"},
        flag_output(&score.format, "jsonl|json"),
        flag_output_file(&score.output_file),
    };
    options_add(&options, table, sizeof table / sizeof *table);
    int code = options_parse(&options, argc, argv);
    if (code < 0 && !score.model) code = flags_fail_model(&options);
    if (code < 0 && !o->data) code = options_fail(&options, "--data is missing: a JSONL file of rows");
    if (code < 0) {
        program_log_level();
        o->base_dtype = (enum talpa_base_dtype)score.base_dtype;
        o->compute_dtype = (enum talpa_compute_dtype)score.compute_dtype;
        o->dispatch = (enum talpa_expert_dispatch)score.dispatch;
        if (o->routes.log || o->routes.map) o->routes.summary = on_routes;
        code = profile_begin(score.profile);
        if (code < 0) code = profile_end(run(&score));
    }
    options_free(&options);
    return code;
}
