/* Generation on the built-in tiny model: against the float64 reference (tests/data/moles_greedy.json), against the graph without a cache,
 * and against itself in other batches. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/rng.h"
#include "golden.h"
#include "infer/session.h"
#include "train/train_graph.h"

enum { N_PROMPTS = 11, LONGEST = 40 };

static const char *const cases[] = {"base", "lora", "topk", "threshold", "adamole", "topk-1", "threshold-high", "adamole-high"};
enum { N_CASES = sizeof cases / sizeof *cases };

static struct tp_json *moles, *greedy;
static struct talpa_model *model;
static size_t device;
static char folder[] = "/tmp/talpa-session-XXXXXX";

static int open_all(void **state)
{
    (void)state;
    device = golden_device();
    golden_ok(tp_json_parse_file(&moles, TALPA_SOURCE_DIR "/tests/data/moles.json"));
    golden_ok(tp_json_parse_file(&greedy, TALPA_SOURCE_DIR "/tests/data/moles_greedy.json"));
    golden_ok(talpa_model_open(&model, "random:tiny"));
    return mkdtemp(folder) ? 0 : -1;
}

static int close_all(void **state)
{
    (void)state;
    static const char *const files[] = {"adapter_config.json", "adapter_model.safetensors", "talpa_adapter.json"};
    char path[256];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        unlink(path);
    }
    rmdir(folder);
    talpa_model_close(model);
    tp_json_free(moles);
    tp_json_free(greedy);
    return 0;
}

/* ---- adapters of moles.json ---- */

static double number(const char *case_name, const char *key)
{
    char keys[128];
    snprintf(keys, sizeof keys, "cases/%s/%s", case_name, key);
    return golden_number(moles, keys);
}

/* Writes the case's adapter, starting values by the rule in tests/data/README.md; NULL for the base. */
static const char *save_adapter(const char *case_name)
{
    if (!strcmp(case_name, "base")) return NULL;
    struct talpa_adapter_config c = talpa_adapter_default();
    struct tp_adapter *adapter;
    const char *routing;
    char keys[64];
    snprintf(keys, sizeof keys, "cases/%s", case_name);
    const struct tp_json_value *settings = golden_at(moles, keys);
    golden_ok(tp_json_get_string(&routing, settings, "routing"));
    golden_ok(talpa_routing_parse(&c.routing, routing));
    c.rank = (int)number(case_name, "rank");
    c.alpha = number(case_name, "alpha");
    c.n_experts = (int)number(case_name, "n_experts");
    if (tp_json_get(settings, "top_k")) c.top_k = (int)number(case_name, "top_k");
    const double threshold = tp_json_get(settings, "threshold") ? number(case_name, "threshold") : 0.0;
    if (c.routing == TALPA_ROUTING_THRESHOLD) c.threshold = threshold;
    if (c.routing == TALPA_ROUTING_ADAMOLE) c.max_threshold = threshold;
    golden_ok(tp_adapter_create(&adapter, model, &c));
    float *bank = calloc((size_t)adapter->bank_elements, sizeof *bank);
    for (int i = 0; i < adapter->n_tensors; i++) {
        const struct tp_adapter_tensor *t = &adapter->tensors[i];
        const int64_t n = (int64_t)t->rows * t->columns;
        float *values = malloc((size_t)n * sizeof *values);
        tp_rng_fill_splitmix(values, n, (uint64_t)number(case_name, "seed"), (uint64_t)i,
                             t->kind == TP_TENSOR_B ? number(case_name, "b_scale") : 1.0 / sqrt((double)adapter->modules[t->module].d_in));
        tp_adapter_put(bank, adapter, i, values);
        free(values);
    }
    golden_ok(tp_adapter_save(adapter, bank, folder, model));
    free(bank);
    tp_adapter_free(adapter);
    return folder;
}

