/* What the short cut reads out of a request is what the JSON parser would have read, and nothing
 * that the parser refuses gets through. */
#include "tests/test.h"

#include "cli/serve/server.h"

static server srv;

static request *parsed(const char *text, size_t n, bool search) {
    request *r = l2c_request_new(&srv, NULL, true);
    r->op = search ? &l2c_op_search : &l2c_op_query; // only a search is cut
    l2c_wbuf_put(&r->body, text, n);
    l2c_request_parse(r);
    return r;
}

/* The numbers of "vector" without the short cut. */
static size_t slow_vector(const request *r, float *out, size_t room) {
    const json_t *v = json_object_get(r->args, "vector");
    if (json_is_string(v)) {
        size_t size = l2c_wbuf_base64_decode(out, json_string_value(v), json_string_length(v));
        return size == SIZE_MAX || size % sizeof *out != 0 ? SIZE_MAX : size / sizeof *out;
    }
    size_t n = json_array_size(v);
    assert_true(n <= room);
    for (size_t i = 0; i < n; i++) {
        if (!json_is_number(json_array_get(v, i))) {
            return SIZE_MAX;
        }
        out[i] = (float)json_number_value(json_array_get(v, i));
    }
    return n;
}

static void check(const char *text, size_t n) {
    float slow[4096];
    request *a = parsed(text, n, true), *b = parsed(text, n, false);
    assert_int_equal(a->error.code, b->error.code);
    assert_int_equal(a->error.offset, b->error.offset);
    assert_string_equal(a->error.message, b->error.message);
    if (a->error.code == L2CDB_OK && a->cuts_count > 0) {
        const json_t *cut = json_object_get(json_object_get(a->args, "vector"), "cut");
        if (cut != NULL) {
            const vector_cut *c = &a->cuts[json_integer_value(cut)];
            size_t count = slow_vector(b, slow, 4096);
            assert_int_equal(count, c->count);
            for (size_t i = 0; i < count; i++) {
                assert_true(
                    memcmp(&slow[i], &c->data[i], sizeof *slow) == 0 ||
                    (slow[i] == 0 && c->data[i] == 0)); // "-0" is a whole number to the parser
            }
        }
    }
    l2c_request_free(a);
    l2c_request_free(b);
}

static uint64_t state = 42;

static uint64_t next_random(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state >> 33;
}

static size_t make(char *out, bool base64) {
    float v[64];
    wbuf b = { 0 };
    size_t n = 1 + next_random() % 64;
    for (size_t i = 0; i < n; i++) {
        v[i] = (float)((double)next_random() / 1e8 - 10) * (next_random() % 9 == 0 ? 1e-7f : 1);
    }
    l2c_wbuf_str(&b, "{\"k\": 3, \"a\\\\\": \"\\\"vector\\\":[1]\", \"vector\" : ");
    if (base64) {
        l2c_wbuf_char(&b, '"');
        l2c_wbuf_base64(&b, v, n * sizeof *v);
        l2c_wbuf_char(&b, '"');
    } else {
        l2c_wbuf_char(&b, '[');
        for (size_t i = 0; i < n; i++) {
            static const char *const forms[] = {
                "%.9g", "%.3f", "%.0f", "%.6e", "%.17g", " %.2E\n"
            };
            char text[40];
            snprintf(text, sizeof text, forms[next_random() % 6], (double)v[i]);
            l2c_wbuf_str(&b, i > 0 ? ", " : "");
            l2c_wbuf_str(&b, text);
        }
        l2c_wbuf_char(&b, ']');
    }
    l2c_wbuf_str(&b, ", \"terms\": [{\"text\": \"x\"}]}");
    size_t size = b.size;
    memcpy(out, b.data, size);
    l2c_wbuf_fini(&b);
    return size;
}

static void agrees_with_the_parser(void **unused) {
    (void)unused;
    static char text[8192];
    size_t cut = 0;
    for (int round = 0; round < 20000; round++) {
        size_t n = make(text, round % 2 == 0);
        if (round % 4 < 2) { // as it is: it must be cut, or the test is about nothing
            request *r = parsed(text, n, true);
            assert_int_equal(r->error.code, L2CDB_OK);
            cut += r->cuts_count;
            l2c_request_free(r);
        }
        check(text, n);
        for (uint64_t changes = next_random() % 3; changes > 0; changes--) {
            static const char bytes[] = "\"\\[]{},:.-+eE0 19A/=x\x01";
            text[next_random() % n] = bytes[next_random() % (sizeof bytes - 1)];
        }
        check(text, n);
        check(text, next_random() % n);
    }
    assert_true(cut > 6000);
}

static void edges(void **unused) {
    (void)unused;
    static const char *const tails[] = {
        "[]",        "[01]",
        "[1.]",      "[.5]",
        "[-]",       "[+1]",
        "[1e]",      "[1e5,]",
        "[1 2]",     "[1e400]",
        "[NaN]",     "[[1]]",
        "[1,\"2\"]", "[0.1",
        "\"AAAA",    "\"AA\\u0041A\"",
        "[1e-400]",  "[123456789012345678901234567890]",
        "\"====\"",  "\"\"",
        "{}",        "null",
        "3",
    };
    for (size_t i = 0; i < sizeof tails / sizeof tails[0]; i++) {
        char text[512];
        int n = snprintf(text, sizeof text, "{\"vector\":%s,\"pad\":\"%0100d\"}", tails[i], 0);
        check(text, (size_t)n);
        n = snprintf(text, sizeof text, "{\"vector\":[%0*d1.5],\"vector\":%s}", 80, 0, tails[i]);
        check(text, (size_t)n);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_parser),
        cmocka_unit_test(edges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
