/* The step words of the kernels (kernels/common/step.clh) are those of the host (host/graph/step.h). */
#include "graph_test.h"

#define WORD(name)                                                                                                                         \
    {                                                                                                                                      \
#name, name                                                                                                                        \
    }
static const struct {
    const char *name;
    int number;
} words[] = {
    WORD(TP_STEP_N_TOKENS),   WORD(TP_STEP_N_LABELLED), WORD(TP_STEP_N_SEGMENTS),   WORD(TP_STEP_N_PAST),        WORD(TP_STEP_MICRO),
    WORD(TP_STEP_INDEX),      WORD(TP_STEP_SEED_LO),    WORD(TP_STEP_SEED_HI),      WORD(TP_STEP_LEARNING_RATE), WORD(TP_STEP_LOSS_SCALE),
    WORD(TP_STEP_AUX_WEIGHT), WORD(TP_STEP_MAX_NORM),   WORD(TP_STEP_WEIGHT_DECAY), WORD(TP_STEP_ONE),
    WORD(TP_STEP_CONTRASTIVE_WEIGHT), WORD(TP_STEP_MAX_THRESHOLD),
};
enum { N_WORDS = sizeof words / sizeof *words };

static void test_numbers(void **unused)
{
    (void)unused;
    FILE *file = fopen(TALPA_SOURCE_DIR "/kernels/common/step.clh", "r");
    assert_non_null(file);
    bool seen[N_WORDS] = {false};
    int n_defined = 0;
    char line[512], name[64];
    int number;
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "#define %63[A-Z_] %d", name, &number) != 2) continue;
        n_defined++;
        bool known = false;
        for (int i = 0; i < N_WORDS; i++) {
            if (strcmp(words[i].name, name) != 0) continue;
            known = seen[i] = true;
            assert_int_equal(number, words[i].number);
        }
        if (!known) fail_msg("step.clh defines %s, which step.h does not", name);
    }
    fclose(file);
    for (int i = 0; i < N_WORDS; i++)
        if (!seen[i]) fail_msg("step.clh lacks %s", words[i].name);
    assert_int_equal(n_defined, N_WORDS);
}

/* No number is left out of the table above, or used twice. */
static void test_complete(void **unused)
{
    (void)unused;
    for (int i = 0; i < N_WORDS; i++) assert_int_equal(words[i].number, i + 1);
    assert_true((int)N_WORDS < (int)TP_STEP_WORDS);
    assert_int_equal(sizeof(struct tp_step), 4 * TP_STEP_WORDS);
    struct tp_step step = {{0}};
    tp_step_set_f32(&step, TP_STEP_ONE, 1.0f);
    assert_int_equal(step.word[TP_STEP_ONE], 0x3f800000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_numbers), cmocka_unit_test(test_complete)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