static struct talpa_session *open_session(const char *lora, int n_ctx, int n_sequences, int n_ubatch, enum talpa_expert_dispatch dispatch)
{
    struct talpa_session_options options;
    struct talpa_session *session;
    talpa_session_default(&options);
    options.lora = lora;
    options.n_ctx = n_ctx;
    options.n_sequences = n_sequences;
    options.n_ubatch = n_ubatch;
    options.dispatch = dispatch;
    golden_ok(talpa_session_open(&session, model, device, &options));
    return session;
}

static int32_t *int_array(const struct tp_json_value *array, size_t *n)
{
    *n = (size_t)tp_json_length(array);
    int32_t *ids = malloc((*n + 1) * sizeof *ids);
    for (size_t i = 0; i < *n; i++) {
        int64_t id;
        golden_ok(tp_json_as_int(&id, tp_json_at(array, (int64_t)i), "ids"));
        ids[i] = (int32_t)id;
    }
    return ids;
}

/* ---- against the reference ---- */

static void check_greedy(const char *case_name, enum talpa_expert_dispatch dispatch)
{
    struct talpa_session *session = open_session(save_adapter(case_name), 64, 2, 16, dispatch);
    struct talpa_sampling sampling;
    talpa_sampling_default(&sampling);
    char keys[64];
    snprintf(keys, sizeof keys, "cases/%s", case_name);
    const struct tp_json_value *list = golden_at(greedy, keys);
    struct talpa_request requests[3] = {{0}};
    struct talpa_answer answers[3];
    int32_t *prompts[3];
    double worst = 0.0;
    for (int64_t i = 0; i < 3; i++) {
        prompts[i] = int_array(tp_json_get(tp_json_at(list, i), "prompt"), &requests[i].n_ids);
        requests[i].ids = prompts[i];
        requests[i].max_tokens = 12;
    }
    golden_ok(talpa_generate(answers, session, requests, 3, &sampling, NULL, NULL));
    for (int64_t i = 0; i < 3; i++) {
        size_t n;
        int32_t *want = int_array(tp_json_get(tp_json_at(list, i), "ids"), &n);
        assert_true(n >= 1);
        assert_int_equal(answers[i].n_ids, n);
        assert_int_equal(answers[i].finish, n < 12 ? TALPA_FINISH_EOS : TALPA_FINISH_LENGTH);
        for (size_t t = 0; t < n; t++) {
            double logprob;
            golden_ok(tp_json_as_double(&logprob, tp_json_at(tp_json_get(tp_json_at(list, i), "logprobs"), (int64_t)t), "logprobs"));
            assert_int_equal(answers[i].ids[t], want[t]);
            worst = fmax(worst, fabs(logprob - (double)answers[i].logprobs[t]));
        }
        free(want);
        free(prompts[i]);
        talpa_answer_free(&answers[i]);
    }
    printf("%-14s %-6s log-probabilities %.1e\n", case_name, dispatch == TALPA_DISPATCH_SPARSE ? "sparse" : "dense", worst);
    assert_true(worst < 2e-5);
    talpa_session_close(session);
}

static void test_greedy(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_CASES; i++) {
        check_greedy(cases[i], TALPA_DISPATCH_DENSE);
        if (i > 1 && i % 2 == 0 && golden_is_quick()) check_greedy(cases[i], TALPA_DISPATCH_SPARSE);
    }
}

/* ---- against the graph without a cache ---- */

static void fill_ids(int32_t *ids, int n, uint32_t salt)
{
    for (int i = 0; i < n; i++) {
        uint32_t words[4];
        tp_rng_philox(words, (uint32_t[4]){(uint32_t)i, salt, 0, 0}, (uint32_t[2]){7, 7});
        ids[i] = 3 + (int32_t)(words[0] % 256);
    }
}

