"""Layouts of files of interactions, one file of code each: bytes -> pieces of lines -> blocks of columns -> values.

`raw` decompresses; `delimited`, `per_user`, `json_lines` and `parquet` cut rows into columns of text, of which `table`
chooses by name or number; `checked` checks every value. `sniff` recognises what a file needs, and `parts` the files of
a published split; `entities` reads tables of users or items. Rows that are read are kept, refused or missing a value,
and the three numbers add up.
"""
