/* Files; see file.h. */
#include "engine/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

l2cdb_status l2c_map_open(l2c_map *map, const char *path, l2cdb_error *err) {
    *map = (l2c_map){ 0 };
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return l2c_fail_errno(err, errno, "could not open %s", path);
    }
    struct stat st;
    l2cdb_status rc = L2CDB_OK;
    if (fstat(fd, &st) != 0) {
        rc = l2c_fail_errno(err, errno, "could not stat %s", path);
    } else if (!S_ISREG(st.st_mode)) {
        rc = l2c_fail(err, L2CDB_E_INVALID, "%s is not a regular file", path);
    } else if (st.st_size > 0) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            rc = l2c_fail_errno(err, errno, "could not map %s", path);
        } else {
            map->data = p;
            map->size = (size_t)st.st_size;
        }
    }
    close(fd);
    return rc;
}

void l2c_map_close(l2c_map *map) {
    if (map->data != NULL) {
        munmap((void *)(uintptr_t)map->data, map->size);
    }
    *map = (l2c_map){ 0 };
}

l2cdb_status l2c_file_read(l2c_buf *out, const char *path, size_t size_max, l2cdb_error *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return l2c_fail_errno(err, errno, "could not open %s", path);
    }
    struct stat st;
    size_t expected = 1 << 16;
    if (fstat(fd, &st) == 0) {
        if (S_ISDIR(st.st_mode)) {
            close(fd);
            return l2c_fail(err, L2CDB_E_INVALID, "%s is a directory", path);
        }
        if (S_ISREG(st.st_mode) && st.st_size > 0) {
            expected = (size_t)st.st_size + 1;
        }
    }
    l2cdb_status rc = L2CDB_OK;
    size_t total = 0;
    for (;;) {
        if (expected > size_max) {
            expected = size_max < SIZE_MAX ? size_max + 1 : size_max;
        }
        size_t room = total < expected ? expected - total : 1 << 16;
        if (!l2c_buf_reserve(out, room)) {
            rc = l2c_fail_nomem(err, room);
            break;
        }
        ssize_t n = read(fd, out->data + out->size, room);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            rc = l2c_fail_errno(err, errno, "could not read %s", path);
            break;
        }
        if (n == 0) {
            break;
        }
        total += (size_t)n;
        if (total > size_max) {
            rc = l2c_fail(err, L2CDB_E_LIMIT, "%s is larger than %zu bytes", path, size_max);
            break;
        }
        out->size += (size_t)n;
        out->data[out->size] = '\0';
    }
    close(fd);
    return rc;
}

l2cdb_status l2c_writer_open(l2c_writer *w, const char *path, l2cdb_error *err) {
    *w = (l2c_writer){ .fd = -1 };
    size_t n = strlen(path);
    w->path = l2c_strdup(path);
    w->temp_path = l2c_alloc(n + 32, 1);
    if (w->path == NULL || w->temp_path == NULL) {
        l2c_writer_abort(w);
        return l2c_fail_nomem(err, n + 32);
    }
    snprintf(w->temp_path, n + 32, "%s.tmp%ld", path, (long)getpid());
    w->fd = open(w->temp_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (w->fd < 0) {
        int e = errno;
        l2cdb_status rc = l2c_fail_errno(err, e, "could not create %s", w->temp_path);
        l2c_writer_abort(w);
        return rc;
    }
    return L2CDB_OK;
}

l2cdb_status l2c_writer_write(l2c_writer *w, const void *data, size_t size, l2cdb_error *err) {
    const char *p = data;
    while (size > 0) {
        ssize_t n = write(w->fd, p, size);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return l2c_fail_errno(err, errno, "could not write %s", w->temp_path);
        }
        p += n;
        size -= (size_t)n;
        w->size += (uint64_t)n;
    }
    return L2CDB_OK;
}

l2cdb_status l2c_writer_patch(l2c_writer *w, uint64_t offset, const void *data, size_t size,
                              l2cdb_error *err) {
    const char *p = data;
    while (size > 0) {
        ssize_t n = pwrite(w->fd, p, size, (off_t)offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return l2c_fail_errno(err, errno, "could not write %s", w->temp_path);
        }
        p += n;
        size -= (size_t)n;
        offset += (uint64_t)n;
    }
    return L2CDB_OK;
}

static l2cdb_status sync_directory_of(const char *path, l2cdb_error *err) {
    const char *slash = strrchr(path, '/');
    char *dir = slash == NULL   ? l2c_strdup(".")
                : slash == path ? l2c_strdup("/")
                                : l2c_strndup(path, (size_t)(slash - path));
    if (dir == NULL) {
        return l2c_fail_nomem(err, strlen(path));
    }
    l2cdb_status rc = L2CDB_OK;
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    // Some file systems refuse fsync on a directory with EINVAL; the rename is then as safe as it
    // gets.
    if (fd < 0 || (fsync(fd) != 0 && errno != EINVAL)) {
        rc = l2c_fail_errno(err, errno, "could not sync directory %s", dir);
    }
    if (fd >= 0) {
        close(fd);
    }
    l2c_free(dir);
    return rc;
}

l2cdb_status l2c_writer_commit(l2c_writer *w, l2cdb_error *err) {
    l2cdb_status rc = L2CDB_OK;
    if (fsync(w->fd) != 0) {
        rc = l2c_fail_errno(err, errno, "could not sync %s", w->temp_path);
    }
    if (close(w->fd) != 0 && rc == L2CDB_OK) {
        rc = l2c_fail_errno(err, errno, "could not close %s", w->temp_path);
    }
    w->fd = -1;
    // The commit point: before it open finds the old file, after it the new one.
    if (rc == L2CDB_OK && rename(w->temp_path, w->path) != 0) {
        rc = l2c_fail_errno(err, errno, "could not rename %s to %s", w->temp_path, w->path);
    }
    if (rc == L2CDB_OK) {
        l2c_free(w->temp_path);
        w->temp_path = NULL;
        rc = sync_directory_of(w->path, err);
    }
    l2c_writer_abort(w);
    return rc;
}

void l2c_writer_abort(l2c_writer *w) {
    if (w->path == NULL && w->temp_path == NULL) {
        return; // closed or zeroed: fd 0 would be somebody else's
    }
    if (w->fd >= 0) {
        close(w->fd);
    }
    if (w->temp_path != NULL) {
        unlink(w->temp_path);
    }
    l2c_free(w->path);
    l2c_free(w->temp_path);
    *w = (l2c_writer){ .fd = -1 };
}

l2cdb_status l2c_file_replace(const char *path, const void *data, size_t size, l2cdb_error *err) {
    l2c_writer w;
    l2cdb_status rc = l2c_writer_open(&w, path, err);
    if (rc != L2CDB_OK) {
        return rc;
    }
    rc = l2c_writer_write(&w, data, size, err);
    if (rc != L2CDB_OK) {
        l2c_writer_abort(&w);
        return rc;
    }
    return l2c_writer_commit(&w, err);
}

bool l2c_path_is_dir(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool l2c_path_exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0;
}

char *l2c_path_join(const char *dir, const char *name) {
    size_t n = strlen(dir);
    size_t m = strlen(name);
    bool slash = n > 0 && dir[n - 1] != '/';
    char *out = l2c_alloc(n + m + 2, 1);
    if (out != NULL) {
        snprintf(out, n + m + 2, "%s%s%s", dir, slash ? "/" : "", name);
    }
    return out;
}

const char *l2c_path_base(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}
