/* engine/captions_file: captions come out of every form that people have, and bad lines are named.
 */
#include "tests/test.h"

#include <unistd.h>

#include "engine/base/file.h"
#include "engine/engine.h"

static l2cdb_error e;
static char path[4200];

typedef struct seen {
    char text[4096];
} seen;

static l2cdb_status note(void *ctx, const l2c_caption_line *c, l2cdb_error *err) {
    seen *s = ctx;
    (void)err;
    char number[32];
    snprintf(number, sizeof number, "#%lld", (long long)c->id);
    size_t n = strlen(s->text);
    snprintf(s->text + n, sizeof s->text - n, "%s|%s|%s\n", c->image != NULL ? c->image : number,
             c->text, c->language != NULL ? c->language : "-");
    return L2CDB_OK;
}

static l2cdb_status read_text(const char *text, seen *s) {
    assert_ok(l2c_file_replace(path, text, strlen(text), &e), &e);
    memset(s, 0, sizeof *s);
    l2cdb_error_clear(&e);
    return l2c_captions_read(path, note, s, &e);
}

static void expect(const char *text, const char *lines) {
    seen s;
    assert_ok(read_text(text, &s), &e);
    assert_string_equal(s.text, lines);
}

static void refuse(const char *text, const char *message) {
    seen s;
    assert_int_equal(read_text(text, &s), L2CDB_E_FORMAT);
    assert_non_null(strstr(e.message, path));
    if (strstr(e.message, message) == NULL) {
        fail_msg("\"%s\" is not in \"%s\"", message, e.message);
    }
}

/* Broken: one of the documented forms is not understood. */
static void every_form_is_read(void **state) {
    (void)state;
    expect("{\"path\":\"a.jpg\",\"caption\":\"a boat\"}\n\n"
           "{\"image\":\"b.jpg\",\"captions\":[\"one\",\" two \",\"\"],\"language\":\"en\"}\n",
           "a.jpg|a boat|-\nb.jpg|one|en\nb.jpg|two|en\n");
    expect("{\"image\":\"c.jpg\",\"set\":\"val\",\"w\":3,\"en\":[\"x\"],\"de\":\"y\","
           "\"de_tr\":\"z\",\"pt-BR\":[\"q\"],\"licence\":\"CC\",\"id\":7}",
           "c.jpg|x|en\nc.jpg|y|de\nc.jpg|z|de_tr\nc.jpg|q|pt-BR\n");
    expect("{\"id\":12,\"text\":\"by number\"}", "#12|by number|-\n");
    expect("{\"images\":[{\"id\":9,\"file_name\":\"n.jpg\"},{\"id\":2,\"file_name\":\"t.jpg\"}],\n"
           "\"annotations\":[{\"image_id\":2,\"caption\":\"two\"},"
           "{\"image_id\":9,\"caption\":\"nine\\n\"}]}",
           "t.jpg|two|-\nn.jpg|nine|-\n");
    expect("a.jpg,a boat\nb.jpg,\"one, two \"\"three\"\"\",en\n",
           "a.jpg|a boat|-\nb.jpg|one, two \"three\"|en\n");
    expect("\xEF\xBB\xBFLanguage,Caption,Path\r\nde,ein Boot,sub/a.jpg\r\n",
           "sub/a.jpg|ein Boot|de\n");
    expect("image_name\tcaption\na.jpg\ta, b\n", "a.jpg|a, b|-\n");
    expect("\xEF\xBB\xBFpath;caption;language\r\na.jpg;\"rot, dann\nblau\";de\r\n",
           "a.jpg|rot, dann\nblau|de\n");
    expect("\"a;b.jpg\";a boat, red\n", "a;b.jpg|a boat, red|-\n");
    expect("id,caption\n12,\"two\nlines\"\n", "#12|two\nlines|-\n");
}

/* Broken: a bad line is dropped without a word, or its place is not told. */
static void bad_lines_are_named(void **state) {
    (void)state;
    refuse("", "is empty");
    refuse("{\"path\":\"a.jpg\",\"caption\":\"x\"}\n{\"path\":\"b.jpg\",", "line 2");
    refuse("{\"caption\":\"x\"}", "line 1: no photo is named");
    refuse("{\"path\":\"a.jpg\"}", "line 1: no caption");
    refuse("{\"path\":\"a.jpg\",\"captions\":[1]}", "a caption is no string");
    refuse("{\"path\":\"a.jpg\",\"caption\":\"x\"}\n[1]", "line 2");
    refuse("a.jpg,ok\nb.jpg\n", "line 2: 1 field, expected path,caption");
    refuse("a.jpg,\"unfinished\n", "expected CSV");
    refuse("a.jpg,\xFF\n", "not valid UTF-8");
    refuse("{\"images\":[{\"id\":1,\"file_name\":\"a\"}],"
           "\"annotations\":[{\"image_id\":2,\"caption\":\"x\"}]}",
           "annotation 1 names image 2");
    refuse("{\"annotations\":[]}", "without \"images\"");
}

int main(void) {
    snprintf(path, sizeof path, "%s/captions", test_temp_dir());
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_form_is_read),
        cmocka_unit_test(bad_lines_are_named),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    *strrchr(path, '/') = '\0';
    rmdir(path);
    return failed;
}
