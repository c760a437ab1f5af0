/* The collection of broken and odd model files: each is refused, or accepted, as its manifest says,
 * within a second and without a blow-up of memory. Pictures are decode_test's. */
#include "tests/test.h"

#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "encoders/bundle.h"
#include "encoders/lora.h"
#include "engine/base/file.h"
#include "engine/base/json.h"

#define FOLDER "fixtures/llm2clip/broken"

static l2cdb_error err;

#define PATH_BYTES 2048

static void join(char out[PATH_BYTES], const char *dir, const char *name) {
    int n = snprintf(out, PATH_BYTES, "%s/%s", dir, name);
    assert_true(n > 0 && n < PATH_BYTES);
}

/* Runs "before PATH after". */
static void shell(const char *before, const char *path, const char *after) {
    l2c_buf command;
    l2c_buf_init(&command);
    l2c_buf_printf(&command, "%s%s%s", before, path, after);
    assert_false(command.failed);
    assert_int_equal(system(command.data), 0);
    l2c_buf_fini(&command);
}

static void copy_file(const char *from, const char *to) {
    l2c_buf b;
    l2c_buf_init(&b);
    assert_ok(l2c_file_read(&b, from, 1u << 30, &err), &err);
    FILE *f = fopen(to, "wb");
    assert_non_null(f);
    if (b.size > 0) {
        assert_int_equal(fwrite(b.data, 1, b.size, f), b.size);
    }
    assert_int_equal(fclose(f), 0);
    l2c_buf_fini(&b);
}

/* A folder of few known files, without those that are not there. */
static const char *const model_files[] = { "model.safetensors",
                                           "config.json",
                                           "tokenizer.json",
                                           "preprocessor_config.json",
                                           "model.safetensors.index.json",
                                           "model-00001-of-00002.safetensors",
                                           "model-00002-of-00002.safetensors" };
#define MODEL_FILES (sizeof model_files / sizeof model_files[0])

static void copy_folder(const char *from, const char *to, const char *without) {
    for (size_t i = 0; i < MODEL_FILES; i++) {
        char source[PATH_BYTES], target[PATH_BYTES];
        join(source, from, model_files[i]);
        join(target, to, model_files[i]);
        if (access(source, R_OK) == 0 &&
            (without == NULL || strcmp(model_files[i], without) != 0)) {
            copy_file(source, target);
        }
    }
}

static const char *get(const json_t *o, const char *key) {
    return json_string_value(json_object_get(o, key));
}

static l2cdb_status open_weights(const char *path) {
    l2c_tensors s;
    l2cdb_status rc = l2c_tensors_open(&s, path, &err);
    if (rc == L2CDB_OK) {
        // Every byte that a tensor claims must be readable.
        for (size_t i = 0; i < s.count; i++) {
            volatile uint8_t sum = 0;
            for (size_t k = 0; k < s.items[i].bytes; k++) {
                sum = (uint8_t)(sum + ((const uint8_t *)s.items[i].data)[k]);
            }
            (void)sum;
        }
        l2c_tensors_fini(&s);
    }
    return rc;
}

static l2cdb_status open_model(const char *path) {
    l2c_bundle *b = NULL;
    l2cdb_status rc = l2c_bundle_open(&b, path, &err);
    l2c_bundle_close(b);
    return rc;
}

static l2cdb_status open_with_lora(const char *base, const char *lora) {
    l2c_bundle *b = NULL;
    l2cdb_status rc = l2c_bundle_open_parts(&b, NULL, base, lora, &err);
    l2c_bundle_close(b);
    return rc;
}

static void shared(char out[PATH_BYTES], const char *name) {
    join(out, test_shared(FOLDER), name);
}

/* Loads one case the way its line says. */
static l2cdb_status load(const json_t *o, const char *temp) {
    const char *kind = get(o, "kind"), *in = get(o, "in"), *over = get(o, "over");
    const char *base = get(o, "base");
    char path[PATH_BYTES], folder[PATH_BYTES], target[PATH_BYTES];
    shared(path, get(o, "path"));
    if (in != NULL) {
        shared(folder, in);
        copy_folder(folder, temp, get(o, "as"));
        join(target, temp, get(o, "as"));
        copy_file(path, target);
        return open_model(temp);
    }
    if (over != NULL) {
        shared(folder, over);
        copy_folder(folder, temp, "model.safetensors");
        // The case brings files of any name.
        join(target, path, ". ");
        shell("cp -r ", target, temp);
        return open_model(temp);
    }
    if (base != NULL) {
        shared(folder, base);
        return open_with_lora(folder, path);
    }
    return strcmp(kind, "model") == 0 ? open_model(path) : open_weights(path);
}

static void empty(const char *temp) {
    shell("rm -rf ", temp, "/*");
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void as_the_manifest_says(void **state) {
    (void)state;
    l2c_buf text;
    l2c_buf_init(&text);
    assert_ok(l2c_file_read(&text, test_shared(FOLDER "/manifest.jsonl"), 1 << 22, &err), &err);
    char temp[4096];
    snprintf(temp, sizeof temp, "%s", test_temp_dir());
    int refused = 0, accepted = 0, wrong = 0;
    double slowest = 0.0;
    for (char *line = strtok(text.data, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        json_t *o;
        assert_ok(l2c_json_parse(&o, line, strlen(line), "manifest", &err), &err);
        if (strcmp(get(o, "kind"), "image") == 0) {
            json_decref(o);
            continue;
        }
        empty(temp);
        l2cdb_error_clear(&err);
        double start = seconds();
        l2cdb_status rc = load(o, temp);
        double took = seconds() - start;
        slowest = took > slowest ? took : slowest;
        bool must_refuse = strcmp(get(o, "must"), "refuse") == 0;
        bool good = must_refuse ? rc != L2CDB_OK : rc == L2CDB_OK;
        refused += rc != L2CDB_OK;
        accepted += rc == L2CDB_OK;
        if (getenv("VERBOSE") != NULL) {
            printf("%s: %s: %s\n", get(o, "path"), l2cdb_status_name(rc), err.message);
        }
        if (!good || took > 1.0 || (rc != L2CDB_OK && err.message[0] == '\0')) {
            printf("WRONG %s (%s) must %s: %s, %.2f s: %s\n", get(o, "path"), get(o, "what"),
                   get(o, "must"), l2cdb_status_name(rc), took, err.message);
            wrong++;
        }
        json_decref(o);
    }
    l2c_buf_fini(&text);
    empty(temp);
    rmdir(temp);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("%d refused, %d accepted, slowest %.3f s, peak memory %ld MiB\n", refused, accepted,
           slowest, usage.ru_maxrss / 1024);
    assert_int_equal(wrong, 0);
    assert_int_equal(refused, 351);
    assert_int_equal(accepted, 37);
#if !defined(__SANITIZE_ADDRESS__)
    assert_true(usage.ru_maxrss < 128 * 1024); // kB; the largest of these files has 100 kB
#endif
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_the_manifest_says),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
