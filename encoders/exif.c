/* EXIF through libexif: the four things that a database of photos wants to know.
 *
 * EXIF is written by thousands of cameras and editors, often wrongly. Every field is judged by
 * itself: its type, its count, its range; one that fails is left out. Source: CIPA DC-008 (Exif
 * 2.32), sections 4.6.4 to 4.6.6. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <libexif/exif-data.h>

#include "encoders/image.h"
#include "engine/base/utf8.h"

#define EXIF_BYTES_MAX ((size_t)1 << 20) // a JPEG holds 64 KiB of it, more is not a camera's

static const char prefix[6] = "Exif\0"; // and the literal's own NUL

/* ---- Fields -------------------------------------------------------------------------------- */

static const ExifEntry *find(ExifData *data, ExifIfd ifd, ExifTag tag, ExifFormat format,
                             unsigned long components, size_t bytes) {
    const ExifEntry *e = exif_content_get_entry(data->ifd[ifd], tag);
    if (e == NULL || e->data == NULL || e->format != format || e->components < components ||
        e->size < bytes) {
        return NULL;
    }
    return e;
}

/* The text of an ASCII field without surrounding blanks; control characters become blanks, and a
 * text that is not UTF-8 keeps its ASCII characters. */
static void text(char *out, size_t size, ExifData *data, ExifIfd ifd, ExifTag tag) {
    out[0] = 0;
    const ExifEntry *e = find(data, ifd, tag, EXIF_FORMAT_ASCII, 1, 1);
    if (e == NULL) {
        return;
    }
    const char *s = (const char *)e->data;
    size_t n = strnlen(s, e->size);
    bool utf8 = l2c_utf8_valid(s, n, NULL);
    size_t used = 0;
    for (size_t i = 0; i < n && used + 1 < size; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c >= 0x80 && !utf8) {
            continue;
        }
        char keep = c < 0x20 || c == 0x7f ? ' ' : (char)c;
        if (keep == ' ' && used == 0) {
            continue;
        }
        out[used++] = keep;
    }
    size_t bad = used;
    if (!l2c_utf8_valid(out, used, &bad)) {
        used = bad; // cut within a character
    }
    while (used > 0 && out[used - 1] == ' ') {
        used--;
    }
    out[used] = 0;
}

static bool same_letter(char a, char b) {
    char x = a >= 'A' && a <= 'Z' ? (char)(a + 32) : a;
    char y = b >= 'A' && b <= 'Z' ? (char)(b + 32) : b;
    return x == y;
}

/* "FUJIFILM" + "X100V" → "FUJIFILM X100V", but "NIKON CORPORATION" + "NIKON D750" → "NIKON D750":
 * a model that begins with the first word of the make says it all. */
static void read_camera(l2c_image_meta *meta, ExifData *data) {
    char make[48], model[48];
    text(make, sizeof make, data, EXIF_IFD_0, EXIF_TAG_MAKE);
    text(model, sizeof model, data, EXIF_IFD_0, EXIF_TAG_MODEL);
    size_t word = strcspn(make, " "), same = 0;
    while (same < word && same_letter(make[same], model[same])) {
        same++;
    }
    if (model[0] == 0 || make[0] == 0 || same == word) {
        snprintf(meta->camera, sizeof meta->camera, "%s", model[0] != 0 ? model : make);
    } else {
        snprintf(meta->camera, sizeof meta->camera, "%s %s", make, model);
    }
}

/* ---- Time ---------------------------------------------------------------------------------- */

/* The number written in s[at .. at+digits), or -1. */
static int number(const char *s, size_t at, size_t digits) {
    int value = 0;
    for (size_t i = at; i < at + digits; i++) {
        if (s[i] < '0' || s[i] > '9') {
            return -1;
        }
        value = value * 10 + (s[i] - '0');
    }
    return value;
}

static int days_of(int year, int month) {
    static const int days[] = { 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 };
    bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    return days[month - 1] + (month == 2 && leap ? 1 : 0);
}

/* "2023:05:01 12:34:56" → "2023-05-01T12:34:56"; false if it is not a moment of the calendar. */
static bool moment(char out[20], const char *s) {
    if (strlen(s) != 19 || (s[4] != ':' && s[4] != '-') || s[7] != s[4] ||
        (s[10] != ' ' && s[10] != 'T') || s[13] != ':' || s[16] != ':') {
        return false;
    }
    int year = number(s, 0, 4), month = number(s, 5, 2), day = number(s, 8, 2);
    int hour = number(s, 11, 2), minute = number(s, 14, 2), second = number(s, 17, 2);
    if (year < 1 || month < 1 || month > 12 || day < 1 || day > days_of(year, month) || hour < 0 ||
        hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 60) {
        return false;
    }
    memcpy(out, s, 20);
    out[4] = out[7] = '-';
    out[10] = 'T';
    return true;
}

/* "+02:00", or "Z". */
static bool is_offset(const char *s) {
    if (strcmp(s, "Z") == 0) {
        return true;
    }
    if (strlen(s) != 6 || (s[0] != '+' && s[0] != '-') || s[3] != ':') {
        return false;
    }
    int hours = number(s, 1, 2), minutes = number(s, 4, 2);
    return hours >= 0 && hours <= 14 && minutes >= 0 && minutes <= 59;
}

