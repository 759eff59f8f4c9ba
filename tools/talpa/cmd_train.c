/* talpa train */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "flags_common.h"
#include "options.h"
#include "options_config.h"
#include "output.h"
#include "profile.h"
#include "program.h"
#include "progress.h"
#include "talpa/train.h"
#include "train_flags.h"

struct train {
    struct train_flags flags;
    const char *model, *device, *fake_device, *output_file, *profile;
    int format;
    bool dry_run;
    int last_step;
};

static bool on_step(void *user, const struct talpa_train_row *row)
{
    struct train *train = user;
    train->last_step = row->current_steps;
    progress_step(row);
    return !program_stop_requested;
}

static void on_note(void *user, const char *line)
{
    (void)user;
    program_note("%s", line);
}

static void print_result(struct output *output, enum output_format format, const struct train *train,
                         const struct talpa_train_result *result)
{
    char digest[24], state[24];
    snprintf(digest, sizeof digest, "%016" PRIx64, result->digest);
    snprintf(state, sizeof state, "%016" PRIx64, result->digest_state);
    const bool eval = result->has_eval;
    if (format == OUTPUT_MD) {
        if (eval)
            fprintf(output->file,
                    "held-out loss  before %.6f  after %.6f  difference %+.6f ± %.6f  (%" PRId64 " rows, %" PRId64 " tokens)\n",
                    result->before.loss, result->after.loss, result->difference, result->difference_error, result->after.n_examples,
                    result->after.n_tokens);
        if (result->best_step)
            fprintf(output->file, "best held-out loss %.6f after step %d%s%s\n", result->best_loss, result->best_step,
                    result->best_loaded ? ", loaded" : "", result->stopped_early ? "; stopped early" : "");
        if (result->max_threshold > 0.0)
            fprintf(output->file, "steered to %g %s   measured %.3f   threshold bound %.6g\n", result->steered_target,
                    train->flags.options.target_active_experts != 0.0 ? "active experts" : "percent overhead at most",
                    result->steered_measured, result->max_threshold);
        fprintf(output->file, "steps %d   throughput %.1f tokens/s   trainable %.3f M\ndigest %s   state %s\noutput %s\n", result->n_steps,
                result->throughput, (double)result->n_trainable / 1e6, digest, state, train->flags.options.output_dir);
        return;
    }
    const struct field fields[] = {
        field_int("steps", result->n_steps),
        eval ? field_real("eval_before_loss", result->before.loss) : field_null("eval_before_loss"),
        eval ? field_real("eval_before_stderr", result->before.standard_error) : field_null("eval_before_stderr"),
        eval ? field_real("eval_after_loss", result->after.loss) : field_null("eval_after_loss"),
        eval ? field_real("eval_after_stderr", result->after.standard_error) : field_null("eval_after_stderr"),
        eval ? field_real("eval_difference", result->difference) : field_null("eval_difference"),
        eval ? field_real("eval_difference_stderr", result->difference_error) : field_null("eval_difference_stderr"),
        eval ? field_int("eval_examples", result->after.n_examples) : field_null("eval_examples"),
        eval ? field_int("eval_tokens", result->after.n_tokens) : field_null("eval_tokens"),
        field_real("throughput", result->throughput),
        field_int("trainable_parameters", result->n_trainable),
        result->max_threshold > 0.0 ? field_real("steered_target", result->steered_target) : field_null("steered_target"),
        result->max_threshold > 0.0 ? field_real("steered_measured", result->steered_measured) : field_null("steered_measured"),
        result->max_threshold > 0.0 ? field_real("max_threshold", result->max_threshold) : field_null("max_threshold"),
        field_text("digest", digest),
        field_text("digest_state", state),
        field_int("first_step", result->first_step),
        field_bool("stopped_early", result->stopped_early),
        result->best_step ? field_int("best_step", result->best_step) : field_null("best_step"),
        result->best_step ? field_real("best_loss", result->best_loss) : field_null("best_loss"),
        field_int("device_bytes", (int64_t)result->device_bytes),
        field_int("device_peak_bytes", (int64_t)result->device_peak_bytes),
        field_int("mapped_file_bytes", (int64_t)result->mapped_file_bytes),
        field_int("host_peak_bytes", (int64_t)result->host_peak_bytes),
        field_text("output_dir", train->flags.options.output_dir),
    };
    output_begin(output, format, true);
    output_record(output, format, fields, sizeof fields / sizeof *fields);
    output_end(output, format, true);
}

