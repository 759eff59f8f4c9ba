/* Chat templates: rendered texts written out by hand, detection, labels. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "io/template.h"

/* As in SmolLM2-Instruct's files. */
static const char SMOLLM_JINJA[] =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

static const struct tp_template *named(const char *name)
{
    const struct tp_template *t = NULL;
    assert_int_equal(tp_template_select(&t, name, NULL), TALPA_OK);
    assert_string_equal(tp_template_name(t), name);
    return t;
}

/* Whole text and, bracketed, the labelled parts; EOS shown as [EOS]. */
static void check_segments(const struct tp_template_segments *s, const char *expected)
{
    char text[4096] = "";
    for (size_t i = 0; i < s->n_segments; i++) {
        const struct tp_template_segment *g = &s->segments[i];
        assert_int_equal(g->n_bytes, strlen(g->text));
        const size_t n = strlen(text);
        snprintf(text + n, sizeof text - n, "%s%s%s%s", g->is_labelled ? "{" : "",
                 g->is_eos   ? "[EOS]"
                 : g->is_bos ? "[BOS]"
                             : g->text,
                 g->is_labelled ? "}" : "", g->is_special_parsed ? "~" : "");
    }
    assert_string_equal(text, expected);
}

static void check_messages(const char *name, const struct tp_template_message *messages, size_t n, bool prompt, const char *expected)
{
    struct tp_arena arena = {0};
    struct tp_template_segments s;
    assert_int_equal(tp_template_messages(&s, &arena, named(name), messages, n, prompt), TALPA_OK);
    check_segments(&s, expected);
    tp_arena_free(&arena);
}

static void test_chatml(void **state)
{
    (void)state;
    const struct tp_template_message talk[] = {{"user", "Hi <|im_end|>"}, {"assistant", "Yes?"}, {"user", "No"}, {"assistant", ""}};
    check_messages("chatml", talk, 4, false,
                   "<|im_start|>~user\nHi <|im_end|><|im_end|>~\n<|im_start|>~assistant\n{Yes?}{<|im_end|>}~\n"
                   "<|im_start|>~user\nNo<|im_end|>~\n<|im_start|>~assistant\n{}{<|im_end|>}~\n");
    check_messages("chatml-smollm", talk, 1, true,
                   "<|im_start|>~system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>~\n"
                   "<|im_start|>~user\nHi <|im_end|><|im_end|>~\n<|im_start|>~assistant\n");
    const struct tp_template_message own[] = {{"system", "S"}, {"tool", "T"}};
    check_messages("chatml-smollm", own, 2, false, "<|im_start|>~system\nS<|im_end|>~\n<|im_start|>~tool\nT<|im_end|>~\n");
}

static void test_alpaca(void **state)
{
    (void)state;
    struct tp_arena arena = {0};
    struct tp_template_segments s;
    assert_int_equal(tp_template_instruction(&s, &arena, "Add.", "1 2", "3"), TALPA_OK);
    check_segments(
        &s, "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that "
            "appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n{3}{[EOS]}");
    assert_int_equal(tp_template_instruction(&s, &arena, "Add.", "", NULL), TALPA_OK);
    const char *head = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n### "
                       "Instruction:\nAdd.\n\n### Response:\n";
    check_segments(&s, head);
    const struct tp_template_message talk[] = {{"user", "Add."}, {"assistant", "3"}, {"user", "More"}};
    check_messages("alpaca", talk, 1, true, head);
    check_messages(
        "alpaca", talk, 3, true,
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n### Instruction:\n"
        "Add.\n\n### Response:\n{3}{[EOS]}\n\n### Instruction:\nMore\n\n### Response:\n");
    const struct tp_template_message system[] = {{"system", "Be."}, {"user", "Add."}};
    check_messages("alpaca", system, 2, false, "Be.\n\n### Instruction:\nAdd.\n\n");
    tp_arena_free(&arena);
}

static void check_detected(const char *jinja, const char *expected)
{
    const struct tp_template *t = NULL;
    const enum talpa_status status = tp_template_select(&t, NULL, jinja);
    if (expected) {
        assert_int_equal(status, TALPA_OK);
        assert_string_equal(tp_template_name(t), expected);
    } else {
        assert_int_equal(status, TALPA_E_DATA);
        assert_null(t);
        assert_non_null(strstr(talpa_error_message(), "--chat-template (chatml-smollm, chatml, alpaca, "));
    }
}

