"""The models. One file each, one face: images float [b c h w] in, logits [b k] out.

Dimensions, throughout the package: b batch, n tokens, d width, h heads (or height, beside w),
c channels, k classes.
"""
