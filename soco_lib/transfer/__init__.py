"""Fine-tuning and evaluation in Detectron2, and what its scores are made of.

__main__     the command: one process of a transfer
batches      how a batch is made up, which images are in it, the update
benchmarks   what a transfer is; the paper's benchmarks (benchmarks.yaml)
check_data   counts data sets against their known totals
compare      two runs against each other
datasets     COCO, LVIS and VOC sets
detectron    data in Detectron2's catalogues, and its config
errors       what a detector gets wrong, by kind
evaluate     scores
finetune     the loop, in Detectron2's trainer
layout       what every set has
make_lvis    makes a small LVIS set
make_subset  makes a set of some classes
predict      a fine-tuned run on new images
predictions  what was detected, beside the truth
run          a transfer from its run folder to its metrics
"""