/* The moment of exposure; that of digitisation where a scanner wrote only this one. */
static void read_time(l2c_image_meta *meta, ExifData *data) {
    static const ExifTag tags[][2] = {
        { EXIF_TAG_DATE_TIME_ORIGINAL, EXIF_TAG_OFFSET_TIME_ORIGINAL },
        { EXIF_TAG_DATE_TIME_DIGITIZED, EXIF_TAG_OFFSET_TIME_DIGITIZED },
    };
    for (size_t i = 0; i < 2; i++) {
        char written[24], offset[12], iso[20];
        text(written, sizeof written, data, EXIF_IFD_EXIF, tags[i][0]);
        text(offset, sizeof offset, data, EXIF_IFD_EXIF, tags[i][1]);
        if (moment(iso, written)) {
            snprintf(meta->taken_at, sizeof meta->taken_at, "%s%s", iso,
                     is_offset(offset) ? offset : "");
            return;
        }
    }
}

/* ---- Place --------------------------------------------------------------------------------- */

/* Degrees, minutes and seconds with a sign by `reference`; NAN if anything is amiss. */
static double degrees(ExifData *data, ExifTag tag, ExifTag reference, char positive, char negative,
                      double most) {
    ExifByteOrder order = exif_data_get_byte_order(data);
    const ExifEntry *e = find(data, EXIF_IFD_GPS, tag, EXIF_FORMAT_RATIONAL, 3, 24);
    char side[4];
    text(side, sizeof side, data, EXIF_IFD_GPS, reference);
    if (e == NULL || (side[0] != positive && side[0] != negative)) {
        return NAN;
    }
    static const double units[] = { 1, 60, 3600 };
    double sum = 0;
    for (size_t i = 0; i < 3; i++) {
        ExifRational r = exif_get_rational(e->data + 8 * i, order);
        if (r.denominator == 0 && (r.numerator != 0 || i == 0)) {
            return NAN;
        }
        // 0/0 is how some phones leave the seconds out
        sum += r.denominator == 0 ? 0 : (double)r.numerator / (double)r.denominator / units[i];
    }
    return sum > most ? NAN : side[0] == negative ? -sum : sum;
}

static void read_place(l2c_image_meta *meta, ExifData *data) {
    double latitude = degrees(data, (ExifTag)EXIF_TAG_GPS_LATITUDE,
                              (ExifTag)EXIF_TAG_GPS_LATITUDE_REF, 'N', 'S', 90);
    double longitude = degrees(data, (ExifTag)EXIF_TAG_GPS_LONGITUDE,
                               (ExifTag)EXIF_TAG_GPS_LONGITUDE_REF, 'E', 'W', 180);
    if (isfinite(latitude) && isfinite(longitude)) {
        meta->has_gps = true;
        meta->latitude = latitude;
        meta->longitude = longitude;
    }
}

/* ---- All ----------------------------------------------------------------------------------- */

static void read_orientation(l2c_image_meta *meta, ExifData *data) {
    ExifByteOrder order = exif_data_get_byte_order(data);
    const ExifEntry *e = find(data, EXIF_IFD_0, EXIF_TAG_ORIENTATION, EXIF_FORMAT_SHORT, 1, 2);
    if (e != NULL) {
        ExifShort value = exif_get_short(e->data, order);
        if (value >= 1 && value <= 8) {
            meta->orientation = value;
        }
    }
}

static void *zeroed(ExifLong size) {
    return l2c_calloc(1, size);
}

static void *resized(void *p, ExifLong size) {
    return l2c_realloc(p, 1, size);
}

static void read_all(l2c_image_meta *meta, ExifMem *mem, const uint8_t *bytes, size_t size) {
    ExifData *data = exif_data_new_mem(mem);
    if (data == NULL) {
        return;
    }
    exif_data_unset_option(data, EXIF_DATA_OPTION_FOLLOW_SPECIFICATION); // nothing is to be mended
    exif_data_load_data(data, bytes, (unsigned)size);
    read_orientation(meta, data);
    read_time(meta, data);
    read_camera(meta, data);
    read_place(meta, data);
    exif_data_unref(data);
}

void l2c_exif_read(l2c_image_meta *meta, const uint8_t *bytes, size_t size) {
    if (size == 0 || size > EXIF_BYTES_MAX) {
        return;
    }
    ExifMem *mem = exif_mem_new(zeroed, resized, l2c_free);
    if (mem == NULL) {
        return;
    }
    if (size >= sizeof prefix && memcmp(bytes, prefix, sizeof prefix) == 0) {
        read_all(meta, mem, bytes, size);
    } else {
        uint8_t *whole = l2c_alloc(size + sizeof prefix, 1);
        if (whole != NULL) {
            memcpy(whole, prefix, sizeof prefix);
            memcpy(whole + sizeof prefix, bytes, size);
            read_all(meta, mem, whole, size + sizeof prefix);
            l2c_free(whole);
        }
    }
    exif_mem_unref(mem);
}
