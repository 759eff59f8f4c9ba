/* libFuzzer: any bytes as a tokenizer.json; what opens encodes and decodes the input itself. A corpus: tests/data/tokenizers (the .json
 * files). */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "io/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tp_json *json;
    struct tp_tokenizer *t;
    if (tp_json_parse(&json, (const char *)data, size, "fuzz") != TALPA_OK) return 0;
    const struct tp_tokenizer_extras extras = {
        .config = tp_json_root(json), .bos_id = 1, .eos_id = 2, .pad_id = -1, .end_ids = {3, -5, 1 << 30}, .n_end_ids = 3};
    if (tp_tokenizer_from_json(&t, tp_json_root(json), size % 2 ? &extras : NULL, "fuzz") == TALPA_OK) {
        int32_t *ids;
        size_t n_ids, n_back;
        char *back;
        const size_t n = size < 4000 ? size : 4000;
        if (tp_tokenizer_encode(&ids, &n_ids, t, (const char *)data, n, size % 3) != TALPA_OK) abort();
        if (tp_tokenizer_decode(&back, &n_back, t, ids, n_ids, false) != TALPA_OK) abort();
        free(ids);
        free(back);
        tp_tokenizer_free(t);
    } else if (strncmp(talpa_error_message(), "fuzz", 4) != 0) {
        abort();
    }
    tp_json_free(json);
    return 0;
}
