"""Files: sealed directories, checkpoints, and the directory of a run."""
