"""Two segmentations of one slide beside each other: what they share, scores, pictures."""
