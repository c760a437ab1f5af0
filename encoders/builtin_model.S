/* The default model, l2c-mini, inside the program: the bytes of encoders/l2c-mini as they are, except
 * that its tokenizer is compiled. The build passes the files' paths. Each begins at a page, so that
 * weights are mapped when they are read and not before. */
    .section .rodata

    .macro embed name, file
    .balign 4096
    .globl \name
    .globl \name\()_end
    .hidden \name
    .hidden \name\()_end
\name:
    .incbin "\file"
\name\()_end:
    .byte 0
    .endm

    embed l2c_mini_llm_weights, L2C_MINI_LLM_WEIGHTS
    embed l2c_mini_llm_config, L2C_MINI_LLM_CONFIG
    embed l2c_mini_tokenizer, L2C_MINI_TOKENIZER
    embed l2c_mini_vision_weights, L2C_MINI_VISION_WEIGHTS
    embed l2c_mini_vision_config, L2C_MINI_VISION_CONFIG
    embed l2c_mini_pixels, L2C_MINI_PIXELS
    embed l2c_mini_fingerprints, L2C_MINI_FINGERPRINTS

    .section .note.GNU-stack, "", @progbits
