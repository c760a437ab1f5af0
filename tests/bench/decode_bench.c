/* What a photo costs before the tower: decode, turn, resize, thumbnail; and what the fast resize is
 * worth against the plain one, in pairs of runs that alternate.
 *
 *   decode_bench [FOLDER] [LOOPS]      default: ../shared/data/coco-open/images, 5 loops
 *
 * One thread; milliseconds a photo are medians over the loops, so that a neighbour's burst of work
 * does not count. */
#include "tests/test.h"

#include <dirent.h>
#include <time.h>

#include "encoders/encoders.h"
#include "encoders/pixels.h"
#include "engine/base/file.h"

#define LOOPS_MAX 100
#define SIDE 224
#define THUMBNAIL_SIDE 256

typedef struct times {
    double ms[LOOPS_MAX];
    size_t count;
} times;

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(times *t) {
    qsort(t->ms, t->count, sizeof t->ms[0], by_value);
    return t->ms[t->count / 2];
}

typedef struct photos {
    l2c_buf *files;
    l2c_image *images;
    size_t count;
    double megapixels, megabytes;
} photos;

static void die(const char *what, const l2cdb_error *err) {
    fprintf(stderr, "%s: %s\n", what, err->message);
    exit(1);
}

static photos load(const char *folder) {
    photos p = { 0 };
    DIR *d = opendir(folder);
    if (d == NULL) {
        fprintf(stderr, "could not open the folder %s\n", folder);
        exit(1);
    }
    for (struct dirent *e = readdir(d); e != NULL; e = readdir(d)) {
        char path[4600];
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        l2cdb_error err;
        l2c_buf file;
        l2c_image image;
        l2c_buf_init(&file);
        if (l2c_file_read(&file, path, (size_t)1 << 29, &err) != L2CDB_OK ||
            l2c_image_decode(&image, (const uint8_t *)file.data, file.size, L2C_DECODE_USER, NULL,
                             &err) != L2CDB_OK) {
            l2c_buf_fini(&file);
            continue;
        }
        p.files = realloc(p.files, (p.count + 1) * sizeof *p.files);
        p.images = realloc(p.images, (p.count + 1) * sizeof *p.images);
        p.files[p.count] = file;
        p.images[p.count++] = image;
        p.megapixels += image.width * (double)image.height / 1e6;
        p.megabytes += (double)file.size / 1e6;
    }
    closedir(d);
    return p;
}

static double decode_all(const photos *p) {
    double start = now_ms();
    for (size_t i = 0; i < p->count; i++) {
        l2c_image image;
        l2cdb_error err;
        if (l2c_image_decode(&image, (const uint8_t *)p->files[i].data, p->files[i].size,
                             L2C_DECODE_USER, NULL, &err) != L2CDB_OK) {
            die("decode", &err);
        }
        l2c_image_fini(&image);
    }
    return now_ms() - start;
}

static double resize_all(const photos *p, l2c_pixels_kernel kernel) {
    static uint8_t out[SIDE * SIDE * 3];
    l2c_pixels_config c;
    l2c_pixels_config_init(&c, SIDE);
    double start = now_ms();
    for (size_t i = 0; i < p->count; i++) {
        const l2c_image *m = &p->images[i];
        l2c_pixels_window w = l2c_pixels_window_of(&c, m->width, m->height);
        l2cdb_error err;
        if (l2c_pixels_resize_with(kernel, out, &w, m->rgb, m->width, m->height, &err) !=
            L2CDB_OK) {
            die("resize", &err);
        }
    }
    return now_ms() - start;
}

static double preprocess_all(const photos *p) {
    static float out[SIDE * SIDE * 3];
    l2c_pixels_config c;
    l2c_pixels_config_init(&c, SIDE);
    double start = now_ms();
    for (size_t i = 0; i < p->count; i++) {
        const l2c_image *m = &p->images[i];
        l2cdb_error err;
        if (l2c_pixels_preprocess(&c, out, m->rgb, m->width, m->height, &err) != L2CDB_OK) {
            die("preprocess", &err);
        }
    }
    return now_ms() - start;
}

static double thumbnail_all(const photos *p) {
    double start = now_ms();
    for (size_t i = 0; i < p->count; i++) {
        l2c_buf jpeg;
        l2cdb_error err;
        l2c_buf_init(&jpeg);
        if (l2c_image_thumbnail(&jpeg, &p->images[i], THUMBNAIL_SIDE, &err) != L2CDB_OK) {
            die("thumbnail", &err);
        }
        l2c_buf_fini(&jpeg);
    }
    return now_ms() - start;
}

int main(int argc, char **argv) {
    photos p = load(argc > 1 ? argv[1] : test_shared("data/coco-open/images"));
    size_t loops = argc > 2 ? strtoul(argv[2], NULL, 10) : 5;
    loops = loops < 1 ? 1 : loops > LOOPS_MAX ? LOOPS_MAX : loops;
    if (p.count == 0) {
        fprintf(stderr, "the folder holds no photo\n");
        return 1;
    }
    static times decode, plain, kernels[3], preprocess, thumbnail;
    l2c_pixels_kernel best = l2c_pixels_kernel_best();
    for (size_t i = 0; i < loops; i++) {
        decode.ms[decode.count++] = decode_all(&p);
        plain.ms[plain.count++] = resize_all(&p, L2C_PIXELS_PLAIN);
        for (l2c_pixels_kernel k = L2C_PIXELS_AVX2; k <= best; k++) {
            kernels[k].ms[kernels[k].count++] = resize_all(&p, k);
        }
        preprocess.ms[preprocess.count++] = preprocess_all(&p);
        thumbnail.ms[thumbnail.count++] = thumbnail_all(&p);
    }
    double n = (double)p.count;
    printf("%zu photos, %.2f megapixels and %.2f MB each, %zu loops\n", p.count, p.megapixels / n,
           p.megabytes / n, loops);
    double d = median(&decode);
    printf("decode            %8.3f ms a photo   %6.1f megapixels/s\n", d / n,
           p.megapixels / d * 1e3);
    double referee = median(&plain);
    printf("resize plain      %8.3f ms a photo\n", referee / n);
    for (l2c_pixels_kernel k = L2C_PIXELS_AVX2; k <= best; k++) {
        double fast = median(&kernels[k]);
        printf("resize %-10s %8.3f ms a photo   %6.2f x plain\n", l2c_pixels_kernel_name(k),
               fast / n, referee / fast);
    }
    printf("preprocess        %8.3f ms a photo   (resize, crop, normalise to f32)\n",
           median(&preprocess) / n);
    printf("thumbnail %4d    %8.3f ms a photo\n", THUMBNAIL_SIDE, median(&thumbnail) / n);
    for (size_t i = 0; i < p.count; i++) {
        l2c_image_fini(&p.images[i]);
        l2c_buf_fini(&p.files[i]);
    }
    free(p.images);
    free(p.files);
    return 0;
}
