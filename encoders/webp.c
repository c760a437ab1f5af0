/* WebP through libwebp and its demuxer: lossy, lossless, alpha; of an animation the first frame,
 * laid on an empty canvas.
 *
 * The frame is decoded straight into its place in the canvas, in portions of the file between which
 * the time is checked. libwebp allocates by itself, in proportion to the size that the limits have
 * passed. */
#include <string.h>

#include <webp/decode.h>
#include <webp/demux.h>

#include "encoders/image.h"

#define NAME "WebP"
#define PORTION_BYTES ((size_t)256 << 10)

static l2cdb_status fail_cut(const l2c_image_job *job, l2cdb_error *err) {
    const uint8_t *b = job->bytes + 4; // the sniffing has seen 12 bytes
    uint64_t promised =
        ((uint64_t)b[0] | (uint64_t)b[1] << 8 | (uint64_t)b[2] << 16 | (uint64_t)b[3] << 24) + 8;
    if (promised > job->size) {
        l2c_fail(err, L2CDB_E_FORMAT, NAME ": the file has %zu bytes, its header promises %llu",
                 job->size, (unsigned long long)promised);
        return l2c_hint(err, "copy or download the photo again: it is cut off");
    }
    l2c_fail(err, L2CDB_E_FORMAT, NAME ": the chunks of the file make no picture");
    return l2c_hint(err, "restore the photo from another copy");
}

static l2cdb_status fail_status(VP8StatusCode status, size_t at, l2cdb_error *err) {
    if (status == VP8_STATUS_OUT_OF_MEMORY) {
        return l2c_fail(err, L2CDB_E_NOMEM, NAME ": out of memory");
    }
    l2c_fail(err, L2CDB_E_FORMAT, NAME ": the picture's data %s, near byte %zu",
             status == VP8_STATUS_SUSPENDED || status == VP8_STATUS_NOT_ENOUGH_DATA ? "end early"
                                                                                    : "are damaged",
             at);
    return l2c_hint(err, "restore the photo from another copy");
}

/* Decodes `frame` into its place in `canvas` of `channels` bytes a pixel. */
static l2cdb_status decode_frame(uint8_t *canvas, size_t channels, const WebPIterator *frame,
                                 const l2c_image *image, const l2c_image_job *job,
                                 l2cdb_error *err) {
    size_t stride = image->width * channels;
    size_t start = (size_t)frame->y_offset * stride + (size_t)frame->x_offset * channels;
    WebPDecoderConfig config;
    if (!WebPInitDecoderConfig(&config)) {
        return l2c_fail(err, L2CDB_E_INTERNAL, "libwebp is of another version than its header");
    }
    config.output.colorspace = channels == 4 ? MODE_RGBA : MODE_RGB;
    config.output.is_external_memory = 1;
    config.output.u.RGBA.rgba = canvas + start;
    config.output.u.RGBA.stride = (int)stride;
    config.output.u.RGBA.size = stride * image->height - start;

    const uint8_t *bytes = frame->fragment.bytes;
    size_t size = frame->fragment.size, given = 0;
    // lossless frames of an animation may be bare; a size of the bitstream that differs is an error
    VP8StatusCode status = WebPGetFeatures(bytes, size, &config.input);
    if (status == VP8_STATUS_OK &&
        (config.input.width != frame->width || config.input.height != frame->height)) {
        status = VP8_STATUS_BITSTREAM_ERROR;
    }
    if (status != VP8_STATUS_OK) {
        return fail_status(status, (size_t)(bytes - job->bytes), err);
    }
    WebPIDecoder *decoder = WebPIDecode(NULL, 0, &config);
    if (decoder == NULL) {
        return l2c_fail_nomem(err, 0);
    }
    l2cdb_status rc = L2CDB_OK;
    do {
        given = size - given < PORTION_BYTES ? size : given + PORTION_BYTES;
        status = WebPIUpdate(decoder, bytes, given);
        if (l2c_image_late(job)) {
            rc = l2c_image_fail_late(job, NAME, err);
            break;
        }
    } while (status == VP8_STATUS_SUSPENDED && given < size);
    if (rc == L2CDB_OK && status != VP8_STATUS_OK) {
        rc = fail_status(status, (size_t)(bytes - job->bytes) + given, err);
    }
    WebPIDelete(decoder);
    WebPFreeDecBuffer(&config.output);
    return rc;
}

static l2cdb_status decode_canvas(l2c_image *out, const WebPIterator *frame,
                                  const l2c_image_job *job, l2cdb_error *err) {
    size_t pixels = (size_t)out->width * out->height;
    bool whole = frame->width == (int)out->width && frame->height == (int)out->height;
    bool blend = (job->flags & L2C_DECODE_ALPHA_WHITE) != 0 && (frame->has_alpha || !whole);
    if (!blend) {
        if (!whole) {
            memset(out->rgb, 0, pixels * 3);
        }
        return decode_frame(out->rgb, 3, frame, out, job, err);
    }
    uint8_t *rgba = l2c_calloc(pixels, 4);
    if (rgba == NULL) {
        return l2c_fail_nomem(err, (uint64_t)pixels * 4);
    }
    l2cdb_status rc = decode_frame(rgba, 4, frame, out, job, err);
    if (rc == L2CDB_OK) {
        l2c_image_blend(out->rgb, rgba, pixels);
    }
    l2c_free(rgba);
    return rc;
}

static void read_exif(l2c_image *out, const WebPDemuxer *demuxer) {
    WebPChunkIterator chunk;
    if (WebPDemuxGetChunk(demuxer, "EXIF", 1, &chunk)) {
        l2c_exif_read(&out->meta, chunk.chunk.bytes, chunk.chunk.size);
    }
    WebPDemuxReleaseChunkIterator(&chunk);
}

l2cdb_status l2c_webp_decode(l2c_image *out, const l2c_image_job *job, l2cdb_error *err) {
    WebPData data = { .bytes = job->bytes, .size = job->size };
    WebPDemuxer *demuxer = WebPDemux(&data);
    if (demuxer == NULL) {
        return fail_cut(job, err);
    }
    WebPIterator frame;
    memset(&frame, 0, sizeof frame);
    l2cdb_status rc = l2c_image_begin(out, job, NAME, WebPDemuxGetI(demuxer, WEBP_FF_CANVAS_WIDTH),
                                      WebPDemuxGetI(demuxer, WEBP_FF_CANVAS_HEIGHT), err);
    if (rc == L2CDB_OK) {
        rc = WebPDemuxGetFrame(demuxer, 1, &frame) ? decode_canvas(out, &frame, job, err)
                                                   : fail_cut(job, err);
    }
    if (rc == L2CDB_OK) {
        read_exif(out, demuxer);
    }
    WebPDemuxReleaseIterator(&frame);
    WebPDemuxDelete(demuxer);
    return rc;
}
