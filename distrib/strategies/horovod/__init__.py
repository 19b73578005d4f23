"""Data parallelism by Horovod."""
