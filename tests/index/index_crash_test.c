/* Files: killed in the middle of a build, damaged in every byte of the header, cut short, foreign,
 * newer. Whatever happens to the file, open succeeds and answers what the store says. */
#include "tests/test.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "engine/base/file.h"
#include "engine/base/log.h"
#include "index/index.h"
#include "index_model.h"

#define WIDTH 32
#define ROWS 1500

static l2cdb_error err;
static model m;
static char dir[4096], path[4200];

static int setup(void **state) {
    (void)state;
    snprintf(dir, sizeof dir, "%s", test_temp_dir());
    snprintf(path, sizeof path, "%s/c.idx", dir);
    model_init(&m, WIDTH, ROWS * 2, 20, 31);
    float v[WIDTH];
    for (int64_t id = 1; id <= ROWS; id++) {
        model_vector(&m, v);
        model_put(&m, id, v);
    }
    return 0;
}

static int teardown(void **state) {
    (void)state;
    char command[4200];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    model_fini(&m);
    return system(command);
}

static l2cdb_status open_at(l2c_index **ix, int64_t generation, int64_t change) {
    l2c_index_config c = { .path = path,
                           .width = WIDTH,
                           .generation = generation,
                           .change = change,
                           .params = { .kind = L2C_INDEX_HNSW, .m = 8, .ef_construction = 40 },
                           .source = model_source(&m) };
    return l2c_index_open(ix, &c, &err);
}

static l2c_index *open_now(void) {
    l2c_index *ix;
    assert_ok(open_at(&ix, 1, (int64_t)m.log_count), &err);
    return ix;
}

static void check_answers(l2c_index *ix, int queries) {
    l2c_index_status st;
    l2c_index_get_status(ix, &st);
    assert_int_equal(st.rows, m.count);
    for (int q = 0; q < queries; q++) {
        float v[WIDTH], distances[15];
        int64_t ids[15];
        size_t found;
        model_vector(&m, v);
        assert_ok(l2c_index_search(ix, ids, distances, &found, v, 15, NULL, NULL, NULL, &err),
                  &err);
        assert_true(model_check(&m, ids, distances, found, v, 15, NULL) > 0.5);
    }
}

static void build_file(void) {
    l2c_index *ix = open_now();
    assert_ok(l2c_index_build(ix, NULL, NULL, NULL, &err), &err);
    l2c_index_close(ix);
}

