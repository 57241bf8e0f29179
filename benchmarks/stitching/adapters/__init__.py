"""Adapters: each module's `stitch(case, out)` merges a case's blocks with one method, in that method's own way.

A module also names its `DISTRIBUTION` (None where the method is written out here), from which `__main__` takes the
version.
"""
