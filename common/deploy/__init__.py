"""Trained detectors without their training: loaded, over a folder of images, as exported programs."""