/* Logits of all positions of `ids` from the evaluation graph. */
static void full_logits(float *logits, const char *lora, const int32_t *ids, int n)
{
    struct tp_engine engine;
    struct tp_eval_graph eval;
    struct tp_program_set set;
    struct tp_plan_options options;
    struct tp_adapter *adapter = NULL;
    float *bank = NULL;
    if (lora) golden_ok(tp_adapter_load(&adapter, &bank, lora, model, false));
    golden_ok(tp_engine_open(&engine, device, model));
    golden_ok(tp_eval_graph_create(&eval, model, adapter, n, n, true));
    tp_plan_options_default(&options);
    golden_ok(tp_program_set_create(&set, &engine, eval.graph, &options, true, false));
    if (adapter) golden_ok(tp_executor_write(set.executor, eval.params, bank, (size_t)adapter->bank_elements * sizeof *bank));
    int32_t positions[LONGEST], segments[2 * LONGEST], zeros[LONGEST] = {0};
    for (int i = 0; i < n; i++) {
        positions[i] = i;
        segments[2 * i] = 0;
        segments[2 * i + 1] = n;
    }
    const size_t bytes = (size_t)n * sizeof *ids;
    struct tp_step step = {{0}};
    step.word[TP_STEP_N_TOKENS] = (uint32_t)n;
    step.word[TP_STEP_N_LABELLED] = 1;
    golden_ok(tp_executor_write(set.executor, eval.inputs.ids, ids, bytes));
    golden_ok(tp_executor_write(set.executor, eval.inputs.positions, positions, bytes));
    golden_ok(tp_executor_write(set.executor, eval.inputs.examples, zeros, bytes));
    golden_ok(tp_executor_write(set.executor, eval.inputs.segments, segments, 2 * bytes));
    golden_ok(tp_executor_write(set.executor, eval.inputs.rows, zeros, sizeof *zeros));
    golden_ok(tp_executor_write(set.executor, eval.inputs.labels, zeros, sizeof *zeros));
    golden_ok(tp_executor_step(set.executor, &step));
    golden_ok(tp_executor_run(set.executor, 0, TP_PHASE_BATCH));
    golden_ok(tp_executor_read(set.executor, eval.logits, logits, (size_t)n * (size_t)model->config.vocab_size * sizeof *logits));
    tp_program_set_free(&set);
    tp_eval_graph_free(&eval);
    tp_engine_close(&engine);
    tp_adapter_free(adapter);
    free(bank);
}

/* The first n_prompt tokens in passes of at most n_ubatch, the others one by one, in the second of two sequences. */
static void check_cache(const char *case_name, int n_prompt, int n_ubatch)
{
    const char *lora = save_adapter(case_name);
    const int n_vocab = model->config.vocab_size;
    float *want = malloc((size_t)LONGEST * (size_t)n_vocab * sizeof *want);
    struct talpa_session *session = open_session(lora, LONGEST, 2, n_ubatch, TALPA_DISPATCH_DENSE);
    int32_t *ids = session->sequences[1].ids;
    double worst = 0.0;
    fill_ids(ids, LONGEST, 1);
    full_logits(want, lora, ids, LONGEST);
    int position = 0;
    while (position < LONGEST) {
        const enum tp_pass pass = position < n_prompt ? TP_PASS_PROMPT : TP_PASS_DECODE;
        const int end = pass == TP_PASS_PROMPT ? n_prompt : position + 1;
        tp_pass_clear(session);
        while (position < end && tp_pass_add(session, pass, 1, position, position == end - 1)) position++;
        golden_ok(tp_pass_run(session, pass));
        assert_int_equal(session->sequences[1].n_held, position);
        if (session->n_rows == 0) continue;
        const float *row = want + (size_t)(position - 1) * (size_t)n_vocab;
        for (int v = 0; v < n_vocab; v++) {
            const double error = fabs((double)session->logits[v] - (double)row[v]) / (1.0 + fabs((double)row[v]));
            if (!(error <= worst)) worst = error;
        }
    }
    printf("%-10s prompt of %d in passes of %d: %.1e\n", case_name, n_prompt, n_ubatch, worst);
    assert_true(worst < 1e-5);
    talpa_session_close(session);
    free(want);
}

static void test_cache(void **state)
{
    (void)state;
    check_cache("base", 23, 64);
    check_cache("base", 1, 1);
    if (!golden_is_quick()) return;
    check_cache("base", 39, 7);
    check_cache("topk", 17, 5);
    check_cache("adamole", 30, 64);
}