static void flip(off_t at, uint8_t mask) {
    int fd = open(path, O_RDWR);
    uint8_t byte;
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte ^= mask;
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

/* Breaks if a damaged header is believed, or if it makes open fail or crash. */
static void every_byte_of_the_header(void **state) {
    (void)state;
    build_file();
    l2c_buf good;
    l2c_buf_init(&good);
    assert_ok(l2c_file_read(&good, path, SIZE_MAX, &err), &err);
    for (off_t at = 0; at < 4096; at++) {
        // Past the fields the page is zeros; there one bit in sixteen bytes will do.
        if (at > 400 && at % 16 != 0) {
            continue;
        }
        flip(at, (uint8_t)(1u << model_below(&m, 8)));
        size_t pulls = m.pulls;
        l2c_index *ix = open_now();
        assert_true(m.pulls > pulls); // from the store
        check_answers(ix, 1);
        l2c_index_close(ix);
        assert_false(l2c_path_exists(path)); // set aside
        assert_ok(l2c_file_replace(path, good.data, good.size, &err), &err);
    }
    size_t pulls = m.pulls;
    l2c_index *ix = open_now();
    assert_int_equal(m.pulls, pulls);
    check_answers(ix, 20);
    l2c_index_close(ix);
    l2c_buf_fini(&good);
}

/* Breaks if damage behind the header reaches FAISS or an answer. Vectors are verified when they are
 * touched, so a damaged one shows in the first search that needs it. */
static void damage_anywhere(void **state) {
    (void)state;
    build_file();
    l2c_buf good;
    l2c_buf_init(&good);
    assert_ok(l2c_file_read(&good, path, SIZE_MAX, &err), &err);
    for (int i = 0; i < 150; i++) {
        off_t at = 4096 + (off_t)model_below(&m, good.size - 4096);
        flip(at, (uint8_t)(1u << model_below(&m, 8)));
        l2c_index *ix = open_now();
        check_answers(ix, 3);
        float v[WIDTH], distances[ROWS];
        int64_t ids[ROWS];
        size_t found;
        model_vector(&m, v);
        l2c_search_params exact = { .exact = true };
        assert_ok(l2c_index_search(ix, ids, distances, &found, v, ROWS, NULL, &exact, NULL, &err),
                  &err);
        assert_true(model_check(&m, ids, distances, found, v, ROWS, NULL) == 1.0);
        bool in_vectors = at < 4096 + (off_t)(ROWS * WIDTH * sizeof(float));
        if (in_vectors) {
            assert_true(l2c_index_wants_build(ix)); // rows came from the store
            assert_ok(l2c_index_build(ix, NULL, NULL, NULL, &err), &err);
            check_answers(ix, 3);
        }
        l2c_index_close(ix);
        assert_ok(l2c_file_replace(path, good.data, good.size, &err), &err);
    }
    l2c_buf_fini(&good);
}

/* Breaks if a file that ends early is read past its end. */
static void cut_short(void **state) {
    (void)state;
    build_file();
    l2c_buf good;
    l2c_buf_init(&good);
    assert_ok(l2c_file_read(&good, path, SIZE_MAX, &err), &err);
    for (int i = 0; i < 60; i++) {
        size_t size = i < 10 ? (size_t)i * 500 : model_below(&m, good.size);
        assert_ok(l2c_file_replace(path, good.data, size, &err), &err);
        l2c_index *ix = open_now();
        check_answers(ix, 2);
        l2c_index_close(ix);
    }
    assert_ok(
        l2c_file_replace(path, "not an index at all, but long enough to have a header", 52, &err),
        &err);
    l2c_index *ix = open_now();
    check_answers(ix, 2);
    l2c_index_close(ix);
    l2c_buf_fini(&good);
}

static char last_line[1024];

static void keep_line(void *ctx, l2cdb_log_level level, const char *line) {
    (void)ctx;
    (void)level;
    snprintf(last_line, sizeof last_line, "%s", line);
}

/* Breaks if the file of another generation, or one newer than the store (a restored backup), is
 * used, or if nobody is told. */
static void another_generation_or_newer(void **state) {
    (void)state;
    l2cdb_log_set(keep_line, NULL, L2CDB_LOG_INFO);
    build_file();
    l2c_index *ix;
    assert_ok(open_at(&ix, 2, (int64_t)m.log_count), &err);
    assert_non_null(strstr(last_line, "generation 1"));
    check_answers(ix, 3);
    l2c_index_close(ix);
    build_file();
    assert_ok(open_at(&ix, 1, 5), &err);
    assert_non_null(strstr(last_line, "newer than the store's 5"));
    check_answers(ix, 3);
    l2c_index_close(ix);
    l2cdb_log_set(NULL, NULL, L2CDB_LOG_ERROR);
}

/* The child merges, changes and saves until it is killed. */
static void child_works(int tell) {
    l2c_index *ix = open_now();
    for (;;) {
        if (l2c_index_build(ix, NULL, NULL, NULL, &err) != L2CDB_OK || write(tell, "b", 1) != 1) {
            _exit(1);
        }
        l2c_index_set_search_params(ix, 40 + model_below(&m, 40), 0);
        if (l2c_index_save(ix, &err) != L2CDB_OK) {
            _exit(1);
        }
    }
}

/* Breaks if a death at any moment of a build, a merge or a save loses a row, leaves a file that
 * cannot be opened, or leaves temporary files to pile up. */
static void killed_at_any_moment(void **state) {
    (void)state;
    build_file();
    const char *kills = getenv("L2CDB_KILLS");
    int rounds = kills != NULL ? atoi(kills) : 40;
    size_t from_file = 0;
    for (int round = 0; round < rounds; round++) {
        float v[WIDTH];
        for (int i = 0; i < 5; i++) { // what the store has, the index must have after the death
            int64_t id = 1 + (int64_t)model_below(&m, ROWS * 2);
            model_vector(&m, v);
            if (model_below(&m, 3) == 0) {
                model_drop(&m, id);
            } else {
                model_put(&m, id, v);
            }
        }
        int pipes[2];
        assert_int_equal(pipe(pipes), 0);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            close(pipes[0]);
            child_works(pipes[1]);
        }
        close(pipes[1]);
        char byte;
        if (round % 2 == 0) { // after one whole build
            assert_int_equal(read(pipes[0], &byte, 1), 1);
        }
        struct timespec t = { .tv_nsec = (long)model_below(&m, 120000000) };
        nanosleep(&t, NULL);
        kill(child, SIGKILL);
        assert_int_equal(waitpid(child, NULL, 0), child);
        close(pipes[0]);
        size_t pulls = m.pulls;
        l2c_index *ix = open_now();
        from_file += m.pulls == pulls;
        check_answers(ix, 3);
        l2c_index_close(ix);
    }
    l2c_index_close(open_now());
    size_t entries = 0;
    DIR *d = opendir(dir);
    while (readdir(d) != NULL) {
        entries++;
    }
    closedir(d);
    assert_true(entries <= 4); // ".", "..", the file, the one set aside by an earlier test
    printf("%d kills, %zu opens from the file\n", rounds, from_file);
    assert_true(from_file == (size_t)rounds);
}

int main(int argc, char **argv) {
    (void)argc;
    model_one_thread(argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_byte_of_the_header),
        cmocka_unit_test(damage_anywhere),
        cmocka_unit_test(cut_short),
        cmocka_unit_test(another_generation_or_newer),
        cmocka_unit_test(killed_at_any_moment),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
