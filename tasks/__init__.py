"""Computing and IO for one slide, one block, one seam or one shard; the order of the folders is in `[tool.importlinter]`.

Imports go down only:

    steps                            the Prefect tasks
    folder, plan, stitch, report     what is done to folders, runs, seams and results; from here on no Prefect, no Dask
    segment, labels, store, run      blocks, their labels, the OME-Zarr store, the files of a run
    segmenters, pixels, slides       pixels in, labels out
    settings, grid, errors           stdlib, numpy and pydantic only
"""
