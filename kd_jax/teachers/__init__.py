"""Teachers: runs, soft labels on disk, files of other frameworks; and warm starts from other runs."""