static void test_detection(void **state)
{
    (void)state;
    check_detected(SMOLLM_JINJA, "chatml-smollm");
    check_detected("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
                   "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
                   "chatml");
    check_detected("{%for message in messages%}{{\"<|im_start|>\"+message[\"role\"] + \"\\n\" + message['content'] + '<|im_end|>' + '\\n'}}"
                   "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
                   "chatml");
    /* Spaces inside a literal or between the blocks, another system text, a cut text: other templates. */
    check_detected("{% for message in messages %}{{'<|im_start|> ' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
                   "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
                   NULL);
    check_detected("{% for message in messages %} {{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
                   "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
                   NULL);
    char other[sizeof SMOLLM_JINJA];
    memcpy(other, SMOLLM_JINJA, sizeof other);
    *strstr(other, "SmolLM") = 's';
    check_detected(other, NULL);
    for (size_t n = 0; n + 1 < sizeof other; n++) { /* every cut ends inside bounds */
        char *cut = malloc(n + 1);
        assert_non_null(cut);
        memcpy(cut, SMOLLM_JINJA, n);
        cut[n] = '\0';
        check_detected(cut, strstr(cut, "endfor") ? "chatml-smollm" : NULL);
        free(cut);
    }
    check_detected("\\", NULL);
    check_detected("{{'\\", NULL);
    check_detected("{", NULL);
    check_detected(NULL, NULL);
    const struct tp_template *t;
    assert_int_equal(tp_template_select(&t, "llama9", SMOLLM_JINJA), TALPA_E_ARGUMENT);
    assert_non_null(strstr(talpa_error_message(), "--chat-template: found \"llama9\", expected one of: chatml-smollm, chatml, alpaca, "));
    assert_int_equal(tp_template_select(&t, "alpaca", SMOLLM_JINJA), TALPA_OK); /* the flag wins */
    assert_string_equal(tp_template_name(t), "alpaca");
    assert_int_equal(strncmp(tp_template_names(), "chatml-smollm, chatml, alpaca, ", 31), 0);
    struct tp_tokenizer *tokenizer;
    assert_int_equal(tp_tokenizer_byte_level(&tokenizer), TALPA_OK);
    check_detected(tp_tokenizer_chat_template(tokenizer), "chatml");
    tp_tokenizer_free(tokenizer);
}

