/* kill -9 at random moments of tune, reindex, switch, rollback and drop: the database opens, is
 * sound, and answers from one generation; an interrupted tune ends where an uninterrupted one does.
 *
 * The child is this program again ("child PATH WHAT"). 15 deaths; 200 with L2CDB_LONG=1. */
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#include "engine/base/file.h"
#include "tests/tune/world.h"

enum { PHOTOS = 160 };

static char dir[4096];
static const char *self;
static uint64_t dice = 20240607;

static void options(l2cdb_tune_options *o, const char *path) {
    char state[4300];
    snprintf(state, sizeof state, "%s-tune", path);
    l2cdb_tune_options_init(o);
    o->epochs = 4;
    o->batch = 32;
    o->lr = 1e-3;
    o->early_stop = false;
    o->force = true;
    o->resume = l2c_path_exists(state);
}

/* ---- The child ---- */

static void must(l2cdb_status rc, const l2cdb_error *err) {
    if (rc != L2CDB_OK) {
        fprintf(stderr, "child: %s\n", err->message);
        _exit(3);
    }
}

static void drop_unused(l2cdb *db) {
    l2cdb_error err;
    l2c_generation list[16];
    size_t count;
    must(l2c_generations_list(db->store, list, 16, &count, &err), &err);
    for (size_t i = 0; i < count && count > 3; i++) {
        if (list[i].state != L2C_GENERATION_ACTIVE) {
            must(l2cdb_drop_generation(db, list[i].id, &err), &err);
            count--;
        }
    }
}

static void change(l2cdb *db, const char *path, unsigned i) {
    l2cdb_error err;
    l2cdb_tune_options o;
    options(&o, path);
    o.tune_image_head = i % 2 == 1 && !o.resume;
    o.no_promote = true;
    l2cdb_tune_report r;
    l2cdb_status rc = l2cdb_tune(db, &o, &r, &err);
    if (rc == L2CDB_E_MISMATCH) { // the state of a run with other options or before more photos
        o.resume = false;
        rc = l2cdb_tune(db, &o, &r, &err);
    }
    must(rc, &err);
    must(l2cdb_reindex(db, 0, NULL, NULL, &err), &err);
    must(l2cdb_rollback(db, NULL, &err), &err);
    must(l2cdb_rollback(db, NULL, &err), &err);
    drop_unused(db);
}

/* Photos come in, so that every switch has rows to fill. */
_Noreturn static void child_switches(const char *path) {
    l2cdb *db = world_open(path, 1);
    l2cdb_error err;
    for (;;) {
        l2cdb_stats stats;
        must(l2cdb_get_stats(db, &stats, &err), &err);
        if (stats.images < 4 * PHOTOS) {
            world_add(db, (size_t)stats.images, 3, stats.images);
        }
        must(l2cdb_rollback(db, NULL, &err), &err);
    }
}

_Noreturn static void child_changes(const char *path) {
    l2cdb *db = world_open(path, 1);
    for (unsigned i = 0;; i++) {
        change(db, path, i);
    }
}

static int child_tune(const char *path) {
    l2cdb *db = world_open(path, 1);
    l2cdb_error err;
    l2cdb_tune_options o;
    options(&o, path);
    must(l2cdb_tune(db, &o, NULL, &err), &err);
    l2cdb_close(db);
    return 0;
}

/* ---- The parent ---- */

static pid_t start_child(const char *path, const char *what) {
    pid_t pid = fork();
    if (pid == 0) {
        execl(self, self, "child", path, what, (char *)NULL);
        _exit(4);
    }
    assert_true(pid > 0);
    return pid;
}

/* Kills after a random time up to most_ms; the exit status if the child was faster, else -1. */
static int kill_soon(pid_t pid, unsigned most_ms) {
    unsigned ms = (unsigned)((world_draw(&dice) + 1) / 2 * most_ms);
    nanosleep(&(struct timespec){ .tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000 },
              NULL);
    kill(pid, SIGKILL);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFSIGNALED(status)) {
        assert_int_equal(WTERMSIG(status), SIGKILL);
        return -1;
    }
    return WEXITSTATUS(status);
}

static void finding(void *ctx, const char *text, const char *remedy) {
    (void)ctx;
    print_message("check: %s (%s)\n", text, remedy);
}

