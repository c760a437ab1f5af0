/* From RGB8 to what a vision tower reads: resize, centre crop, normalise. And the resize by itself,
 * for thumbnails.
 *
 *   l2c_pixels_config c;
 *   l2c_pixels_config_init(&c, 224);
 *   l2c_pixels_preprocess(&c, out, rgb, width, height, &err);        // out f32 [3,224,224]
 *
 * The resize is Pillow's antialiased bicubic to the last bit: coefficients of 22 bits, a horizontal
 * pass into bytes, then a vertical one; only the pixels that the crop keeps are computed. Fast
 * forms give the same integers as the plain one, which stays as their referee.
 * Source: design notes 4.1 and 4.2; Pillow up to 12.1 (the pass order is part of the contract). */
#ifndef L2C_PIXELS_H
#define L2C_PIXELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/status.h"

#define L2C_PIXELS_SIDE_MAX 4096

/* What preprocessor_config.json says; a plain value that other structs may embed. */
typedef struct l2c_pixels_config {
    uint32_t resize_side;  /* the short side after the resize; both sides if `squash` */
    uint32_t crop_side;    /* S, at most resize_side */
    bool squash;           /* resize to a square without keeping the aspect */
    float rescale;         /* 1/255: bytes to 0–1 */
    float mean[3], std[3]; /* by channel, after `rescale`; std > 0 */
} l2c_pixels_config;

/* The settings of OpenAI's CLIP for a side of S pixels, which every released model uses. */
void l2c_pixels_config_init(l2c_pixels_config *c, uint32_t side);

/* E_INVALID, naming the field: a side of 0 or over L2C_PIXELS_SIDE_MAX, a crop larger than the
 * resized picture, a std, mean or rescale that is not finite or not positive. */
l2cdb_status l2c_pixels_config_check(const l2c_pixels_config *c, l2cdb_error *err);

/* rgb u8 [height, width, 3], borrowed → out f32 [3, crop_side, crop_side], caller-owned:
 * (value * rescale - mean[c]) / std[c]. `c` must have passed the check. E_INVALID for an empty
 * picture, E_NOMEM. Any thread. */
l2cdb_status l2c_pixels_preprocess(const l2c_pixels_config *c, float *out, const uint8_t *rgb,
                                   uint32_t width, uint32_t height, l2cdb_error *err);

/* A resize to full_width x full_height of which only the window is computed. */
typedef struct l2c_pixels_window {
    uint64_t full_width, full_height;
    uint64_t left, top;
    uint32_t width, height; /* left + width <= full_width, top + height <= full_height */
} l2c_pixels_window;

/* The window that `c` wants of a picture of this size: long side floor(side * long / short), then
 * crop at (full - crop) / 2, rounded down. */
l2c_pixels_window l2c_pixels_window_of(const l2c_pixels_config *c, uint32_t width, uint32_t height);

/* rgb u8 [height, width, 3] → out u8 [window.height, window.width, 3], both without padding.
 * E_INVALID for an empty picture or a window outside of it, E_NOMEM. Any thread. */
l2cdb_status l2c_pixels_resize(uint8_t *out, const l2c_pixels_window *window, const uint8_t *rgb,
                               uint32_t width, uint32_t height, l2cdb_error *err);

/* The same with the inner loops named, for tests and benchmarks. */
typedef enum l2c_pixels_kernel {
    L2C_PIXELS_PLAIN, /* the referee */
    L2C_PIXELS_AVX2,
    L2C_PIXELS_AVX512,
} l2c_pixels_kernel;

/* What l2c_pixels_resize uses on this processor; every smaller value may be used as well. */
l2c_pixels_kernel l2c_pixels_kernel_best(void);
const char *l2c_pixels_kernel_name(l2c_pixels_kernel kernel);
l2cdb_status l2c_pixels_resize_with(l2c_pixels_kernel kernel, uint8_t *out,
                                    const l2c_pixels_window *window, const uint8_t *rgb,
                                    uint32_t width, uint32_t height, l2cdb_error *err);

#endif
