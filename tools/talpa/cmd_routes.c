/* talpa routes */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "flags_common.h"
#include "options.h"
#include "output.h"
#include "program.h"
#include "talpa/route.h"

struct routes {
    const char *log, *compare, *samples, *output_file;
    int format;
};

static void print_number(FILE *file, double value)
{
    if (isfinite(value)) fprintf(file, "  %10.3f", value);
    else fprintf(file, "  %10s", "-");
}

static void print_agreement_row(FILE *file, const struct talpa_route_agreement *a)
{
    char name[64];
    if (a->module) snprintf(name, sizeof name, "layers.%d.%s", a->layer, a->module);
    else snprintf(name, sizeof name, "mean over modules");
    fprintf(file, "%-32s", name);
    print_number(file, a->top);
    print_number(file, a->top_by_chance);
    print_number(file, a->kappa);
    print_number(file, a->overlap);
    print_number(file, a->overlap_by_chance);
    fputc('\n', file);
}

static void print_comparison(struct output *output, enum output_format format, const struct talpa_route_comparison *c)
{
    if (format == OUTPUT_MD) {
        fprintf(output->file, "%-32s  %10s  %10s  %10s  %10s  %10s\n", "", "top", "by chance", "kappa", "overlap", "by chance");
        for (int m = 0; m < c->n_modules; ++m) print_agreement_row(output->file, &c->modules[m]);
        print_agreement_row(output->file, &c->mean);
        return;
    }
    output_begin(output, format, false);
    for (int m = 0; m <= c->n_modules; ++m) {
        const struct talpa_route_agreement *a = m < c->n_modules ? &c->modules[m] : &c->mean;
        const struct field fields[] = {
            a->module ? field_int("layer", a->layer) : field_null("layer"),
            field_text("module", a->module ? a->module : "all"),
            field_int("tokens", c->n_tokens),
            field_real("top", a->top),
            field_real("top_by_chance", a->top_by_chance),
            field_real("kappa", a->kappa),
            field_real("overlap", a->overlap),
            field_real("overlap_by_chance", a->overlap_by_chance),
            field_reals("match", a->match, a->match ? (size_t)c->n_experts : 0),
        };
        output_record(output, format, fields, sizeof fields / sizeof *fields);
    }
    output_end(output, format, false);
}

static void print_mean(FILE *file, const struct talpa_route_mean *mean)
{
    char text[48];
    if (!isfinite(mean->mean)) snprintf(text, sizeof text, "-");
    else if (!isfinite(mean->error)) snprintf(text, sizeof text, "%.3f", mean->mean);
    else snprintf(text, sizeof text, "%.3f +- %.3f", mean->mean, mean->error);
    fprintf(file, "  %17s", text);
}

static void print_split(struct output *output, enum output_format format, const struct talpa_route_split *s)
{
    static const char *const parts[TALPA_ROUTE_N_PARTS] = {"all", "prompt", "completion"};
    if (format == OUTPUT_MD) {
        fprintf(output->file, "active experts per token and module, %" PRId64 " rows right, %" PRId64 " wrong, %" PRId64 " unknown\n",
                s->n_right, s->n_wrong, s->n_unknown);
        fprintf(output->file, "%-12s  %17s  %17s  %17s  %17s\n", "tokens", "right", "wrong", "wrong - right", "within tasks");
        for (int i = 0; i < TALPA_ROUTE_N_PARTS; ++i) {
            fprintf(output->file, "%-12s", parts[i]);
            print_mean(output->file, &s->right[i]);
            print_mean(output->file, &s->wrong[i]);
            print_mean(output->file, &s->difference[i]);
            print_mean(output->file, &s->within_tasks[i]);
            fputc('\n', output->file);
        }
        return;
    }
    output_begin(output, format, false);
    for (int i = 0; i < TALPA_ROUTE_N_PARTS; ++i) {
        const struct field fields[] = {
            field_text("tokens", parts[i]),
            field_int("n_right", s->n_right),
            field_int("n_wrong", s->n_wrong),
            field_int("n_unknown", s->n_unknown),
            field_real("right", s->right[i].mean),
            field_real("right_stderr", s->right[i].error),
            field_real("wrong", s->wrong[i].mean),
            field_real("wrong_stderr", s->wrong[i].error),
            field_real("difference", s->difference[i].mean),
            field_real("difference_stderr", s->difference[i].error),
            field_real("within_tasks", s->within_tasks[i].mean),
            field_real("within_tasks_stderr", s->within_tasks[i].error),
        };
        output_record(output, format, fields, sizeof fields / sizeof *fields);
    }
    output_end(output, format, false);
}

static int run(const struct routes *routes)
{
    struct talpa_route_comparison *comparison = NULL;
    struct talpa_route_split split;
    struct output output;
    const enum talpa_status status = routes->compare ? talpa_route_compare(&comparison, routes->log, routes->compare)
                                                     : talpa_route_split(&split, routes->log, routes->samples);
    if (status != TALPA_OK) return program_fail(status);
    int code = output_open(&output, routes->output_file);
    if (code < 0) {
        if (comparison) print_comparison(&output, (enum output_format)routes->format, comparison);
        else print_split(&output, (enum output_format)routes->format, &split);
        code = output_close(&output);
    }
    talpa_route_comparison_free(comparison);
    return code;
}

int cmd_routes(int argc, char **argv)
{
    static struct routes routes;
    static struct options options;
    options = (struct options){.verb = "routes",
                               .usage = "--log FILE (--compare FILE | --samples FILE) [options]",
                               .summary = "Reads route logs (talpa score --route-log): do two runs route the same tokens alike, and do rows that "
                                          "are answered wrong use more experts?"};
    const struct option table[] = {
        {.kind = OPTION_TEXT, .name = "log", .target = &routes.log, .argument = "FILE", .help = "route log of an adapter"},
        {.kind = OPTION_TEXT,
         .name = "compare",
         .target = &routes.compare,
         .argument = "FILE",
         .help = "route log of another adapter over the same rows (another seed): agreement after matching their experts"},
        {.kind = OPTION_TEXT,
         .name = "samples",
         .target = &routes.samples,
         .argument = "FILE",
         .help = "samples.jsonl of talpa eval over the same rows (of the base, say): active experts of rows right and wrong"},
        flag_output(&routes.format, OUTPUT_FORMATS),
        flag_output_file(&routes.output_file),
    };
    options_add(&options, table, sizeof table / sizeof *table);
    int code = options_parse(&options, argc, argv);
    if (code < 0 && !routes.log) code = options_fail(&options, "--log is missing: a route log, as talpa score --route-log writes it");
    if (code < 0 && !routes.compare == !routes.samples)
        code = options_fail(&options, "%s: give --compare (another route log) or --samples (of talpa eval)",
                            routes.compare ? "--compare and --samples exclude each other" : "nothing to look for");
    if (code < 0) {
        program_log_level();
        code = run(&routes);
    }
    options_free(&options);
    return code;
}
