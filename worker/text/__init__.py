"""Text: incremental segmentation and normalisation."""
