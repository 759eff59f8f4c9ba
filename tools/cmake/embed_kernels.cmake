# Writes OUT: every file named in LIST (relative to ROOT) as a NUL-terminated byte array, and the table of host/runtime/embedded.h.
# Byte arrays, because compilers limit the length of string literals.
file(STRINGS ${LIST} names)
set(arrays "")
set(rows "")
set(n 0)
foreach(name IN LISTS names)
    file(READ ${ROOT}/${name} hex HEX)
    string(LENGTH "${hex}" n_digits)
    math(EXPR n_bytes "${n_digits} / 2")
    string(REGEX REPLACE "(..)" "0x\\1," hex "${hex}")
    set(eight "0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,")
    string(REGEX REPLACE "(${eight}${eight}${eight}${eight})" "\\1\n" hex "${hex}") # short lines for debuggers and editors
    string(APPEND arrays "static const unsigned char kernel_${n}[] = {\n${hex}0x00\n};\n\n")
    string(APPEND rows "    {\"${name}\", (const char *)kernel_${n}, ${n_bytes}},\n")
    math(EXPR n "${n} + 1")
endforeach()
file(WRITE ${OUT} "/* Generated from the files of kernels/. */
#include \"runtime/embedded.h\"

${arrays}const struct tp_embedded_kernel tp_embedded_kernels[] = {
${rows}    {NULL, NULL, 0},
};
const size_t tp_n_embedded_kernels = ${n};
")
