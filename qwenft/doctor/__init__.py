"""What is wrong with a machine, a model, a data set or a run, and the mend: quick checks, each bounded in time."""
