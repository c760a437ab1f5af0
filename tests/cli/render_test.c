/* Rows in every form, to the byte. If this failed, a program that reads our output, or a person
 * whose photos have names in Japanese, would be served badly. */
#include "tests/test.h"

#include "cli/render.h"
#include "cli/term.h"

static char *out;
static size_t out_size;

static void check(l2c_render_mode mode, size_t width_max, const char *expected) {
    l2c_render_options o;
    l2c_render_options_init(&o, open_memstream(&out, &out_size));
    o.mode = mode;
    o.width_max = width_max;
    o.sample = 2; // so that the third row comes after the widths are settled
    l2c_render *r = l2c_render_new(&o, (const char *const[]){ "path", "score" }, 2);
    assert_true(
        l2c_render_row(r, (l2c_cell[]){ l2c_cell_text("a,\"b\".jpg"), l2c_cell_real(0.5, 3) }));
    assert_true(l2c_render_row(r, (l2c_cell[]){ l2c_cell_text("日本\n.jpg"), l2c_cell_int(12) }));
    assert_true(l2c_render_row(r, (l2c_cell[]){ l2c_cell_null(), l2c_cell_real(-0.25, -1) }));
    assert_int_equal(l2c_render_rows(r), 3);
    assert_true(l2c_render_end(r));
    fclose(o.out);
    assert_string_equal(out, expected);
    free(out);
}

static void forms(void **state) {
    (void)state;
    check(L2C_RENDER_BOX, 0,
          "┌────────────┬───────┐\n"
          "│ path       │ score │\n"
          "├────────────┼───────┤\n"
          "│ a,\"b\".jpg  │ 0.500 │\n"
          "│ 日本\\n.jpg │    12 │\n"
          "│            │ -0.25 │\n"
          "└────────────┴───────┘\n");
    check(L2C_RENDER_TABLE, 0,
          "+------------+-------+\n"
          "| path       | score |\n"
          "+------------+-------+\n"
          "| a,\"b\".jpg  | 0.500 |\n"
          "| 日本\\n.jpg |    12 |\n"
          "|            | -0.25 |\n"
          "+------------+-------+\n");
    check(L2C_RENDER_COLUMN, 7,
          "path     score\n"
          "a,\"b\".…  0.500\n"
          "日本\\n…     12\n"
          "         -0.25\n");
    check(L2C_RENDER_CSV, 0,
          "path,score\n"
          "\"a,\"\"b\"\".jpg\",0.5\n"
          "\"日本\n.jpg\",12\n"
          ",-0.25\n");
    check(L2C_RENDER_TSV, 0,
          "path\tscore\n"
          "a,\"b\".jpg\t0.5\n"
          "日本\\n.jpg\t12\n"
          "\t-0.25\n");
    check(L2C_RENDER_JSON, 0,
          "[{\"path\":\"a,\\\"b\\\".jpg\",\"score\":0.5},\n"
          " {\"path\":\"日本\\n.jpg\",\"score\":12},\n"
          " {\"path\":null,\"score\":-0.25}]\n");
    check(L2C_RENDER_JSONL, 0,
          "{\"path\":\"a,\\\"b\\\".jpg\",\"score\":0.5}\n"
          "{\"path\":\"日本\\n.jpg\",\"score\":12}\n"
          "{\"path\":null,\"score\":-0.25}\n");
    check(L2C_RENDER_LINE, 0,
          " path = a,\"b\".jpg\n"
          "score = 0.500\n"
          "\n"
          " path = 日本\\n.jpg\n"
          "score = 12\n"
          "\n"
          " path = \n"
          "score = -0.25\n");
    check(L2C_RENDER_HTML, 0,
          "<table>\n"
          "<tr><th>path</th><th>score</th></tr>\n"
          "<tr><td>a,&quot;b&quot;.jpg</td><td>0.5</td></tr>\n"
          "<tr><td>日本\n.jpg</td><td>12</td></tr>\n"
          "<tr><td></td><td>-0.25</td></tr>\n"
          "</table>\n");
}

