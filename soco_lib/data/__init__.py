"""Where images and proposals come from.

annotations     COCO's and VOC's annotation files
archives        Images inside zip and tar files
decoding        Encoded images to pixels: the one reader of the book
doctor          What is odd about labels, and its repair
image_names     What files of proposals call the images of a set
interchange     Proposals in and out of other programs' files (a command)
kinds           Kinds of oddities, and what becomes of each
listings        Long listings of images, kept
outlines        What is odd about boxes and masks, and its repair
pickles         Pickles of numpy arrays, read without running code from them
pictures        What is odd about picture files; a set's whole check, kept
proposal_files  Files of proposals in the layouts of SoCo, AlignDet, COCO, Detectron2, MMDetection
proposals       Object proposals
rows            Rows of a .npy file that many processes read at once
shards          Proposals of many images, in shards that any number of processes make and a rerun completes
sources         Images by what names them: folders, lists, archives, labelled sets
store           The proposals of a data set (a command)
streams         JSON of any length, read element by element
"""
