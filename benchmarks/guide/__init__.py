"""The measurements of the guide that slidesam grew from (its section 5), repeated on any image and device.

The guide cuts an image into chunks, segments each by itself with micro-sam and puts the labels beside each other. It compares
that with micro-sam alone, one tile after the other: time and number of objects per shape of tile (figures 1 and 2) and per size
of chunk (figures 3 and 4). `python -m benchmarks.guide --help` says how to repeat it; the modules are

    case         the image, the weights and the options that all methods share
    sequential   micro-sam alone, and the guide's way on it, in a process of its own
    ours         slidesam's flow, in a process of its own
    figures      figures 1 to 4
    seams        objects that chunks without overlap make too many, with `watershed`
    memory       peak memory per worker
    profile      where the time goes; needs neither Prefect nor Dask
    plots        draws all of them from JSON
"""