// On a terminal the longest texts give way, so that a table does not wrap.
static void rows_fit_the_terminal(void **state) {
    (void)state;
    l2c_render_options o;
    l2c_render_options_init(&o, open_memstream(&out, &out_size));
    o.mode = L2C_RENDER_TABLE;
    o.columns_max = 24;
    o.sample = 1;
    l2c_render *r = l2c_render_new(&o, (const char *const[]){ "path", "n" }, 2);
    assert_true(
        l2c_render_row(r, (l2c_cell[]){ l2c_cell_text("a long name, really"), l2c_cell_int(1) }));
    assert_true(l2c_render_row(
        r, (l2c_cell[]){ l2c_cell_text("an even longer name than that"), l2c_cell_int(2) }));
    assert_true(l2c_render_end(r));
    fclose(o.out);
    assert_string_equal(out, "+------------------+---+\n"
                             "| path             | n |\n"
                             "+------------------+---+\n"
                             "| a long name, re… | 1 |\n"
                             "| an even longer … | 2 |\n"
                             "+------------------+---+\n");
    free(out);
}

static void no_rows(void **state) {
    (void)state;
    static const struct {
        l2c_render_mode mode;
        const char *expected;
    } cases[] = {
        { L2C_RENDER_JSON, "[]\n" },
        { L2C_RENDER_JSONL, "" },
        { L2C_RENDER_CSV, "path,score\n" },
        { L2C_RENDER_COLUMN, "path  score\n" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        l2c_render_options o;
        l2c_render_options_init(&o, open_memstream(&out, &out_size));
        o.mode = cases[i].mode;
        l2c_render *r = l2c_render_new(&o, (const char *const[]){ "path", "score" }, 2);
        assert_true(l2c_render_end(r));
        fclose(o.out);
        assert_string_equal(out, cases[i].expected);
        free(out);
    }
}

// A photo's name must not be able to move the cursor or retitle the window.
static void names_cannot_steer_the_terminal(void **state) {
    (void)state;
    char *clean = l2c_term_clean("a\x1b]0;x\x07\xff\xc2\x9b z", 12);
    assert_string_equal(clean, "a\\x1b]0;x\\x07\\xff\\xc2\\x9b z");
    free(clean);
}

static void widths(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t columns;
    } cases[] = { { "", 0 }, { "abc", 3 }, { "日本", 4 }, { "e\xcc\x81", 1 }, { "\xff", 1 } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(l2c_term_width(cases[i].text, strlen(cases[i].text)), cases[i].columns);
    }
    size_t used;
    assert_int_equal(l2c_term_fit("日本x", 7, 3, &used), 3); // half a character does not fit
    assert_int_equal(used, 2);
}

static void vectors_and_blobs(void **state) {
    (void)state;
    const float v[] = { 0.1F, -1, 1e-9F, 0.333333343F };
    l2c_render_options o;
    l2c_render_options_init(&o, open_memstream(&out, &out_size));
    o.mode = L2C_RENDER_JSONL;
    l2c_render *r = l2c_render_new(&o, (const char *const[]){ "v", "b" }, 2);
    assert_true(
        l2c_render_row(r, (l2c_cell[]){ l2c_cell_vector(v, 4), l2c_cell_blob("\x00\xff", 2) }));
    assert_true(l2c_render_end(r));
    fclose(o.out);
    assert_string_equal(out, "{\"v\":[0.1,-1,1e-09,0.33333334],\"b\":\"00ff\"}\n");
    free(out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forms),   cmocka_unit_test(rows_fit_the_terminal),
        cmocka_unit_test(no_rows), cmocka_unit_test(names_cannot_steer_the_terminal),
        cmocka_unit_test(widths),  cmocka_unit_test(vectors_and_blobs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
