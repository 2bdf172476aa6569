"""Where images and proposals come from.

annotations  COCO's and VOC's annotation files
archives     Images inside zip and tar files
decoding     Encoded images to pixels: the one reader of the book
doctor       What is odd about labels, and its repair
interchange  Proposals in and out of the JSON format of the authors' release (a command)
kinds        Kinds of oddities, and what becomes of each
listings     Long listings of images, kept
outlines     What is odd about boxes and masks, and its repair
pictures     What is odd about picture files; a set's whole check, kept
proposals    Object proposals
shards       Proposals of many images, in shards that any number of processes make and a rerun completes
sources      Images by what names them: folders, lists, archives, labelled sets
store        The proposals of a data set (a command)
"""
