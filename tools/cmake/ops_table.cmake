# Writes OUT: the table of all ops (declared in host/graph/op.h): every `const struct tp_op tp_op_<name>` defined in the files of LIST,
# sorted by name.
file(STRINGS ${LIST} files)
set(names "")
foreach(file IN LISTS files)
    file(STRINGS ${file} lines REGEX "^const struct tp_op tp_op_[a-z0-9_]+ = ")
    foreach(line IN LISTS lines)
        string(REGEX REPLACE "^const struct tp_op (tp_op_[a-z0-9_]+) = .*" "\\1" name "${line}")
        list(APPEND names ${name})
    endforeach()
endforeach()
list(SORT names)
set(declarations "")
set(rows "")
foreach(name IN LISTS names)
    string(APPEND declarations "extern const struct tp_op ${name};\n")
    string(APPEND rows "    &${name},\n")
endforeach()
list(LENGTH names n)
file(WRITE ${OUT} "/* Generated from host/ops. */
#include <stddef.h>

struct tp_op;
extern const struct tp_op *const tp_ops[];
extern const size_t tp_n_ops;
${declarations}
const struct tp_op *const tp_ops[] = {
${rows}    NULL,
};
const size_t tp_n_ops = ${n};
")
