// The batch as kernels see it: one record a row, the page lists of all sequences, and the rows whose logits are wanted.
struct Row {
    uint token;
    uint position;
    uint pages;     // index of the sequence's first page in `pages`
    uint slice;
};
layout(buffer_reference, scalar, buffer_reference_align = 16) readonly buffer Rows { Row v[]; };
