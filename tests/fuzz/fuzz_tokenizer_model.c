/* libFuzzer: any bytes as a SentencePiece tokenizer.model; what opens encodes and decodes the input itself. A corpus: the .model files of
 * tests/data/tokenizers. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "io/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tp_tokenizer *t;
    if (tp_tokenizer_from_model(&t, data, size, NULL, "fuzz") != TALPA_OK) {
        if (strncmp(talpa_error_message(), "fuzz", 4) != 0) abort();
        return 0;
    }
    int32_t *ids;
    size_t n_ids, n_back;
    char *back;
    const size_t n = size < 4000 ? size : 4000;
    if (tp_tokenizer_encode(&ids, &n_ids, t, (const char *)data, n, size % 2) != TALPA_OK) abort();
    if (tp_tokenizer_decode(&back, &n_back, t, ids, n_ids, false) != TALPA_OK) abort();
    free(ids);
    free(back);
    tp_tokenizer_free(t);
    return 0;
}
