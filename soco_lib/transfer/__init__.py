"""Fine-tuning and evaluation in Detectron2, and what its scores are made of.

    __main__      the command: one process of a transfer
    accumulation  how a batch is made up, which images are in it, the update
    benchmarks    what a transfer is; the paper's benchmarks (benchmarks.yaml)
    class_subset  makes a set of some classes
    comparison    two runs against each other
    data_check    counts data sets against their known totals
    detection     data in Detectron2's catalogues, and its config
    errors        what a detector gets wrong, by kind
    evaluation    scores
    finetune      the loop, in Detectron2's trainer
    layouts       COCO, LVIS and VOC sets
    lvis_sample   makes a small LVIS set
    predictions   what was detected, beside the truth
    work          a transfer from its run folder to its metrics
"""
