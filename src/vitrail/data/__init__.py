"""Data: from files on a disk to batches of uint8 pictures.

The way of a batch: `sources` (what there is) -> `scan` (what is wrong with it) -> `decode` (bytes
to pixels) -> `transforms` (augmentation) -> `loader` (batches) -> `mixup` (on the device).
Every random draw is a pure function of (seed, epoch, index): `draws`.
"""
