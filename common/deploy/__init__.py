"""Uses trained detectors: loads them, scores folders of images, and exports them as programs."""
