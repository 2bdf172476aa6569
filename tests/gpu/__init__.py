"""What `make check-gpu` checks and times.

__main__  the command
check     Does this machine compute what the book says, and how fast?
checks    Does this device compute what the method says? Checks in one process
group     Do several processes compute what one does, and live through what happens to them? NCCL on all visible GPUs
speed     How fast this device makes the paper's step, what memory that takes, and what holds it up
"""
