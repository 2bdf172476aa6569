"""A run: its folder, record, log, checkpoints, processes, and how they are started and fed.

checkpoint  a run's state on disk, written whole; the newest sound one, the same for every process
files       written whole or not at all; a full disk in one sentence
folder      run folders: run.json, log.jsonl, metrics.json
launch      from a run folder to processes: one, torchrun, SLURM; MODULES says which kind of run is whose
loader      batches for a run: shared memory, workers that die or deliver nothing
locks       file locks: who works in a folder
log         rows of a pretraining's log; collapsed, or healthy?
machine     cores, memory, the parent process
processes   this process among the others: device, collectives, agreement, waiting
recompute   stages of a network that backward computes again: less memory, more time
reasons     what an error says in one line
records     a run's state, cost and provenance; the small copies that git tracks
session     how a process of a run starts, stops and ends
settings    settings from YAML: a text, a parameter file, changes on top of it
slurm       a job, requeued when preempted
stop        requests to stop: Ctrl-C, SIGTERM, a closed terminal
"""
