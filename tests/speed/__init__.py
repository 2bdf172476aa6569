"""Benchmarks, and the plain formulations that they compare with.

bench            `make bench`
bench_proposals  Selective search: seconds an image of one core, and what they buy
bench_readers    bench-readers
bench_startup    bench-startup
bench_step       bench-step
bench_store      The proposal store at ImageNet's size
bench_views      bench-views
plain_step       A training step as one would write it straight from the paper, on the same modules as ours
plain_views      Views as one writes them straight from the paper
timing           What benchmarks share
"""