/* Every named form, written out. A system text, two questions, an answer. */
static void test_forms(void **state)
{
    (void)state;
    static const struct {
        const char *name, *expected;
    } forms[] = {
        {"qwen2.5", "<|im_start|>~system\nS<|im_end|>~\n<|im_start|>~user\n U <|im_end|>~\n<|im_start|>~assistant\n{ A }{<|im_end|>}~\n"
                    "<|im_start|>~user\nV<|im_end|>~\n<|im_start|>~assistant\n"},
        {"llama2", "[BOS][INST] <<SYS>>\nS\n<</SYS>>\n\n U [/INST]{ A }{[EOS]}[BOS][INST] V [/INST]"},
        {"llama3",
         "[BOS]<|start_header_id|>system<|end_header_id|>~\n\nS<|eot_id|>~<|start_header_id|>user<|end_header_id|>~\n\nU<|eot_id|>~"
         "<|start_header_id|>assistant<|end_header_id|>~\n\n{A}{<|eot_id|>}~<|start_header_id|>user<|end_header_id|>~\n\nV<|eot_id|>~"
         "<|start_header_id|>assistant<|end_header_id|>~\n\n"},
        {"llama3.1",
         "[BOS]<|start_header_id|>system<|end_header_id|>~\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
         "S<|eot_id|>~<|start_header_id|>user<|end_header_id|>~\n\nU<|eot_id|>~<|start_header_id|>assistant<|end_header_id|>~\n\n"
         "{A}{<|eot_id|>}~<|start_header_id|>user<|end_header_id|>~\n\nV<|eot_id|>~"
         "<|start_header_id|>assistant<|end_header_id|>~\n\n"},
        {"mistral-v0", "[BOS][INST] S\n\n U  [/INST]{ A }{[EOS]}[INST] V [/INST]"},
        {"mistral-v1", "[BOS] [INST] S\n\n U  [/INST]{  A }{[EOS]} [INST] V [/INST]"},
        {"mistral", "[BOS] [INST] S\n\n U  [/INST]{  A }{[EOS]} [INST] V [/INST]"},
        {"mistral-v3", "[BOS][INST]~ S\n\n U [/INST]~{ A}{[EOS]}[INST]~ V[/INST]~"},
        {"mistral-v3-tekken", "[BOS][INST]~S\n\n U [/INST]~{ A }{[EOS]}[INST]~V[/INST]~"},
        {"mistral-v7", "[BOS][SYSTEM_PROMPT]~ S[/SYSTEM_PROMPT]~[INST]~  U [/INST]~{  A }{[EOS]}[INST]~ V[/INST]~"},
        {"mistral-v7-tekken", "[BOS][SYSTEM_PROMPT]~S[/SYSTEM_PROMPT]~[INST]~ U [/INST]~{ A }{[EOS]}[INST]~V[/INST]~"},
        {"gemma", "[BOS]<start_of_turn>~user\nS\n\nU<end_of_turn>~\n<start_of_turn>~model\n{A}{<end_of_turn>}~\n<start_of_turn>~user\nV"
                  "<end_of_turn>~\n<start_of_turn>~model\n"},
        {"phi3",
         "[BOS]<|system|>~\nS<|end|>~\n<|user|>~\n U <|end|>~\n<|assistant|>~\n{ A }{<|end|>}~\n<|user|>~\nV<|end|>~\n<|assistant|>~\n"},
        {"phi4-mini", "<|system|>~S<|end|>~<|user|>~ U <|end|>~<|assistant|>~{ A }{<|end|>}~<|user|>~V<|end|>~<|assistant|>~"},
        {"phi4", "<|im_start|>system<|im_sep|>~S<|im_end|>~<|im_start|>user<|im_sep|>~ U <|im_end|>~<|im_start|>assistant<|im_sep|>~"
                 "{ A }{<|im_end|>}~<|im_start|>user<|im_sep|>~V<|im_end|>~<|im_start|>assistant<|im_sep|>~"},
        {"zephyr", "<|system|>~\nS[EOS]\n<|user|>~\n U [EOS]\n<|assistant|>~\n{ A }{[EOS]}\n<|user|>~\nV[EOS]\n<|assistant|>~\n"},
        {"vicuna", "S USER:  U  ASSISTANT:{  A }{[EOS]}USER: V ASSISTANT:"},
    };
    const struct tp_template_message talk[] = {{"system", "S"}, {"user", " U "}, {"assistant", " A "}, {"user", "V"}};
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) check_messages(forms[i].name, talk, 4, true, forms[i].expected);
    check_messages(
        "vicuna", talk + 3, 1, true,
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
        "answers to the user's questions. USER: V ASSISTANT:");
    check_messages("llama3.1", talk + 3, 1, false,
                   "[BOS]<|start_header_id|>system<|end_header_id|>~\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
                   "<|eot_id|>~<|start_header_id|>user<|end_header_id|>~\n\nV<|eot_id|>~");
    check_messages("qwen2", talk + 3, 1, false,
                   "<|im_start|>~system\nYou are a helpful assistant.<|im_end|>~\n<|im_start|>~user\nV<|im_end|>~\n");
}

/* Templates in the manner of published ones: loops and conditions are cut short, the texts are what tells them apart. */
static void test_markers(void **state)
{
    (void)state;
#define LOOP(body) "{% for message in messages %}" body "{% endfor %}"
    check_detected(
        LOOP("{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{{ '<<SYS>>' }}{{ ' '  + content.strip() + ' ' + eos_token }}"),
        "llama2");
    check_detected(LOOP("{{ '[INST] <<SYS>>' + content }}"), NULL);
    check_detected(LOOP("{{ ' [INST] ' + message['content'] + ' [/INST]' }}{{ ' ' + message['content'] + eos_token }}"), "mistral-v1");
    check_detected(LOOP("{{ '[INST] ' + message['content'] + ' [/INST]' }}{{ message['content'] + eos_token}}"), "mistral-v0");
    check_detected(LOOP("{{- \"[INST] \" + message[\"content\"] + \"[/INST]\" }}"), "mistral-v3");
    check_detected(LOOP("{{- \"[INST]\" + message[\"content\"] + \"[/INST]\" }}"), "mistral-v3-tekken");
    check_detected(LOOP("{{ '[SYSTEM_PROMPT] ' + x }}{{ '[INST] ' + x }}"), "mistral-v7");
    check_detected(LOOP("{{ '[SYSTEM_PROMPT]' + x }}{{ '[INST]' + x }}"), "mistral-v7-tekken");
    check_detected(LOOP("{{ '<|start_header_id|>' + message['role'] }}{{ '<|eot_id|>' }}"), "llama3");
    check_detected(LOOP("{{ '<|start_header_id|>' + message['role'] }}{{ 'Cutting Knowledge Date: ' }}{{ '<|eot_id|>' }}"), "llama3.1");
    check_detected(LOOP("{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}"), "gemma");
    check_detected(LOOP("{{'<|user|>' + '\\n' + message['content'] + '<|end|>' + '\\n' + '<|assistant|>' + '\\n'}}"), "phi3");
    check_detected(LOOP("{{'<|' + message['role'] + '|>' + '\\n' + message['content'] + '<|end|>\\n' }}"), "phi3");
    check_detected(LOOP("{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"), "phi4-mini");
    check_detected(LOOP("{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}"), "phi4");
    check_detected(LOOP("\n{{ '<|user|>\\n' + message['content'] + eos_token }}\n"), "zephyr");
    check_detected(LOOP("{{ '<|user|>\\n' + message['content'] + eos_token }}"), NULL);
    check_detected(LOOP("{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}"),
                   "qwen2.5");
    check_detected(LOOP("{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"), "qwen2");
    check_detected(LOOP("{{- '<|im_start|>system\\nYou are Bob.<|im_end|>\\n' }}"), NULL);
    check_detected(LOOP("{{- '<|im_start|>' + role }}<think>{{ '<|im_end|>' }}"), NULL);
    check_detected(LOOP("<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"), "chatml");
    check_detected(LOOP("{{ 'GPT4 Correct ' + message['role'] }}"), NULL);
#undef LOOP
}

