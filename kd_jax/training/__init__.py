"""Pure functions of training: the graph of a run, its batches, its distillation targets, one step, one epoch."""
