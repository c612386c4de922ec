"""auxdist: distributed training of AuxSegNet+, weakly supervised segmentation from image labels."""

__version__ = "0.1.0"
