"""A sweep, an experiment whose jobs run on a cluster: from the command line to the last job's result."""
