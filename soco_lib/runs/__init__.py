"""A run: its folder, record, log, checkpoints, processes, and how they are started and fed.

checkpoint  a run's state on disk, written whole; the newest sound one, the same for every process
files       written whole or not at all; a full disk in one sentence
folder      run folders: run.json, log.jsonl, metrics.json
job         one run in a process of its own, as a study starts it
launch      from a run folder to processes: one, torchrun, SLURM; MODULES says which kind of run is whose
loader      feeding a run: shared memory, workers that die or starve
locks       who works in a folder
log         rows of a pretraining's log; collapsed, or healthy?
machine     cores, memory, the parent process
pool        several runs at a time on one machine
processes   this process among the others: device, collectives, agreement, waiting
recompute   stages of a network that backward computes again: less memory, more time
records     a run's state, cost and provenance; the small copies that git tracks
session     how a process of a run lives and ends
slurm       a job, requeued when preempted
"""