/* ---- an answer does not depend on what runs beside it ---- */

static int32_t prompt_ids[N_PROMPTS][LONGEST];
static struct talpa_request requests_of_all[N_PROMPTS];

static void make_requests(void)
{
    static const int lengths[N_PROMPTS] = {1, 40, 7, 2, 33, 12, 12, 25, 3, 17, 5};
    static const char *const stop[] = {"q", "zz"};
    for (int i = 0; i < N_PROMPTS; i++) {
        fill_ids(prompt_ids[i], lengths[i], (uint32_t)i);
        requests_of_all[i] = (struct talpa_request){.ids = prompt_ids[i], .n_ids = (size_t)lengths[i], .max_tokens = 4 + 3 * (i % 5)};
        if (i % 3 == 0) requests_of_all[i].stop = stop, requests_of_all[i].n_stop = 2;
    }
}

static void expect_equal(const struct talpa_answer *a, const struct talpa_answer *b)
{
    assert_int_equal(a->n_ids, b->n_ids);
    assert_int_equal(a->n_bytes, b->n_bytes);
    assert_int_equal(a->finish, b->finish);
    assert_memory_equal(a->ids, b->ids, a->n_ids * sizeof *a->ids);
    assert_memory_equal(a->logprobs, b->logprobs, a->n_ids * sizeof *a->logprobs);
    assert_memory_equal(a->text, b->text, a->n_bytes + 1);
}

static void check_batches(const char *case_name, enum talpa_expert_dispatch dispatch)
{
    static const struct {
        int n_sequences, n_ubatch;
    } shapes[] = {{1, 64}, {3, 64}, {8, 256}, {3, 5}, {11, 33}};
    const char *lora = save_adapter(case_name);
    struct talpa_sampling sampling;
    struct talpa_answer first[N_PROMPTS], again[N_PROMPTS];
    talpa_sampling_default(&sampling);
    sampling.temperature = 1.3;
    sampling.repeat_penalty = 1.1;
    sampling.seed = 5;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        struct talpa_session *session = open_session(lora, 56, shapes[s].n_sequences, shapes[s].n_ubatch, dispatch);
        golden_ok(talpa_generate(s ? again : first, session, requests_of_all, N_PROMPTS, &sampling, NULL, NULL));
        if (s)
            for (int i = 0; i < N_PROMPTS; i++) expect_equal(&first[i], &again[i]), talpa_answer_free(&again[i]);
        talpa_session_close(session);
        if (!golden_is_quick() || (lora && s == 2)) break;
    }
    /* Each by itself is a batch of its own, but for its number, which the draws depend on: greedy here. */
    sampling.temperature = 0.0;
    struct talpa_session *session = open_session(lora, 56, 4, 64, dispatch), *single = open_session(lora, 56, 1, 64, dispatch);
    golden_ok(talpa_generate(again, session, requests_of_all, N_PROMPTS, &sampling, NULL, NULL));
    for (int i = 0; i < N_PROMPTS; i++) {
        struct talpa_answer alone;
        golden_ok(talpa_generate(&alone, single, &requests_of_all[i], 1, &sampling, NULL, NULL));
        expect_equal(&again[i], &alone);
        talpa_answer_free(&alone);
        talpa_answer_free(&again[i]);
        talpa_answer_free(&first[i]);
    }
    talpa_session_close(session);
    talpa_session_close(single);
}

static void test_batches(void **state)
{
    (void)state;
    make_requests();
    check_batches("base", TALPA_DISPATCH_DENSE);
    check_batches("topk", TALPA_DISPATCH_SPARSE);
    if (!golden_is_quick()) return;
    check_batches("topk", TALPA_DISPATCH_DENSE);
    check_batches("adamole", TALPA_DISPATCH_SPARSE);
    check_batches("lora", TALPA_DISPATCH_AUTO);
}

/* ---- reuse ---- */

