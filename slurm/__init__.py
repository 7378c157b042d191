"""Experiments and the jobs that they are made of. The only package that may import all the others."""
