"""Computing and IO for one slide, one block, one seam or one shard.

Layers, imports going down only:

    steps                                                            the Prefect tasks
    segment, stitch, overview, overlay, omezarr, provenance, work    one block, seam, shard or slide; no Prefect, no Dask
    slide, segmenters                                                pixels in, labels out; no Prefect, no Dask
    config, errors, grid                                             stdlib, numpy and pydantic only
"""
