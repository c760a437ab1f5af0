/* Any bytes as each of the small JSON files of a model. */
#include "tests/fuzz/fuzz.h"

#include <math.h>

#include "encoders/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    l2cdb_error err;
    const char *json = (const char *)data;
    l2c_llm_config llm;
    if (l2c_config_read_llm(&llm, json, n, "fuzz", &err) == L2CDB_OK) {
        FUZZ_CHECK(llm.width > 0 && llm.layers > 0 && llm.hidden > 0 && llm.vocab > 0);
        FUZZ_CHECK(llm.heads % llm.kv_heads == 0 && llm.head_dim % 2 == 0 && llm.head_dim > 0);
        FUZZ_CHECK(isfinite(llm.rope_theta) && llm.rope_theta > 0 && llm.rms_eps >= 0);
        FUZZ_CHECK(!llm.rope_llama3 || (llm.rope_factor > 0 && llm.rope_high > llm.rope_low));
    }
    l2c_vision_config vision;
    size_t projection;
    if (l2c_config_read_clip(&vision, &projection, json, n, "fuzz", &err) == L2CDB_OK) {
        FUZZ_CHECK(vision.heads * vision.head_width == vision.width);
        FUZZ_CHECK(vision.grid * vision.patch == vision.image_side && vision.grid > 0);
    }
    l2c_pixels_config pixels;
    l2c_pixels_config_init(&pixels, 224);
    if (l2c_config_read_preprocess(&pixels, 224, json, n, "fuzz", &err) == L2CDB_OK) {
        FUZZ_CHECK(pixels.crop_side == 224 && pixels.resize_side >= 224);
        FUZZ_CHECK(isfinite(pixels.rescale) && pixels.std[0] > 0);
    }
    return 0;
}
