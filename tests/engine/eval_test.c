/* The default model's figures on Flickr8k, as its card gives them (models/l2c-mini/README.md). */
#include "tests/test.h"

#include <math.h>

#include "engine/l2cdb.h"

#define TOLERANCE 0.3

static const struct {
    double t2i[3], i2t[3];
} card = { { 19.4, 48.5, 63.1 }, { 23.6, 51.6, 65.0 } };

static void near_card(const char *what, const l2cdb_recall_at *found, const double want[3]) {
    const double have[3] = { found->r1, found->r5, found->r10 };
    printf("%s  R@1 %.2f (%.1f)  R@5 %.2f (%.1f)  R@10 %.2f (%.1f)  median %.1f\n", what, have[0],
           want[0], have[1], want[1], have[2], want[2], found->median_rank);
    for (int i = 0; i < 3; i++) {
        assert_true(fabs(have[i] - want[i]) <= TOLERANCE + 1e-9);
    }
}

/* Broken: anywhere on the way from JPEG and sentence to rank, something differs from the model that
 * was published. */
static void flickr8k_gives_the_cards_figures(void **state) {
    (void)state;
    l2cdb_error e;
    l2cdb *db;
    l2cdb_open_options o;
    l2cdb_open_options_init(&o);
    o.precision = "f32";
    o.exif_rotate = false; // the reference's behaviour
    assert_ok(l2cdb_open(&db, ":memory:", &o, &e), &e);
    l2cdb_ingest_options in;
    l2cdb_ingest_options_init(&in);
    const char *photos[] = { test_shared("data/flickr8k/test") };
    assert_ok(l2cdb_ingest(db, photos, 1, &in, NULL, &e), &e);
    l2cdb_eval_options ev;
    l2cdb_eval_options_init(&ev);
    ev.captions_file = test_shared("data/flickr8k/captions_multilingual.jsonl");
    ev.language = "en";
    l2cdb_eval_report r;
    assert_ok(l2cdb_eval(db, &ev, &r, &e), &e);
    assert_int_equal(r.images, 1000);
    assert_int_equal(r.captions, 5000);
    near_card("text → photo", &r.t2i, card.t2i);
    near_card("photo → text", &r.i2t, card.i2t);
    l2cdb_close(db);
}

/* Broken: an LLM imported alone encodes nothing, or not the reference's pooled vector. */
static void llm_alone_gives_pooled_vectors(void **state) {
    (void)state;
    enum { WIDTH = 384 };
    l2cdb_error e;
    l2cdb_open_options o;
    l2cdb_open_options_init(&o);
    o.model = test_shared("models/l2c-mini/llm");
    o.precision = "f32";
    l2cdb *db;
    assert_ok(l2cdb_open(&db, ":memory:", &o, &e), &e);
    test_npy want = test_npy_load(test_shared("models/l2c-mini/reference/pooled.npy"));
    const char *text = "A blond woman in a blue shirt appears to wait for a ride .";
    size_t width;
    float got[WIDTH];
    assert_ok(l2cdb_width(db, &width, &e), &e);
    assert_int_equal(width, WIDTH);
    assert_ok(l2cdb_encode_texts(db, &text, 1, got, width, NULL, &e), &e);
    double dot = 0, squares[2] = { 0 };
    for (size_t i = 0; i < WIDTH; i++) {
        double a = (double)got[i], b = (double)((const float *)want.data)[i];
        dot += a * b;
        squares[0] += a * a;
        squares[1] += b * b;
    }
    assert_true(fabs(squares[0] - 1) < 1e-5);
    assert_true(dot / sqrt(squares[0] * squares[1]) > 0.999999);
    free(want.data);
    l2cdb_close(db);
}

int main(void) {
    test_shared("data/flickr8k/test");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flickr8k_gives_the_cards_figures),
        cmocka_unit_test(llm_alone_gives_pooled_vectors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
