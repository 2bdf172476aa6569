"""Checkpoints in, of this book and of others, and out; every key accounted for.

__main__    the command: export a pretraining's weights, convert a file of objects
export      weights out again: an encoder or a whole detector, in the names of other programs
foreign     weights of other methods and detectors under our names: one table of layouts, recognised by their keys
formats     files of tensors in any format, read without running code from them
key_report  what becomes of every key of a detector and of a file
load        pretrained weights into a detector, ours and other methods', with every key accounted for
names       what other programs call a detector's modules: tables of renames, read in both directions
"""
