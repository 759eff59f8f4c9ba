/* From an output or from log-likelihoods to a judged row. */
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "eval/code_run.h"
#include "eval/eval_impl.h"
#include "eval/journal.h"
#include "eval/scoring.h"

static enum talpa_status keep(const char **out, struct tp_arena *arena, const char *text, size_t n_bytes)
{
    *out = tp_arena_strndup(arena, text, n_bytes);
    return *out ? TALPA_OK : TALPA_E_DEVICE;
}

static enum talpa_status judge_number(struct tp_journal_row *out, struct tp_arena *arena, const struct tp_eval_row *row, const char *output)
{
    char text[64];
    double number, answer;
    TP_TRY(keep(&out->output, arena, output, tp_scoring_before_newline_after_marks(output)));
    if (!tp_scoring_number(&number, text, sizeof text, out->output)) return TALPA_OK;
    out->correct = tp_scoring_is_number(&answer, row->answer) && tp_scoring_number_equal(number, answer);
    return keep(&out->prediction, arena, text, strlen(text));
}

static enum talpa_status judge_letter(struct tp_journal_row *out, struct tp_arena *arena, const struct tp_eval_row *row, bool first,
                                      const char *output)
{
    TP_TRY(keep(&out->output, arena, output, first ? strlen(output) : tp_scoring_before_newline_after_marks(output)));
    const char letter = first ? tp_scoring_first_letter(out->output, row->n_choices) : tp_scoring_generated_letter(out->output);
    if (!letter) return TALPA_OK;
    out->correct = letter == row->answer[0];
    return keep(&out->prediction, arena, &letter, 1);
}

static enum talpa_status judge_f1(struct tp_journal_row *out, struct tp_arena *arena, const struct tp_eval_row *row, const char *output)
{
    size_t n_trimmed;
    char *prediction;
    const char *line;
    TP_TRY(keep(&line, arena, output, strcspn(output, "\n")));
    line = tp_scoring_trim(&n_trimmed, line);
    TP_TRY(keep(&out->prediction, arena, line, n_trimmed));
    TP_TRY(tp_scoring_normalise(&prediction, out->prediction));
    enum talpa_status status = TALPA_OK;
    const char *const *references = row->answers ? row->answers : &row->answer;
    const int n = row->answers ? row->n_answers : 1;
    out->has_em = true;
    for (int i = 0; i < n && status == TALPA_OK; i++) {
        char *reference;
        double f1 = 0.0;
        status = tp_scoring_normalise(&reference, references[i]);
        if (status != TALPA_OK) break;
        status = tp_scoring_f1(&f1, prediction, reference);
        if (f1 > out->value) out->value = f1;
        if (!strcmp(prediction, reference)) out->em = true;
        free(reference);
    }
    free(prediction);
    out->correct = out->em;
    if (!row->answer) out->answer = row->answers[0];
    return status;
}

static enum talpa_status judge_code(struct tp_journal_row *out, struct tp_arena *arena, const struct tp_eval_row *row, const char *output,
                                    const struct tp_code_runner *runner, bool *no_network)
{
    /* The blank or line break that answers begin with is no indentation. */
    const char *code = output + strspn(output, " \n\r\t");
    const struct tp_code_limits limits = tp_code_limits_default();
    enum tp_code_outcome outcome;
    TP_TRY(keep(&out->prediction, arena, code, tp_scoring_code(code)));
    const char *source = tp_arena_printf(arena, "%s\n\n%s\n\n%s\n", out->prediction, row->test_setup ? row->test_setup : "", row->tests);
    if (!source) return TALPA_E_DEVICE;
    TP_TRY(tp_code_run(&outcome, no_network, runner, source, &limits));
    out->correct = outcome == TP_CODE_PASSED;
    return TALPA_OK;
}

/* The first line against an answer of one line: a base model that was not taught to stop is not wrong for going on. */
static enum talpa_status judge_exact(struct tp_journal_row *out, struct tp_arena *arena, const struct tp_eval_row *row, const char *output)
{
    size_t n, n_answer;
    const char *answer = tp_scoring_trim(&n_answer, row->answer), *text;
    if (memchr(answer, '\n', n_answer)) text = output;
    else TP_TRY(keep(&text, arena, output, strcspn(output, "\n")));
    text = tp_scoring_trim(&n, text);
    out->correct = n == n_answer && !memcmp(text, answer, n);
    return keep(&out->prediction, arena, text, n);
}

enum talpa_status tp_eval_judge(struct tp_journal_row *out, struct tp_arena *arena, const struct tp_eval_row *row, enum talpa_metric metric,
                                const char *output, const struct tp_code_runner *runner, bool *no_network)
{
    struct tp_journal_row judged = {.id = row->id, .answer = row->answer, .has_correct = true, .weight = 1.0};
    switch (metric) {
    case TALPA_METRIC_EXACT_NUMBER: TP_TRY(judge_number(&judged, arena, row, output)); break;
    case TALPA_METRIC_GENERATED_LETTER: TP_TRY(judge_letter(&judged, arena, row, false, output)); break;
    case TALPA_METRIC_OPTION_LETTER: TP_TRY(judge_letter(&judged, arena, row, true, output)); break;
    case TALPA_METRIC_F1_EM: TP_TRY(judge_f1(&judged, arena, row, output)); break;
    case TALPA_METRIC_UNIT_TESTS: TP_TRY(judge_code(&judged, arena, row, output, runner, no_network)); break;
    case TALPA_METRIC_EXACT: TP_TRY(judge_exact(&judged, arena, row, output)); break;
    default: return tp_fail(TALPA_E_INTERNAL, "%s judges no output", talpa_metric_name(metric));
    }
    if (metric != TALPA_METRIC_F1_EM) judged.value = judged.correct ? 1.0 : 0.0;
    *out = judged;
    return TALPA_OK;
}

void tp_eval_judge_options(struct tp_journal_row *out, struct tp_arena *arena, const struct tp_eval_unit *unit,
                           const struct tp_likelihood_item *items, enum talpa_option_by by)
{
    double values[26];
    const struct tp_likelihood_item *own = items + unit->first_item;
    for (uint32_t i = 0; i < unit->n_options; i++) {
        if (unit->n_items == 1) {
            values[i] = -(double)own[0].nll[i];
            continue;
        }
        double sum = 0.0;
        for (uint32_t k = 0; k < own[i].n_labels; k++) sum -= (double)own[i].nll[k];
        values[i] = by == TALPA_OPTION_BY_TEXT ? sum / own[i].n_labels : sum;
    }
    const char letter = (char)('A' + tp_scoring_best(values, (int)unit->n_options));
    out->prediction = tp_arena_strndup(arena, &letter, 1);
    out->correct = letter == unit->row->answer[0];
    out->value = out->correct ? 1.0 : 0.0;
}