static void test_reuse(void **state)
{
    (void)state;
    int32_t ids[LONGEST];
    struct talpa_sampling sampling;
    struct talpa_answer answers[3];
    talpa_sampling_default(&sampling);
    fill_ids(ids, LONGEST, 3);
    struct talpa_session *session = open_session(NULL, 64, 1, 16, TALPA_DISPATCH_AUTO);
    struct talpa_request request = {.ids = ids, .n_ids = 20, .max_tokens = 9, .ignore_eos = true};
    golden_ok(talpa_generate(&answers[0], session, &request, 1, &sampling, NULL, NULL));
    assert_int_equal(talpa_session_info(session).n_prompt_tokens, 20);
    /* The same prompt: only its last token runs. */
    golden_ok(talpa_generate(&answers[1], session, &request, 1, &sampling, NULL, NULL));
    assert_int_equal(talpa_session_info(session).n_prompt_tokens, 21);
    expect_equal(&answers[0], &answers[1]);
    /* Prompt and answer and more, as in a conversation: what was decoded counts as well, its last token excepted, which never ran. */
    memcpy(ids + 20, answers[0].ids, 9 * sizeof *ids);
    request.n_ids = 33;
    golden_ok(talpa_generate(&answers[2], session, &request, 1, &sampling, NULL, NULL));
    assert_int_equal(talpa_session_info(session).n_prompt_tokens, 21 + 33 - 28);
    talpa_session_close(session);
    session = open_session(NULL, 64, 1, 16, TALPA_DISPATCH_AUTO);
    talpa_answer_free(&answers[1]);
    golden_ok(talpa_generate(&answers[1], session, &request, 1, &sampling, NULL, NULL));
    expect_equal(&answers[2], &answers[1]);
    for (int i = 0; i < 3; i++) talpa_answer_free(&answers[i]);
    talpa_session_close(session);
}

/* ---- ends ---- */

struct told {
    char text[3][512];
    size_t n[3];
    int left;
};

static bool tell(void *user, size_t request, const char *text, size_t n_bytes)
{
    struct told *told = user;
    assert_true(n_bytes > 0 && told->n[request] + n_bytes < sizeof told->text[0]);
    memcpy(told->text[request] + told->n[request], text, n_bytes);
    told->n[request] += n_bytes;
    return told->left-- > 0;
}

static void test_ends(void **state)
{
    (void)state;
    int32_t ids[LONGEST];
    struct talpa_sampling sampling;
    struct talpa_answer answers[3];
    struct told told = {.left = 1000};
    talpa_sampling_default(&sampling);
    sampling.temperature = 1.5;
    sampling.top_k = 0;
    fill_ids(ids, LONGEST, 4);
    struct talpa_session *session = open_session(NULL, LONGEST, 3, 16, TALPA_DISPATCH_AUTO);
    struct talpa_request requests[3] = {{.ids = ids, .n_ids = 10, .ignore_eos = true},
                                        {.ids = ids, .n_ids = LONGEST - 1, .max_tokens = 5, .ignore_eos = true},
                                        {.ids = ids, .n_ids = 4, .max_tokens = 6, .ignore_eos = true}};
    golden_ok(talpa_generate(answers, session, requests, 3, &sampling, tell, &told));
    assert_int_equal(answers[0].finish, TALPA_FINISH_CONTEXT);
    assert_int_equal(answers[0].n_ids, LONGEST - 10);
    assert_int_equal(answers[1].finish, TALPA_FINISH_CONTEXT);
    assert_int_equal(answers[1].n_ids, 1);
    assert_int_equal(answers[2].finish, TALPA_FINISH_LENGTH);
    assert_int_equal(answers[2].n_ids, 6);
    assert_int_equal(answers[2].n_prompt, 4);
    assert_int_equal(answers[2].n_passes, 5);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(told.n[i], answers[i].n_bytes);
        assert_memory_equal(told.text[i], answers[i].text, told.n[i]);
    }
    for (int i = 0; i < 3; i++) talpa_answer_free(&answers[i]);

    told.left = 2;
    assert_int_equal(talpa_generate(answers, session, requests, 3, &sampling, tell, &told), TALPA_E_INTERRUPTED);
    for (int i = 0; i < 3; i++) assert_null(answers[i].text);

    requests[2].n_ids = LONGEST;
    assert_int_equal(talpa_generate(answers, session, requests, 3, &sampling, NULL, NULL), TALPA_E_DATA);
    assert_non_null(strstr(talpa_error_message(), "prompt 2 has 40 tokens"));
    assert_non_null(strstr(talpa_error_message(), "--ctx-size"));
    requests[2].n_ids = 0;
    assert_int_equal(talpa_generate(answers, session, requests, 3, &sampling, NULL, NULL), TALPA_E_DATA);
    requests[2].n_ids = 4;
    ids[3] = 100000;
    assert_int_equal(talpa_generate(answers, session, requests, 3, &sampling, NULL, NULL), TALPA_E_DATA);
    assert_non_null(strstr(talpa_error_message(), "token 3 is 100000"));
    ids[3] = 5;
    sampling.top_p = 1.5;
    assert_int_equal(talpa_generate(answers, session, requests, 3, &sampling, NULL, NULL), TALPA_E_ARGUMENT);
    assert_non_null(strstr(talpa_error_message(), "--top-p"));
    talpa_session_close(session);
}