/* Opens what a death has left and asks it. */
static void verify(const char *path) {
    l2cdb *db = world_open(path, 1);
    l2cdb_error err;
    world_check(db);
    assert_ok(l2cdb_check(db, false, finding, NULL, &err), &err);
    l2cdb_query q;
    l2cdb_query_init(&q);
    q.terms = &(l2cdb_term){ .kind = L2CDB_TERM_CAPTION_ID, .id = 7, .weight = 1 };
    q.terms_count = 1;
    l2cdb_stats stats;
    assert_ok(l2cdb_get_stats(db, &stats, &err), &err);
    q.k = stats.images + 1;
    l2cdb_results *r;
    assert_ok(l2cdb_search(db, &q, &r, &err), &err);
    assert_int_equal(l2cdb_results_count(r), stats.images);
    assert_int_equal(l2cdb_results_timings(r)->generation, world_active(db));
    l2cdb_results_free(r);
    l2cdb_close(db);
}

static void test_deaths(void **state) {
    (void)state;
    const char *wish = getenv("L2CDB_LONG");
    unsigned deaths = wish != NULL && strcmp(wish, "1") == 0 ? 200 : 15;
    char path[4200];
    snprintf(path, sizeof path, "%s/deaths.l2cdb", dir);
    l2cdb *db = world_open(path, 1);
    world_add(db, 0, PHOTOS, 11);
    double start = l2c_now();
    change(db, path, 0); // how long one round takes here, and something to roll back to
    unsigned round_ms = (unsigned)(1000 * (l2c_now() - start));
    l2cdb_close(db);
    unsigned switched = 0;
    int64_t newest = 0, before = 0;
    // Until enough were after a switch, too: how far a child comes is a matter of luck.
    for (unsigned i = 0; i < deaths || ((newest < 3 || switched < 3) && i < 4 * deaths); i++) {
        bool changes = i % 2 == 0;
        int ended = kill_soon(start_child(path, changes ? "changes" : "switches"),
                              changes ? round_ms * 3 / 2 : round_ms / 2);
        if (ended != -1) {
            fail_msg("the child ended by itself with %d", ended);
        }
        verify(path);
        db = world_open(path, 1);
        int64_t active = world_active(db);
        switched += active != before ? 1 : 0;
        before = active;
        newest = active > newest ? active : newest;
        l2cdb_close(db);
    }
    print_message("%u deaths; %u times another generation was active, %lld the newest\n", deaths,
                  switched, (long long)newest);
    assert_true(newest > 2 && switched > 2);
}

/* Writes the heads of the newest generation; false if only the built-in one is there. */
static bool trained_heads(const char *path, l2c_hash *out) {
    l2cdb *db = world_open(path, 1);
    l2cdb_error err;
    l2c_generation list[16];
    size_t count;
    assert_ok(l2c_generations_list(db->store, list, 16, &count, &err), &err);
    assert_true(count >= 1 && count <= 16);
    l2cdb_close(db);
    *out = list[count - 1].heads;
    return count > 1;
}

static void test_resume_after_deaths(void **state) {
    (void)state;
    char whole[4200], parts[4200];
    snprintf(whole, sizeof whole, "%s/whole.l2cdb", dir);
    snprintf(parts, sizeof parts, "%s/parts.l2cdb", dir);
    for (int i = 0; i < 2; i++) {
        l2cdb *db = world_open(i == 0 ? whole : parts, 1);
        world_add(db, 0, PHOTOS, 11);
        l2cdb_close(db);
    }
    int status;
    pid_t pid = start_child(whole, "tune");
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    l2c_hash a, b;
    assert_true(trained_heads(whole, &a));
    // A death after the new generation was stored interrupts no training: another run would start
    // from that generation.
    bool ended = false;
    for (int i = 0; i < 6 && !ended; i++) {
        int code = kill_soon(start_child(parts, "tune"), 900);
        assert_true(code == 0 || code == -1);
        ended = trained_heads(parts, &b);
    }
    if (!ended) {
        pid = start_child(parts, "tune");
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
        assert_true(trained_heads(parts, &b));
    }
    verify(parts);
    assert_memory_equal(&a, &b, sizeof a);
}

int main(int argc, char **argv) {
    if (argc == 4 && strcmp(argv[1], "child") == 0) {
        if (strcmp(argv[3], "tune") == 0) {
            return child_tune(argv[2]);
        }
        if (strcmp(argv[3], "switches") == 0) {
            child_switches(argv[2]);
        }
        child_changes(argv[2]);
    }
    self = argv[0];
    snprintf(dir, sizeof dir, "%s", test_temp_dir());
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_deaths),
        cmocka_unit_test(test_resume_after_deaths),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    char command[4200];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command) == 0 ? failed : 1;
}