static int dry_run(struct train *train, struct talpa_model *model)
{
    struct program_device device;
    struct talpa_memory_plan plan;
    int code = program_device_choose(&device, train->device, train->fake_device);
    if (code >= 0) return code;
    const enum talpa_status status = talpa_train_plan_memory(&plan, model, &device.caps, &train->flags.options);
    if (status != TALPA_OK) return program_fail(status);
    program_note("device %s", device.caps.name);
    struct output output;
    code = output_open(&output, train->output_file);
    if (code >= 0) return code;
    train_memory_print(&output, (enum output_format)train->format, model, &device.caps, &plan);
    return output_close(&output);
}

static int run(struct train *train, struct talpa_model *model)
{
    struct program_device device;
    int code = program_device_choose(&device, train->device, NULL);
    if (code >= 0) return code;
    struct output output;
    code = output_open(&output, train->output_file);
    if (code >= 0) return code;

    const struct talpa_train_callbacks callbacks = {.step = on_step, .note = on_note, .user = train};
    struct talpa_train_result result;
    program_signals_stop();
    progress_begin(train->flags.options.logging_steps, options_verbosity < 0);
    const enum talpa_status status = talpa_train(&result, model, device.index, &train->flags.options, &callbacks);
    progress_end();
    program_signals_default();
    if (status != TALPA_OK) {
        output_discard(&output);
        if (status != TALPA_E_INTERRUPTED) return program_fail(status);
        program_error("interrupted after step %d; checkpoint and adapter are saved in %s; --resume-from auto goes on", train->last_step,
                      train->flags.options.output_dir);
        return talpa_exit_code(status);
    }
    print_result(&output, (enum output_format)train->format, train, &result);
    return output_close(&output);
}

static int check(struct train *train, const struct options *options)
{
    const struct talpa_train_options *o = &train->flags.options;
    if (!train->model) return flags_fail_model(options);
    if (train->fake_device && !train->dry_run) return options_fail(options, "--fake-device can only be planned for: add --dry-run");
    if (train->fake_device && train->device) return options_fail(options, "--device and --fake-device exclude each other");
    if (!train->dry_run && !o->data) return options_fail(options, "--data is missing: a JSONL file of training rows");
    if (!train->dry_run && !o->output_dir) return options_fail(options, "--output-dir is missing: the folder for adapter and log");
    return train_flags_finish(&train->flags, options);
}

/* All flags as a --config file, for the output folder. */
static int config_text(char **text, const struct options *options)
{
    size_t n_bytes;
    FILE *file = open_memstream(text, &n_bytes);
    if (!file) return program_fail_memory();
    options_config_write(file, options);
    return fclose(file) == 0 ? -1 : program_fail_memory();
}

