/* The files of the page as bytes of the program: symbol … symbol_end. */
    .section .rodata

.macro file name, path
    .global \name
    .global \name\()_end
    .hidden \name
    .hidden \name\()_end
    .balign 16
\name:
    .incbin "\path"
\name\()_end:
    .byte 0
.endm

    file l2c_page_html, "cli/serve/page/index.html"
    file l2c_page_css, "cli/serve/page/app.css"
    file l2c_page_js, "cli/serve/page/app.js"
    file l2c_page_icon, "cli/serve/page/icon.svg"
    file l2c_page_openapi, "docs/openapi.yaml"

    .section .note.GNU-stack, "", %progbits
