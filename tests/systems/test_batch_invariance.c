/* Quantised models: an answer does not depend on how many are generated together, bit for bit, although products of few rows and of many are
 * made by different kernels. 12 sequences are more than the 8 rows that count as few where no session says what a plan is for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "golden.h"
#include "infer/session.h"

enum { N_REQUESTS = 13, LONGEST = 24, N_NEW = 9 };

static const struct {
    int n_sequences, n_ubatch;
} shapes[] = {{12, 64}, {1, 64}, {3, 7}, {5, 256}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

/* Prompts that begin alike in part, so that sequences keep what earlier ones had. */
static size_t make_prompt(int32_t *ids, int request, int n_vocab)
{
    const size_t n = 1 + (size_t)(request * 7 % LONGEST);
    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)(((uint32_t)i * 2654435761u + (i > 5 ? (uint32_t)request * 40503u : 0)) % (uint32_t)n_vocab);
    return n;
}

static void generate(struct talpa_answer *answers, struct talpa_model *model, int shape, enum talpa_compute_dtype compute)
{
    int32_t ids[N_REQUESTS][LONGEST];
    struct talpa_request requests[N_REQUESTS] = {{0}};
    struct talpa_session_options options;
    struct talpa_session *session;
    struct talpa_sampling sampling;
    talpa_session_default(&options);
    talpa_sampling_default(&sampling);
    options.n_ctx = 40;
    options.n_sequences = shapes[shape].n_sequences;
    options.n_ubatch = shapes[shape].n_ubatch;
    options.compute_dtype = compute;
    for (int i = 0; i < N_REQUESTS; i++) {
        requests[i] = (struct talpa_request){.ids = ids[i], .max_tokens = N_NEW, .ignore_eos = true};
        requests[i].n_ids = make_prompt(ids[i], i, model->config.vocab_size);
    }
    golden_ok(talpa_session_open(&session, model, golden_device(), &options));
    golden_ok(talpa_generate(answers, session, requests, N_REQUESTS, &sampling, NULL, NULL));
    talpa_session_close(session);
}

static void check_model(const char *file, enum talpa_compute_dtype compute)
{
    struct talpa_model *model;
    struct talpa_answer want[N_REQUESTS], got[N_REQUESTS];
    golden_ok(talpa_model_open(&model, golden_path(file)));
    generate(want, model, 0, compute);
    for (int shape = 1; shape < N_SHAPES && golden_is_quick(); shape++) {
        generate(got, model, shape, compute);
        for (int i = 0; i < N_REQUESTS; i++) {
            assert_int_equal(got[i].n_ids, N_NEW);
            assert_memory_equal(got[i].ids, want[i].ids, N_NEW * sizeof *want[i].ids);
            assert_memory_equal(got[i].logprobs, want[i].logprobs, N_NEW * sizeof *want[i].logprobs);
            talpa_answer_free(&got[i]);
        }
    }
    for (int i = 0; i < N_REQUESTS; i++) talpa_answer_free(&want[i]);
    talpa_model_close(model);
}

static void test_f32(void **state)
{
    (void)state;
    check_model("tiny/tied-q4_1.gguf", TALPA_COMPUTE_F32);
    check_model("tiny/tied-q8_0.gguf", TALPA_COMPUTE_F32);
}

static void test_bf16(void **state)
{
    (void)state;
    check_model("tiny/untied-q4_1.gguf", TALPA_COMPUTE_BF16);
    check_model("tiny/tied-f16.gguf", TALPA_COMPUTE_BF16);
}

int main(void)
{
    golden_path("");
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_f32), cmocka_unit_test(test_bf16)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
