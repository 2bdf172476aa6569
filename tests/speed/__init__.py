"""Benchmarks, and the plain formulations that they compare with.

bench            the command, `make bench`
bench_proposals  selective search: seconds an image of one core, and what they buy
bench_readers    images in random order from folder, zip and tar; listing large folders
bench_startup    from a command to the first step
bench_step       a training step: time, memory, operations
bench_store      the proposal store at ImageNet's size
bench_views      from a file's bytes to normalised views
plain_step       a training step as one would write it straight from the paper, on the same modules as ours
plain_views      views as one writes them straight from the paper
timing           ways timed in turns, memory of a process of its own, and the record that is kept
"""
