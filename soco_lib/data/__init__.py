"""Where images and proposals come from.

annotations  COCO's and VOC's annotation files
archives     Images inside zip and tar files
decoding     Encoded images to pixels, whole or no larger than is needed
interchange  Proposals in and out of the JSON format of the authors' release
listings     Names of the images in a folder or archive, found once
proposals    Object proposals
shards       Proposals of many images, in shards that any number of processes make and a rerun completes
sources      Where images come from
store        The proposals of a data set
"""
