"""Segment one block: devices, attempts, labels."""
