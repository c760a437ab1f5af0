/* Every tolerance of the encoders' parity tests, in one place. Absolute limits of the small
 * fixtures are not here: each golden array brings its own (ten times what f64 against f32 costs).
 */
#ifndef L2C_TEST_TOLERANCES_H
#define L2C_TEST_TOLERANCES_H

/* Cosine between our vector and the reference's, the worst row. */
#define TOL_COS_FIXTURE_F32 0.9999    /* every layout of fixtures/llm2clip */
#define TOL_COS_MINI_TEXT_F32 0.99999 /* l2c-mini against models/l2c-mini/reference */
#define TOL_COS_MINI_IMAGE_F32 0.9999 /* JPEG decoders differ by a grey level */
#define TOL_COS_MINI_BF16 0.9995
#define TOL_COS_MINI_INT8 0.999
/* The fixtures have random weights and widths of 24 to 144: rounding shows more than in a real
 * model of that precision. */
#define TOL_COS_FIXTURE_BF16 0.999
#define TOL_COS_FIXTURE_INT8 0.99
/* W + s B A is rounded to bf16 once here and twice by PEFT: one weight in 20,000 becomes its other
 * neighbour, which the fixture's own limit allows for only barely. */
#define TOL_LORA_SLACK 1.5
/* stories260K, a trained model: f32 against numpy in f64, numbers of size 7 printed with 6 places.
 */
#define TOL_ABS_STORIES 5e-5
/* vit-tiny: numpy f32, numbers of size 10. */
#define TOL_COS_VIT_TINY 0.99999

#endif
