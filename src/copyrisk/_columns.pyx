"""How the fields of a hash become columns: numbers, times, names, words and short texts.

What a field holds that is not of its grammar is a bit in the row, not an error: the connection is sound, the value is
not. `_columns.pxd` has the functions that read one.
"""
from libc.string cimport memcpy


cdef class Columns:
    """See `_columns.pyi`."""

    def __init__(self, dtype, words):
        names = [name for name in dtype.names if name not in ("absent", "invalid", "reply")]
        if len(names) > MAX_COLUMNS:
            raise ValueError(f"at most {MAX_COLUMNS} columns")
        if not dtype.isalignedstruct:
            raise ValueError("the dtype must be aligned: its columns are written in place")
        self.dtype, self.fields = dtype, tuple(names)
        self.schema.n, self.schema.itemsize = len(names), dtype.itemsize
        self.schema.absent_at, self.schema.invalid_at, self.schema.reply_at = (
            dtype.fields[name][1] for name in ("absent", "invalid", "reply"))
        for i, name in enumerate(names):
            form, offset = dtype.fields[name][:2]
            self.schema.columns[i].offset, self.schema.columns[i].size = offset, form.itemsize
            self.schema.columns[i].kind = {"f8": DECIMAL, "i8": EPOCH_MS, "i4": NAME, "u1": WORD}.get(form.str[1:], TEXT)
            self._set_words(i, words.get(name, ()))

    def _set_words(self, int i, words):
        if len(words) > MAX_WORDS or any(not 0 < len(word) <= MAX_WORD for word in words):
            raise ValueError(f"at most {MAX_WORDS} words of 1 to {MAX_WORD} characters")
        self.schema.columns[i].n_words = len(words)
        for k, word in enumerate(words):
            self.schema.columns[i].word_sizes[k] = len(word)
            text = word.encode("ascii")
            memcpy(self.schema.columns[i].words[k], <const char*>text, len(text))