int cmd_train(int argc, char **argv)
{
    static struct train train;
    static struct options options;
    struct talpa_train_options *o = &train.flags.options;
    options = (struct options){.verb = "train",
                               .usage = "-m MODEL --data FILE --output-dir DIR [options]",
                               .summary = "Fine-tunes LoRA or a mixture of LoRA experts on a frozen model."};
    const struct option table[] = {
        {.kind = OPTION_GROUP, .help = "Files"},
        flag_model(&train.model),
        {.kind = OPTION_TEXT, .name = "data", .target = &o->data, .argument = "FILE", .help = "training rows, JSONL"},
        {.kind = OPTION_TEXT,
         .name = "eval-data",
         .target = &o->eval_data,
         .argument = "FILE",
         .help = "held-out rows: their loss before and after"},
        {.kind = OPTION_TEXT,
         .name = "output-dir",
         .target = &o->output_dir,
         .argument = "DIR",
         .help = "adapter and trainer_log.jsonl go here"},
        {.kind = OPTION_TEXT,
         .name = "init-lora",
         .target = &o->init_lora,
         .argument = "DIR",
         .help = "start from this adapter's parameters"},
        flag_allow_other_base(&o->allow_other_base),
        flag_chat_template(&o->chat_template),
        {.kind = OPTION_INT,
         .name = "save-steps",
         .target = &o->save_steps,
         .argument = "N",
         .help = "a checkpoint every N steps; 0: at the end only",
         .max = 2147483647},
        {.kind = OPTION_INT,
         .name = "save-total-limit",
         .target = &o->save_total_limit,
         .argument = "N",
         .help = "keep the newest N checkpoints; 0: all (best/ is always kept)",
         .max = 2147483647},
        {.kind = OPTION_INT,
         .name = "logging-steps",
         .target = &o->logging_steps,
         .argument = "N",
         .help = "a log row every N steps",
         .min = 1,
         .max = 2147483647},
        {.kind = OPTION_TEXT,
         .name = "route-log",
         .target = &o->route_log,
         .argument = "FILE",
         .help = "tokens per expert by step and module, JSONL; with --eval-data also of the held-out rows, and routing.svg"},
        {.kind = OPTION_GROUP, .help = "Going on"},
        {.kind = OPTION_TEXT,
         .name = "resume-from",
         .target = &o->resume_from,
         .argument = "PATH|auto",
         .help = "continue a checkpoint or a run's newest; auto: that of --output-dir, if there is one"},
        {.kind = OPTION_FLAG,
         .name = "allow-plan-change",
         .target = &o->allow_plan_change,
         .help = "resume with other kernels, another device or driver: the bits may differ"},
        {.kind = OPTION_FLAG,
         .name = "allow-schedule-change",
         .target = &o->allow_schedule_change,
         .help = "resume with another number of steps where the schedule depends on it"},
        {.kind = OPTION_GROUP, .help = "Measuring on the way (needs --eval-data)"},
        {.kind = OPTION_INT,
         .name = "eval-steps",
         .target = &o->eval_steps,
         .argument = "N",
         .help = "held-out loss every N steps, best adapter in best/; 0: before and after only",
         .max = 2147483647},
        {.kind = OPTION_INT,
         .name = "early-stopping-patience",
         .target = &o->early_stopping_patience,
         .argument = "K",
         .help = "stop after K measurements without a new best; 0: never",
         .max = 2147483647},
        {.kind = OPTION_REAL,
         .name = "early-stopping-threshold",
         .target = &o->early_stopping_threshold,
         .argument = "X",
         .help = "a new best is lower by more than X",
         .max = 1e9},
        {.kind = OPTION_FLAG,
         .name = "load-best-model-at-end",
         .target = &o->load_best_at_end,
         .help = "the adapter in --output-dir is the best measured one, not the last"},
        {.kind = OPTION_GROUP, .help = "Run and result"},
        flag_device(&train.device),
        flag_profile(&train.profile),
        {.kind = OPTION_FLAG, .name = "dry-run", .target = &train.dry_run, .help = "print the memory it would take and stop"},
        {.kind = OPTION_TEXT,
         .name = "fake-device",
         .target = &train.fake_device,
         .argument = "NAME",
         .help = "with --dry-run: amd, intel, nvidia or cpu"},
        flag_output(&train.format, OUTPUT_FORMATS),
        flag_output_file(&train.output_file),
    };
    options_add(&options, table, sizeof table / sizeof *table);
    train_flags_add(&options, &train.flags);
    int code = options_parse(&options, argc, argv);
    if (code < 0) code = check(&train, &options);
    char *config = NULL;
    if (code < 0) code = config_text(&config, &options);
    o->config_json = config;
    if (code < 0) {
        program_log_level();
        struct talpa_model *model = NULL;
        const enum talpa_status status = talpa_model_open(&model, train.model);
        if (status != TALPA_OK)
            code = program_fail(status);
        else
            code = train.dry_run ? dry_run(&train, model) : profile_begin(train.profile);
        if (code < 0) code = profile_end(run(&train, model));
        talpa_model_close(model);
    }
    options_free(&options);
    free(config);
    return code;
}
