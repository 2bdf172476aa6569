"""Variants by seeds: what there is, what is missing, running it; the paper's numbers.

__main__  the command
estimate  How long runs will take
paper     The numbers the SoCo paper prints in Tables 1-10, read from `paper_tables.csv` beside this file
plans     What a study's runs are, which of them exist and in which state. Nothing is started or written here
prepare   The data that a study's pretrainings need and that can be made here
reproduce Every study that the claims at toy scale need, one after the other, each with its seeds
rerun     A tracked run once more, from nothing, and every number of both compared
runner    Running what is missing of a study
step_time Seconds of one training step on random images
study     What a study is
worth     Is it worth it on one's own data? A study that is made of arguments
"""