/* EOS and other end tokens end an answer and are not part of it. */
static void test_eos(void **state)
{
    (void)state;
    int32_t ids[4];
    struct talpa_sampling sampling;
    struct talpa_answer answers[64];
    struct talpa_request requests[64];
    talpa_sampling_default(&sampling);
    sampling.temperature = 3.0;
    sampling.top_k = 0;
    sampling.top_p = 1.0;
    sampling.min_p = 0.0;
    fill_ids(ids, 4, 9);
    for (int i = 0; i < 64; i++) requests[i] = (struct talpa_request){.ids = ids, .n_ids = 4, .max_tokens = 60};
    struct talpa_session *session = open_session(NULL, 64, 8, 64, TALPA_DISPATCH_AUTO);
    golden_ok(talpa_generate(answers, session, requests, 64, &sampling, NULL, NULL));
    int n_eos = 0;
    for (int i = 0; i < 64; i++) {
        for (size_t t = 0; t < answers[i].n_ids; t++) assert_true(answers[i].ids[t] != 0 && answers[i].ids[t] != 2);
        n_eos += answers[i].finish == TALPA_FINISH_EOS;
        if (answers[i].finish != TALPA_FINISH_EOS) assert_int_equal(answers[i].n_ids, 60);
        talpa_answer_free(&answers[i]);
    }
    printf("%d of 64 answers ended with EOS\n", n_eos);
    assert_in_range(n_eos, 5, 45); /* <|endoftext|> and <|im_end|>, 2 of 259 tokens: some 24 are expected */
    talpa_session_close(session);
}

/* Both kinds of pass share the weights. */
static void test_memory(void **state)
{
    (void)state;
    struct talpa_session *one = open_session(NULL, 64, 1, 64, TALPA_DISPATCH_AUTO),
                         *many = open_session(NULL, 64, 8, 64, TALPA_DISPATCH_AUTO);
    const struct talpa_session_info a = talpa_session_info(one), b = talpa_session_info(many);
    const struct tp_plan *plan = one->graph[TP_PASS_PROMPT].set.plans[TP_DISPATCH_DENSE];
    assert_int_equal(a.weight_bytes, plan->memory.weight_bytes + plan->memory.packed_bytes);
    assert_int_equal(a.weight_bytes, b.weight_bytes);
    assert_int_equal(8 * a.cache_bytes, b.cache_bytes);
    assert_true(a.cache_bytes >=
                (size_t)(2 * 64 * model->config.n_layers * model->config.n_kv_heads * model->config.head_dim) * sizeof(float));
    talpa_session_close(one);
    talpa_session_close(many);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy), cmocka_unit_test(test_cache), cmocka_unit_test(test_batches), cmocka_unit_test(test_reuse),
        cmocka_unit_test(test_ends),   cmocka_unit_test(test_eos),   cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
