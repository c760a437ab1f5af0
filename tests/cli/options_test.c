/* Options and query terms as they are typed. If this failed, a command would do something else than
 * what was written. */
#include "tests/test.h"

#include "cli/options.h"
#include "cli/terms.h"

static struct {
    bool flag, off;
    const char *string, *choice;
    size_t size;
    int64_t signed_number;
    double real;
    uint64_t bytes;
    l2c_list list;
    const char *args[8];
    size_t args_count;
} got;

static const char *const choices[] = { "red", "green", NULL };
static const l2c_option options[] = {
    { 'f', "flag", L2C_OPTION_ON, &got.flag, NULL, "", NULL },
    { 0, "no-off", L2C_OPTION_OFF, &got.off, NULL, "", NULL },
    { 's', "string", L2C_OPTION_STRING, &got.string, "S", "", NULL },
    { 0, "choice", L2C_OPTION_CHOICE, &got.choice, "C", "", choices },
    { 'n', "size", L2C_OPTION_SIZE, &got.size, "N", "", NULL },
    { 0, "signed", L2C_OPTION_INT64, &got.signed_number, "N", "", NULL },
    { 0, "real", L2C_OPTION_REAL, &got.real, "R", "", NULL },
    { 0, "bytes", L2C_OPTION_BYTES, &got.bytes, "B", "", NULL },
    { 'x', "list", L2C_OPTION_LIST, &got.list, "L", "", NULL },
    { 0 },
};

static int take(const char *const *args, size_t args_count) {
    got.args_count = args_count;
    for (size_t i = 0; i < args_count; i++) {
        got.args[i] = args[i];
    }
    return L2C_EXIT_DONE;
}

static const l2c_command command = {
    .name = "test", .usage = "X…", .summary = "", .options = options, .args_max = 4, .run = take
};

// Words separated by spaces.
static int parse(const char *line) {
    static char words[256];
    free(got.list.values);
    memset(&got, 0, sizeof got);
    got.off = true;
    char *argv[32];
    int argc = 0;
    snprintf(words, sizeof words, "%s", line);
    for (char *word = strtok(words, " "); word != NULL; word = strtok(NULL, " ")) {
        argv[argc++] = word;
    }
    return l2c_options_run(&command, argc, argv);
}

static void every_kind(void **state) {
    (void)state;
    assert_int_equal(parse("-f --no-off -s a --choice green -n 7 --signed -3 --real 0.5 --bytes 2G"
                           " -x p --list=q rest"),
                     L2C_EXIT_DONE);
    assert_true(got.flag);
    assert_false(got.off);
    assert_string_equal(got.string, "a");
    assert_string_equal(got.choice, "green");
    assert_int_equal(got.size, 7);
    assert_int_equal(got.signed_number, -3);
    assert_true(got.real == 0.5);
    assert_int_equal(got.bytes, 2147483648U);
    assert_int_equal(got.list.count, 2);
    assert_string_equal(got.list.values[1], "q");
    assert_int_equal(got.args_count, 1);
    assert_string_equal(got.args[0], "rest");
}

static void ways_of_writing(void **state) {
    (void)state;
    assert_int_equal(parse("a -n5 b"), L2C_EXIT_DONE);
    assert_int_equal(got.size, 5);
    assert_int_equal(got.args_count, 2);
    assert_int_equal(parse("-fn 5"), L2C_EXIT_DONE);
    assert_true(got.flag && got.size == 5);
    assert_int_equal(parse("--siz 5"), L2C_EXIT_DONE); // shortened
    assert_int_equal(got.size, 5);
    assert_int_equal(parse("-f -- -n - +"), L2C_EXIT_DONE);
    assert_int_equal(got.args_count, 3);
    assert_string_equal(got.args[0], "-n");
    assert_int_equal(parse("a - -0.5:c"), L2C_EXIT_DONE);
    assert_string_equal(got.args[2], "-0.5:c");
}

static void wrong(void **state) {
    (void)state;
    static const char *const lines[] = {
        "--nothing",
        "-z",
        "-n",
        "-n x",
        "-n -1",
        "-n 1.5",
        "--choice blue",
        "--real",
        "--real nan",
        "--bytes 1X",
        "--s a",
        "--flag=1",
        "--bytes 99999999999G",
        "-n 99999999999999999999",
        "a b c d e",
        "--signed 1x",
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        if (parse(lines[i]) != L2C_EXIT_USAGE) {
            fail_msg("\"%s\" was taken", lines[i]);
        }
    }
}

static void did_you_mean(void **state) {
    (void)state;
    static const char *const names[] = { "search", "stats", "eval" };
    assert_string_equal(l2c_options_nearest("serch", names, 3), "search");
    assert_string_equal(l2c_options_nearest("saerch", names, 3), "search");
    assert_string_equal(l2c_options_nearest("stat", names, 3), "stats");
    assert_null(l2c_options_nearest("shell", names, 3));
}

static void terms(void **state) {
    (void)state;
    l2c_terms t;
    const char *const words[] = { "red", "boat", "+", "0.5:sea", "-", "people", "./x.jpg", "2:y" };
    assert_int_equal(l2c_terms_parse(&command, &t, words, 8), L2C_EXIT_DONE);
    assert_int_equal(t.count, 5);
    static const struct {
        const char *text;
        double weight;
        l2cdb_term_kind kind;
    } expected[] = { { "red boat", 1, L2CDB_TERM_TEXT },
                     { "sea", 0.5, L2CDB_TERM_TEXT },
                     { "people", -1, L2CDB_TERM_TEXT },
                     { "./x.jpg", 1, L2CDB_TERM_IMAGE_FILE },
                     { "y", 2, L2CDB_TERM_TEXT } };
    for (size_t i = 0; i < 5; i++) {
        assert_string_equal(t.list[i].text, expected[i].text);
        assert_true(t.list[i].weight == expected[i].weight);
        assert_int_equal(t.list[i].kind, expected[i].kind);
    }
    l2c_terms_fini(&t);

    const char *const dangling[] = { "a", "+" };
    assert_int_equal(l2c_terms_parse(&command, &t, dangling, 2), L2C_EXIT_USAGE);
    l2c_terms_fini(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind),   cmocka_unit_test(ways_of_writing), cmocka_unit_test(wrong),
        cmocka_unit_test(did_you_mean), cmocka_unit_test(terms),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