static void test_refusals(void **state)
{
    (void)state;
    struct tp_arena arena = {0};
    struct tp_template_segments s;
    const struct tp_template_message bad[] = {{"user", "x"}, {"bot", "y"}}, tool[] = {{"tool", "x"}};
    assert_int_equal(tp_template_messages(&s, &arena, named("chatml"), bad, 2, false), TALPA_E_DATA);
    assert_string_equal(talpa_error_message(), "messages[1].role: found \"bot\", expected system, user, assistant or tool");
    assert_int_equal(tp_template_messages(&s, &arena, named("alpaca"), tool, 1, false), TALPA_E_DATA);
    assert_int_equal(tp_template_messages(&s, &arena, named("chatml"), bad, 0, false), TALPA_E_DATA);
    const struct tp_template_message late[] = {{"user", "x"}, {"system", "y"}, {"user", "z"}}, alone[] = {{"system", "y"}};
    assert_int_equal(tp_template_messages(&s, &arena, named("gemma"), late, 3, false), TALPA_E_DATA);
    assert_non_null(strstr(talpa_error_message(), "messages[1].role: found system"));
    assert_int_equal(tp_template_messages(&s, &arena, named("llama2"), alone, 1, false), TALPA_E_DATA);
    assert_int_equal(tp_template_messages(&s, &arena, named("llama3"), tool, 1, false), TALPA_E_DATA);
    tp_arena_free(&arena);
}

static void test_encode(void **state)
{
    (void)state;
    struct tp_tokenizer *t;
    struct tp_arena arena = {0};
    struct tp_template_segments s;
    struct tp_id_list ids = {0}, labels = {0};
    assert_int_equal(tp_tokenizer_byte_level(&t), TALPA_OK);
    const struct tp_template_message talk[] = {{"user", "<|im_end|>"}, {"assistant", "AB"}};
    assert_int_equal(tp_template_messages(&s, &arena, named("chatml"), talk, 2, false), TALPA_OK);
    assert_int_equal(tp_template_encode(&ids, &labels, t, &s), TALPA_OK);
    char *text;
    assert_int_equal(tp_tokenizer_decode(&text, NULL, t, ids.ids, ids.n_ids, false), TALPA_OK);
    assert_string_equal(text, "<|im_start|>user\n<|im_end|><|im_end|>\n<|im_start|>assistant\nAB<|im_end|>\n");
    /* start, "user\n", 10 bytes of text that look special, end, "\n", start, "assistant\n", A, B, end, "\n" */
    assert_int_equal(ids.n_ids, 1 + 5 + 10 + 1 + 1 + 1 + 10 + 2 + 1 + 1);
    assert_int_equal(labels.n_ids, ids.n_ids);
    for (size_t i = 0; i < ids.n_ids; i++) assert_int_equal(labels.ids[i], i >= 29 && i < 32 ? ids.ids[i] : -100);
    assert_int_equal(ids.ids[31], 2);
    assert_int_equal(ids.ids[16], 2);
    free(text);
    free(ids.ids);
    free(labels.ids);
    tp_arena_free(&arena);
    tp_tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chatml), cmocka_unit_test(test_alpaca), cmocka_unit_test(test_detection), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_encode), cmocka_unit_test(test_forms),  cmocka_unit_test(test_markers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
